"""MovieLens (GroupLens): ratings, and films with title and genres.

    100K                  u.data: tabs; u.item: bars, Latin-1, a flag for each genre of u.genre
    1M, 10M               ratings.dat, movies.dat: double colons, genres between bars
    latest, 20M and later ratings.csv, movies.csv: commas, headers, genres between bars

Times are seconds. Text is UTF-8, or Latin-1 where it isn't.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mmrec_lmm.disk.hashing import hash_file
from mmrec_lmm.errors import DataError

from ..raw import RawData, Tallies
from .files import Files
from .lines import Cells, Interactions, Unusable, first_lines, read_items

GENRES = (
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama", "Fantasy",
    "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western",
)  # fmt: skip
RATINGS: Mapping[str, Cells] = {
    "u.data": Cells("\t", 4, (0, 1, 2, 3)),
    "ratings.dat": Cells("::", 4, (0, 1, 2, 3)),
    "ratings.csv": Cells(",", 4, (0, 1, 2, 3)),
}
FILMS = {"u.data": "u.item", "ratings.dat": "movies.dat", "ratings.csv": "movies.csv"}
HEADER = "userId,movieId,rating,timestamp"


def find(paths: Sequence[Path]) -> Files | None:
    """The files of a MovieLens folder; None if it is none."""
    named = {path.name: path for path in paths}
    ratings = [name for name in RATINGS if name in named]
    if "ratings.csv" in ratings and _header(named["ratings.csv"]) != HEADER:
        ratings.remove("ratings.csv")
    if not ratings:
        return None
    parts = {"ratings": [named[name] for name in ratings]}
    if (films := named.get(FILMS[ratings[0]])) is not None:
        parts["films"] = [films]
    return Files(parts)


def read(files: Files, *, strict: bool = False) -> RawData:
    """Ratings and films; counts what it skips by reason."""
    tallies = Tallies(strict=strict)
    path, interactions = files.parts["ratings"][0], Interactions(tallies)
    if len(files.parts["ratings"]) > 1:
        raise DataError(f"{path.parent}: expected one of {', '.join(RATINGS)}, got several; leave one in the folder")
    count = interactions.read(path, RATINGS[path.name], "seconds", header=path.suffix == ".csv")
    said, used, items = [f"{path.name}: MovieLens, {count:,} of user, item, rating, time in seconds"], [path], None
    if "films" in files.parts:
        films = files.parts["films"][0]
        items = read_items(
            films, Film(films.name), ("title", "categories"), interactions.items, tallies, header=films.suffix == ".csv"
        )
        said.append(f"{films.name}: {len(items):,} films with title and genres")
        used.append(films)
    return RawData(
        origin=path,
        interactions=interactions.table(),
        items=items,
        skipped=tallies.counts(),
        inputs={one.name: hash_file(one) for one in used},
        read=tuple(said),
        repaired=tallies.repaired.counts,
    )


@dataclass(frozen=True)
class Film:
    """Takes id, title and genres of a line of films."""

    file: str

    def __call__(self, line: bytes) -> Sequence[str]:
        if self.file == "u.item":
            cells = line.decode().rstrip("\r").split("|")
            if len(cells) != 5 + len(GENRES):
                raise Unusable(f"not {5 + len(GENRES)} cells")
            genres = [genre for genre, flag in zip(GENRES, cells[5:], strict=True) if flag == "1"]
            return [cells[0], cells[1], ", ".join(genres)]
        take = Cells("::", 3, (0, 1, 2)) if self.file == "movies.dat" else Cells(",", 3, (0, 1, 2), quoted=True)
        raw_id, title, names = take(line)
        return [raw_id, title, ", ".join(names.split("|")) if names != "(no genres listed)" else ""]


def _header(path: Path) -> str:
    return next(iter(first_lines(path, 1)), b"").decode("latin-1").strip()

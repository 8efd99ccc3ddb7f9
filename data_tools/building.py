"""Make a data set of what a source read: filters, ids, clean text, a split, and a manifest of all that was done.

Ids. Users count in order of first appearance; items too, unless the source has a catalog: then item i is row i of it,
and items without interactions keep their row. Only `core` removes items; those left are numbered in the same order.
Items that the metadata lacks stay, without content. The same inputs and options give the same bytes.
"""

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd

from mmrec_lmm.api import first_few
from mmrec_lmm.config.choices import SplitRule
from mmrec_lmm.data.splitting import TIMED, UNITS, draw_labels, time_units
from mmrec_lmm.disk.writing import write_json
from mmrec_lmm.errors import ConfigError, DataError
from mmrec_lmm.types import SPLITS

from .filtering import select
from .images.copying import Copied, copy_images
from .raw import RawData, Skipped
from .sources import read_folder
from .texts import clean_columns
from .writing import TEXT_COLUMNS, check_free, new_dataset, write_tables

MANIFEST = "manifest.json"
NOT_TEXT = ("image", "image_url", "price")  # columns that stay as they are


@dataclass(frozen=True)
class Report:
    """How a data set was made, as `manifest.json` holds it; `str` makes a summary for people."""

    name: str
    source: str  # the layout that was read
    users: int
    items: int
    interactions: int
    splits: Mapping[str, int]  # rows of train, valid, test
    split: str  # where the split comes from
    texts: Mapping[str, int]  # text column -> items with a value
    other_columns: Mapping[str, int]  # column that isn't among `text_fields` by default -> items with a value
    cleaned: Mapping[str, int]  # kind of fault -> texts
    features: Mapping[str, int]  # feature file -> items with a row
    images: int  # items with an image
    image_urls: int  # items with an address of an image
    images_missing: tuple[str, ...]  # raw ids of items whose image is named but not in the folder
    images_notes: tuple[str, ...]  # files that came near and weren't taken, or were ignored
    items_without_content: int
    items_without_interactions: int
    skipped: Mapping[str, Skipped]  # reason -> lines, rows or items that were never interactions
    repaired: Mapping[str, Skipped]  # reason -> lines that were taken, but not as they were written
    dropped: Mapping[str, int]  # reason -> interactions
    options: Mapping[str, object]  # what was asked for
    inputs: Mapping[str, str]  # hash of each file; of all images together, with their names
    read: tuple[str, ...]  # a line per file: what was taken of it
    versions: Mapping[str, str]

    def __str__(self) -> str:
        lines = [*self.read]
        lines += [f"skipped: {reason}: {skipped}" for reason, skipped in self.skipped.items()]
        lines += [f"repaired: {reason}: {skipped}" for reason, skipped in self.repaired.items()]
        lines += [f"interactions dropped: {_counts(self.dropped)}"] if self.dropped else []
        lines += [f"texts cleaned: {_counts(self.cleaned)}"] if self.cleaned else []
        lines += [
            f"split: {self.split}",
            f"{self.name}: {self.users:,} users, {self.items:,} items, {self.interactions:,} interactions "
            f"({_counts(self.splits)})",
            f"{self.images:,} images; texts: {_counts(self.texts) or 'none'}",
        ]
        if self.other_columns:
            fields = ",".join([*(name for name, count in self.texts.items() if count), *self.other_columns])
            lines.append(
                f"other columns: {_counts(self.other_columns)}; encoders read them by --text_fields=[{fields}]"
            )
        lines += [f"features: {_counts(self.features)}"] if self.features else []
        if self.images_missing:
            lines.append(
                f"{len(self.images_missing):,} images named but not found, of items {first_few(self.images_missing)}"
            )
        lines += self.images_notes
        if not all(self.splits.values()):
            empty = " and ".join(split for split, rows in self.splits.items() if not rows)
            cure = "try another --split" + (", or a smaller --core" if self.options.get("core") else "")
            lines.append(f"no rows of {empty}: a run needs some; {cure}")
        if self.items_without_content:
            lines.append(f"{self.items_without_content:,} items without content, kept")
        if self.items_without_interactions:
            lines.append(f"{self.items_without_interactions:,} items without interactions, kept")
        return "\n".join(lines)


def build_folder(
    folder: Path,
    out: Path,
    *,
    layout: str | None = None,
    category: str | None = None,
    strict: bool = False,
    core: int = 0,
    min_rating: float | None = None,
    split: SplitRule | None = None,
    split_seed: int = 0,
    raw_text: bool = False,
    force: bool = False,
) -> Report:
    """Make the data set `out` of the files in `folder`, by their layout; `sources` and `build` say the rest."""
    keep_apart(out, [folder])
    check_free(out.absolute(), out.name, force)  # now, not after minutes of reading
    source, raw = read_folder(folder, layout=layout, category=category, strict=strict)
    return build(
        raw, out, source=source, core=core, min_rating=min_rating, split=split, split_seed=split_seed,
        raw_text=raw_text, options={"category": category, "strict": strict}, force=force,
    )  # fmt: skip


def build(
    raw: RawData,
    out: Path,
    *,
    source: str,
    core: int = 0,
    min_rating: float | None = None,
    split: SplitRule | None = None,
    split_seed: int = 0,
    raw_text: bool = False,
    options: Mapping[str, object] | None = None,
    force: bool = False,
) -> Report:
    """Make the data set `out`, named by its folder, and return what was done, which `manifest.json` holds too.

    `min_rating` keeps ratings from it on; `core` = k keeps users and items with k interactions or more, as MMRec did
    with 5. `split` is one of splitting's rules, drawn from `split_seed`; without it the source's own split is kept, or
    MMRec's rule is drawn. `options` are recorded beside these.

    Raises DataError where no interaction is left, a rule needs what there isn't, or a given split lost one of its
    parts; ConfigError where `out` is in use, unless `force` replaces the data set there.
    """
    out = out.absolute()
    with new_dataset(out, name=out.name, force=force) as folder:
        users, items = (_coded(raw.interactions[column]) for column in ("user", "item"))
        ratings = _ratings(raw.interactions, min_rating)
        keep, dropped = select(
            users.codes.astype(np.int64), items.codes.astype(np.int64), ratings, min_rating=min_rating, core=core
        )
        if not keep.any():
            raise DataError(
                f"{raw.origin}: no interaction is left; dropped: {_counts(dropped)}; try a smaller --core or "
                "--min-rating"
            )
        user_ids, raw_users = _by_appearance(users, keep)
        item_ids, raw_items = _by_appearance(items, keep)
        table = raw.interactions.drop(columns=["user", "item"])[keep]
        if raw.catalog and raw.items is not None:
            chosen = raw.items.index if core < 2 else raw.items.index[raw.items.index.isin(raw_items)]
            item_ids, raw_items = chosen.get_indexer(raw_items)[item_ids], chosen
        labels, said = _labels(raw.origin, table, user_ids, item_ids, split, split_seed)

        content = None
        cleaned: dict[str, int] = {}
        copied: Copied | None = None
        without_content = 0
        if raw.items is not None:
            without_content = int((~raw_items.isin(raw.items.index)).sum())
            content = raw.items.reindex(raw_items, fill_value="")
            if not raw_text:
                content, cleaned = clean_columns(content, [one for one in map(str, content) if one not in NOT_TEXT])
            content, copied = _with_images(content, raw.images, folder)
        write_tables(
            folder,
            name=out.name,
            interactions=table.assign(userID=user_ids, itemID=item_ids, x_label=labels),
            raw_users=raw_users,
            raw_items=raw_items,
            items=content if content is not None and len(content.columns) else None,
        )
        columns = [] if content is None else list(map(str, content))
        report = Report(
            name=out.name,
            source=source,
            users=len(raw_users),
            items=len(raw_items),
            interactions=len(table),
            splits=dict(zip(SPLITS, np.bincount(labels, minlength=len(SPLITS)).tolist(), strict=True)),
            split=said,
            texts=_filled(content, [one for one in TEXT_COLUMNS if one in columns]),
            other_columns=_filled(content, [one for one in columns if one not in (*TEXT_COLUMNS, *NOT_TEXT)]),
            cleaned=cleaned,
            features={name: write(raw_items, folder / name) for name, write in raw.features.items()},
            images=_filled(content, ["image"]).get("image", 0),
            image_urls=_filled(content, ["image_url"]).get("image_url", 0),
            images_missing=copied.missing if copied else (),
            images_notes=copied.notes if copied else (),
            items_without_content=without_content,
            items_without_interactions=len(raw_items) - len(np.unique(item_ids)),
            skipped=raw.skipped,
            repaired=raw.repaired,
            dropped=dropped,
            options={
                "core": core, "min_rating": min_rating, "split": split, "split_seed": split_seed, "raw_text": raw_text,
                **(options or {}),
            },
            inputs={**raw.inputs, "images": copied.hash} if copied else raw.inputs,
            read=raw.read,
            versions={
                "mmrec-lmm": version("mmrec-lmm"), "python": platform.python_version(), "numpy": np.__version__,
                "pandas": pd.__version__,
            },
        )  # fmt: skip
        write_json(folder / MANIFEST, report)
    return report


def keep_apart(out: Path, inputs: Sequence[Path]) -> None:
    """Refuse to read from the folder that is replaced. DataError for an input that isn't there."""
    for path in inputs:
        if not path.exists():
            raise DataError(f"{path}: no such file or folder")
        if out.resolve() in (path.resolve(), *path.resolve().parents):
            raise ConfigError(
                f"{path}: expected a file outside {out}, which the new data set would replace; try another name for "
                "the data set"
            )


# Ids


def _coded(ids: pd.Series) -> pd.Categorical:
    """Raw ids as categories in order of appearance."""
    if isinstance(ids.dtype, pd.CategoricalDtype):
        return ids.array
    codes, distinct = pd.factorize(ids.to_numpy(object))
    return pd.Categorical.from_codes(codes, pd.Index(distinct, dtype=object))


def _by_appearance(ids: pd.Categorical, keep: np.ndarray) -> tuple[np.ndarray, pd.Index]:
    """Internal ids (n,) of the kept interactions, 0, 1, ... as they first appear; and the raw id of each."""
    codes, distinct = pd.factorize(ids.codes[keep])
    return codes.astype(np.int64), pd.Index(ids.categories[distinct], dtype=object)


# Ratings and labels


def _ratings(table: pd.DataFrame, min_rating: float | None) -> np.ndarray | None:
    """The ratings as numbers (N,), where a threshold needs them."""
    if min_rating is None:
        return None
    if "rating" not in table:
        raise ConfigError("--min-rating: expected interactions with ratings, got none with ratings; leave it out")
    ratings = pd.to_numeric(table["rating"], errors="coerce").to_numpy(float)
    if np.isnan(ratings).any():
        first = table["rating"].iloc[int(np.argmax(np.isnan(ratings)))]
        raise DataError(f"--min-rating: expected ratings that are numbers, got {first!r}")
    return ratings


def _labels(
    origin: Path | None, table: pd.DataFrame, users: np.ndarray, items: np.ndarray, rule: SplitRule | None, seed: int
) -> tuple[np.ndarray, str]:
    """The label (n,) of each interaction, and where it comes from."""
    if rule is None and "label" in table:
        labels = table["label"].to_numpy(np.int64)
        counts = np.bincount(labels, minlength=len(SPLITS))
        if not counts.all():
            shown = ", ".join(f"{split} {count:,}" for split, count in zip(SPLITS, counts, strict=True))
            raise DataError(
                f"{origin}: expected rows of train, valid and test in the split that the files bring, got {shown}; "
                "try --split ratio, which draws another"
            )
        return labels, "as the files have it"
    times = None
    if rule in TIMED:
        if "timestamp" not in table:
            raise ConfigError(f"--split {rule}: expected interactions with times, got none; try --split ratio")
        times = pd.to_numeric(table["timestamp"], errors="coerce").to_numpy()
        if np.isnan(times).any():
            raise DataError(f"--split {rule}: expected a time in each row, got {int(np.isnan(times).sum()):,} without")
        units = sorted({UNITS[unit] for unit in np.unique(time_units(times)) if unit >= 0})
        if len(units) > 1:
            raise DataError(f"--split {rule}: expected times in one unit, got {' and '.join(units)}; convert some")
    labels = draw_labels(rule or "ratio", users, items, times, seed)
    return labels, f"{rule}, drawn from seed {seed}" if rule else f"MMRec's rule, drawn from seed {seed}"


# Images


def _with_images(content: pd.DataFrame, images: Path | None, folder: Path) -> tuple[pd.DataFrame, Copied | None]:
    """The items with the images that are there, which are copied to the data set."""
    if images is None:  # names are useless without the folder of images
        return (content.assign(image="") if "image" in content else content), None
    named = dict(zip(content.index, content["image"], strict=True)) if "image" in content else None
    copied = copy_images(images, folder / "images", list(content.index), named)
    return content.assign(image=[copied.names.get(raw_id, "") for raw_id in content.index]), copied


# Counts


def _filled(content: pd.DataFrame | None, columns: Sequence[str]) -> dict[str, int]:
    """How many items have a value in each column."""
    return {
        column: int((content[column] != "").sum()) for column in columns if content is not None and column in content
    }


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items())

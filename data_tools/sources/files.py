"""The files of a layout, by the part that each plays."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mmrec_lmm.errors import DataError
from mmrec_lmm.types import SPLITS


@dataclass(frozen=True)
class Files:
    """Files by part, such as ratings, reviews, items."""

    parts: Mapping[str, Sequence[Path]]


def only(files: Files, part: str) -> Path:
    """The one file of a part; DataError where there are several."""
    paths = files.parts[part]
    if len(paths) > 1:
        raise DataError(
            f"{paths[0].parent}: expected one file of {part}, got {', '.join(path.name for path in paths)}; try "
            "--category TEXT, which takes the files whose name has TEXT"
        )
    return paths[0]


def split_of(path: Path) -> int | None:
    """The label of the split that a file's name says, as in X.train.csv; None if it says none."""
    return next((label for label, split in enumerate(SPLITS) if f".{split}." in path.name), None)


def each_split(files: Files) -> list[Path]:
    """The files of training, validation and test; DataError unless there is one of each."""
    paths = files.parts["splits"]
    by_label = {split_of(path): path for path in paths}
    if len(by_label) != len(SPLITS) or len(paths) != len(SPLITS):
        raise DataError(
            f"{paths[0].parent}: expected one file each of train, valid and test, got "
            f"{', '.join(path.name for path in paths)}; leave others out, or take some by name with --category TEXT"
        )
    return [by_label[label] for label in range(len(SPLITS))]

"""The layout of a data set on disk, and writing it: it appears complete or not at all.

    <name>.inter        tab-separated: userID itemID [rating timestamp] x_label; x_label 0 train, 1 valid, 2 test
    items.tsv           itemID, raw_id, text columns (title brand categories description, others kept), image
    images/             the files that items.tsv names: `image` is a path relative to this folder, empty where none
    u_id_mapping.csv    user_id userID   (tab-separated in spite of the name, as in MMRec)
    i_id_mapping.csv    asin itemID

Text tables are UTF-8 with Unix line ends and CSV quoting; row i of items.tsv is item i.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pandas as pd

from mmrec_lmm.cache import holding, new_folder, restore_folder
from mmrec_lmm.errors import ConfigError, RunBusy

TEXT_COLUMNS = ("title", "brand", "categories", "description")
IMAGES_LOCK = ".images.tsv.lock"  # within a data set: held by the process that adds images


@contextmanager
def new_dataset(folder: Path, *, name: str, force: bool = False) -> Iterator[Path]:
    """A temporary folder beside `folder`, renamed to it when the block succeeds and removed when it fails.

    Raises ConfigError where `folder` is in use: `force` replaces a data set (with everything in it), but never any
    other folder with content. Raises RunError where the disk is full, RunBusy where another process adds images to the
    older data set.
    """
    folder = folder.resolve()  # where a link points, else the link would be replaced
    check_free(folder, name, force)
    with ExitStack() as replacing:

        def check() -> None:
            check_free(folder, name, force)  # another process may have been quicker
            if folder.is_dir() and any(folder.iterdir()):
                try:
                    replacing.enter_context(holding(folder / IMAGES_LOCK, wait=False))
                except BlockingIOError:
                    raise RunBusy(f"{folder}: another process adds images to this data set; wait for it") from None

        with new_folder(folder, check=check) as building:
            yield building


def write_tables(
    folder: Path,
    *,
    name: str,
    interactions: pd.DataFrame,
    raw_users: Sequence[str] | pd.Index,
    raw_items: Sequence[str] | pd.Index,
    items: pd.DataFrame | None,
) -> None:
    """Write all files but the images into `folder`.

    `interactions` has userID, itemID and x_label as internal ids, and any of rating and timestamp; `raw_users` and
    `raw_items` hold the raw id of internal id i at place i; `items` (row i is item i, whatever its index) has text
    columns and `image`.
    """
    columns = [c for c in ("userID", "itemID", "rating", "timestamp", "x_label") if c in interactions.columns]
    write_table(folder / f"{name}.inter", interactions.sort_values(["userID", "x_label"], kind="stable")[columns])
    write_table(folder / "u_id_mapping.csv", pd.DataFrame({"user_id": raw_users, "userID": range(len(raw_users))}))
    write_table(folder / "i_id_mapping.csv", pd.DataFrame({"asin": raw_items, "itemID": range(len(raw_items))}))
    if items is not None:
        rest = items.drop(columns="image", errors="ignore").reset_index(drop=True)
        image = items["image"].to_numpy() if "image" in items else ""
        ids = pd.DataFrame({"itemID": range(len(raw_items)), "raw_id": raw_items})
        write_table(folder / "items.tsv", ids.join(rest).assign(image=image))


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Write `table` tab-separated with a header, each row on one line: a line break within a cell becomes a blank."""
    text = table.select_dtypes(exclude="number").columns
    table = table.assign(**{name: table[name].replace(r"[\r\n]+", " ", regex=True) for name in text})
    table.to_csv(path, sep="\t", index=False, lineterminator="\n", encoding="utf-8")


def check_free(folder: Path, name: str, force: bool) -> None:
    """Raise ConfigError where a folder is in use, as `new_dataset` does."""
    restore_folder(folder)
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not (folder / f"{name}.inter").is_file():
        raise ConfigError(
            f"{folder}: expected a new folder or a data set named {name}, got other files, which are left alone; "
            "try another folder"
        )
    if not force:
        raise ConfigError(
            f"{folder}: expected a new folder, got a data set that exists already; try another folder, or --force"
        )

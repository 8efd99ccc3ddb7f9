"""What a data set's folder holds, counted for listings: nothing is hashed, decoded or split."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..config.settings import Settings
from ..disk.reading import is_there
from ..errors import DataError
from .arrays import check_header
from .loading import NOT_TEXT, inter_file, items_table, read_interactions
from .tables import first_cells


@dataclass(frozen=True)
class Overview:
    """The counts of a data set. `images` and `texts` are items that have one, None without a catalog."""

    users: int
    items: int
    interactions: int
    images: int | None
    texts: int | None
    features: dict[str, int]  # modality -> width of the data set's own file
    timestamps: bool


def overview(folder: Path, name: str, settings: Settings) -> Overview:
    """Count a data set. Raises DataError where its tables can't be read."""
    inter = inter_file(folder, name, settings)
    users, items, _, _ = read_interactions(inter, settings)
    if not len(users):
        raise DataError(f"{inter}: expected rows, got only a header")
    n_items, images, texts = int(items.max()) + 1, None, None
    if is_there(folder / "items.tsv"):
        table = items_table(folder / "items.tsv")
        n_items = len(table)
        there = {str(path.relative_to(folder / "images")) for path in (folder / "images").rglob("*")}
        images = sum(image in there for image in table["image"]) if "image" in table else 0
        fields = [table[column] != "" for column in table.columns if column not in NOT_TEXT]
        texts = int(np.logical_or.reduce(fields).sum()) if fields else 0
    named = {"image": settings.vision_feature_file, "text": settings.text_feature_file}
    header = first_cells(inter, separator=settings.field_separator)
    return Overview(
        users=int(users.max()) + 1,
        items=n_items,
        interactions=len(users),
        images=images,
        texts=texts,
        features={modality: width for modality, file in named.items() if (width := _width(folder / file))},
        timestamps=settings.TIME_FIELD.partition(":")[0] in {column.partition(":")[0] for column in header},
    )


def _width(path: Path) -> int:
    """The columns of an .npy file; 0 without one. Only its header is read."""
    if not is_there(path):
        return 0
    shape = check_header(path)
    if len(shape) != 2:
        raise DataError(f"{path}: expected rows of features, got an array of shape {shape}")
    return shape[1]

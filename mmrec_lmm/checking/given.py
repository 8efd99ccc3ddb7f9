"""The files that `data audit` reads: item features and user profiles as .npy, graphs as .npz of scipy.sparse.

Shapes: I items, U users, D width.
"""

import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from scipy import sparse

from ..data.arrays import CURE, open_npy
from ..disk.reading import check_file
from ..errors import DataError
from ..features.files import read_feature_file
from ..formatting import first_line
from ..types import Dataset
from .audit import Matrix, Side

LARGEST_GRAPH = 8 << 30  # bytes of its arrays in memory
_ARRAYS = {"format.npy", "shape.npy", "data.npy"}  # of any that scipy.sparse.save_npz writes


def given_files(
    dataset: Dataset, *, features: Mapping[str, Path], graphs: Sequence[Path], profiles: Sequence[Path]
) -> Iterator[tuple[str, tuple[Side, Matrix]]]:
    """The name, side and content of each file, in memory. DataError names one that can't be read, or fits nothing."""
    for modality, path in features.items():
        table = read_feature_file(path, modality=modality, n_items=dataset.n_items)
        yield f"{modality}: {path}", ("item", table.values)
    for path in graphs:
        yield str(path), _sided(read_graph(path), path, dataset)
    for path in profiles:
        yield str(path), ("user", read_profiles(path, dataset.n_users))


def read_profiles(path: Path, n_users: int) -> np.ndarray:
    """The profiles (U, D) in a .npy file, row u of user u."""
    values = open_npy(path)
    if values.ndim != 2 or values.dtype.kind not in "fiu" or len(values) != n_users:
        raise DataError(
            f"{path}: expected numbers of shape ({n_users}, width), row u for user u, got {values.dtype} of shape "
            f"{values.shape}"
        )
    found = np.asarray(values, dtype=np.float32)
    if not np.isfinite(found).all():
        raise DataError(f"{path}: expected finite numbers, got NaN or infinity; {CURE}")
    return found


def read_graph(path: Path) -> sparse.csr_array:
    """The sparse matrix in a .npz file. Pickles are refused, and so is an archive larger than LARGEST_GRAPH."""
    check_file(path, CURE)
    expected = f"{path}: expected a graph as scipy.sparse.save_npz writes it"
    try:
        with zipfile.ZipFile(path) as archive:
            sizes = {entry.filename: entry.file_size for entry in archive.infolist()}
        if not sizes.keys() >= _ARRAYS:
            raise DataError(f"{expected}, got an archive of {', '.join(sorted(sizes)[:5]) or 'nothing'}")
        if sum(sizes.values()) > LARGEST_GRAPH:
            raise DataError(f"{expected}, of at most {LARGEST_GRAPH >> 30} GiB, got {sum(sizes.values()) >> 30} GiB")
        found = sparse.csr_array(sparse.load_npz(path))
    except (OSError, ValueError, KeyError, TypeError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{expected}, got {first_line(error)}; {CURE}") from None
    if found.dtype.kind not in "fiub" or not np.isfinite(found.data).all():
        raise DataError(f"{path}: expected finite numbers as weights, got NaN, infinity or {found.dtype}")
    return sparse.csr_array(found, dtype=np.float64)


def _sided(graph: sparse.csr_array, path: Path, dataset: Dataset) -> tuple[Side, Matrix]:
    """What a graph links, by its shape. One of users and items together is taken apart."""
    users, items = dataset.n_users, dataset.n_items
    if graph.shape == (users + items, users + items):
        graph = sparse.csr_array(graph[:users, users:] + graph[users:, :users].T)
    elif graph.shape == (items, users) and users != items:
        graph = sparse.csr_array(graph.T)
    sides: dict[tuple[int, ...], Side] = {(users, items): "both", (users, users): "user", (items, items): "item"}
    if graph.shape not in sides:
        raise DataError(
            f"{path}: expected a graph of {items:,} items, of {users:,} users, or of both, got the shape {graph.shape}"
        )
    return sides[graph.shape], graph

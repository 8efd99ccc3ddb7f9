"""The folder that a model file takes for its data set's: links to the files there, and room for its own caches.

MMRec's models write graphs of items beside the data, under names with no trace of the features. Here the folder's name
is a hash of features, training rows and code, so another encoder's graph is never read:

    <home>/mmrec/<hash>/<data set>/     links; *.pt of the file's own; user_graph_dict.npy, made on demand

Shapes: N nodes (users or items), D features.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from os import PathLike
from pathlib import Path
from shutil import rmtree
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..cache import fingerprint, home
from ..disk.locks import locked
from ..disk.writing import write_atomic
from ..types import TrainingData
from .scope import having

FOLDER = "mmrec"  # in the cache folder
NEIGHBORS = 200  # of a node in a graph file, at most
_BUILDING = ".building"  # there while a model is constructed
_BLOCK = 2048  # rows of co-occurrences at once


class DataFolder:
    """The folder of one data set for one file's code and one set of features."""

    def __init__(
        self, data: TrainingData, features: Mapping[str, Tensor], code: str, dataset: str, device: torch.device
    ) -> None:
        tables = {modality: table.detach().cpu().numpy() for modality, table in features.items()}
        of_data = [data.n_users, data.n_items, data.train.users, data.train.items]
        kind = [device.type] if device.type != "cpu" else []  # a saved graph is loaded to where it was
        self.root = home() / FOLDER / fingerprint([of_data, tables, code, *kind])[:16]
        self.path = self.root / dataset
        self._data, self._tables, self._device = data, tables, device

    @contextmanager
    def constructing(self, source: Path | None, own: Mapping[str, str], *, reads_features: bool) -> Iterator[None]:
        """A context in which a model is constructed, which may read and write caches; one process at a time.

        Files of `source`, the data set's folder, are linked, but for `own`, its feature files by modality: if the model
        file reads such a file itself, it gets the run's features. What a killed process left half written is removed.
        """
        with locked(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            marker = self.path / _BUILDING
            if marker.exists():
                for path in self.path.iterdir():
                    _remove(path)
            marker.touch()
            for modality, name in own.items() if reads_features else ():
                if modality in self._tables and not (self.path / name).exists():
                    self._save(name, self._tables[modality])
            self._link(source, {*own.values()})
            with having(torch, "load", self._load):
                yield
            marker.unlink()

    def _link(self, source: Path | None, own: set[str]) -> None:
        for file in sorted(source.iterdir()) if source is not None and source.is_dir() else ():
            place = self.path / file.name
            skipped = file.suffix in (".pt", ".pth", ".lock") or file.name.startswith(".") or file.name in own
            if skipped or not file.is_file() or re.fullmatch(r"(user|item)_graph_dict.*\.npy", file.name):
                continue
            place.unlink(missing_ok=True)
            place.symlink_to(file.resolve())

    def _load(self, f: Any, *arguments: Any, **named: Any) -> Any:
        """torch.load as it was before 2.6: with any objects, but only from files that the model file's code wrote.
        What was on a GPU is loaded to the run's device."""
        place = Path(f) if isinstance(f, str | PathLike) else None
        own = place is not None and not place.is_symlink() and place.resolve().is_relative_to(self.path.resolve())
        as_before = {"weights_only": False} | ({} if arguments else {"map_location": self._place}) if own else {}
        return torch.serialization.load(f, *arguments, **as_before | named)

    def _place(self, storage: Any, location: str) -> Any:
        return torch.serialization.default_restore_location(
            storage, location if location == "cpu" else str(self._device)
        )

    def make_graph(self, name: str, *, of_items: bool) -> None:
        """Write the graph file `name`, unless it is there: {node: [neighbors, counts]} by how often two users share an
        item, or two items a user; the largest counts first, at most NEIGHBORS."""
        if (self.path / name).exists() or "/" in name:
            return
        users, items = self._data.train.users, self._data.train.items
        rows, columns = (items, users) if of_items else (users, items)
        sizes = self._data.n_users, self._data.n_items
        self._save(name, co_occurrences(rows, columns, sizes[::-1] if of_items else sizes), pickled=True)

    def _save(self, name: str, content: Any, *, pickled: bool = False) -> None:
        self.path.mkdir(parents=True, exist_ok=True)

        def write(place: Path) -> None:
            with place.open("wb") as file:
                np.save(file, np.array(content, dtype=object) if pickled else content, allow_pickle=pickled)

        write_atomic(self.path / name, write)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        rmtree(path)
    else:
        path.unlink()


def co_occurrences(rows: np.ndarray, columns: np.ndarray, shape: tuple[int, int]) -> dict[int, list[list[Any]]]:
    """For each node the nodes with which it shares columns, and how many: the most first, then lower numbers."""
    from scipy.sparse import csr_matrix

    matrix = csr_matrix((np.ones(len(rows), np.float32), (rows, columns)), shape=shape)
    matrix.data[:] = 1  # a pair that occurs twice is one
    transpose, found = matrix.T.tocsr(), {}
    for start in range(0, shape[0], _BLOCK):
        shared = (matrix[start : start + _BLOCK] @ transpose).tocoo()
        nodes, others, counts = shared.row + start, shared.col, shared.data
        apart = nodes != others
        nodes, others, counts = nodes[apart], others[apart], counts[apart]
        order = np.lexsort((others, -counts, nodes))
        nodes, others, counts = nodes[order], others[order], counts[order]
        bounds = np.searchsorted(nodes, np.arange(start, min(start + _BLOCK, shape[0]) + 1))
        for node, (first, last) in enumerate(pairwise(bounds), start=start):
            last = min(last, first + NEIGHBORS)
            found[node] = [others[first:last].tolist(), counts[first:last].tolist()]
    return found

"""ItemFeatures: the features that a model reads, frozen or joint.

Whether an encoder is trained with the recommender is a property of this object, not of the model: a model file has no
branch for it. Frozen features are constants; joint features are leaves that collect the gradient of the loss, which
the trainer hands to the encoder.

`project` and `distinct` are what models do with features in every step.

Shapes: I items, D feature width of a modality, R rows.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..types import FeatureTable

_BLOCK_ROWS = 256  # of a product with wide features, in which a processor's cache holds the rows and the sum


class ItemFeatures:
    """Feature tables by modality. `features()` gives {"image": (I, D), ...}: live, so call it at every use."""

    def __init__(self, tables: Mapping[str, Tensor], present: Mapping[str, Tensor], *, joint: bool = False) -> None:
        self.joint = joint
        self.version = 0
        self.present: dict[str, Tensor] = dict(present)  # modality -> (I,) bool
        self._tables = {modality: table.detach() for modality, table in tables.items()}
        self._memo: dict[str, tuple[int, Any]] = {}
        self._buffers: dict[str, Tensor] = {}
        if joint:
            self._tables = {modality: table.clone().requires_grad_() for modality, table in self._tables.items()}

    @classmethod
    def from_tables(
        cls, tables: Mapping[str, FeatureTable], device: torch.device | str = "cpu", *, joint: bool = False
    ) -> "ItemFeatures":
        """Feature tables on `device`; frozen ones share memory with the arrays where that is possible."""
        values = {name: torch.as_tensor(table.values, device=device) for name, table in tables.items()}
        present = {name: torch.as_tensor(table.present, device=device) for name, table in tables.items()}
        return cls(values, present, joint=joint)

    def __call__(self) -> dict[str, Tensor]:
        return dict(self._tables)

    def rows(self, items: Tensor) -> dict[str, Tensor]:
        """The features of some items: {"image": (R, D), ...} for `items` (R,).

        Frozen rows are in a buffer that the next call overwrites: at 4,096 numbers a row, new memory for every batch
        would cost more time than the arithmetic on it.
        """
        if self.joint:
            return {modality: table.index_select(0, items) for modality, table in self._tables.items()}
        return {modality: self._gather(modality, items) for modality in self._tables}

    def _gather(self, modality: str, items: Tensor) -> Tensor:
        table = self._tables[modality]
        buffer = self._buffers.get(modality)
        if buffer is None or len(buffer) < len(items):
            size = max(len(items), min(2 * len(items), len(table)))  # room to grow, at most for all items once
            buffer = self._buffers[modality] = table.new_empty(size, table.shape[1])
        return torch.index_select(table, 0, items, out=buffer[: len(items)])

    def __iter__(self) -> Iterator[str]:
        return iter(self._tables)

    def __len__(self) -> int:
        return len(self._tables)

    @property
    def modalities(self) -> tuple[str, ...]:
        return tuple(self._tables)

    @property
    def dims(self) -> dict[str, int]:
        return {modality: table.shape[1] for modality, table in self._tables.items()}

    def derived(self, name: str, fn: Callable[[], Any], *, differentiable: bool = True) -> Any:
        """A value that depends on features alone, computed by `fn` no more often than needed.

        Frozen: once. Joint: at every call, so gradient flows through `fn`; or, where `differentiable` is false
        (an item graph), without gradient and once per `version`, which full refreshes raise.
        """
        if self.joint and differentiable:
            return fn()
        known = self._memo.get(name)
        if known is None or known[0] != self.version:
            with torch.no_grad():
                known = self._memo[name] = (self.version, fn())
        return known[1]

    @torch.no_grad()
    def refresh(self, modality: str, rows: Tensor, values: Tensor, *, partial: bool = False) -> None:
        """Write `values` (R, D) into joint features at items `rows` (R,); absent items stay zero.

        `partial` marks a refresh of the few rows that one step of an encoder changes. Values derived without gradient
        are then kept until the next full refresh: a new item graph at each step would cost more than the step.
        """
        self._tables[modality][rows] = values * self.present[modality][rows].unsqueeze(1)
        self.version += not partial


def project(features: Tensor, weight: Tensor) -> Tensor:
    """features @ weight.T (R, K) for features (R, D), frozen or joint, and a weight (K, D), where K is far below D.

    `features @ weight.T` has the same values and gradients up to rounding, but on one thread of a CPU its products of
    such shapes take a third longer.
    """
    return _Projection.apply(features, weight)


class _Projection(torch.autograd.Function):
    """dW = G' F is the sum over blocks of rows; dF = G W."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(features, weight)
        return features @ weight.T.contiguous()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        features, weight = ctx.saved_tensors
        of_features = gradient @ weight if ctx.needs_input_grad[0] else None
        of_weight = None
        if ctx.needs_input_grad[1]:
            size = _block_rows(features)
            of_weight = torch.zeros_like(weight)
            for rows, step in zip(features.split(size), gradient.split(size), strict=True):
                of_weight.addmm_(step.T, rows)
        return of_features, of_weight


def _block_rows(features: Tensor) -> int:
    """Blocks gain on one thread alone: several would wait for each other after each."""
    return _BLOCK_ROWS if features.device.type == "cpu" and torch.get_num_threads() == 1 else max(1, len(features))


def distinct(ids: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The distinct `ids` (R,), where in them each of `ids` (B,) is, and how often each occurs (R,), as computing each
    once is cheaper. On a GPU `ids` itself and None twice: there, the host would wait for the number of distinct ones.
    """
    if ids.device.type != "cpu":
        return ids, None, None
    found: tuple[Tensor, Tensor, Tensor] = ids.unique(return_inverse=True, return_counts=True)
    return found

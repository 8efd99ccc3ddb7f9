"""What a plugin implements: a Recommender, or an ItemEncoder.

A model and an encoder never meet: the model sees feature tables, the encoder sees items, and the host keeps the
table between them. That is why every encoder serves every model, frozen or trained with it.

Shapes: B batch, U users, I items, D embedding.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from ..types import Batch, RawItem, TrainingData
from .item_features import ItemFeatures

Scorer = Callable[[Tensor], Tensor]
"""User ids (B,) -> scores (B, n_items), in the state that the model had when `scorer()` was called."""


class Recommender(nn.Module, ABC):
    """A model that learns from (user, positive, negative) rows and ranks all items.

    Constructed as `cls(data, features, config)`: `data` is the TrainingData, `features` the live ItemFeatures
    (keep it, and call it at every use: end-to-end training refreshes it), `config` the frozen dataclass of the
    spec's schema. Weights and dropout draw from torch's default generator, which the host seeds and saves.
    """

    def __init__(self, data: TrainingData, features: ItemFeatures, config: Any) -> None:
        super().__init__()
        self.n_users, self.n_items = data.n_users, data.n_items
        self.features = features
        self.config = config

    def on_epoch_start(self, epoch: int) -> None:
        """Called before the first batch of each epoch; rebuild here what an epoch keeps fixed."""

    @abstractmethod
    def training_loss(self, batch: Batch) -> Mapping[str, Tensor]:
        """Named scalar terms; the trainer sums, logs and checks each."""

    @abstractmethod
    def scorer(self) -> Scorer:
        """Propagate once from current parameters, in eval mode; the result scores any users against all items."""

    def vectors(self) -> tuple[Tensor, Tensor] | None:
        """For a dot-product model, what `scorer` multiplies: (n_users, D), (n_items, D); the evaluator reuses its
        buffers then. None for any other model."""
        return None


class DotProduct(Recommender):
    """A Recommender whose score is the dot product of a user's and an item's vector: define `vectors`, get `scorer`."""

    @abstractmethod
    def vectors(self) -> tuple[Tensor, Tensor]:
        """All users' and all items' vectors from current parameters: (n_users, D), (n_items, D)."""

    def scorer(self) -> Scorer:
        users, items = self.vectors()
        return lambda ids: users[ids] @ items.T  # (B, n_items)


class ItemEncoder(nn.Module, ABC):
    """Turns an item's image and text into one feature vector per modality.

    Constructed as `cls(config, modalities)`; it encodes just these modalities.
    """

    dims: Mapping[str, int]  # {"image": 512, "text": 512}: one entry per modality encoded
    padding: Mapping[str, int] = {}  # pad value of each 1-D tensor of `prepare` whose length varies; 0 if not named

    @abstractmethod
    def prepare(self, item: RawItem) -> dict[str, Tensor]:
        """One item to tensors, on the CPU, inside loader workers. Always the same keys; shapes are equal for all
        items, except that 1-D integer tensors may vary in length (the host pads them within a batch)."""

    @abstractmethod
    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """(B, dims[m]) float32 for each modality, from the stacked tensors of `prepare`."""

    def tuning_losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The losses with which the encoder's authors tune it (ITC, ITM, MLM); {} if it has none.

        Scalars, the first of them called itc. Processes of torchrun each hold some rows of a batch, and return a share
        of each loss: shares add up to the whole batch's (`losses.symmetric_info_nce`, `api.gathered`).
        """
        return {}

    @classmethod
    def is_tunable(cls, config: Any) -> bool:
        """Whether an encoder of this configuration has `tuning_losses`, without building it: by default, whether its
        class defines them."""
        return cls.tuning_losses is not ItemEncoder.tuning_losses

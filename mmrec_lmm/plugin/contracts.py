"""The classes that a plugin implements: a Recommender, a Sampler, an ItemEncoder, or a Paradigm.

A model and an encoder never meet: the model sees feature tables, the encoder sees items, and the host keeps the
table between them. So every encoder works with every model, frozen or trained with it.

Shapes: B batch, U users, I items, D embedding.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..errors import NotApplicable, PluginError
from ..types import Batch, Inputs, ItemCatalog, RawItem, RunSpec, TrainingData, Tuned
from .item_features import ItemFeatures

if TYPE_CHECKING:
    from .registry import Registry

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

    @classmethod
    def for_run(cls, run: RunSpec, data: TrainingData, features: ItemFeatures, device: torch.device) -> "Recommender":
        """A run's model, which the host then moves to `device`. By default of the run's `model_config` alone; for a
        model that needs more of the run."""
        return cls(data, features, run.model_config)

    def on_epoch_start(self, epoch: int) -> None:
        """Called before the first batch of each epoch; rebuild here what an epoch keeps fixed."""

    def on_epoch_end(self, epoch: int) -> None:
        """Called after the last batch of each epoch, before any evaluation."""

    @abstractmethod
    def training_loss(self, batch: Batch) -> Mapping[str, Tensor]:
        """Named scalar terms; the trainer sums, logs and checks each."""

    @abstractmethod
    def scorer(self) -> Scorer:
        """Propagate once from current parameters, in eval mode; the result scores any users against all items."""

    def vectors(self) -> tuple[Tensor, Tensor] | None:
        """The vectors that `scorer` multiplies, (n_users, D) and (n_items, D), for a dot-product model: the evaluator
        then reuses its buffers. None for any other model."""
        return None

    def parameter_groups(self) -> Sequence[Mapping[str, Any]]:
        """The groups in which parameters are optimized, as torch's optimizers take them: `params`, which together are
        all parameters, each once; options of the learner, such as `weight_decay`; and `rate_factor`, a factor of the
        learning rate, 1 if it isn't there. Called once, before training. By default one group."""
        return [{"params": list(self.parameters())}]

    def rate_factor(self, epoch: float) -> float:
        """A factor of the learning rate of the next step, beside `learning_rate_scheduler`. `epoch` counts the done
        steps, in epochs: 2.5 is in the middle of the third. It depends on nothing else, so a run that resumes has the
        same rates."""
        return 1.0

    def report(self) -> Any:
        """For the run's record, a mapping or a dataclass that JSON can hold; called once, after the last ranking."""
        return {}


def check_model_class(model_class: Any, *, owner: str) -> None:
    """Raise PluginError, which begins with `owner`, for what can't be a run's model."""
    if not isinstance(model_class, type) or not issubclass(model_class, Recommender):
        raise PluginError(f"{owner}: expected a subclass of Recommender, got {model_class!r}")
    lacking = sorted(model_class.__abstractmethods__)
    if lacking:
        cure = "; try DotProduct, which makes it from `vectors`" if "scorer" in lacking else ""
        raise PluginError(f"{owner}: expected a class that defines {', '.join(lacking)}, got one that lacks it{cure}")


def device_of(model: Recommender) -> torch.device:
    """The device of a model's parameters; of its buffers or features, if it has none; else the CPU."""
    tensor = next(chain(model.parameters(), model.buffers()), None)
    if tensor is None:
        tensor = next(iter(model.features().values()), torch.empty(0))
    return tensor.device


class ParameterFree(Recommender):
    """A Recommender that is built from its data alone: it has no parameters, so nothing trains it.

    The host evaluates it once. What its scores need are buffers; those that follow from the data are
    `persistent=False`, as no checkpoint has to hold them.
    """

    def training_loss(self, batch: Batch) -> Mapping[str, Tensor]:
        """Never called by the host."""
        return {}


class DotProduct(Recommender):
    """A Recommender whose score is the dot product of a user's and an item's vector: define `vectors`, get `scorer`."""

    @abstractmethod
    def vectors(self) -> tuple[Tensor, Tensor]:
        """All users' and all items' vectors from current parameters: (n_users, D), (n_items, D)."""

    def scorer(self) -> Scorer:
        users, items = self.vectors()
        return lambda ids: users[ids] @ items.T  # (B, n_items)


class Sampler(ABC):
    """Draws negative items for users.

    Constructed as `cls(data, config)`: `data` is the TrainingData, `config` the frozen dataclass of the spec's schema.
    """

    redraws = False  # True: where the user has the item in training, the host draws again, with a bound

    def __init__(self, data: TrainingData, config: Any) -> None:
        self.data, self.config = data, config

    @abstractmethod
    def draw(self, users: Tensor, generator: torch.Generator) -> Tensor:
        """One item (R,) int64 for each of `users` (R,), both on the CPU; a user may occur many times.

        `generator`, which the host seeds and saves, is the only source of randomness, and nothing else is kept from
        call to call: a run that resumes draws the same.
        """


def check_sampler_class(sampler_class: Any, *, owner: str) -> None:
    """Raise PluginError, which begins with `owner`, for what can't be a run's sampler."""
    if not isinstance(sampler_class, type) or not issubclass(sampler_class, Sampler):
        raise PluginError(f"{owner}: expected a subclass of Sampler, got {sampler_class!r}")
    if sampler_class.__abstractmethods__:
        raise PluginError(f"{owner}: expected a class that defines draw, got one that lacks it")


class ItemEncoder(nn.Module, ABC):
    """Turns an item's image and text into one feature vector per modality.

    Constructed as `cls(config, modalities)`; it encodes just these modalities.
    """

    dims: Mapping[str, int]  # {"image": 512, "text": 512}: one entry per modality encoded
    padding: Mapping[str, int] = {}  # pad value of each 1-D tensor of `prepare` whose length varies; 0 if not named
    max_characters: int = 100_000  # of a text: the host cuts longer ones, so no tokenizer's time is unbounded

    @abstractmethod
    def prepare(self, item: RawItem) -> dict[str, Tensor]:
        """One item to tensors, on the CPU, inside loader workers. Always the same keys; shapes are equal for all
        items, except that 1-D integer tensors may vary in length (the host pads them within a batch)."""

    @abstractmethod
    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """(B, dims[m]) float32 for each modality, from the stacked tensors of `prepare`."""

    def frozen_part(self, batch: dict[str, Tensor]) -> dict[str, Tensor] | None:
        """For an encoder whose first layers are never trained: what they make of a prepared batch, row by row, each
        tensor (B, ...). `forward` and `tuning_losses` take it in the batch's place, so training computes it once for
        all epochs. None: all layers may be trained."""
        return None

    def hidden_states(self, batch: dict[str, Tensor]) -> Mapping[str, Sequence[Tensor]]:
        """By modality one vector per layer, (B, width of the layer): of the embeddings first, then of each block,
        pooled as the encoder pools its own last layer (CLS, masked mean, end of text). A row depends on its item alone.

        Raises NotApplicable, with the reason, if the encoder has none.
        """
        raise NotApplicable("it gives no hidden states")

    def tuning_losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The losses with which the encoder's authors tune it (ITC, ITM, MLM); {} if it has none.

        Scalars, the first of them called itc. Processes of torchrun each hold some rows of a batch, and return a share
        of each loss: shares add up to the whole batch's (`losses.symmetric_info_nce`, `api.all_gather`).
        """
        return {}

    @classmethod
    def is_tunable(cls, config: Any) -> bool:
        """True if an encoder of this configuration has `tuning_losses`, without building it. By default: if its class
        defines them."""
        return cls.tuning_losses is not ItemEncoder.tuning_losses


class TrainerCallback:
    """Trains something beside a model, on the gradient of the model's losses in its features. This base does nothing.

    It draws from generators of its own or from torch's default one. `state` is called after an evaluation, when no
    step may be pending.
    """

    def epoch_started(self, epoch: int) -> None:
        """Before the model's own start of the epoch: what the model reads may change now."""

    def after_batch(self, batch: Batch) -> None:
        """After the model's step on `batch`. Raises TrainingDiverged if its own step diverges."""

    def epoch_finished(self, epoch: int) -> None:
        """After the epoch's last batch."""

    def before_evaluation(self) -> None:
        """The model is about to be ranked as it is."""

    def evaluated(self, score: float) -> None:
        """The model was ranked on validation; the epoch with the largest score is kept. NaN ends training."""

    def stalled(self, epoch: int) -> bool:
        """Patience has run out before `epoch`: True to go on in another phase.

        Model and callback then continue from the best weights so far (`load_weights`), and misses count from 0. The
        best epoch of all phases is kept.
        """
        return False

    def weights(self) -> dict[str, Tensor]:
        """The tensors to keep of the best epoch, live."""
        return {}

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Restore such weights."""

    def about_weights(self) -> Mapping[str, Any]:
        """What the file of `weights` in a run's folder says of them, by name, in values that JSON can hold. If its
        `tune` is "lora", the file is called `adapter.safetensors`, else `encoder.safetensors`."""
        return {}

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The tensors and plain numbers from which training continues, beside `weights`."""
        return {}, {}

    def restore(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
        """Continue from a `state`; `load_weights` has been called. If training had ended, there are no tensors: only
        `report` follows."""

    def report(self) -> Any:
        """For the run's record, a mapping or a dataclass that JSON can hold; called once, after training."""
        return {}


class Paradigm:
    """A way to train a run's encoder: before the recommender, with it, or, as here, not at all.

    Constructed as `cls(config)`, with the run's values of the spec's `config`. If torchrun started several processes,
    `prepare` runs in all of them; `callback` runs in the first, while the others `help`.
    """

    def __init__(self, config: Any) -> None:
        self.config = config

    def check(self, run: RunSpec, registry: "Registry") -> None:
        """Raise NotApplicable if the paradigm doesn't support the run's model, encoder or control, ConfigError if
        another value of the run contradicts it. Called before any data is read."""

    def prepare(self, run: RunSpec, catalog: ItemCatalog, registry: "Registry", *, progress: bool) -> Tuned:
        """For a paradigm that `prepares`: the encoder that makes the run's features, from the cache if it is there."""
        raise NotImplementedError

    def prepared_path(self, run: RunSpec, catalog: ItemCatalog, registry: "Registry") -> Path:
        """The path of the cached file that `prepare` makes, whether or not it exists. Nothing is trained."""
        raise NotImplementedError

    def probe(self, encoder: ItemEncoder, device: torch.device) -> tuple[Callable[[Mapping[str, Tensor]], Any], int]:
        """For estimates of `prepare`: a function that does one step on a batch of prepared items, and the largest
        number of passes over all items."""
        raise NotImplementedError

    def callback(
        self, run: RunSpec, inputs: Inputs, features: ItemFeatures, registry: "Registry"
    ) -> TrainerCallback | None:
        """The callback that trains beside the model, which reads these live `features`; None if none does."""
        return None

    def help(self, run: RunSpec, inputs: Inputs, registry: "Registry") -> None:
        """Do the share of the work of a process other than the first in a `joint` run, to the end of the run."""

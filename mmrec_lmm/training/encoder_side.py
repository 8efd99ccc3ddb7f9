"""The encoder's side of end-to-end training: it encodes items, and takes steps on the gradient of their features.

Under torchrun each process has a copy of the encoder. A call in the first process runs in all of them: they share a
step's micro-batches and sum the gradients, which keeps the copies equal, and they split the items to encode. One
process runs the same micro-batches in turn, so the number of processes changes only the order of the sum.

The encoder stays in eval mode, also in the pass with gradient: dropout would make other features than those at which
the gradient was taken.

Shapes: I items, R rows of a step, B micro-batch, D feature width.
"""

import math
from collections.abc import Mapping
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor

from ..distributed import all_gather, everywhere, local_slice, processes, rank, sharing, sum_gradients
from ..errors import ConfigError
from ..features.prepared import PreparedItems, with_frozen_part
from ..machine import precision, to_device
from ..plugin.contracts import ItemEncoder
from .clock import PartClock
from .optim import adam, adamw, depth_factors, scale_rates, set_rate
from .paradigms import EndToEnd
from .trainer import load_optimizer_state, optimizer_state
from .tune import Choice, Objective, TrainedPart, choose, weighted_sum


class EncoderWorker:
    """`encoder` with its optimizer, and the prepared `items` that it encodes.

    `present` (I,) marks by modality the items that have it; its device is the encoder's. `name` is for messages, `seed`
    for what is drawn. `choice` is that of `choose_trained`, if that was called before. `unit` divides each vector by
    its length, also where the gradient comes through.
    `clock`, in the process that starts it, measures the parts of steps and of encoding: "loading" (prepared items are
    read and moved), "forward", "backward" (with the exchange of gradients and the optimizer's step), "refresh".
    """

    def __init__(
        self,
        encoder: ItemEncoder,
        items: PreparedItems,
        present: Mapping[str, Tensor],
        options: EndToEnd,
        *,
        name: str = "encoder",
        seed: int = 0,
        choice: Choice | None = None,
        unit: bool = False,
    ) -> None:
        if options.itc and not {"image", "text"} <= {*present}:
            raise ConfigError(
                f"ete.itc: expected features of image and text, got those of {', '.join(present)}; try --ete.itc=0"
            )
        self.name = name
        self._present, self._options, self._unit = present, options, unit
        self._device = next(iter(present.values())).device
        self._encoder = encoder.eval().to(self._device)
        self.clock = PartClock(self._device)
        encoded = torch.stack([*present.values()]).any(dim=0).nonzero().squeeze(1).cpu().numpy()
        self._items = with_frozen_part(
            items, encoder, encoded, batch_size=options.micro_batch or 64, device=self._device, dtype=options.dtype
        )
        if options.itc:
            self._paired = (present["image"] & present["text"]).cpu()  # (I,)
        choice = choice or choose_trained(encoder, options, name=name)
        self.part = TrainedPart(
            encoder, choice, options, owner=_owner(name), seed=seed, objective=_probed(encoder, options, name)
        )
        self._trained = [parameter for parameter in encoder.parameters() if parameter.requires_grad]
        optimizer = adam if options.learner == "adam" else adamw
        self._optimizer = optimizer(encoder, learning_rate=options.learning_rate, weight_decay=options.weight_decay)
        if options.layer_decay is not None:
            factors = depth_factors(
                encoder, self._batch(torch.from_numpy(encoded[:2])), options.layer_decay,
                owner=f"encoder {name}: ete.layer_decay",
            )  # fmt: skip
            scale_rates(self._optimizer, factors)

    @everywhere
    def step(self, rows: Tensor, gradients: Mapping[str, Tensor], rate: float) -> float:
        """Take one step at learning rate `rate`; `gradients` (R, D) by modality are those of items `rows` (R,), which
        are on the CPU.

        Return the norm of the encoder's gradient before clipping. If it is 0 or not finite, no weight changes.
        """
        gradients = {name: gradient.to(self._device) for name, gradient in gradients.items()}
        size = self._options.micro_batch or len(rows)
        self._optimizer.zero_grad()
        for start in range(0, len(rows), size)[rank() :: processes()]:
            part = slice(start, start + size)
            objective = self._objective(rows[part], {name: each[part] for name, each in gradients.items()}, len(rows))
            self.clock.lap("forward")
            if objective.requires_grad:
                objective.backward()
            self.clock.lap("backward")
        with sharing():
            sum_gradients(self._trained)
        norm = torch.nn.utils.clip_grad_norm_(self._trained, self._options.clip_grad_norm).item()
        if 0 < norm < math.inf:
            set_rate(self._optimizer, rate)
            self._optimizer.step()
        self.clock.lap("backward")
        return norm

    def _objective(self, items: Tensor, gradients: Mapping[str, Tensor], n_rows: int) -> Tensor:
        """The loss of a micro-batch: sum(Z * G), plus the contrastive loss times its share of the `n_rows` rows."""
        batch = self._batch(items)
        with precision(self._device, self._options.dtype):
            features = self._encoder(batch)
            total = torch.stack(
                [(self._scaled(features[name].to(value)) * value).sum() for name, value in gradients.items()]
            ).sum()
            if self._options.itc and len(places := self._paired[items].nonzero().squeeze(1)) > 1:
                paired = to_device(places, self._device)
                pairs = {key: tensor.index_select(0, paired) for key, tensor in batch.items()}
                total = total + self._options.itc * len(items) / n_rows * _contrast(self._encoder, pairs, self.name)
        return total

    @everywhere
    @torch.no_grad()
    def encode(self, items: Tensor) -> dict[str, Tensor]:
        """The features (B, D) by modality of items (B,), which are on the CPU."""
        with sharing() if len(items) >= processes() else nullcontext():  # each process needs a row
            batch = self._batch(items[local_slice(len(items))])
            with precision(self._device, self._options.dtype), self.part.encoding():
                features = self._encoder(batch)
            found = {modality: all_gather(self._scaled(features[modality])) for modality in self._present}
        self.clock.lap("refresh")
        return found

    def _scaled(self, rows: Tensor) -> Tensor:
        """Feature vectors (B, D) as the recommender gets them."""
        if not self._unit:
            return rows
        return F.normalize(rows.to(torch.promote_types(rows.dtype, torch.float32)), dim=1)

    def _batch(self, items: Tensor) -> dict[str, Tensor]:
        batch = {key: to_device(tensor, self._device) for key, tensor in self._items.batch(items.numpy()).items()}
        self.clock.lap("loading")
        return batch

    @property
    def cached_bytes(self) -> int:
        """The bytes of the prepared items, or of what frozen layers made of them, from which all items are encoded."""
        return sum(array.nbytes for arrays in (self._items.arrays, self._items.lengths) for array in arrays.values())

    @property
    def encoder(self) -> ItemEncoder:
        return self._encoder

    @property
    def trained(self) -> int:
        """The number of parameters that a step changes."""
        return sum(parameter.numel() for parameter in self._trained)

    def parameters(self) -> dict[str, Tensor]:
        """The encoder's parameters by name, frozen ones included; under lora with its updates added."""
        return {name: parameter.detach() for name, parameter in self.part.parameters().items()}

    def weights(self) -> dict[str, Tensor]:
        """What training changes, live: under `tune: full` the encoder's parameters and buffers."""
        return self.part.tensors()

    @everywhere
    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        self.part.load(weights)

    def optimizer_state(self) -> dict[str, Tensor]:
        """The optimizer's live state."""
        return optimizer_state(self._optimizer)

    @everywhere
    def load_optimizer_state(self, tensors: Mapping[str, Tensor]) -> None:
        load_optimizer_state(self._optimizer, tensors)


def choose_trained(encoder: ItemEncoder, options: EndToEnd, *, name: str) -> Choice:
    """What of the encoder `ete.tune` trains. Raises ConfigError if that doesn't fit the encoder."""
    return choose(encoder, options, _probed(encoder, options, name), owner=_owner(name))


def _owner(name: str) -> str:
    return f"encoder {name}: ete"


def _probed(encoder: ItemEncoder, options: EndToEnd, name: str) -> Objective:
    """A scalar that depends on the parameters on which the objective of a step depends."""

    def objective(batch: dict[str, Tensor]) -> Tensor:
        total = weighted_sum(encoder(batch))
        return total + _contrast(encoder, batch, name) if options.itc else total

    return objective


def _contrast(encoder: ItemEncoder, pairs: dict[str, Tensor], name: str) -> Tensor:
    terms = [term for key, term in encoder.tuning_losses(pairs).items() if key.startswith("itc")]
    if not terms:
        raise ConfigError(
            f"ete.itc: expected an encoder with a contrastive loss, got {name}, which has none; try --ete.itc=0"
        )
    return torch.stack(terms).sum()

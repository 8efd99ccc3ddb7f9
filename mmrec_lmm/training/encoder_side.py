"""An encoder in training and its work on some items: a step on the gradient of their features, and their features.

Where torchrun started several processes, each has a copy. What the first one asks of its own happens in all: a step's
micro-batches are dealt out and their gradients summed, so that all copies make the same step; items to encode are
split. A step takes its micro-batches one after the other in one process too, so that their number changes nothing but
the order in which gradients are added.

The encoder stays in eval mode, in the pass with gradient too: under dropout it would make other features than those at
which the gradient was taken.

Shapes: I items, R rows of a step, B micro-batch, D feature width.
"""

import math
from collections.abc import Mapping
from contextlib import nullcontext

import torch
from torch import Tensor

from ..distributed import all_gather, everywhere, local_slice, processes, rank, sharing, sum_gradients
from ..errors import ConfigError
from ..features.prepared import PreparedItems
from ..machine import precision
from ..plugin.contracts import ItemEncoder
from .optim import adamw, freeze
from .paradigms import EndToEnd
from .trainer import load_optimizer_state, optimizer_state


class EncoderWorker:
    """`encoder` with its optimizer, and the prepared `items` that it encodes, of which `present` (I,) by modality are
    there; it works on their device. `name` is for messages."""

    def __init__(
        self,
        encoder: ItemEncoder,
        items: PreparedItems,
        present: Mapping[str, Tensor],
        options: EndToEnd,
        *,
        name: str = "encoder",
    ) -> None:
        if options.itc and not {"image", "text"} <= {*present}:
            raise ConfigError(f"ete.itc contrasts images with texts, but this run has features of {', '.join(present)}")
        self.name = name
        self._items, self._present, self._options = items, present, options
        self._device = next(iter(present.values())).device
        self._encoder = encoder.eval().to(self._device)
        freeze(encoder, options.freeze, owner=f"encoder {name}: ete.freeze")
        self._trained = [parameter for parameter in encoder.parameters() if parameter.requires_grad]
        self._optimizer = adamw(encoder, learning_rate=options.learning_rate, weight_decay=options.weight_decay)

    @everywhere
    def step(self, rows: Tensor, gradients: Mapping[str, Tensor], rate: float) -> float:
        """One step at learning rate `rate` down the gradient (R, D) by modality of the features of items `rows` (R,).

        Gives the norm of the encoder's gradient before clipping; where that is 0 or not finite, no weight moves.
        """
        rows = rows.to(self._device)
        gradients = {name: gradient.to(self._device) for name, gradient in gradients.items()}
        size = self._options.micro_batch or len(rows)
        self._optimizer.zero_grad()
        for start in range(0, len(rows), size)[rank() :: processes()]:
            part = slice(start, start + size)
            objective = self._objective(rows[part], {name: each[part] for name, each in gradients.items()}, len(rows))
            if objective.requires_grad:
                objective.backward()
        with sharing():
            sum_gradients(self._trained)
        norm = torch.nn.utils.clip_grad_norm_(self._trained, self._options.clip_grad_norm).item()
        if 0 < norm < math.inf:
            for group in self._optimizer.param_groups:
                group["lr"] = rate
            self._optimizer.step()
        return norm

    def _objective(self, items: Tensor, gradients: Mapping[str, Tensor], n_rows: int) -> Tensor:
        """What is sent back for a micro-batch of the step's `n_rows` rows: sum(Z * G), and the contrastive loss in its
        share of them."""
        batch = self._batch(items)
        with precision(self._device, self._options.dtype):
            features = self._encoder(batch)
            total = torch.stack([(features[name].to(value) * value).sum() for name, value in gradients.items()]).sum()
            both = self._present["image"] & self._present["text"] if self._options.itc else None
            if both is not None and both[items].sum() > 1:
                pairs = {key: tensor[both[items]] for key, tensor in batch.items()}
                total = total + self._options.itc * len(items) / n_rows * self._contrast(pairs)
        return total

    def _contrast(self, pairs: dict[str, Tensor]) -> Tensor:
        terms = [term for name, term in self._encoder.tuning_losses(pairs).items() if name.startswith("itc")]
        if not terms:
            raise ConfigError(f"encoder {self.name} has no contrastive loss of its own, so ete.itc must be 0")
        return torch.stack(terms).sum()

    @everywhere
    @torch.no_grad()
    def encode(self, items: Tensor) -> dict[str, Tensor]:
        """The features (B, D) by modality of items (B,)."""
        with sharing() if len(items) >= processes() else nullcontext():  # no process may be left without a row
            batch = self._batch(items[local_slice(len(items))].to(self._device))
            with precision(self._device, self._options.dtype):
                features = self._encoder(batch)
            return {modality: all_gather(features[modality]) for modality in self._present}

    def _batch(self, items: Tensor) -> dict[str, Tensor]:
        tensors = self._items.batch(items.cpu().numpy())
        if items.device.type == "cuda":  # pinned, the copy needn't be waited for
            return {key: tensor.pin_memory().to(items.device, non_blocking=True) for key, tensor in tensors.items()}
        return {key: tensor.to(items.device) for key, tensor in tensors.items()}

    def parameters(self) -> dict[str, Tensor]:
        """The encoder's, by name, those that stay frozen too."""
        return {name: parameter.detach() for name, parameter in self._encoder.named_parameters()}

    def weights(self) -> dict[str, Tensor]:
        """All of the encoder's, live."""
        return self._encoder.state_dict()

    @everywhere
    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        self._encoder.load_state_dict(weights)

    def optimizer_state(self) -> dict[str, Tensor]:
        """What the optimizer remembers, live."""
        return optimizer_state(self._optimizer)

    @everywhere
    def load_optimizer_state(self, tensors: Mapping[str, Tensor]) -> None:
        load_optimizer_state(self._optimizer, tensors)

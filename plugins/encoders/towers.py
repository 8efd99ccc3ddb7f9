"""Hidden states of a tower of layers: what its blocks pass on, as one vector per item and block.

Blocks are watched by hooks, so a tower's own code runs as it is. Where a library's towers pool their last block in
different ways, `find_pooling` asks the gradient of their features which places these depend on.

Shapes: B batch, T places (tokens or patches), W width, C channels of a map.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from mmrec_lmm.api import ItemEncoder, NotApplicable, RawItem, repeated_blocks

Pool = Callable[[Tensor], Tensor]
"""The states of all places (B, T, W) -> one vector per item (B, W)."""

_PROBES = (
    RawItem(0, Image.new("RGB", (64, 64), "red"), "a"),
    RawItem(1, Image.new("RGB", (90, 40)), "a few words more"),
)


def blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The blocks of all towers, in order."""
    for tower in repeated_blocks(module):
        yield from tower


def pooled_states(run: Callable[[], object], parts: Sequence[nn.Module], pool: Pool) -> list[Tensor]:
    """Pooled, what enters the first of the parts that `run` calls, and what each of them returns, in order."""
    states: list[Tensor] = []

    def entered(part: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        if not states:
            states.append(pool(_tensor(inputs or (named["hidden_states"],))))

    def left(part: nn.Module, inputs: object, output: Any) -> None:
        states.append(pool(_tensor(output)))

    handles = [part.register_forward_pre_hook(entered, with_kwargs=True) for part in parts]
    handles += [part.register_forward_hook(left) for part in parts]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return states


def at_place(place: int) -> Pool:
    """The pooling of a CLS at that place."""
    return lambda states: states[:, place]


def over_map(states: Tensor) -> Tensor:
    """The mean (B, C) over a map (B, C, H, W)."""
    return states.mean(dim=(2, 3))


def masked_mean(states: Tensor, mask: Tensor) -> Tensor:
    """The mean (B, W) over the places (B, T) of a mask that are above 0."""
    weights = (mask > 0).to(states.dtype).unsqueeze(2)  # (B, T, 1)
    return (states * weights).sum(1) / weights.sum(1).clamp(min=1)


@dataclass(frozen=True)
class Pooling:
    """How a tower makes one vector of its places: of the first, the last, the last that is no padding, or their mean.

    A map's is the mean over it.
    """

    kind: Literal["first", "last", "end", "mean"]

    def __call__(self, states: Tensor, mask: Tensor | None) -> Tensor:
        """(B, W) of states (B, T, W), whose `mask` (B, T) marks what is no padding, or of a map (B, C, H, W)."""
        if states.ndim == 4:
            return over_map(states)
        if self.kind == "mean":
            return states.mean(1) if mask is None else masked_mean(states, mask)
        if self.kind == "end":
            assert mask is not None
            return states[torch.arange(len(states), device=states.device), _ends(mask)]
        return states[:, 0 if self.kind == "first" else -1]


def find_pooling(
    run: Callable[[], Tensor], parts: Sequence[nn.Module], mask: Tensor | None, *, modality: str
) -> Pooling:
    """How the features (B, D) that `run` computes pool the last of the parts that it calls: by the places on which they
    depend. `mask` (B, T) marks what is no padding; texts should differ in length.

    Raises NotApplicable where it calls none of the parts, or their states are neither places nor maps.
    """
    last: list[Tensor] = []
    called: list[nn.Module] = []

    def left(part: nn.Module, inputs: object, output: Any) -> Any:
        called.append(part)
        last[:] = [_tensor(output).detach().requires_grad_()]
        return (last[0], *output[1:]) if isinstance(output, tuple) else last[0]

    handles = [part.register_forward_hook(left) for part in parts]
    device = next((each.device.type for part in parts for each in part.parameters()), "cpu")
    try:
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device, enabled=False):
            features = run()
            weights = torch.randn(features.shape, generator=torch.Generator().manual_seed(0)).to(features)
            if not last or last[0].ndim not in (3, 4):
                raise NotApplicable(
                    f"its tower of {modality} has no list of blocks that pass on tokens, patches or maps"
                )
            [gradient] = torch.autograd.grad((features * weights).sum(), last)
    finally:
        for handle in handles:
            handle.remove()
    if gradient.ndim == 4:
        return Pooling("mean")
    reached = gradient.abs().sum(2) > 0  # (B, T)
    if (reached.sum(1) == 1).all():
        places, (n_items, n_places) = reached.int().argmax(1), reached.shape
        if (places == 0).all():
            return Pooling("first")
        if mask is not None and mask.shape == (n_items, n_places) and (places == _ends(mask)).all():
            return Pooling("end")
        if (places == n_places - 1).all():
            return Pooling("last")
    return Pooling("mean")


def probes(encoder: ItemEncoder, device: torch.device) -> dict[str, Tensor]:
    """A batch of two items, whose texts differ in length."""
    with torch.inference_mode(False):
        prepared = [encoder.prepare(item) for item in _PROBES]
        return {
            key: pad_sequence([each[key] for each in prepared], True, encoder.padding.get(key, 0)).to(device)
            for key in prepared[0]
        }


def _ends(mask: Tensor) -> Tensor:
    """The last place of each row that the mask (B, T) marks: (B,)."""
    places = torch.arange(mask.shape[1], device=mask.device)
    return torch.where(mask > 0, places, 0).amax(1)


def _tensor(output: Any) -> Tensor:
    """A block's states: what it gets or returns, or the first of it."""
    states: Tensor = output[0] if isinstance(output, tuple | list) else output
    return states

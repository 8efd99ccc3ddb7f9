"""How an encoder's weights are trained, whether it is tuned by itself or together with a recommender: by AdamW, what
it decays, what stays frozen, at which rate, and in how much memory."""

import functools
import logging
import math
import re
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from ..errors import ConfigError, did_you_mean

logger = logging.getLogger(__name__)

#: Names of tables in which a row is looked up for a place or a kind, and not for a word: usually not decayed.
_PLACES = re.compile(r"(^|[._])pos(_|ition)|type_embed")


def freeze(encoder: nn.Module, patterns: Sequence[str], *, owner: str) -> tuple[str, ...]:
    """Take the parameters that match any of the patterns (fnmatch) out of training; the names of these.

    Raises ConfigError, which begins with `owner` (encoder and key), for a pattern that matches nothing, and where
    nothing is left to train.
    """
    names = [name for name, _ in encoder.named_parameters()]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ConfigError(
                f"{owner}: {pattern} matches no parameter; they are called {', '.join(names[:3])}, ...; a * stands for "
                f"any part of a name{did_you_mean(pattern, names)}"
            )
    frozen = tuple(name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns))
    if {name for name in names if encoder.get_parameter(name).requires_grad} <= {*frozen}:
        raise ConfigError(f"{owner}: {', '.join(patterns)} match every parameter in training, so nothing is left")
    for name in frozen:
        encoder.get_parameter(name).requires_grad_(False)
    return frozen


def adamw(encoder: nn.Module, *, learning_rate: float, weight_decay: float) -> torch.optim.AdamW:
    """VLMo's AdamW over what isn't frozen. Decay shrinks matrices alone: neither vectors (biases, norms, CLS) and
    scales, nor tables of positions and types."""
    groups: tuple[list[nn.Parameter], list[nn.Parameter]] = ([], [])
    for name, parameter in encoder.named_parameters():
        if parameter.requires_grad:
            is_vector = parameter.numel() == max(parameter.shape, default=1)  # also one of shape (1, 1, D)
            groups[is_vector or _PLACES.search(name) is not None].append(parameter)
    decays = [{"params": groups[0], "weight_decay": weight_decay}, {"params": groups[1], "weight_decay": 0.0}]
    fused = all(parameter.device.type in ("cpu", "cuda") for parameter in encoder.parameters())
    return torch.optim.AdamW(decays, lr=learning_rate, betas=(0.9, 0.98), eps=1e-8, fused=fused)


def rate_factor(step: int, total: int, *, warmup: float, schedule: str) -> float:
    """What the learning rate is multiplied by in `step` of `total`, from 0: up to 1 during the share `warmup` of all
    steps, and then down, linear or by a cosine, to 0 after the last."""
    rising = round(warmup * total)
    if step < rising:
        return (step + 1) / rising
    done = (step - rising) / (total - rising)
    return 1 - done if schedule == "linear" else (1 + math.cos(math.pi * done)) / 2


def has_batch_norms(module: nn.Module) -> bool:
    """Whether a part of it normalizes by a batch's own statistics, and counts them."""
    return any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in module.modules())


def recompute_blocks(encoder: nn.Module) -> None:
    """Have an encoder's repeated blocks keep their inputs alone: what they compute on the way is computed again, from
    the same random state, when its gradient is asked for. No number changes; a step takes a third longer.

    Blocks are the members of a ModuleList or Sequential that are all of one class, the outermost such list. Blocks with
    batch norms are left as they are: these would count each batch twice.
    """
    blocks = [block for block in _repeated(encoder) if not has_batch_norms(block)]
    for block in blocks:
        block.forward = _computed_again(block.forward)
    logger.info("recompute: %d blocks are computed twice", len(blocks))


def _repeated(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        members = list(child.children())
        if isinstance(child, nn.ModuleList | nn.Sequential) and len({*map(type, members)}) == 1 and len(members) > 1:
            yield from members
        else:
            yield from _repeated(child)


def _computed_again(forward: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(forward)
    def twice(*arguments: Any, **named: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*arguments, **named)
        return checkpoint(forward, *arguments, use_reentrant=False, **named)

    return twice

"""Optimizing an encoder, alone or with a recommender: optimizers, freezing, learning rate, recomputation."""

import functools
import inspect
import logging
import math
import re
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Any, TypeVar, cast

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from ..errors import ConfigError, did_you_mean

logger = logging.getLogger(__name__)

OptimizerT = TypeVar("OptimizerT", bound=torch.optim.Optimizer)

FAINT = 1e-25  # of Adam's first moment: such a step is 1e-17 learning rates or less, as its denominator is 1e-8 or more
SWEEP_STEPS = 256  # between two sweeps; a moment above FAINT falls to 0.9^256 FAINT > 1e-37 at most, which is normal

#: Names of position and type embeddings, which are usually not decayed.
_PLACES = re.compile(r"(^|[._])pos(_|ition)|type_embed")


def eager(optimizer: type[OptimizerT]) -> type[OptimizerT]:
    """The optimizer class without support for torch.compile, for which torch would import its compiler: 1.2 s.

    Only torch's decorators are taken off, so steps and state are the same. A method without one stays as it is.
    """
    names = ("add_param_group", "zero_grad", "state_dict", "load_state_dict", "step")
    methods = {name: inspect.unwrap(getattr(optimizer, name)) for name in names}
    methods["step"] = torch.no_grad()(methods["step"])  # as its decorator did
    return cast(type[OptimizerT], type(optimizer.__name__, (optimizer,), methods))


def freeze(encoder: nn.Module, patterns: Sequence[str], *, owner: str) -> tuple[str, ...]:
    """Freeze the parameters that match any of the patterns (fnmatch), and return their names.

    Raises ConfigError, which begins with `owner` (encoder and key), if a pattern matches nothing or nothing is left to
    train.
    """
    names = [name for name, _ in encoder.named_parameters()]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ConfigError(
                f"{owner}: expected a pattern of parameter names ({', '.join(names[:3])}, ...; * matches any part), "
                f"got {pattern}, which matches none{did_you_mean(pattern, names)}"
            )
    frozen = tuple(name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns))
    if {name for name in names if encoder.get_parameter(name).requires_grad} <= {*frozen}:
        raise ConfigError(
            f"{owner}: expected patterns that leave a parameter to train, got {', '.join(patterns)}, which match all; "
            "try fewer"
        )
    for name in frozen:
        encoder.get_parameter(name).requires_grad_(False)
    return frozen


def adamw(encoder: nn.Module, *, learning_rate: float, weight_decay: float) -> torch.optim.AdamW:
    """VLMo's AdamW over the parameters that aren't frozen.

    Weight decay applies to matrices, except position and type embeddings, and not to vectors (biases, norms, CLS) or
    scales.
    """
    groups: tuple[list[nn.Parameter], list[nn.Parameter]] = ([], [])
    for name, parameter in encoder.named_parameters():
        if parameter.requires_grad:
            is_vector = parameter.numel() == max(parameter.shape, default=1)  # shape (1, 1, D) counts as one
            groups[is_vector or _PLACES.search(name) is not None].append(parameter)
    decays = [{"params": groups[0], "weight_decay": weight_decay}, {"params": groups[1], "weight_decay": 0.0}]
    return eager(torch.optim.AdamW)(decays, lr=learning_rate, betas=(0.9, 0.98), eps=1e-8, fused=_can_fuse(encoder))


def adam(encoder: nn.Module, *, learning_rate: float, weight_decay: float) -> torch.optim.Adam:
    """MMRec's Adam over the parameters that aren't frozen, as one group: betas 0.9 and 0.999, and weight decay as L2
    that is added to the gradient."""
    trained = [parameter for parameter in encoder.parameters() if parameter.requires_grad]
    return eager(torch.optim.Adam)(trained, lr=learning_rate, weight_decay=weight_decay, fused=_can_fuse(encoder))


def _can_fuse(encoder: nn.Module) -> bool:
    return all(parameter.device.type in ("cpu", "cuda") for parameter in encoder.parameters())


def drop_faint_momentum(optimizer: torch.optim.Optimizer) -> None:
    """Set first moments below FAINT to zero. The moment of a row without gradient shrinks by a tenth in each step, and
    after some 800 is a denormal number, with which a CPU computes 20 times as slowly."""
    for state in optimizer.state.values():
        if "exp_avg" in state:
            torch.hardshrink(state["exp_avg"], FAINT, out=state["exp_avg"])


def rate_factor(step: int, total: int, *, warmup: float, schedule: str) -> float:
    """The factor of the learning rate in `step` (from 0) of `total`.

    It rises linearly to 1 during the share `warmup` of all steps, then falls, linear or by a cosine, to 0 after the
    last.
    """
    rising = round(warmup * total)
    if step < rising:
        return (step + 1) / rising
    done = (step - rising) / (total - rising)
    return 1 - done if schedule == "linear" else (1 + math.cos(math.pi * done)) / 2


def has_batch_norms(module: nn.Module) -> bool:
    """True if a submodule is a batch norm."""
    return any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in module.modules())


def recompute_blocks(encoder: nn.Module) -> None:
    """Checkpoint the activations of an encoder's repeated blocks: each keeps only its inputs.

    The backward pass runs the block again from the same random state. No number changes; a step takes a third longer.
    Blocks are the members of the outermost ModuleList or Sequential whose members are all of one class. Blocks with
    batch norms aren't checkpointed: they would count each batch twice.
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

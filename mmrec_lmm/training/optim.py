"""Optimizing an encoder, alone or with a recommender: optimizers, freezing, learning rate, recomputation."""

import functools
import inspect
import logging
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from fnmatch import fnmatchcase
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
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
    blocks = [block for tower in repeated_blocks(encoder) for block in tower if not has_batch_norms(block)]
    for block in blocks:
        block.forward = _computed_again(block.forward)
    logger.info("recompute: %d blocks are computed twice", len(blocks))


def repeated_blocks(module: nn.Module) -> Iterator[list[nn.Module]]:
    """The blocks of each tower, from the bottom up: the members of an outermost ModuleList or Sequential whose members
    are all of one class."""
    for child in module.children():
        members = list(child.children())
        if isinstance(child, nn.ModuleList | nn.Sequential) and len({*map(type, members)}) == 1 and len(members) > 1:
            yield members
        else:
            yield from repeated_blocks(child)


def depth_factors(
    encoder: nn.Module, batch: dict[str, Tensor], decay: float, *, owner: str
) -> dict[nn.Parameter, float]:
    """The factor decay ** d of each trained parameter's learning rate, where d blocks of its tower come after it.

    So the top block has the full rate, and what precedes the first of n blocks has decay ** n. The rest has the full
    rate: what follows the blocks, what all of them share, and what features don't depend on. What precedes a tower is
    what gets no gradient of the features of `batch` once the first block's input is a constant; blocks that precede
    another tower count as below it.
    Raises ConfigError, which begins with `owner` (encoder and key), if the encoder has no blocks.
    """
    towers = [*repeated_blocks(encoder)]
    if not towers:
        raise ConfigError(f"{owner}: expected an encoder with blocks, got one that has none; try leaving it out")
    trained = [parameter for parameter in encoder.parameters() if parameter.requires_grad]
    reached = _reached(encoder, batch, trained, None)
    before = [reached - _reached(encoder, batch, trained, tower[0]) for tower in towers]  # what precedes each
    places = [{parameter: at for at, block in enumerate(tower) for parameter in block.parameters()} for tower in towers]

    def height(tower: int) -> int:
        """The blocks from a tower's first one to the features."""
        after = (other for other in range(len(towers)) if other != tower and places[tower].keys() & before[other])
        return len(towers[tower]) + max(map(height, after), default=0)

    def depth(parameter: nn.Parameter) -> int:
        inside = [height(tower) - 1 - at[parameter] for tower, at in enumerate(places) if parameter in at]
        below = [height(tower) for tower, found in enumerate(before) if parameter in found]
        return max(inside or below, default=0)

    return {parameter: decay ** depth(parameter) for parameter in trained}


def _reached(
    encoder: nn.Module, batch: dict[str, Tensor], trained: Sequence[nn.Parameter], block: nn.Module | None
) -> set[nn.Parameter]:
    """The parameters that get a gradient of the features of a batch, where the input of `block` is a constant."""

    def constant(_: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> Any:
        return tuple(map(_detached, inputs)), {name: _detached(value) for name, value in named.items()}

    with ExitStack() as stack, torch.enable_grad():
        if block is not None:
            stack.callback(block.register_forward_pre_hook(constant, with_kwargs=True).remove)
        total = torch.stack([rows.float().sum() for rows in encoder(batch).values()]).sum()
        if not total.requires_grad:
            return set()
        gradients = torch.autograd.grad(total, trained, allow_unused=True)
    return {parameter for parameter, found in zip(trained, gradients, strict=True) if found is not None}


def _detached(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else value


def scale_rates(optimizer: torch.optim.Optimizer, factors: Mapping[nn.Parameter, float]) -> None:
    """Split the optimizer's groups by the factor of their parameters' rates, which `set_rate` applies."""
    groups = []
    for group in optimizer.param_groups:
        for factor in sorted({factors[parameter] for parameter in group["params"]}):
            own = [parameter for parameter in group["params"] if factors[parameter] == factor]
            groups.append({**group, "params": own, "rate_factor": factor})
    optimizer.param_groups = groups


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of the next step, in each group times its own factor, if it has one."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("rate_factor", 1.0)


def _computed_again(forward: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(forward)
    def twice(*arguments: Any, **named: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*arguments, **named)
        return checkpoint(forward, *arguments, use_reentrant=False, **named)

    return twice

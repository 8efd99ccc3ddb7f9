"""What of an encoder is trained (`ete.tune`, `ft.tune`): all of it, its last blocks, or low-rank updates of matrices.

full    all parameters that aren't frozen
last:N  of each tower the last N blocks, and what comes only after them
lora    W + (alpha / r) B A for some matrices W (out, in), with A (r, in) and B (out, r); B is zero at first, and the
        output the encoder's own; W keeps its bytes (Hu et al., ICLR 2022, arXiv:2106.09685)

A probe of two items shows what depends on what, by autograd; no encoder is known by name here. Blocks are those that
`recompute_blocks` finds, and a feature's tower are the blocks whose parameters reach it, in the order of their calls. A
parameter is trained under last:N if it reaches the objective, but not the input of the N-th block from a tower's end.
That leaves out what the first blocks use, too: words, positions, a common table of relative positions.

lora has two mechanisms. Linear layers and 1x1 convolutions that are called as modules get peft's layers, whose backward
pass computes no gradient of W. Weights that their parent reads (the packed `in_proj_weight` and the `out_proj` of
attention, VLMo's `qkv`, the layers of nn.TransformerEncoderLayer in its fast path) get a parametrization instead, which
computes W + (alpha / r) B A at each use: peft leaves them alone, or adds to frozen weights and subtracts again, by
which they drift. Which is which the probe sees, too: whether `forward` is called with and without gradient.

Shapes: r rank.
"""

import hashlib
import importlib
import importlib.util
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize

from ..data.items import bounded, pad_and_stack
from ..disk.sealed import read_metadata
from ..errors import ConfigError, DataError, PluginError, did_you_mean
from ..formatting import first_few, first_line
from ..plugin.contracts import ItemEncoder
from ..types import RawItem
from .optim import freeze, repeated_blocks
from .resume import load_weights

FULL, LORA, SIDE = "full", "lora", "side"
PROBE = (
    RawItem(0, Image.new("RGB", (64, 64), (128, 128, 128)), "a gray square"),
    RawItem(1, Image.new("RGB", (64, 64), (64, 64, 64)), "another one that is darker"),  # some losses need a negative
)
CURE = "try --force, which runs it again"


class Options(Protocol):
    """The keys of a section that choose what is trained."""

    @property
    def tune(self) -> str: ...
    @property
    def lora_rank(self) -> int: ...
    @property
    def lora_alpha(self) -> float: ...
    @property
    def lora_targets(self) -> tuple[str, ...]: ...
    @property
    def freeze(self) -> tuple[str, ...]: ...


Objective = Callable[[dict[str, Tensor]], Tensor]
"""A prepared batch -> the scalar that training minimizes, or one that depends on the same parameters."""


@dataclass(frozen=True)
class Choice:
    """The parameters to train, by name: themselves, or for lora by an update. Those in `called` are weights of modules
    whose `forward` alone reads them."""

    tune: str
    names: tuple[str, ...] = ()  # () under full: all that aren't frozen
    called: frozenset[str] = frozenset()


def check(options: Options, *, owner: str) -> None:
    """Raise PluginError if lora needs a library that isn't here: before any data is read."""
    if options.tune == LORA and importlib.util.find_spec("peft") is None:
        _peft(owner)


def choose(encoder: ItemEncoder, options: Options, objective: Objective, *, owner: str) -> Choice:
    """What of the encoder is trained; nothing in it changes. `owner` begins messages: encoder and section.

    Raises ConfigError for more blocks than a tower has, patterns that match no weight, or an encoder whose towers are
    frozen by its own keys.
    """
    if options.tune in (FULL, SIDE):
        return Choice(FULL)
    with _probing(encoder) as batch:
        if encoder.frozen_part(batch) is not None:
            key = "train_towers" if hasattr(getattr(encoder, "config", None), "train_towers") else ""
            raise ConfigError(
                f"{owner}.tune: expected an encoder whose towers may be trained for {options.tune}, got one whose "
                f"towers are frozen{f' by encoder.{key}; try --encoder.{key}=true, or' if key else '; try'} full"
            )
        choose_part = _choose_lora if options.tune == LORA else _choose_last
        choice = choose_part(encoder, options, objective, batch, owner)
    if all(any(fnmatchcase(name, pattern) for pattern in options.freeze) for name in choice.names):
        raise ConfigError(
            f"{owner}.freeze: expected patterns that leave a parameter of {options.tune} to train, got "
            f"{', '.join(options.freeze)}, which match all; try fewer"
        )
    return choice


class TrainedPart:
    """The part of an encoder that is trained, which this sets up: `requires_grad` is true for it alone.

    `seed` is that of each A of lora; `owner`, the encoder and the section, begins messages. The encoder may move to
    another device later.
    """

    def __init__(
        self, encoder: ItemEncoder, choice: Choice, options: Options, *, owner: str, seed: int, objective: Objective
    ) -> None:
        self.tune = choice.tune
        self._encoder, self._options = encoder, options
        self._adapters: dict[str, _Adapter] = {}
        self.frozen = freeze(encoder, options.freeze, owner=f"{owner}.freeze")  # by patterns
        self.base = "" if self.tune == FULL else state_hash(encoder.state_dict())
        self._parameters = [name for name, _ in encoder.named_parameters()]
        trainable = [parameter for parameter in encoder.parameters() if parameter.requires_grad]
        self._frozen: list[nn.Parameter] = []  # by `tune`
        before = encoder.state_dict(keep_vars=True)
        self._base_names = {name: name for name in before}  # present name -> that without adapters
        if self.tune == FULL:
            return
        names = [name for name in choice.names if name not in self.frozen]
        if self.tune == LORA:
            self._adapters = _add_adapters(encoder, names, choice.called, options, owner=owner, seed=seed)
            own = {id(tensor): name for name, tensor in before.items()}
            self._base_names = {
                name: name if name in before else own[id(tensor)]
                for name, tensor in encoder.state_dict(keep_vars=True).items()
                if name in before or id(tensor) in own
            }
            _check_reached(encoder, self._adapters, objective, owner)
        else:
            for name, parameter in encoder.named_parameters():
                parameter.requires_grad_(name in names)
        self._frozen = [parameter for parameter in trainable if not parameter.requires_grad]

    @property
    def names(self) -> tuple[str, ...]:
        """The trained parameters, or the weights that lora updates, as `grouped`; empty under full."""
        if self.tune == FULL:
            return ()
        return grouped(self._adapters or [name for name in self._trained() if name in {*self._parameters}])

    def train(self) -> None:
        """Set training mode. Under lora and last:N, batch norms that aren't trained keep their statistics."""
        self._encoder.train()
        for module in self._encoder.modules() if self.tune != FULL else ():
            if isinstance(module, _BatchNorm) and not _is_trained(module):
                module.eval()

    @contextmanager
    def encoding(self) -> Iterator[None]:
        """A context for passes without gradient, in which an encoder that starts gives its features to the last bit:
        torch multiplies by another kernel, which rounds otherwise, where a weight doesn't require a gradient."""
        for parameter in self._frozen:
            parameter.requires_grad_(True)
        try:
            yield
        finally:
            for parameter in self._frozen:
                parameter.requires_grad_(False)

    def tensors(self) -> dict[str, Tensor]:
        """All that training changes, live: under full the encoder's state, under lora `<weight>.A` and `<weight>.B`."""
        if self.tune == FULL:
            return self._encoder.state_dict()
        if self.tune == LORA:
            return {
                f"{name}.{part}": getattr(adapter, part).detach()
                for name, adapter in self._adapters.items()
                for part in "AB"
            }
        return self._trained()

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore such tensors. Raises RuntimeError or ValueError where they don't fit."""
        if self.tune == FULL:
            self._encoder.load_state_dict(tensors)
            return
        own = self.tensors()
        _check_fit(tensors, own)
        with torch.no_grad():
            for name, value in own.items():
                value.copy_(tensors[name])

    def state(self) -> dict[str, Tensor]:
        """The encoder's whole state under the names that it has without adapters, with lora's updates added."""
        return merged(self._base_state(), self.tensors(), self.about())

    def parameters(self) -> dict[str, Tensor]:
        """The encoder's parameters by name, frozen ones included, with lora's updates added."""
        state = self.state()
        return {name: state[name] for name in self._parameters}

    def about(self) -> dict[str, Any]:
        """What a file of `tensors` says of itself. Under full nothing: it is complete."""
        if self.tune == FULL:
            return {}
        options = self._options
        kind = {"rank": options.lora_rank, "alpha": options.lora_alpha, "targets": [*options.lora_targets]}
        about = {"tune": self.tune, "base": self.base, "modalities": [*self._encoder.dims]}
        return about | (kind if self.tune == LORA else {})

    def _trained(self) -> dict[str, Tensor]:
        """The trained parameters, and the statistics of trained norms, live, by name."""
        kept = {name for name, parameter in self._encoder.named_parameters() if parameter.requires_grad}
        for path, module in self._encoder.named_modules():
            if isinstance(module, _BatchNorm) and _is_trained(module):
                kept |= {f"{path}.{name}".lstrip(".") for name, _ in module.named_buffers(recurse=False)}
        return {name: value for name, value in self._encoder.state_dict().items() if name in kept}

    def _base_state(self) -> dict[str, Tensor]:
        """The encoder's live state without adapters, under the names that it had before them."""
        state = self._encoder.state_dict()
        return {own: state[name] for name, own in self._base_names.items()}


def merged(base: Mapping[str, Tensor], tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> dict[str, Tensor]:
    """The complete state of an encoder: its base's with what was trained, `tensors`, whose file says `about`. Tensors
    of the base are shared, not copied. ValueError where they don't fit."""
    if about.get("tune", FULL) == FULL:
        return dict(tensors)
    if about["tune"] != LORA:
        _check_fit(tensors, {name: base[name] for name in tensors if name in base})
        return {**base, **tensors}
    scale, state = about["alpha"] / about["rank"], dict(base)
    for name in {name.rpartition(".")[0] for name in tensors}:
        down, up = tensors[f"{name}.A"], tensors[f"{name}.B"]  # (r, in), (out, r), of convolutions (r, in, 1, 1)
        if name not in base or base[name].shape[:2] != (len(up), down.shape[1]):
            raise ValueError(f"an update of {name} {(len(up), down.shape[1])}")
        update = scale * (up.flatten(1) @ down.flatten(1))  # (out, in)
        state[name] = base[name] + update.reshape(base[name].shape).to(base[name])
    return state


def merge_file(path: Path, encoder: ItemEncoder) -> dict[str, Tensor]:
    """The complete state of `encoder`, fresh, with what a run's file has of its training.

    Raises DataError for a damaged file, and one that belongs to another base.
    """
    about = {key: read_metadata(path, key, cure=CURE, default="") for key in ("tune", "base", "rank", "alpha")}
    tensors, base = load_weights(path), encoder.state_dict()
    if about["tune"] and (found := state_hash(base)) != about["base"]:
        raise DataError(
            f"{path}: expected an adapter of base {found[:16]}, the encoder of this run, got one of base "
            f"{str(about['base'])[:16]}; try the weights of before, or --force, which runs it again"
        )
    try:
        state = merged(base, tensors, about if about["tune"] else {})
        _check_fit(state, base)
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        raise DataError(f"{path}: expected tensors of this encoder, got others ({first_line(error)}); {CURE}") from None
    return state


def state_hash(state: Mapping[str, Tensor]) -> str:
    """A SHA-256 over the names, types, shapes and bytes of tensors, in the order of names."""
    digest = hashlib.sha256()
    for name in sorted(state):
        value = state[name].detach().cpu().contiguous()
        digest.update(json.dumps([name, str(value.dtype), [*value.shape]]).encode())
        if value.numel():
            digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def grouped(names: Iterable[str]) -> tuple[str, ...]:
    """Names that differ in a number alone as one: `blocks.0-11.fc1.weight`, `blocks.0,2.norm.bias`."""
    found = [tuple(name.split(".")) for name in names]
    for at in range(max(map(len, found), default=0)):
        groups: dict[tuple[str, ...], list[int]] = {}
        for parts in found:
            is_number = at < len(parts) and parts[at].isdigit()
            key = (*parts[:at], "", *parts[at + 1 :]) if is_number else parts
            groups.setdefault(key, []).extend([int(parts[at])] if is_number else [])
        found = [(*key[:at], _ranges(of), *key[at + 1 :]) if of else key for key, of in groups.items()]
    return tuple(map(".".join, found))


def _ranges(numbers: Sequence[int]) -> str:
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


# The probe


@contextmanager
def _probing(encoder: ItemEncoder) -> Iterator[dict[str, Tensor]]:
    """A batch of PROBE on the encoder's device; it is in eval mode meanwhile, and each time draws the same."""
    device = next(encoder.parameters()).device
    modes = {module: module.training for module in encoder.modules()}
    with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.enable_grad():
        torch.default_generator.manual_seed(0)
        encoder.eval()
        prepared = [bounded(encoder)(item) for item in PROBE]
        batch = pad_and_stack(prepared, padding=encoder.padding, encoder=type(encoder).__name__)
        try:
            yield {key: rows.to(device) for key, rows in batch.items()}
        finally:
            for module, mode in modes.items():
                module.training = mode


def weighted_sum(features: Mapping[str, Tensor]) -> Tensor:
    """The sum of features times fixed random numbers: a plain sum wouldn't depend on what comes before a norm."""
    generator = torch.Generator().manual_seed(0)
    return torch.stack(
        [(rows * torch.randn(rows.shape, generator=generator).to(rows)).sum() for rows in features.values()]
    ).sum()


def _reaching(output: Tensor | Sequence[Tensor], encoder: nn.Module) -> set[str]:
    """The names of the parameters that an output depends on."""
    named = {name: parameter for name, parameter in encoder.named_parameters() if parameter.requires_grad}
    outputs = [output] if isinstance(output, Tensor) else [*output]
    outputs = [each for each in outputs if each.requires_grad]
    if not outputs or not named:
        return set()
    gradients = torch.autograd.grad(
        [each.sum() for each in outputs], [*named.values()], retain_graph=True, allow_unused=True
    )
    return {name for name, gradient in zip(named, gradients, strict=True) if gradient is not None}


@contextmanager
def _watching(encoder: nn.Module) -> Iterator[dict[nn.Module, list[Tensor]]]:
    """The encoder's blocks that are called, in order, each with the tensors that come into it."""
    seen: dict[nn.Module, list[Tensor]] = {}

    def note(block: nn.Module, arguments: Any, named: Any) -> None:
        seen.setdefault(block, []).extend(_tensors_in([arguments, named]))

    blocks = [block for tower in repeated_blocks(encoder) for block in tower]
    hooks = [block.register_forward_pre_hook(note, with_kwargs=True) for block in blocks]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def _tensors_in(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from _tensors_in([*value.values()])
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _tensors_in(each)


def _towers(
    encoder: ItemEncoder, features: Mapping[str, Tensor], called: Iterable[nn.Module]
) -> dict[str, list[nn.Module]]:
    """For each feature the blocks that it passes, in order."""
    blocks, paths = [*called], {module: path for path, module in encoder.named_modules()}
    towers = {}
    for modality, rows in features.items():
        reaching = _reaching(rows, encoder)
        towers[modality] = [block for block in blocks if any(name.startswith(f"{paths[block]}.") for name in reaching)]
    return towers


# The last blocks


def _choose_last(
    encoder: ItemEncoder, options: Options, objective: Objective, batch: dict[str, Tensor], owner: str
) -> Choice:
    count = int(options.tune.removeprefix("last:"))
    with _watching(encoder) as entering:
        features, total = encoder(batch), objective(batch)
        towers = _towers(encoder, features, entering)
    sizes = {modality: len(blocks) for modality, blocks in towers.items()}
    shown = ", ".join(f"{modality} {size}" for modality, size in sizes.items())
    if not all(sizes.values()):
        without = ", ".join(modality for modality, size in sizes.items() if not size)
        raise ConfigError(
            f"{owner}.tune: expected an encoder with repeated blocks in each tower for {options.tune}, got none in "
            f"that of {without} (blocks: {shown}); try full, or freeze with patterns of names"
        )
    if count > min(sizes.values()):
        raise ConfigError(
            f"{owner}.tune: expected at most last:{min(sizes.values())}, the blocks of the smallest tower ({shown}), "
            f"got {options.tune}"
        )
    cuts = {blocks[-count] for blocks in towers.values()}
    before = _reaching([tensor for block in cuts for tensor in entering[block]], encoder)
    after = _reaching(total, encoder)
    names = tuple(name for name, _ in encoder.named_parameters() if name in after - before)
    return Choice(options.tune, names)


# Low-rank updates


class LowRank(nn.Module):
    """The parametrization w -> w + scale B A of a matrix (out, in)."""

    def __init__(self, weight: Tensor, rank: int, scale: float) -> None:
        super().__init__()
        rows, columns = weight.shape
        self.scale = scale
        self.A = nn.Parameter(weight.new_zeros(rank, columns))
        self.B = nn.Parameter(weight.new_zeros(rows, rank))

    def forward(self, weight: Tensor) -> Tensor:
        updated = weight + self.scale * (self.B @ self.A)
        return updated if torch.is_grad_enabled() else updated.requires_grad_()  # as in `TrainedPart.encoding`


@dataclass(frozen=True)
class _Adapter:
    A: nn.Parameter  # (r, in), of a convolution (r, in, 1, 1)
    B: nn.Parameter  # (out, r)


def _matrices(encoder: nn.Module) -> dict[str, nn.Module]:
    """The weights that lora can update, each with its module: of linear layers, 1x1 convolutions, packed attention.

    Weights that two modules share are left out: an update of one would part them.
    """
    names: dict[nn.Parameter, list[str]] = {}
    for name, parameter in encoder.named_parameters(remove_duplicate=False):
        names.setdefault(parameter, []).append(name)
    found = {}
    for path, module in encoder.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            is_layer = isinstance(module, nn.Linear) or (
                isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and module.groups == 1
            )
            fits = (is_layer and name == "weight") or (name == "in_proj_weight" and parameter.ndim == 2)
            if fits and len(names[parameter]) == 1:
                found[f"{path}.{name}".lstrip(".")] = module
    return found


def _choose_lora(
    encoder: ItemEncoder, options: Options, objective: Objective, batch: dict[str, Tensor], owner: str
) -> Choice:
    """The weights to update: those that match the patterns or, without any, those of blocks, and all of a tower that
    has no blocks."""
    matrices = _matrices(encoder)
    with _watching(encoder) as entering:
        features, total = encoder(batch), objective(batch)
        towers = _towers(encoder, features, entering)
    trained = _reaching(total, encoder)
    reaching = {modality: _reaching(rows, encoder) for modality, rows in features.items()}
    if options.lora_targets:
        for pattern in options.lora_targets:
            if not any(fnmatchcase(name, pattern) for name in matrices):
                raise ConfigError(
                    f"{owner}.lora_targets: expected a pattern of the names of matrices ({first_few([*matrices])}; * "
                    f"matches any part), got {pattern}, which matches none{did_you_mean(pattern, matrices)}"
                )
        wanted = {name for name in matrices if any(fnmatchcase(name, each) for each in options.lora_targets)}
    else:
        paths = {module: path for path, module in encoder.named_modules()}
        wanted = set()
        for modality, blocks in towers.items():
            own = tuple(f"{paths[block]}." for block in blocks)
            chosen = {name for name in matrices if name in reaching[modality] and name.startswith(own or ("",))}
            if not chosen & trained:
                raise ConfigError(
                    f"{owner}.lora_targets: expected towers with linear layers, 1x1 convolutions or attention for "
                    f"lora, got none in that of {modality}; try full, or last:1"
                )
            wanted |= chosen
    names = [name for name in matrices if name in wanted & trained]
    if not names:
        raise ConfigError(
            f"{owner}.lora_targets: expected patterns of matrices that are trained, got "
            f"{', '.join(options.lora_targets)}, which match {first_few(sorted(wanted))} alone: no loss depends on them"
        )
    layers = {name: module for name, module in matrices.items() if name in names and name.endswith("weight")}
    layers = {name: module for name, module in layers.items() if not name.endswith("in_proj_weight")}
    with _calls(layers.values()) as with_gradient:
        objective(batch)
    with _calls(layers.values()) as without, torch.no_grad():
        objective(batch)
        encoder(batch)
    called = frozenset(name for name, module in layers.items() if module in with_gradient and module in without)
    return Choice(LORA, tuple(names), called)


@contextmanager
def _calls(modules: Iterable[nn.Module]) -> Iterator[set[nn.Module]]:
    """The modules whose `forward` is called in this context. Hooks would show it, too, but torch's fused layers take
    another path where there are any."""
    seen: set[nn.Module] = set()
    watched = [*modules]

    def watch(module: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            seen.add(module)
            return forward(*arguments, **named)

        return call

    for module in watched:
        module.forward = watch(module, module.forward)
    try:
        yield seen
    finally:
        for module in watched:
            del module.__dict__["forward"]


def _add_adapters(
    encoder: nn.Module, names: Sequence[str], called: frozenset[str], options: Options, *, owner: str, seed: int
) -> dict[str, _Adapter]:
    """Freeze the encoder, and add an update to each weight. Each A is drawn in their order, by a generator."""
    rank, scale = options.lora_rank, options.lora_alpha / options.lora_rank
    matrices = _matrices(encoder)
    encoder.requires_grad_(False)
    paths = {name: name.rpartition(".")[0] for name in names}
    if layers := [paths[name] for name in names if name in called]:
        peft: Any = _peft(owner)
        config = peft.LoraConfig(
            r=rank, lora_alpha=options.lora_alpha, target_modules="|".join(map(re.escape, layers)), lora_dropout=0.0
        )
        with torch.random.fork_rng([]):  # new layers are drawn on the CPU
            peft.inject_adapter_in_model(config, encoder)
    adapters = {}
    for name in names:
        if name in called:
            layer: Any = encoder.get_submodule(paths[name])
            adapters[name] = _Adapter(layer.lora_A["default"].weight, layer.lora_B["default"].weight)
        else:
            module, weight = matrices[name], name.rpartition(".")[2]
            update = LowRank(getattr(module, weight), rank, scale)
            parametrize.register_parametrization(module, weight, update)
            adapters[name] = _Adapter(update.A, update.B)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for adapter in adapters.values():
            drawn = torch.empty(adapter.A.shape)
            nn.init.kaiming_uniform_(drawn, a=math.sqrt(5), generator=generator)  # as a linear layer's weight
            adapter.A.copy_(drawn)
            adapter.B.zero_()
    ours = {id(each) for adapter in adapters.values() for each in (adapter.A, adapter.B)}
    for name, parameter in encoder.named_parameters():
        if parameter.requires_grad != (id(parameter) in ours):
            raise PluginError(f"{owner}.tune: expected peft to train its updates alone, got {name}")
    return adapters


def _check_reached(encoder: ItemEncoder, adapters: Mapping[str, _Adapter], objective: Objective, owner: str) -> None:
    """Raise PluginError if the objective doesn't depend on an update: the encoder would compute without it."""
    with _probing(encoder) as batch:
        reaching = _reaching(objective(batch), encoder)
    own = {id(parameter): name for name, parameter in encoder.named_parameters()}
    lost = [name for name, each in adapters.items() if not {own[id(each.A)], own[id(each.B)]} <= reaching]
    if lost:
        raise PluginError(
            f"{owner}.tune: expected a gradient for the update of each weight, got none for {first_few(lost)}: the "
            "encoder computes with a copy of its own; try lora_targets that leave it out"
        )


def _peft(owner: str) -> Any:
    """The library, imported now: seconds, and not everyone has it."""
    try:
        return importlib.import_module("peft")
    except Exception as error:  # a library that was built for another torch raises RuntimeError
        raise PluginError(
            f"{owner}.tune: expected peft for lora, got {type(error).__name__}: {first_line(error)}; try pip install "
            "'mmrec-lmm[lora]'"
        ) from None


def _is_trained(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters(recurse=False))


def _check_fit(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    if {name: value.shape for name, value in tensors.items()} != {name: value.shape for name, value in own.items()}:
        others = sorted(tensors.keys() ^ own.keys()) or [name for name in own if own[name].shape != tensors[name].shape]
        raise ValueError(f"expected tensors of what is trained, got others: {first_few(others)}")

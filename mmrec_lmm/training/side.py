"""A gated network beside a frozen encoder (`--ete.tune=side`): IISAN (Fu et al., SIGIR 2024, arXiv:2404.02059).

Of each modality m it reads the frozen feature x and the states h_0, ..., h_{K-1} of K layers, cached and standardized.

within a modality  s_k = SANB_k(g_k h_k + (1 - g_k) s_{k-1}),  s_{-1} = 0,  g_k = sigmoid(w_k / 0.1)
across image, text t_k = SANB_k(t_{k-1} + u_k h_k^image + (1 - u_k) h_k^text),  t_{-1} = 0,  u_k = sigmoid(v_k / 0.1)
SANB               x + W_up gelu(W_down x + b_down) + b_up
result             y_m = x_m + P_m [s_m ; t], where P_m starts at zero: so y is x, and features start as those of `pt`

Fidelity: the result is ours, one vector per modality for any recommender: IISAN ends in a vector of its own per item.
So are GELU (its code's default is ReLU) and standardized states. As in IISAN-Versa (arXiv:2411.02992), of towers of
unlike depth the last min(K_image, K_text) layers meet across modalities, and unlike widths pass a linear layer, within
a tower and across. Where the frozen features have length 1, y is scaled to it. An item without a modality keeps
its row of it, and across modalities its other one counts alone.
Shapes: B batch, K layers, W width of a tower, V of a layer, r rank, D of features.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import ConfigError
from ..features.encoding import EncodeOptions, encoder_id, encoder_spec
from ..features.prepared import PreparedItems
from ..features.states import HiddenStates, hidden_states, no_states
from ..machine import encode_batch, loader_processes
from ..plugin.contracts import ItemEncoder
from ..plugin.registry import Registry
from ..typed_json import plain
from ..types import FeatureTable, Inputs, RawItem, RunSpec
from .paradigms import EndToEnd

TEMPERATURE = 0.1  # of gates: a step of a weight moves its gate ten times as far
DEVIATION = 0.01  # of a fresh block's matrices, which change its input by some percent
PAIR = ("image", "text")
_UNIT = 1e-3  # by which the lengths of rows that are scaled to length 1 may differ from it


class SideNetwork(ItemEncoder):
    """The network, as an encoder whose prepared items are frozen features and states; `report` and `about` are for
    the run's record, and for the file of its weights.

    `widths` (K,) are those of the layers by modality, `unit` says whose features have length 1.
    """

    def __init__(
        self,
        dims: Mapping[str, int],
        widths: Mapping[str, Sequence[int]],
        *,
        rank: int,
        unit: Mapping[str, bool],
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.dims, self.unit = dict(dims), dict(unit)
        self.depths = {modality: len(each) for modality, each in widths.items()}
        self.within = nn.ModuleDict({name: Within(each, rank, generator) for name, each in widths.items()})
        self.across = Across(widths["image"], widths["text"], rank, generator) if {*PAIR} <= {*dims} else None
        self.project = nn.ModuleDict()
        for modality, dim in dims.items():
            shared = self.across.width if self.across is not None and modality in PAIR else 0
            self.project[modality] = _zero(nn.Linear(widths[modality][-1] + shared, dim))
        self.report: SideReport | None = None
        self.about: Mapping[str, Any] = {}

    def prepare(self, item: RawItem) -> dict[str, Tensor]:
        raise NotImplementedError("a side network reads what is cached of items, and no item itself")

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        frozen = {modality: batch[feature_key(modality)] for modality in self.dims}  # (B, D)
        present = {modality: batch[present_key(modality)].unsqueeze(1) for modality in self.dims}  # (B, 1)
        states = {
            modality: [batch[state_key(modality, k)].to(frozen[modality].dtype) for k in range(depth)]
            for modality, depth in self.depths.items()
        }  # (B, V) each
        ends = {modality: [self.within[modality](states[modality])] for modality in self.dims}
        if self.across is not None:
            shared = self.across(states["image"], states["text"], present["image"], present["text"])
            for modality in PAIR:
                ends[modality].append(shared)
        made = {}
        for modality, x in frozen.items():
            y = x + present[modality] * self.project[modality](torch.cat(ends[modality], dim=1))
            made[modality] = F.normalize(y, dim=1) if self.unit[modality] else y
        return made


class Within(nn.Module):
    """The tower of one modality: K states (B, V) -> (B, W), where W is the last one's width."""

    def __init__(self, widths: Sequence[int], rank: int, generator: torch.Generator) -> None:
        super().__init__()
        width = widths[-1]
        self.enter = _entries(widths, width, generator)
        self.blocks = nn.ModuleList(Block(width, rank, generator) for _ in widths)
        self.gates = nn.Parameter(torch.zeros(len(widths)))  # (K,)

    def forward(self, states: Sequence[Tensor]) -> Tensor:
        gates, s = _opened(self.gates), None
        for state, enter, block, gate in zip(states, self.enter, self.blocks, gates, strict=True):
            h = gate * enter(state)
            s = block(h if s is None else h + (1 - gate) * s)
        assert s is not None
        return s


class Across(nn.Module):
    """The tower of image and text together: their last states, as many as both have, (B, V) each -> (B, width)."""

    def __init__(self, images: Sequence[int], texts: Sequence[int], rank: int, generator: torch.Generator) -> None:
        super().__init__()
        self.depth = min(len(images), len(texts))
        self.width = min(images[-1], texts[-1])
        self.images = _entries(images[-self.depth :], self.width, generator)
        self.texts = _entries(texts[-self.depth :], self.width, generator)
        self.blocks = nn.ModuleList(Block(self.width, rank, generator) for _ in range(self.depth))
        self.gates = nn.Parameter(torch.zeros(self.depth))

    def forward(self, images: Sequence[Tensor], texts: Sequence[Tensor], has_image: Tensor, has_text: Tensor) -> Tensor:
        images, texts = images[-self.depth :], texts[-self.depth :]
        both, alone = has_image & has_text, has_image.to(images[0].dtype)  # (B, 1)
        gates, t = _opened(self.gates), None
        for image, text, of_image, of_text, block, gate in zip(
            images, texts, self.images, self.texts, self.blocks, gates, strict=True
        ):
            share = torch.where(both, gate, alone)  # of the image: of an item with one of the two, all or nothing
            h = share * of_image(image) + (1 - share) * of_text(text)
            t = block(h if t is None else t + h)
        assert t is not None
        return t


class Block(nn.Module):
    """SANB: a bottleneck of rank r beside the identity, which it starts near. (B, W) -> (B, W)."""

    def __init__(self, width: int, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(width, rank), nn.Linear(rank, width)
        for layer in (self.down, self.up):
            nn.init.normal_(layer.weight, std=DEVIATION, generator=generator)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.up(F.gelu(self.down(x)))


def _entries(widths: Sequence[int], width: int, generator: torch.Generator) -> nn.ModuleList:
    """For each layer a map from its width to the tower's that keeps a number's variance; the identity if equal."""
    entries = nn.ModuleList()
    for each in widths:
        if each == width:
            entries.append(nn.Identity())
            continue
        layer = nn.Linear(each, width)
        nn.init.normal_(layer.weight, std=each**-0.5, generator=generator)
        nn.init.zeros_(layer.bias)
        entries.append(layer)
    return entries


def _zero(layer: nn.Linear) -> nn.Linear:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def _opened(gates: Tensor) -> Tensor:
    """(K,) weights -> (K,) in 0 to 1."""
    return torch.sigmoid(gates / TEMPERATURE)


def feature_key(modality: str) -> str:
    """The key of a modality's frozen features (B, D) in a batch."""
    return f"{modality}.feature"


def present_key(modality: str) -> str:
    """The key of which items have a modality, (B,) bool."""
    return f"{modality}.present"


def state_key(modality: str, layer: int) -> str:
    """The key of the states (B, V) of the layer of that place among those taken."""
    return f"{modality}.state.{layer}"


@dataclass(frozen=True)
class SideReport:
    """The part of an end-to-end run's record about a side network and the frozen encoder under it."""

    layers: Mapping[str, tuple[int, ...]]  # taken, by modality; 0: the embeddings
    depth: Mapping[str, int]  # blocks of the encoder's tower
    width: int  # r
    frozen_parameters: int | None  # of the encoder; None: unknown
    bytes_cached: int  # of the states


def side_encoder(
    spec: RunSpec, inputs: Inputs, registry: Registry, device: torch.device
) -> tuple[SideNetwork, PreparedItems]:
    """A run's side network with its initial weights, equal in all processes, and what it reads of all items.

    Raises what `features.states.hidden_states` raises.
    """
    options: EndToEnd = spec.paradigm_config
    known, settings, catalog = encoder_spec(spec, registry), spec.settings, inputs.dataset.catalog
    assert catalog is not None  # the features came from there
    how = EncodeOptions(
        device=device,
        batch_size=encode_batch(settings, device),
        workers=loader_processes(settings, device),
        dtype=settings.encode_dtype,
    )
    states = {
        modality: hidden_states(
            catalog, known, spec.encoder_config, table,
            layers=options.side_layers, text_fields=settings.text_fields, options=how,
        )
        for modality, table in inputs.tables.items()
    }  # fmt: skip
    network = SideNetwork(
        {modality: table.dim for modality, table in inputs.tables.items()},
        {modality: each.widths for modality, each in states.items()},
        rank=options.side_width,
        unit={modality: has_unit_rows(table) for modality, table in inputs.tables.items()},
        generator=torch.Generator().manual_seed(settings.seed),
    )
    layers = {modality: each.layers for modality, each in states.items()}
    network.report = SideReport(
        layers,
        {modality: each.depth for modality, each in states.items()},
        options.side_width,
        _parameters(inputs.tables),
        sum(each.nbytes for each in states.values()),
    )
    base = {modality: encoder_id(known, spec.encoder_config, modality) for modality in inputs.tables}
    network.about = plain({"base": base, "layers": layers})
    return network, side_items(inputs.tables, states)


def side_items(tables: Mapping[str, FeatureTable], states: Mapping[str, HiddenStates]) -> PreparedItems:
    """What a side network reads of all items: features in memory, states memory-mapped."""
    arrays: dict[str, np.ndarray] = {}
    for modality, table in tables.items():
        arrays |= {feature_key(modality): table.values, present_key(modality): table.present}
        arrays |= {state_key(modality, place): array for place, array in enumerate(states[modality].arrays)}
    return PreparedItems(arrays, {})


def has_unit_rows(table: FeatureTable) -> bool:
    """True if the rows of all present items have length 1: the encoder scales them to it."""
    lengths = np.linalg.norm(table.values[table.present], axis=1)
    return bool((np.abs(lengths - 1) < _UNIT).all())


def check_side(run: RunSpec, registry: Registry) -> None:
    """NotApplicable for an encoder that defines no hidden states, ConfigError for a loss that a side network lacks."""
    options: EndToEnd = run.paradigm_config
    assert run.encoder is not None
    encoder_class: type[ItemEncoder] = registry.encoders.load(run.encoder, "cls")
    if encoder_class.hidden_states is ItemEncoder.hidden_states:
        raise no_states(run.encoder, "it gives none")
    if options.itc:
        raise ConfigError(
            f"ete.itc: expected 0 under ete.tune=side, as a side network has no contrastive loss, got {options.itc}; "
            "try --ete.itc=0"
        )


def _parameters(tables: Mapping[str, FeatureTable]) -> int | None:
    """The number of parameters of the encoder that made the tables; what they share counts once."""
    if any(table.parameters is None for table in tables.values()):
        return None
    merged = {name: count for table in tables.values() for name, count in (table.parameters or {}).items()}
    return sum(merged.values())

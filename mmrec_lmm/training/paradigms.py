"""The paradigms pt, ft and ete: the name, configuration section and class of each.

They are registered by the same hook as a plugin's paradigms, under the entry point `paradigms`. Nothing here imports
torch.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from ..api import OPTIONAL, ParadigmSpec, hookimpl
from ..config.schema import SEED, SIZE, WEIGHT, Limit, above, at_least, between
from ..typed_json import ADDED

_BY_TUNE: Any = None  # a default that `tune` decides, by _DEFAULTS
#: Of `tune: side`, and of all others. A side network starts at random, and a step on so many of its rows costs less
#: than half of what the recommender's batches between two steps do.
_DEFAULTS: Mapping[str, tuple[float, float]] = {
    "learning_rate": (1e-3, 1e-5),
    "encoder_every": (8, 4),
    "rows": (64, 256),
    "micro_batch": (0, 32),
}
_TUNES = re.compile(r"full|lora|side|last:[1-9]\d{0,8}")
_LAYERS = Limit(
    "auto, or different numbers of layers from 0 on, rising",
    lambda layers: layers == "auto" or (layers and layers[0] >= 0 and sorted({*layers}) == [*layers]),
)
_ABOVE_0 = Limit("above 0", lambda value: value > 0)  # infinite: gradients aren't clipped
_TUNED: Mapping[str, Limit] = {
    "tune": Limit("full, lora, side, or last:N, such as last:1", lambda tune: _TUNES.fullmatch(tune) is not None),
    "lora_rank": between(1, 4096),
    "lora_alpha": above(0),
}
_LAYER_DECAY = Limit("above 0 and at most 1", lambda decay: 0 < decay <= 1, spelled={1.0: None})


@dataclass(frozen=True)
class FineTuning:
    """Section `ft`: the tuning of an encoder on a catalog's images and texts, before any recommender is trained.

    The LMM paper searches learning_rate in {1e-5, 3e-5, 5e-5, 1e-4, 1e-3} and batch_size in {32, 64, 128, 256, 1024},
    and states no other setting; the other defaults are those of VLMo's recipe, or common ones.
    """

    VARIANT: ClassVar[str] = "tune"  # ft:lora
    LIMITS: ClassVar[Mapping[str, Limit]] = {
        **_TUNED,
        "batch_size": at_least(2),
        "epochs": at_least(1),
        "accumulate": at_least(1),
        "patience": at_least(0),
        "learning_rate": WEIGHT,
        "weight_decay": WEIGHT,
        "clip_grad_norm": _ABOVE_0,
        "layer_decay": _LAYER_DECAY,
        "warmup": Limit("a share of at least 0 and below 1", lambda share: 0 <= share < 1),
        "held_out": Limit("a share above 0 and at most 0.5", lambda share: 0 < share <= 0.5),
        "seed": SEED,
    }

    learning_rate: float = 3e-5  # of AdamW, betas 0.9 and 0.98
    layer_decay: float | None = field(default=None, metadata=OPTIONAL)  # the rate's factor per block down; None: 1
    batch_size: int = 256  # items contrasted with each other: another size is another loss
    accumulate: int = 1  # batches per step, which takes their mean loss; items are contrasted within each batch
    epochs: int = 10  # at most
    patience: int = 3  # epochs without a lower loss on the held-out items
    weight_decay: float = 0.01  # not on biases, norms, positions, CLS and scales
    warmup: float = 0.1  # share of all steps in which the learning rate rises to its value
    schedule: Literal["linear", "cosine"] = "linear"  # of the learning rate's fall to zero after that
    clip_grad_norm: float = 1.0  # of all parameters together
    held_out: float = 0.05  # share of items that select the epoch and are never trained on
    tune: str = field(default="full", metadata=ADDED)  # of the encoder: full, lora or last:N, as of ete
    lora_rank: int = field(default=8, metadata=ADDED)  # r of lora's updates (alpha / r) B A
    lora_alpha: float = field(default=16.0, metadata=ADDED)  # their weight, times r
    lora_targets: tuple[str, ...] = field(default=(), metadata=ADDED)  # patterns of matrices; (): the blocks'
    freeze: tuple[str, ...] = ()  # patterns of the names of parameters that aren't trained
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the arithmetic, by autocast; weights stay float32
    seed: int = 999  # of the held-out items, the batches and the losses' masks


@dataclass(frozen=True)
class EndToEnd:
    """Section `ete`: the training of an encoder together with a recommender."""

    VARIANT: ClassVar[str] = "tune"  # ete:side
    LIMITS: ClassVar[Mapping[str, Limit]] = {
        **_TUNED,
        "learner": Limit("adam or adamw", lambda name: name in ("adam", "adamw"), spelled={"adamw": None}),
        "side_layers": _LAYERS,
        "side_width": SIZE,
        "encoder_every": at_least(1),
        "refresh_epochs": at_least(1),
        "micro_batch": at_least(0),
        "rows": at_least(0),
        "warm_epochs": Limit("at least 0, or auto", lambda epochs: epochs == "auto" or epochs >= 0),
        "warmup_steps": at_least(0),
        "learning_rate": WEIGHT,
        "weight_decay": WEIGHT,
        "itc": WEIGHT,
        "clip_grad_norm": _ABOVE_0,
        "layer_decay": _LAYER_DECAY,
    }

    mode: Literal["two_pass", "splice", "released"] = "two_pass"  # splice: the batches' items; released: no gradient
    # of the encoder: full, lora, side (ete only), or last:N, its last N blocks and what follows
    tune: str = field(default="full", metadata=ADDED)
    lora_rank: int = field(default=8, metadata=ADDED)  # r of lora's updates (alpha / r) B A
    lora_alpha: float = field(default=16.0, metadata=ADDED)  # their weight, times r
    lora_targets: tuple[str, ...] = field(default=(), metadata=ADDED)  # patterns of matrices; (): the blocks'
    # whose states side reads, 0: the embeddings; auto: at most seven of each tower, evenly spaced
    side_layers: tuple[int, ...] | Literal["auto"] = field(default="auto", metadata=ADDED)
    side_width: int = field(default=64, metadata=ADDED)  # of the bottlenecks of side's blocks
    learner: Literal["adam", "adamw"] | None = field(default=None, metadata=OPTIONAL)  # of the encoder; None: AdamW
    learning_rate: float = _BY_TUNE  # of the encoder: 1e-5; the recommender keeps its own
    layer_decay: float | None = field(default=None, metadata=OPTIONAL)  # the rate's factor per block down; None: 1
    warmup_steps: int = 0  # in which the rate rises to its value; it never falls, as the last step isn't known ahead
    weight_decay: float = 0.01
    clip_grad_norm: float = 1.0  # of the encoder's parameters together
    encoder_every: int = _BY_TUNE  # batches of the recommender whose gradients one step of the encoder collects: 4
    rows: int = _BY_TUNE  # items encoded with gradient in a step, an unbiased sample: 256; 0: all that have a gradient
    micro_batch: int = _BY_TUNE  # items computed at once: 32; 0: all; sets the memory, and no result except by `itc`
    warm_epochs: int | Literal["auto"] = 0  # of the recommender alone, before the encoder joins; auto: until it stalls
    refresh_epochs: int = 1  # epochs between two encodings of all items; each evaluation is preceded by one, too
    itc: float = 0.0  # weight of the encoder's own contrastive loss within each micro-batch of a step
    freeze: tuple[str, ...] = ()  # patterns of the names of the encoder's parameters that aren't trained
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the encoder's arithmetic, by autocast

    def __post_init__(self) -> None:
        for name, (side, others) in _DEFAULTS.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, side if self.tune == "side" else others)


@hookimpl
def mmrec_register_paradigms() -> list[ParadigmSpec]:
    return [
        ParadigmSpec("pt", "mmrec_lmm.plugin.contracts:Paradigm", summary="the encoder as it was pre-trained"),
        ParadigmSpec(
            "ft",
            "mmrec_lmm.training.fine_tuning:FineTuned",
            FineTuning,
            prepares=True,
            summary="the encoder fine-tuned on the catalog's images and texts, before the recommender is trained",
            paper="Yi et al., 2023, arXiv:2310.20343",
        ),
        ParadigmSpec(
            "ete",
            "mmrec_lmm.training.end_to_end:TrainedEndToEnd",
            EndToEnd,
            joint=True,
            normalizes=("unit",),
            summary="the encoder trained end to end with the recommender, on the recommender's loss",
            paper="Yi et al., 2023, arXiv:2310.20343",
        ),
    ]

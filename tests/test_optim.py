"""How an encoder's weights are trained: what is decayed, what is frozen, and the course of the learning rate."""

import copy
import math
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from mmrec_lmm.data.items import pad_and_stack
from mmrec_lmm.errors import ConfigError
from mmrec_lmm.features.encoding import build_encoder
from mmrec_lmm.plugin.contracts import ItemEncoder
from mmrec_lmm.plugin.registry import load_registry
from mmrec_lmm.plugin.specs import resolve
from mmrec_lmm.training.optim import (
    FAINT,
    SWEEP_STEPS,
    adam,
    adamw,
    depth_factors,
    drop_faint_momentum,
    freeze,
    rate_factor,
    recompute_blocks,
    scale_rates,
    set_rate,
)
from mmrec_lmm.training.trainer import LEARNERS
from mmrec_lmm.types import RawItem

VECTORS = {
    "beit3": (
        "model.logit_scale",
        "vision_embed.cls_token",
        "mask_token",
        "embed_positions.A.weight",
        "embed_positions.B.weight",
    ),
    "clip": (
        "model.logit_scale",
        "visual.class_embedding",
        "model.positional_embedding",
        "visual.positional_embedding",
    ),
    "vlmo": (
        "logit_vl_scale",
        "cls_token",
        "transformer.pos_embed",
        "position_embeddings.weight",
        "type_embeddings.weight",
    ),
}
WORDS = {"beit3": "text_embed.weight", "clip": "token_embedding.weight", "vlmo": "word_embeddings.weight"}


@pytest.mark.parametrize("name", sorted(VECTORS))
def test_matrices_are_decayed_and_no_vectors_scales_positions_and_types(name: str) -> None:
    spec = load_registry().encoders.get(name)
    encoder = resolve(spec.cls)(resolve(spec.config)(variant="tiny"), ("image", "text"))
    decayed, others = (group["params"] for group in adamw(encoder, learning_rate=1, weight_decay=0.1).param_groups)
    names = {parameter: name for name, parameter in encoder.named_parameters()}
    assert len(decayed) + len(others) == len(names)
    assert all(parameter.ndim > 1 for parameter in decayed)
    assert any(names[parameter].endswith(WORDS[name]) for parameter in decayed)
    matrices = [names[parameter] for parameter in others if parameter.ndim > 1]
    assert all(any(matrix.endswith(vector) for vector in VECTORS[name]) for matrix in matrices), matrices
    assert all(any(names[one].endswith(vector) for one in others) for vector in VECTORS[name])


def test_what_is_frozen_is_not_trained() -> None:
    encoder = nn.ModuleDict({"image": nn.Linear(2, 3), "text": nn.Linear(2, 3)})
    assert freeze(encoder, (), owner="ours") == ()
    assert freeze(encoder, ("image.*", "*.bias"), owner="ours") == ("image.weight", "image.bias", "text.bias")
    groups = adamw(encoder, learning_rate=1, weight_decay=0.1).param_groups
    assert [len(group["params"]) for group in groups] == [1, 0]


def test_adam_is_torchs_over_what_is_not_frozen_and_decays_by_the_gradient() -> None:
    ours, theirs = nn.Linear(2, 3), nn.Linear(2, 3)
    theirs.load_state_dict(ours.state_dict())
    for layer in (ours, theirs):
        layer.bias.requires_grad_(False)
    optimizers = (
        adam(ours, learning_rate=0.1, weight_decay=0.5),
        torch.optim.Adam([theirs.weight], lr=0.1, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.5),
    )
    for _ in range(3):
        for layer, optimizer in zip((ours, theirs), optimizers, strict=True):
            optimizer.zero_grad()
            layer(torch.tensor([[1.0, -2.0]])).square().sum().backward()
            optimizer.step()
    torch.testing.assert_close(ours.weight, theirs.weight)
    torch.testing.assert_close(ours.bias, theirs.bias)


def test_a_pattern_that_matches_nothing_is_refused_with_the_likely_name() -> None:
    encoder = nn.ModuleDict({"image": nn.Linear(2, 3), "text": nn.Linear(2, 3)})
    with pytest.raises(
        ConfigError, match=r"^ours: expected a pattern .*, got image.wieght, which .*; did you mean image.weight\?$"
    ):
        freeze(encoder, ("image.wieght",), owner="ours")


# Rates by depth


def tiny(name: str, **keys: Any) -> tuple[ItemEncoder, dict[str, Tensor]]:
    """An encoder, and two items for it."""
    spec = load_registry().encoders.get(name)
    encoder = build_encoder(spec, resolve(spec.config)(variant="tiny", **keys), ("image", "text")).eval()
    rows = [encoder.prepare(RawItem(item, Image.new("RGB", (40, 40), "gray"), "a red thing")) for item in (0, 1)]
    return encoder, pad_and_stack(rows, padding=encoder.padding, encoder=name)


def depths(name: str, **keys: Any) -> dict[str, int]:
    """By parameter, the power of the decay that its rate is multiplied by."""
    encoder, batch = tiny(name, **keys)
    factors = depth_factors(encoder, batch, 0.5, owner="ours")
    return {name: round(-math.log2(factors[parameter])) for name, parameter in encoder.named_parameters()}


def test_clips_rates_fall_by_block_from_each_towers_top_to_its_inputs() -> None:
    found = depths("clip")
    inputs = {
        "model.positional_embedding", "model.token_embedding.weight", "model.visual.class_embedding",
        "model.visual.positional_embedding", "model.visual.conv1.weight", "model.visual.ln_pre.weight",
        "model.visual.ln_pre.bias",
    }  # fmt: skip
    heads = {
        "text_projection", "image_projection", "model.logit_scale", "model.ln_final.weight",
        "model.ln_final.bias", "model.visual.ln_post.weight", "model.visual.ln_post.bias",
    }  # fmt: skip
    blocks = {name: re.search(r"resblocks\.(\d+)\.", name) for name in found}
    assert {name for name, block in blocks.items() if block is None} == inputs | heads
    n_blocks = 1 + max(int(block[1]) for block in blocks.values() if block)
    assert n_blocks > 1
    for name, depth in found.items():
        block = blocks[name]
        due = n_blocks - 1 - int(block[1]) if block else n_blocks if name in inputs else 0
        assert depth == due, name


@pytest.mark.parametrize("name", ["beit3", "vlmo"])
def test_one_backbone_for_both_modalities_has_its_depths_and_unread_parts_the_full_rate(name: str) -> None:
    found = depths(name)
    words = [depth for parameter, depth in found.items() if parameter.endswith(WORDS[name])]
    assert words == [max(found.values())] != [0]
    tops = [depth for parameter, depth in found.items() if re.search(r"(blocks|layers)\.0\.", parameter)]
    assert {*tops} == {max(found.values()) - 1}
    assert found[next(parameter for parameter in found if parameter.endswith("logit_scale"))] == 0


class Stages(nn.Module):
    """Two stages in series, the first of two blocks and the second of three, with a stem, a head and a shared bias."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.stem = nn.Linear(2, 2), nn.Linear(2, 2)
        self.first = nn.Sequential(*[nn.Linear(2, 2) for _ in range(2)])
        self.second = nn.ModuleList(nn.Linear(2, 2) for _ in range(3))
        self.shared, self.unread = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        x = self.first(self.stem(batch["x"]))
        for block in self.second:
            x = block(x) + self.shared
        return {"image": self.head(x)}


def test_blocks_of_a_stage_count_as_below_the_next_one() -> None:
    encoder = Stages()
    factors = depth_factors(encoder, {"x": torch.ones(1, 2)}, 0.5, owner="ours")
    assert {name: -math.log2(factors[parameter]) for name, parameter in encoder.named_parameters()} == {
        "shared": 0, "unread": 0,
        **{f"{part}.{kind}": depth for part, depth in (
            ("head", 0), ("second.2", 0), ("second.1", 1), ("second.0", 2), ("first.1", 3), ("first.0", 4), ("stem", 5)
        ) for kind in ("weight", "bias")},
    }  # fmt: skip


@pytest.mark.parametrize("optimizer_of", [adam, adamw])
def test_the_first_steps_of_adam_are_as_long_as_the_rates_of_their_depths(optimizer_of: Callable[..., Any]) -> None:
    encoder, batch = Stages(), {"x": torch.ones(1, 2)}
    before = {name: parameter.detach().clone() for name, parameter in encoder.named_parameters()}
    optimizer = optimizer_of(encoder, learning_rate=1, weight_decay=0.0)
    scale_rates(optimizer, depth_factors(encoder, batch, 0.5, owner="ours"))
    set_rate(optimizer, 0.01)
    encoder(batch)["image"].square().sum().backward()
    optimizer.step()
    for name, rate in (("head", 1), ("second.1", 1 / 2), ("first.0", 1 / 16), ("stem", 1 / 32)):
        moved = (encoder.get_parameter(f"{name}.bias") - before[f"{name}.bias"]).abs()
        torch.testing.assert_close(moved, torch.full((2,), 0.01 * rate), rtol=1e-3, atol=0)


@pytest.mark.parametrize("optimizer_of", [adam, adamw])
def test_one_factor_for_all_changes_no_bit(optimizer_of: Callable[..., Any]) -> None:
    torch.manual_seed(0)
    ours, batch = Stages(), {"x": torch.ones(1, 2)}
    theirs = copy.deepcopy(ours)
    optimizers = [optimizer_of(each, learning_rate=0.01, weight_decay=0.1) for each in (ours, theirs)]
    scale_rates(optimizers[0], depth_factors(ours, batch, 1.0, owner="ours"))
    for _ in range(5):
        for encoder, optimizer in zip((ours, theirs), optimizers, strict=True):
            set_rate(optimizer, 0.02)
            optimizer.zero_grad()
            encoder(batch)["image"].square().sum().backward()
            optimizer.step()
    for name, value in ours.state_dict().items():
        assert torch.equal(value, theirs.state_dict()[name])


def test_an_encoder_without_blocks_has_no_depths() -> None:
    with pytest.raises(ConfigError, match=r"^ours: expected an encoder with blocks, got one that has none"):
        depth_factors(nn.Linear(2, 2), {}, 0.5, owner="ours")


def test_the_rate_rises_to_its_value_and_falls_to_zero() -> None:
    linear = [rate_factor(step, 10, warmup=0.2, schedule="linear") for step in range(11)]
    assert linear == pytest.approx([1 / 2, 1, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8, 0])
    cosine = [rate_factor(step, 8, warmup=0, schedule="cosine") for step in (0, 2, 4, 6, 8)]
    assert cosine == pytest.approx([1, (1 + 0.5**0.5) / 2, 1 / 2, (1 - 0.5**0.5) / 2, 0])


def gradients_and_bytes(encoder: nn.Module, batch: dict[str, Tensor]) -> tuple[dict[str, Tensor], int]:
    """Of an encoder's losses: the gradients, and the bytes that were kept for them beside the weights themselves."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in encoder.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    torch.manual_seed(1)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        total = torch.stack([*encoder.tuning_losses(batch).values()]).sum()
    total.backward()
    size = sum(tensor.untyped_storage().nbytes() for place, tensor in kept.items() if place not in weights)
    return {name: one.grad for name, one in encoder.named_parameters() if one.grad is not None}, size


@pytest.mark.parametrize("name", ["beit3", "clip", "vlmo"])
def test_blocks_that_are_computed_twice_give_the_same_gradients_from_less_memory(name: str) -> None:
    spec = load_registry().encoders.get(name)
    config = resolve(spec.config)(variant="tiny")
    encoders = [build_encoder(spec, config, ("image", "text")).train() for _ in range(2)]
    recompute_blocks(encoders[1])
    rows = [encoders[0].prepare(RawItem(item, None, f"item {item}")) for item in range(6)]
    batch = {key: torch.stack([row[key] for row in rows]) for key in rows[0]}
    batch["pixels"] = torch.rand(batch["pixels"].shape, generator=torch.Generator().manual_seed(0))
    (ours, kept), (again, less) = (gradients_and_bytes(encoder, batch) for encoder in encoders)
    assert ours.keys() == again.keys()
    assert all(torch.equal(ours[name], again[name]) for name in ours)
    assert less < 0.5 * kept
    assert encoders[0].state_dict().keys() == encoders[1].state_dict().keys()
    with torch.no_grad():
        assert all(torch.equal(x, y) for x, y in zip(*(each.eval()(batch).values() for each in encoders), strict=True))


def test_of_lists_of_like_blocks_the_outermost_are_computed_twice_and_none_with_batch_norms() -> None:
    def block(*middle: nn.Module) -> nn.Sequential:
        return nn.Sequential(nn.Linear(2, 2), *middle, nn.Linear(2, 2))

    encoder = nn.ModuleDict(
        {
            "mixed": nn.Sequential(nn.Linear(2, 2), nn.ReLU()),
            "deep": nn.ModuleDict({"blocks": nn.ModuleList([block(), block()])}),
            "norms": nn.Sequential(block(nn.BatchNorm1d(2)), block(nn.BatchNorm1d(2))),
            "one": nn.Sequential(block(nn.ReLU())),
        }
    )
    recompute_blocks(encoder)
    twice = {name for name, module in encoder.named_modules() if "forward" in vars(module)}
    assert twice == {"deep.blocks.0", "deep.blocks.1"}


@pytest.mark.parametrize("learner", sorted(LEARNERS))
def test_an_eager_optimizer_steps_and_saves_as_torchs_own(learner: str) -> None:
    eager_one, torchs = LEARNERS[learner], getattr(torch.optim, LEARNERS[learner].__name__)
    weights = [nn.Parameter(torch.linspace(-1, 1, 12).reshape(3, 4)) for _ in range(2)]
    ours, theirs = (
        kind([weight], lr=0.1, weight_decay=0.01) for kind, weight in zip((eager_one, torchs), weights, strict=True)
    )
    for step in range(3):
        if step == 1:  # as a resumed run does
            ours.load_state_dict(ours.state_dict())
            theirs.load_state_dict(theirs.state_dict())
        for optimizer, weight in ((ours, weights[0]), (theirs, weights[1])):
            optimizer.zero_grad()
            (weight.sin() ** 2).sum().backward()
            optimizer.step()
    assert isinstance(ours, torchs)
    assert torch.equal(*weights)
    assert not torch.equal(weights[0], torch.linspace(-1, 1, 12).reshape(3, 4))
    assert str(ours.state_dict()) == str(theirs.state_dict())


def test_a_step_of_training_does_not_import_torchs_compiler() -> None:
    code = """
import sys, torch
from mmrec_lmm.training.optim import adamw
from mmrec_lmm.training.trainer import LEARNERS, load_optimizer_state, optimizer_state

layer = torch.nn.Linear(2, 2)
made = [learner(layer.parameters(), lr=0.1) for learner in LEARNERS.values()]
for optimizer in (*made, adamw(layer, learning_rate=0.1, weight_decay=0.1)):
    optimizer.zero_grad()
    layer(torch.ones(2)).sum().backward()
    optimizer.step()
    load_optimizer_state(optimizer, optimizer_state(optimizer))
print("torch._dynamo" in sys.modules)
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "False"


def test_faint_momentum_is_dropped_before_it_becomes_denormal_and_moves_no_weight() -> None:
    torch.manual_seed(0)
    swept, plain = (nn.Parameter(torch.linspace(-1.0, 1.0, 8)) for _ in range(2))
    optimizers = [torch.optim.Adam([weights], fused=True) for weights in (swept, plain)]
    seen = []
    for step in range(1, 6 * SWEEP_STEPS):
        gradient = torch.zeros(8)
        gradient[step % 2 if step > 1 else slice(None)] = 1e-4  # the last six have a gradient in the first step alone
        for weights, optimizer in zip((swept, plain), optimizers, strict=True):
            weights.grad = gradient
            optimizer.step()
        if step % SWEEP_STEPS == 0:
            drop_faint_momentum(optimizers[0])
        moments = [
            optimizer.state[weights]["exp_avg"] for weights, optimizer in zip((swept, plain), optimizers, strict=True)
        ]
        seen.append([bool(((m != 0) & (m.abs() < torch.finfo(m.dtype).tiny)).any()) for m in moments])
    assert torch.equal(swept, plain)
    assert [any(column) for column in zip(*seen, strict=True)] == [False, True]
    assert torch.finfo(torch.float32).tiny < FAINT * 0.9**SWEEP_STEPS

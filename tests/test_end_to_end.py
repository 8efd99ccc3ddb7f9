"""An encoder trained with a recommender: the two passes against ordinary back-propagation, and what else is promised.

The world is the golden one: 12 users, 15 items; of these one lacks its image and one its text.
"""

import contextlib
import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import golden
import numpy as np
import pytest
import torch
import yaml
from helpers import Answer, call, plugin, start, wait_until
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from mmrec_lmm.cache import home
from mmrec_lmm.config.settings import Settings
from mmrec_lmm.data.sampling import TrainingRows
from mmrec_lmm.disk.hashing import hash_file
from mmrec_lmm.errors import ConfigError, RunError, TrainingDiverged
from mmrec_lmm.features.files import load_with_header, normalized
from mmrec_lmm.features.prepared import PreparedItems
from mmrec_lmm.losses import bpr, symmetric_info_nce
from mmrec_lmm.plugin.contracts import DotProduct, ItemEncoder
from mmrec_lmm.plugin.item_features import ItemFeatures
from mmrec_lmm.plugin.registry import Registry
from mmrec_lmm.testing import TinyEncoder
from mmrec_lmm.training.encoder_side import EncoderWorker
from mmrec_lmm.training.end_to_end import JointEncoder, draw_rows, weight_change
from mmrec_lmm.training.loop import Validation
from mmrec_lmm.training.optim import adam, adamw
from mmrec_lmm.training.paradigms import EndToEnd
from mmrec_lmm.training.resume import Checkpoints, load_checkpoint, load_weights, save_checkpoint, save_weights
from mmrec_lmm.training.trainer import Trainer, TrainerNumbers, build_optimizer
from mmrec_lmm.types import Batch, EpochReport, TrainingData

DATA = golden.training_data()
PRESENT = {"image": torch.arange(golden.N_ITEMS) != 3, "text": torch.arange(golden.N_ITEMS) != 7}
EXACT = EndToEnd(learning_rate=0.01, encoder_every=1, rows=0, micro_batch=0)
F32, F64 = torch.float32, torch.float64


class Tiny(TinyEncoder):
    """With a contrastive loss, and one that isn't."""

    def tuning_losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        rows = self(batch)
        itc = symmetric_info_nce(rows["image"], rows["text"], scale=torch.ones((), dtype=rows["image"].dtype))
        return {"itc": itc, "mlm": 1000 * rows["text"].sum()}


class GCN(DotProduct):
    """Two propagations of users and of projected features through the graph: every item's features get a gradient."""

    def __init__(self, data: TrainingData, features: ItemFeatures, config: Any = None) -> None:
        super().__init__(data, features, config)
        self.users = nn.Parameter(torch.randn(self.n_users, 4))
        self.project = nn.ModuleDict({name: nn.Linear(4, 4) for name in features})
        self.adjacency: Tensor
        self.register_buffer("adjacency", golden.symmetric(golden.dense_adjacency(data)))

    def vectors(self) -> tuple[Tensor, Tensor]:
        items = torch.stack([self.project[name](table) for name, table in self.features().items()]).sum(0)
        nodes = torch.cat([self.users, items])
        nodes = nodes + self.adjacency @ nodes + self.adjacency @ (self.adjacency @ nodes)
        return nodes[: self.n_users], nodes[self.n_users :]

    def training_loss(self, batch: Batch) -> Mapping[str, Tensor]:
        users, items = self.vectors()
        own = users[batch.users]
        return {"bpr": bpr((own * items[batch.positives]).sum(1), (own * items[batch.negatives]).sum(1))}


def prepared(dtype: torch.dtype = F32) -> PreparedItems:
    """Random colors, and texts' lengths."""
    rng = np.random.default_rng(1)
    kind = np.float64 if dtype == F64 else np.float32
    return PreparedItems({"pixels": rng.random((15, 3)).astype(kind), "length": rng.random((15, 1)).astype(kind)}, {})


def encoder_of(dtype: torch.dtype = F32, kind: type[ItemEncoder] = Tiny) -> ItemEncoder:
    torch.manual_seed(1)
    return kind(None, ("image", "text")).to(dtype)


def zeros(dtype: torch.dtype = F32) -> dict[str, Tensor]:
    return {name: torch.zeros(golden.N_ITEMS, 4, dtype=dtype) for name in PRESENT}


class Live(ItemFeatures):
    """Features that a model's loss goes through, back into the encoder: joint training as anybody would write it."""

    def __init__(self, encoder: ItemEncoder, dtype: torch.dtype, *, unit: bool = False) -> None:
        super().__init__(zeros(dtype), PRESENT, joint=True)
        self.encoder, self.all_items = encoder, prepared(dtype).batch(np.arange(golden.N_ITEMS))
        self.unit = unit

    def __call__(self) -> dict[str, Tensor]:
        made = self.encoder(self.all_items)
        if self.unit:
            made = {name: rows / rows.norm(dim=1, keepdim=True) for name, rows in made.items()}
        return {name: rows * PRESENT[name].unsqueeze(1) for name, rows in made.items()}

    def rows(self, items: Tensor) -> dict[str, Tensor]:
        return {name: table[items] for name, table in self().items()}


class World:
    """A model, its features, an encoder and the callback between them, all drawn alike every time."""

    def __init__(
        self,
        options: EndToEnd = EXACT,
        *,
        dtype: torch.dtype = F32,
        model: Callable[[TrainingData, ItemFeatures], DotProduct] = GCN,
        encoder: type[ItemEncoder] = Tiny,
        seed: int = 0,
        unit: bool = False,
        **settings: Any,
    ) -> None:
        self.encoder = encoder_of(dtype, encoder)
        self.features = ItemFeatures(zeros(dtype), PRESENT, joint=True)
        torch.manual_seed(seed)
        self.model = model(DATA, self.features).to(dtype)
        self.callback = JointEncoder(
            EncoderWorker(self.encoder, prepared(dtype), PRESENT, options, unit=unit),
            self.features,
            options,
            generator=torch.Generator().manual_seed(seed),
        )
        self.settings = Settings(**{"epochs": 2, "train_batch_size": 10, "stopping_step": 99, **settings})
        self.rows = TrainingRows(DATA.train, DATA.n_users, self.settings.train_batch_size)
        self.tables: list[dict[str, Tensor]] = []  # features at each evaluation
        self.trainer = Trainer(
            self.model,
            self.rows,
            self.settings,
            validate=self.validate,
            generator=torch.Generator().manual_seed(seed),
            callback=self.callback,
        )

    def validate(self) -> Validation:
        """Every epoch is better than the one before. What the model ranks by is computed, as an evaluator does."""
        with torch.no_grad():
            self.model.eval().vectors()
        self.tables.append({name: table.detach().clone() for name, table in self.features().items()})
        return Validation(float(self.trainer.state().numbers.epoch), {})

    def gradient(self, batch: Batch) -> list[Tensor]:
        """What one batch sends into the encoder's weights."""
        self.callback.epoch_started(0)
        torch.stack([*self.model.training_loss(batch).values()]).sum().backward()
        self.callback.after_batch(batch)
        return [parameter.grad for parameter in self.encoder.parameters() if parameter.grad is not None]


def vbpr(registry: Registry) -> Callable[[TrainingData, ItemFeatures], DotProduct]:
    return lambda data, features: golden.build(registry, "VBPR", features, data=data, embedding_size=4)


def mmgcn(registry: Registry) -> Callable[[TrainingData, ItemFeatures], DotProduct]:
    return lambda data, features: golden.build(registry, "MMGCN", features, data=data, embedding_size=4)


def lattice(registry: Registry) -> Callable[[TrainingData, ItemFeatures], DotProduct]:
    return lambda data, features: golden.build(registry, "LATTICE", features, data=data, knn_k=3)


# The same as back-propagation


@pytest.mark.parametrize("unit", [False, True], ids=["as they are", "unit"])
@pytest.mark.parametrize("name", ["gcn", "vbpr", "mmgcn"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(F32, 1e-6), (F64, 1e-12)], ids=["float32", "float64"])
def test_the_two_passes_give_the_encoder_the_gradient_of_joint_back_propagation(
    name: str, dtype: torch.dtype, tolerance: float, unit: bool, registry: Registry
) -> None:
    model = {"gcn": GCN, "vbpr": vbpr(registry), "mmgcn": mmgcn(registry)}[name]
    world = World(dtype=dtype, model=model, encoder=Tiny, unit=unit)
    live = Live(encoder_of(dtype), dtype, unit=unit)
    torch.manual_seed(0)
    direct = model(DATA, live).to(dtype)
    torch.stack([*direct.training_loss(golden.BATCH).values()]).sum().backward()
    expected = [parameter.grad for parameter in live.encoder.parameters()]
    torch.nn.utils.clip_grad_norm_(live.encoder.parameters(), EXACT.clip_grad_norm)
    for ours, theirs in zip(world.gradient(golden.BATCH), expected, strict=True):
        assert theirs is not None
        assert theirs.abs().max() > 1e-4
        torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance)


@pytest.mark.parametrize(("micro_batch", "learner"), [(0, None), (1, None), (4, None), (4, "adam")])
def test_after_ten_steps_encoder_and_model_are_where_joint_training_takes_them(
    micro_batch: int, learner: Literal["adam"] | None
) -> None:
    options = EndToEnd(learning_rate=0.01, encoder_every=1, rows=0, micro_batch=micro_batch, learner=learner)
    world = World(options, dtype=F64)  # 48 rows in batches of 10: five steps an epoch
    world.trainer.fit()

    live = Live(encoder_of(F64), F64)
    torch.manual_seed(0)
    model = GCN(DATA, live).to(F64)
    optimizer_of = adam if learner == "adam" else adamw
    optimizers = (
        build_optimizer(model, world.settings),
        optimizer_of(live.encoder, learning_rate=0.01, weight_decay=0.01),
    )
    generator, steps = torch.Generator().manual_seed(0), 0
    for _ in range(2):
        for batch in world.rows.epoch(generator):
            for optimizer in optimizers:
                optimizer.zero_grad()
            torch.stack([*model.training_loss(batch).values()]).sum().backward()
            torch.nn.utils.clip_grad_norm_(live.encoder.parameters(), 1.0)
            for optimizer in optimizers:
                optimizer.step()
            steps += 1
    assert steps == world.callback.report().steps == 10
    start = encoder_of(F64).state_dict()
    assert not any(torch.equal(value, start[name]) for name, value in live.encoder.state_dict().items())
    for ours, theirs in ((world.model, model), (world.encoder, live.encoder)):
        for name, value in ours.state_dict().items():
            torch.testing.assert_close(value, theirs.state_dict()[name], rtol=0, atol=1e-12, msg=name)
    for name, table in live().items():
        torch.testing.assert_close(world.features()[name], table, rtol=0, atol=1e-12)


def test_the_gradient_of_several_batches_is_their_sum() -> None:
    options = EndToEnd(encoder_every=2, rows=0, clip_grad_norm=1e9)
    batches = [*World().rows.epoch(torch.Generator().manual_seed(0))][:2]
    singles = [World(EndToEnd(encoder_every=1, rows=0, clip_grad_norm=1e9), dtype=F64) for _ in batches]
    apart = [world.gradient(batch) for world, batch in zip(singles, batches, strict=True)]
    both = World(options, dtype=F64)
    assert both.gradient(batches[0]) == []
    for ours, first, second in zip(both.gradient(batches[1]), *apart, strict=True):
        torch.testing.assert_close(ours, first + second, rtol=0, atol=1e-12)


# Fewer rows


def test_drawn_rows_are_weighted_so_that_sums_over_them_are_unbiased() -> None:
    norms, budget, n = torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0], dtype=F64), 3, 4000
    generator, total = torch.Generator().manual_seed(0), torch.zeros(5, dtype=F64)
    for _ in range(n):
        rows, weights = draw_rows(norms, budget, generator)
        assert len(rows.unique()) == len(rows) <= budget
        total[rows] += weights
    p = norms[1:] / norms.sum()
    error = ((1 / p - 1) / budget / n).sqrt()  # of the mean of n weights, each a binomial count over (budget p)
    assert total[0] == 0
    assert ((total[1:] / n - 1).abs() < 4 * error).all()


def test_the_expected_gradient_of_a_budget_is_that_of_all_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a budget of one row, the mean over every row that it can draw, by its probability, is exact."""

    def gradient(rows: int) -> list[Tensor]:
        return World(EndToEnd(encoder_every=1, rows=rows, clip_grad_norm=1e9), dtype=F64).gradient(golden.BATCH)

    whole = gradient(0)
    mean, chances = [torch.zeros_like(each) for each in whole], []
    for row in range(golden.N_ITEMS):

        def draw(p: Tensor, *_: object, row: int = row, **__: object) -> Tensor:
            chances.append(p[row].item())
            return p.argmax().unsqueeze(0) if p[row] == 0 else torch.tensor([row])

        monkeypatch.setattr(torch, "multinomial", draw)
        for total, each in zip(mean, gradient(1), strict=True):
            total += chances[row] * each
    assert sum(chances) == pytest.approx(1)
    for ours, theirs in zip(mean, whole, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


def test_a_budget_encodes_no_more_rows_than_it_says_and_other_rows_wait_for_the_refresh() -> None:
    world = World(EndToEnd(learning_rate=0.01, encoder_every=1, rows=4))
    world.callback.epoch_started(0)
    before = world.features()["image"].detach().clone()
    version = world.features.version
    world.gradient(golden.BATCH)
    changed = (world.features()["image"] != before).any(dim=1)
    assert 0 < changed.sum() <= 4
    assert world.features.version == version
    world.callback.before_evaluation()
    assert (world.features()["image"] != before).any(dim=1).tolist() == PRESENT["image"].tolist()
    assert world.features.version > version


def test_splice_equals_the_two_passes_for_a_model_without_propagation(registry: Registry) -> None:
    worlds = [
        World(EndToEnd(learning_rate=0.01, mode=mode, rows=0), model=vbpr(registry)) for mode in ("splice", "two_pass")
    ]
    for world in worlds:
        before = {name: value.clone() for name, value in world.encoder.state_dict().items()}
        world.trainer.fit()
    for name, value in worlds[0].encoder.state_dict().items():
        assert torch.equal(value, worlds[1].encoder.state_dict()[name])
        assert not torch.equal(value, before[name])


def test_splice_on_a_graph_keeps_the_gradient_of_the_batchs_items_alone() -> None:
    world = World(EndToEnd(learning_rate=0.01, mode="splice", encoder_every=2, rows=0))
    world.gradient(golden.BATCH)
    touched = torch.cat([golden.BATCH.positives, golden.BATCH.negatives]).unique()
    pending = world.callback._pending["image"]
    assert pending.any(dim=1).nonzero().squeeze(1).tolist() == touched.tolist()
    assert len(touched) < golden.N_ITEMS


# What the encoder's side promises


def test_features_of_absent_items_stay_zero_and_send_nothing_back() -> None:
    world = World()
    world.trainer.fit()
    for name, present in PRESENT.items():
        assert world.features()[name].any(dim=1).tolist() == present.tolist()


def test_every_evaluation_sees_features_of_the_encoder_as_it_is_then() -> None:
    world = World(EndToEnd(learning_rate=0.01, refresh_epochs=9, rows=2), epochs=3)
    world.trainer.fit()
    encoded = world.encoder(prepared().batch(np.arange(golden.N_ITEMS)))
    for name, table in world.tables[-1].items():
        assert torch.equal(table, encoded[name] * PRESENT[name].unsqueeze(1))
    assert not torch.equal(world.tables[0]["image"], world.tables[1]["image"])


@pytest.mark.parametrize(("refresh_epochs", "fresh"), [(1, [0, 1, 2, 3]), (2, [0, 2])])
def test_between_evaluations_all_items_are_encoded_every_refresh_epochs(
    refresh_epochs: int, fresh: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(EndToEnd(learning_rate=0.01, rows=2, refresh_epochs=refresh_epochs), epochs=4, eval_step=4)
    refreshed: list[int] = []
    epoch, started, refresh = 0, world.callback.epoch_started, world.callback._refresh

    def note_epoch(now: int) -> None:
        nonlocal epoch
        epoch = now
        started(now)

    def note_refresh() -> None:
        refreshed.append(epoch)
        refresh()

    monkeypatch.setattr(world.callback, "epoch_started", note_epoch)
    monkeypatch.setattr(world.callback, "_refresh", note_refresh)
    world.trainer.fit()
    assert refreshed[:-2] == fresh  # then that of the evaluation, and that of the best weights
    assert refreshed[-2:] == [3, 3]


def test_the_best_epochs_encoder_comes_back_with_its_features() -> None:
    world = World(EndToEnd(learning_rate=0.01), epochs=4)
    scores = iter([0.1, 0.9, 0.2, 0.3])
    remember = world.validate
    world.trainer._validate = lambda: (remember(), Validation(next(scores), {}))[1]
    assert world.trainer.fit().best_epoch == 1
    for name, table in world.features().items():
        assert torch.equal(table, world.tables[1][name])
        assert not torch.equal(table, world.tables[3][name])


def test_in_warm_epochs_the_encoder_stands_still_and_the_model_learns() -> None:
    world = World(EndToEnd(learning_rate=0.01, warm_epochs=2), epochs=3)
    world.trainer.fit()
    first, second, third = (tables["image"] for tables in world.tables)
    assert torch.equal(first, second)
    assert not torch.equal(second, third)
    assert world.callback.report().steps == 2  # of one epoch: five batches in fours


def test_in_its_warm_up_the_encoders_rate_rises_step_by_step_and_then_it_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[float] = []
    step = EncoderWorker.step
    monkeypatch.setattr(EncoderWorker, "step", lambda *given: (rates.append(given[-1]), step(*given))[1])
    World(EndToEnd(learning_rate=0.01, warmup_steps=4, encoder_every=2)).trainer.fit()  # three steps an epoch
    assert rates == pytest.approx([0.0025, 0.005, 0.0075, 0.01, 0.01, 0.01])


def test_a_run_that_ends_before_the_encoder_joins_is_an_error() -> None:
    world = World(EndToEnd(warm_epochs=5), epochs=4)
    world.trainer.fit()
    with pytest.raises(RunError, match="training ended before encoder encoder joined"):
        world.callback.report()


@pytest.mark.parametrize(
    "options", [EndToEnd(learning_rate=0.0), EndToEnd(mode="released")], ids=["rate 0", "released"]
)
def test_a_rate_of_zero_and_mode_released_are_frozen_features_by_another_name(options: EndToEnd) -> None:
    world = World(options)
    world.trainer.fit()
    frozen = ItemFeatures(world.tables[0], PRESENT)
    torch.manual_seed(0)
    model = GCN(DATA, frozen)
    plain = Trainer(
        model,
        world.rows,
        world.settings,
        validate=lambda: Validation(float(plain.state().numbers.epoch), {}),
        generator=torch.Generator().manual_seed(0),
    )
    plain.fit()
    for name, value in model.state_dict().items():
        assert torch.equal(value, world.model.state_dict()[name]), name
    for name, table in encoder_of()(prepared().batch(np.arange(golden.N_ITEMS))).items():
        assert torch.equal(world.features()[name], table * PRESENT[name].unsqueeze(1))
    report = world.callback.report()
    assert set(report.weight_change.values()) == {0.0}
    assert (report.gradient_norm.last > 0) == (options.mode == "two_pass")


class Detaching(GCN):
    """As the released code does."""

    def vectors(self) -> tuple[Tensor, Tensor]:
        live, self.features = self.features, ItemFeatures(self.features(), self.features.present)
        try:
            return super().vectors()
        finally:
            self.features = live


class Sealed(Tiny):
    """Lets no gradient in."""

    def forward(self, batch: Any) -> dict[str, Tensor]:
        return {name: rows.detach() for name, rows in super().forward(batch).items()}


@pytest.mark.parametrize(("model", "encoder"), [(Detaching, Tiny), (GCN, Sealed)], ids=["model", "encoder"])
def test_a_run_whose_encoder_gets_no_gradient_fails_loudly(model: type[GCN], encoder: type[Tiny]) -> None:
    with pytest.raises(
        RunError, match="no gradient of model's loss reached encoder encoder in epoch 0: it isn't trained"
    ):
        World(model=model, encoder=encoder).trainer.fit()


def test_weight_decay_alone_moves_nothing() -> None:
    world = World(EndToEnd(weight_decay=1e6), encoder=Sealed)
    with pytest.raises(RunError):
        world.trainer.fit()
    for name, value in encoder_of().state_dict().items():
        assert torch.equal(value, world.encoder.state_dict()[name])


class Breaking(GCN):
    """Breaks in its seventh step, in the second epoch."""

    steps = 0

    def training_loss(self, batch: Batch) -> Mapping[str, Tensor]:
        self.steps += 1
        return {
            name: term * (math.nan if self.steps == 7 else 1) for name, term in super().training_loss(batch).items()
        }


def test_a_gradient_that_breaks_ends_training_and_keeps_the_best_encoder() -> None:
    world = World(model=Breaking, epochs=3)
    assert world.trainer.fit().stopped == "diverged"
    for name, table in world.features().items():
        assert torch.equal(table, world.tables[0][name])
    with pytest.raises(TrainingDiverged, match="gradient of model's features became NaN"):
        World(model=Breaking, epochs=3, eval_step=3).trainer.fit()


def test_a_frozen_part_stays_as_it_is_and_a_pattern_that_matches_nothing_is_refused() -> None:
    world = World(EndToEnd(learning_rate=0.01, freeze=("layers.image.*",)))
    world.trainer.fit()
    change = world.callback.report().weight_change
    assert change["image"] == 0 < change["text"]
    with pytest.raises(ConfigError, match=r"encoder encoder: ete.freeze: expected a pattern .* got layer.image.\*"):
        World(EndToEnd(freeze=("layer.image.*",)))


def test_the_contrastive_loss_is_added_over_those_rows_of_a_step_that_have_both_modalities() -> None:
    def gradient(itc: float) -> list[Tensor]:
        options = EndToEnd(encoder_every=1, rows=0, micro_batch=0, clip_grad_norm=1e9, itc=itc)
        return World(options, dtype=F64).gradient(golden.BATCH)

    encoder, collecting = encoder_of(F64), World(EndToEnd(), dtype=F64)
    collecting.gradient(golden.BATCH)
    rows = collecting.callback._pending["image"].any(dim=1)
    both = (rows & PRESENT["image"] & PRESENT["text"]).nonzero().squeeze(1)
    encoder.tuning_losses(prepared(F64).batch(both.numpy()))["itc"].backward()
    for without, added, parameter in zip(gradient(0.0), gradient(0.5), encoder.parameters(), strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(added, without + 0.5 * parameter.grad, rtol=0, atol=1e-12)
    with pytest.raises(ConfigError, match=r"ete.itc: expected an encoder with a contrastive loss, got encoder"):
        World(EndToEnd(itc=0.5), encoder=TinyEncoder).trainer.fit()


def test_weight_change_is_relative_and_by_block() -> None:
    before = {
        "model.a.one.w": torch.tensor([3.0, 0.0]),
        "model.a.one.b": torch.tensor([4.0]),
        "model.c": torch.zeros(2),
    }
    after = {"model.a.one.w": torch.tensor([3.0, 1.0]), "model.a.one.b": torch.tensor([4.0]), "model.c": torch.ones(2)}
    assert weight_change(before, after) == {"a.one": pytest.approx(1 / 5), "c": pytest.approx(math.sqrt(2))}


# Continuing


class Stop(Exception):
    """What ends a run from outside."""


@pytest.mark.parametrize("stop_after", [0, 1, 2])
def test_a_joint_run_that_was_stopped_continues_to_the_same_bits(stop_after: int, tmp_path: Path) -> None:
    options = EndToEnd(
        learning_rate=0.01, warmup_steps=5, encoder_every=3, rows=3, itc=0.1, refresh_epochs=2, warm_epochs=1
    )

    def stop(report: EpochReport) -> None:
        if report.epoch == stop_after + 1:
            raise Stop

    whole = World(options, epochs=4)
    fit = whole.trainer.fit()
    with pytest.raises(Stop):
        World(options, epochs=4).trainer.fit(
            on_epoch=stop, on_checkpoint=lambda state: save_checkpoint(tmp_path, state)
        )
    state = load_checkpoint(tmp_path, TrainerNumbers)
    assert state is not None
    resumed = World(options, epochs=4, seed=99)
    resumed.trainer.restore(state)
    assert resumed.trainer.fit() == fit
    for ours, theirs in ((resumed.model, whole.model), (resumed.encoder, whole.encoder)):
        for name, value in ours.state_dict().items():
            assert torch.equal(value, theirs.state_dict()[name]), name
    for name, table in resumed.features().items():
        assert torch.equal(table, whole.features()[name])
    assert resumed.callback.report() == whole.callback.report()


def test_a_joint_run_whose_training_had_ended_is_restored_without_the_encoders_optimizer(tmp_path: Path) -> None:
    options = EndToEnd(learning_rate=0.01, rows=3)
    whole = World(options, epochs=3)
    with Checkpoints[TrainerNumbers](tmp_path, seconds=600) as checkpoints:
        fit = whole.trainer.fit(on_checkpoint=checkpoints.offer)
    state = load_checkpoint(tmp_path, TrainerNumbers)
    assert state is not None
    assert all(name.startswith("generator.") for name in state.tensors)
    resumed = World(options, epochs=3, seed=99)
    resumed.trainer.restore(state)
    assert resumed.trainer.fit() == fit
    for name, table in resumed.features().items():
        assert torch.equal(table, whole.features()[name])
    assert resumed.callback.report() == whole.callback.report()


# LATTICE


def test_lattices_item_graphs_follow_the_features_but_not_every_step(registry: Registry) -> None:
    world = World(EndToEnd(learning_rate=0.3, encoder_every=1, rows=0), model=lattice(registry), epochs=4)
    model: Any = world.model
    built, graphs = [], model._fixed_graphs

    def fixed_graphs() -> Any:
        built.append({name: table.detach().clone() for name, table in world.features().items()})
        return graphs()

    model._fixed_graphs = fixed_graphs
    world.trainer.fit()
    assert world.callback.report().steps == 4  # the item graph learns in an epoch's first batch alone
    assert len(built) == 1 + 4  # at the start, and of the features of each evaluation
    for seen, table in zip(built[1:], world.tables, strict=True):
        assert torch.equal(seen["image"], table["image"])


@pytest.mark.parametrize(("graph_every", "steps"), [(None, 1), (2, 3), (1, 5), (9, 1)])
def test_lattices_encoder_takes_a_step_for_each_graph_that_learns(
    graph_every: int | None, steps: int, registry: Registry
) -> None:
    def learning(data: TrainingData, features: ItemFeatures) -> DotProduct:
        return golden.build(registry, "LATTICE", features, data=data, knn_k=3, graph_every=graph_every)

    world = World(EndToEnd(learning_rate=0.01, encoder_every=1, rows=0), model=learning, epochs=2)  # of five batches
    world.trainer.fit()
    assert world.callback.report().steps == 2 * steps


# Whole runs

ENCODERS = """
from mmrec_lmm.testing import TinyEncoder

@dataclass(frozen=True)
class NoKeys:
    pass

class Bare(ItemEncoder):
    def __init__(self, config, modalities):
        super().__init__()
        self.dims = dict.fromkeys(modalities, 1)

    def prepare(self, item):
        import torch
        return {"length": torch.tensor([len(item.text) / 10])}

    def forward(self, batch):
        return dict.fromkeys(self.dims, batch["length"])

@hookimpl
def mmrec_register_encoders():
    common = {"config": NoKeys, "modalities": ("image", "text"), "weights_id": lambda *which: "none"}
    return [EncoderSpec(cls.__name__, cls=cls, **common) for cls in (TinyEncoder, Bare)]
"""
SMALL = ("--epochs=3", "--embedding_size=4", "--train_batch_size=16", "--valid_metric=NDCG@10")
TRAINED = ("--encoder", "TinyEncoder", "--paradigm", "ete", "--ete.learning_rate=0.01")


@pytest.fixture
def run(data_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Answer]:
    """`mmrec-lmm run -d toy` with the encoders above, in a folder of its own."""
    monkeypatch.chdir(data_path.parent)
    file = plugin(Path("encoders.py"), ENCODERS)
    return lambda *arguments, verb="run": call(verb, "-p", file, *arguments)


def result_of(answer: Answer) -> dict[str, Any]:
    assert answer.code == 0, answer.err
    result: dict[str, Any] = json.loads(answer.out)
    return result


@pytest.mark.parametrize("modalities", ["image", "text", "image,text"])
@pytest.mark.parametrize("model", ["VBPR", "MMGCN", "MMGCL", "SLMRec", "LATTICE", "FREEDOM", "BM3", "MGCN"])
def test_every_model_that_uses_features_trains_an_encoder_on_any_modalities(
    model: str, modalities: str, run: Callable[..., Answer]
) -> None:
    small = [key for key in SMALL if model not in ("MMGCL", "SLMRec") or not key.startswith("--embedding_size")]
    answer = run("-m", model, "-d", "toy", *small, *TRAINED, "--modalities", modalities, "--json")
    ete = result_of(answer)["record"]["ete"]
    assert ete["steps"] >= 3
    assert ete["gradient_norm"]["mean"] > 0
    assert set(ete["weight_change"]) == {"image", "text"}
    for modality, change in ete["weight_change"].items():
        assert (change > 0) == (modality in modalities)


def test_a_finished_run_keeps_encoder_and_features_and_recommends_by_them(run: Callable[..., Answer]) -> None:
    result = result_of(run("-m", "VBPR", "-d", "toy", *SMALL, *TRAINED, "--json"))
    folder = Path("runs") / result["run_id"]
    assert set(load_weights(folder / "encoder.safetensors")) == set(TinyEncoder().state_dict())
    rows = json.loads(run(folder.name, "--users", "0", "-k", "5", "--json", "--internal-ids", verb="recommend").out)
    top = (folder / "topk.tsv").read_text().splitlines()[1].split("\t")
    assert [str(row["item"]) for row in rows] == top[1:6]
    features = load_weights(folder / "features.safetensors")
    save_weights(folder / "features.safetensors", {name: -1000 * table for name, table in features.items()})
    other = json.loads(run(folder.name, "--users", "0", "-k", "5", "--json", "--internal-ids", verb="recommend").out)
    assert other != rows


def test_a_runs_name_depends_on_how_its_encoder_is_trained(run: Callable[..., Answer]) -> None:
    names = {
        result_of(run("-m", "VBPR", "-d", "toy", *SMALL, *TRAINED, *more, "--json"))["run_id"]
        for more in (
            (),
            ("--ete.rows=3",),
            ("--ete.learning_rate=0",),
            ("--ete.learner=adam",),
            ("--ete.learner=AdamW",),
        )
    }
    assert len(names) == 4, "AdamW is the default by its name"


@pytest.mark.parametrize("normalize", ["none", "unit"])
def test_at_a_rate_of_zero_a_run_ends_where_that_on_the_encoders_stored_features_does(
    normalize: str, run: Callable[..., Answer]
) -> None:
    same = ("-m", "VBPR", "-d", "toy", *SMALL, f"--normalize={normalize}", "--json")
    frozen = result_of(run(*same, "--encoder", "TinyEncoder"))
    twin = result_of(run(*same, *TRAINED, "--ete.learning_rate=0"))
    assert twin["test"] == frozen["test"]
    ours, theirs = (load_weights(Path("runs", one["run_id"], "best.safetensors")) for one in (twin, frozen))
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], rtol=0, atol=1e-6)
    tables = {table.modality: table for table, _ in map(load_with_header, home().glob("features/*.safetensors"))}
    for modality, table in load_weights(Path("runs", twin["run_id"], "features.safetensors")).items():
        stored = normalized(tables[modality], normalize).values
        torch.testing.assert_close(table, torch.from_numpy(stored), rtol=0, atol=1e-6)


@pytest.mark.parametrize("model", ["VBPR", "LATTICE"])
def test_normalize_unit_keeps_the_trained_features_at_length_1(model: str, run: Callable[..., Answer]) -> None:
    result = result_of(run("-m", model, "-d", "toy", *SMALL, *TRAINED, "--normalize=unit", "--json"))
    assert all(change > 0 for change in result["record"]["ete"]["weight_change"].values())
    for table in load_weights(Path("runs", result["run_id"], "features.safetensors")).values():
        lengths = table.norm(dim=1)
        torch.testing.assert_close(lengths[lengths > 0], torch.ones_like(lengths[lengths > 0]))


@pytest.mark.parametrize(
    ("model", "arguments", "message"),
    [
        ("BPR", (), "--paradigm ete: expected a model that uses item features, got BPR; try --paradigm pt"),
        ("LightGCN", (), "--paradigm ete: expected a model that uses item features, got LightGCN"),
        ("VBPR", ("--encoder", "precomputed"), "got precomputed, which reads features from files; try --paradigm pt"),
        ("VBPR", ("--encoder", "Bare"), "expected an encoder with parameters to train, got Bare, which has none"),
        (
            "VBPR",
            ("--features", "image=data/toy/image_feat.npy"),
            "--features: expected none under --paradigm ete, which trains the encoder of all features, got image; try",
        ),
        ("VBPR", ("--control", "random"), "features in training, got random; try --ete.learning_rate=0"),
        ("VBPR", ("--missing=mean",), "absent items are zero, got mean; try --missing=zero"),
        ("VBPR", ("--ete.warm_epochs=3",), "ete.warm_epochs: expected less than epochs (3), to leave one that trains"),
        ("VBPR", ("--ete.freeze=[visual.*]",), "any part), got visual.*, which matches none"),
        (
            "VBPR",
            ("--ete.itc=1", "--modalities=text"),
            "ete.itc: expected features of image and text, got those of text; try --ete.itc=0",
        ),
    ],
)
def test_what_end_to_end_training_can_not_do_is_refused_in_a_sentence(
    model: str, arguments: tuple[str, ...], message: str, run: Callable[..., Answer]
) -> None:
    answer = run("-m", model, "-d", "toy", "--epochs=3", *TRAINED, *arguments)
    assert answer.code == 2
    assert message in answer.err


def test_every_key_of_end_to_end_training_is_documented_with_its_default() -> None:
    text = (Path(__file__).parents[1] / "docs" / "configuration.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `ete\.(\w+)` \| `(.*?)` \|", text, re.MULTILINE))
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in EndToEnd().__dict__.items()}
    assert {name: yaml.safe_load(default) for name, default in rows.items()} == plain


@pytest.mark.slow
def test_a_joint_run_killed_and_resumed_ends_as_the_uninterrupted_one(run: Callable[..., Answer]) -> None:
    command = (
        "run", "-p", "encoders.py", "-m", "MMGCN", "-d", "toy", *SMALL[1:], *TRAINED, "--epochs=150",
        "--stopping_step=150", "--learning_rate=1e-4", "--ete.rows=4", "--ete.learning_rate=1e-4", "--resume", "--json",
        "--checkpoint_seconds=0",
    )  # fmt: skip
    whole = result_of(call(*command, "--out", "whole"))

    def saved() -> int:
        for path in Path("runs").glob("MMGCN-*/checkpoint/state.safetensors"):
            with contextlib.suppress(FileNotFoundError, SafetensorError), safe_open(path, framework="numpy") as file:
                return int(json.loads(file.metadata()["numbers"])["epoch"])
        return 0

    for moment in (5, 40):
        process = start(*command)
        wait_until(lambda moment=moment: saved() >= moment, process)  # type: ignore[misc]
        process.kill()
        process.communicate()
    resumed = result_of(call(*command))
    assert resumed["test"] == whole["test"]
    for found in (resumed, whole):
        del found["record"]["ete"]["epoch_seconds"]
    assert resumed["record"]["ete"] == whole["record"]["ete"]
    for name in ("best.safetensors", "encoder.safetensors", "features.safetensors", "topk.tsv"):
        assert hash_file(Path("runs", resumed["run_id"], name)) == hash_file(Path("whole", whole["run_id"], name)), name

"""fit(): each rule of training in a world of a few weights, and continuing to the same bits."""

import math
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import dead_temporary
from torch import Tensor, nn

from mmrec_lmm.config.settings import Settings
from mmrec_lmm.data.sampling import TrainingRows
from mmrec_lmm.errors import DataError, PluginError, TrainingDiverged
from mmrec_lmm.plugin.contracts import ParameterFree, Recommender, Scorer, TrainerCallback
from mmrec_lmm.plugin.item_features import ItemFeatures
from mmrec_lmm.testing import checkerboard, checkerboard_features
from mmrec_lmm.training import resume
from mmrec_lmm.training.loop import TrainingState, Validation
from mmrec_lmm.training.resume import (
    Checkpoints,
    load_checkpoint,
    load_weights,
    remove_checkpoint,
    save_checkpoint,
    save_weights,
)
from mmrec_lmm.training.trainer import FitResult, Trainer, TrainerNumbers, build_optimizer
from mmrec_lmm.types import Batch, EpochReport

DATA, _ = checkerboard()  # 84 training rows
PLAIN = {"learner": "sgd", "learning_rate": 0.5, "train_batch_size": 1000}  # one step of known length per epoch


class Toy(Recommender):
    """One weight per item, and the loss that a test gives: of the model and the number of the step."""

    def __init__(self, loss: Callable[["Toy", int], Tensor], *, start: float = 1.0) -> None:
        nn.Module.__init__(self)
        self.features = ItemFeatures({}, {})
        self.weight = nn.Parameter(torch.full((DATA.n_items,), start))
        self.other = nn.Parameter(torch.full((2,), start))
        self.loss = loss
        self.steps = 0
        self.epochs_started: list[tuple[int, bool]] = []

    def on_epoch_start(self, epoch: int) -> None:
        self.epochs_started.append((epoch, self.training))

    def training_loss(self, batch: Batch) -> dict[str, Tensor]:
        self.batch = batch
        self.steps += 1
        return {"loss": self.loss(self, self.steps - 1), "twice": 2 * self.loss(self, self.steps - 1).detach()}

    def scorer(self) -> Scorer:
        raise NotImplementedError


def slope(model: Toy, step: int) -> Tensor:
    """A loss whose gradient is one in each weight."""
    return model.weight.sum()


def noisy(model: Toy, step: int) -> Tensor:
    """A loss with a minimum that depends on the batch, and on torch's default generator through dropout."""
    dropped = nn.functional.dropout(model.weight, 0.3)
    return (
        (dropped[model.batch.positives] - dropped[model.batch.negatives] - 1) ** 2
    ).mean() + model.other.square().sum()


def trainer_of(
    model: Recommender,
    *,
    scores: Iterable[float] | None = None,
    seed: int = 0,
    validate: Callable[[], Validation] | None = None,
    callback: TrainerCallback | None = None,
    **settings: Any,
) -> Trainer:
    """A trainer whose evaluations find `scores` in turn, or what `validate` says."""
    found = iter(scores if scores is not None else range(10**6))

    def next_score() -> Validation:
        score = next(found)
        return Validation(score, {"recall@20": score})

    chosen = Settings(**{"epochs": 3, "train_batch_size": 32, "min_steps": 0, **settings})
    rows = TrainingRows(DATA.train, DATA.n_users, chosen.train_batch_size)
    generator = torch.Generator().manual_seed(seed)
    return Trainer(model, rows, chosen, validate=validate or next_score, generator=generator, callback=callback)


# When it stops, and what it keeps


def test_it_stops_when_more_than_stopping_step_evaluations_bring_nothing_better() -> None:
    trainer = trainer_of(Toy(slope), scores=[0.1, 0.3, 0.3, 0.2, 0.1], epochs=100, stopping_step=2)
    fit = trainer.fit()
    assert fit == FitResult(best_epoch=1, epochs=5, validation=Validation(0.3, {"recall@20": 0.3}), stopped="patience")


def test_patience_counts_no_evaluation_before_min_steps() -> None:
    steps = -(-len(DATA.train) // 32)  # in an epoch
    scores = [0.3, 0.2, 0.2, 0.2, 0.4, 0.1, 0.1, 0.1, 0.1]
    at_once = trainer_of(Toy(slope), scores=scores, epochs=100, stopping_step=1).fit()
    assert (at_once.best_epoch, at_once.epochs) == (0, 3)
    later = trainer_of(Toy(slope), scores=scores, epochs=100, stopping_step=1, min_steps=4 * steps).fit()
    assert (later.best_epoch, later.epochs, later.stopped) == (4, 7, "patience")
    assert [report.improved for report in later.history] == [True, False, False, False, True, False, False]


def test_an_improvement_however_small_starts_patience_anew() -> None:
    fit = trainer_of(Toy(slope), scores=[0.1, 0.1, 0.1 + 1e-9, 0.0, 0.0], epochs=100, stopping_step=1).fit()
    assert (fit.best_epoch, fit.epochs, fit.stopped) == (2, 5, "patience")


def test_the_model_ends_with_the_weights_of_its_best_epoch() -> None:
    model = Toy(slope, start=0.0)
    fit = trainer_of(model, scores=[0.1, 0.9, 0.5], **PLAIN).fit()
    assert (fit.best_epoch, fit.epochs, fit.stopped) == (1, 3, "epochs")
    assert model.weight.tolist() == [-2 * 0.5] * DATA.n_items


def test_epochs_without_evaluation_are_reported_without_one_and_the_last_always_has_one() -> None:
    reports: list[EpochReport] = []
    checkpoints: list[int] = []
    trainer_of(Toy(slope), scores=[0.2, 0.1, 0.3], epochs=5, eval_step=2).fit(
        on_epoch=reports.append, on_checkpoint=lambda state: checkpoints.append(state.numbers.epoch)
    )
    assert [report.epoch for report in reports] == [0, 1, 2, 3, 4]
    assert [report.valid for report in reports] == [
        None,
        {"recall@20": 0.2},
        None,
        {"recall@20": 0.1},
        {"recall@20": 0.3},
    ]
    assert [report.improved for report in reports] == [False, True, False, False, True]
    assert checkpoints == [2, 4, 5, 5]  # the last two: after the evaluation, and at the end


def test_with_no_epochs_the_fresh_model_is_evaluated_once() -> None:
    model = Toy(slope)
    fit = trainer_of(model, scores=[0.4], epochs=0).fit()
    assert fit == FitResult(best_epoch=0, epochs=0, validation=Validation(0.4, {"recall@20": 0.4}), stopped="untrained")
    assert model.steps == 0


class Fixed(ParameterFree):
    """Ranks by item id, from nothing that could be trained."""

    def scorer(self) -> Scorer:
        return lambda users: torch.arange(self.n_items, dtype=torch.float32).expand(len(users), -1)


def frozen() -> Toy:
    return Toy(slope).requires_grad_(False)


@pytest.mark.parametrize("build", [lambda: Fixed(DATA, ItemFeatures({}, {}), None), frozen], ids=["none", "frozen"])
def test_a_model_without_trainable_parameters_is_evaluated_once(build: Callable[[], Recommender]) -> None:
    model = build()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fit = trainer_of(model, scores=[0.4], epochs=7).fit()
    assert fit == FitResult(best_epoch=0, epochs=0, validation=Validation(0.4, {"recall@20": 0.4}), stopped="untrained")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_callback_trains_beside_a_model_without_parameters_and_resumes() -> None:
    class Counting(TrainerCallback):
        """Counts the steps that its model doesn't take."""

        steps = 0

        def after_batch(self, batch: Batch) -> None:
            self.steps += 1

        def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
            return {}, {"steps": self.steps}

        def restore(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
            self.steps = numbers["steps"]

    class Joint(Fixed):
        """Has a loss in its features alone."""

        def training_loss(self, batch: Batch) -> dict[str, Tensor]:
            return {"square": self.features()["image"].square().sum()}

    def trainer(epochs: int) -> tuple[Trainer, Counting]:
        features = ItemFeatures.from_tables(checkerboard_features(modalities=("image",)), joint=True)
        callback = Counting()
        return trainer_of(Joint(DATA, features, None), epochs=epochs, callback=callback), callback

    states: list[Any] = []
    first, counted = trainer(2)
    assert first.fit(on_checkpoint=states.append).stopped == "epochs"
    assert counted.steps == 2 * 3
    again, resumed = trainer(3)
    again.restore(states[0])
    assert again.epoch == 1
    assert again.fit().epochs == 3
    assert resumed.steps == 3 * 3


def test_a_report_holds_each_loss_term_summed_over_the_batches() -> None:
    reports: list[EpochReport] = []
    model = Toy(lambda model, step: 0 * model.weight.sum() + step)
    trainer_of(model, epochs=2).fit(on_epoch=reports.append)  # 84 rows in batches of 32: three steps
    assert [report.losses for report in reports] == [{"loss": 0 + 1 + 2, "twice": 6}, {"loss": 3 + 4 + 5, "twice": 24}]


def test_each_epoch_starts_in_training_mode_whatever_the_evaluation_left() -> None:
    model = Toy(slope)

    def validate() -> Validation:
        model.eval()
        return Validation(0.0, {})

    trainer_of(model, validate=validate).fit()
    assert model.epochs_started == [(0, True), (1, True), (2, True)]


# When numbers break


def broken_at(step: int, value: float = math.nan) -> Callable[[Toy, int], Tensor]:
    return lambda model, now: model.weight.sum() * (value if now == step else 1.0)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_broken_loss_before_any_evaluation_is_an_error_that_names_term_and_epoch(value: float) -> None:
    with pytest.raises(TrainingDiverged) as caught:
        trainer_of(Toy(broken_at(2, value)), eval_step=3).fit()  # the last of the epoch's three steps
    assert str(caught.value) == (
        f"loss term 'loss' became {value} in epoch 0, before any evaluation; try a smaller learning_rate"
    )


def test_the_hint_at_a_broken_loss_names_modalities_that_no_item_has() -> None:
    model = Toy(broken_at(0))
    present = {"image": torch.arange(3) > 0, "text": torch.zeros(3, dtype=torch.bool)}
    model.features = ItemFeatures({name: torch.zeros(3, 2) for name in present}, present)
    with pytest.raises(TrainingDiverged) as caught:
        trainer_of(model).fit()
    assert str(caught.value) == (
        "loss term 'loss' became nan in epoch 0, before any evaluation; no item has text: a mean over its present "
        "items is 0 / 0; try testing.check_model, which says whether the model takes such a modality; if it does, try "
        "a smaller learning_rate"
    )


def test_a_broken_loss_after_an_evaluation_ends_training_and_keeps_the_best(caplog: pytest.LogCaptureFixture) -> None:
    model = Toy(broken_at(2), start=0.0)
    fit = trainer_of(model, scores=[0.5, 0.4], epochs=9, **PLAIN).fit()
    assert (fit.best_epoch, fit.epochs, fit.stopped) == (0, 3, "diverged")
    assert model.weight.tolist() == [-0.5] * DATA.n_items
    assert "loss term 'loss' became nan in epoch 2; keeping the weights of epoch 0" in caplog.text


def scores_that_break(at: int) -> Callable[[], Validation]:
    """As the evaluator does when the last step of an epoch, whose loss was still sound, broke the weights."""
    calls = iter(range(100))

    def validate() -> Validation:
        call = next(calls)
        if call == at:
            raise TrainingDiverged("a score is NaN")
        return Validation(-call, {})

    return validate


def test_broken_scores_after_an_evaluation_end_training_and_keep_the_best(caplog: pytest.LogCaptureFixture) -> None:
    model = Toy(slope, start=0.0)
    fit = trainer_of(model, validate=scores_that_break(at=2), epochs=9, **PLAIN).fit()
    assert (fit.best_epoch, fit.epochs, fit.stopped) == (0, 3, "diverged")
    assert model.weight.tolist() == [-0.5] * DATA.n_items
    assert "a score is NaN; keeping the weights of epoch 0" in caplog.text


def test_broken_scores_at_the_first_evaluation_are_an_error() -> None:
    with pytest.raises(TrainingDiverged, match="a score is NaN"):
        trainer_of(Toy(slope), validate=scores_that_break(at=0)).fit()


# The steps


def test_the_learning_rate_follows_mmrecs_schedule() -> None:
    model = Toy(slope, start=0.0)
    trainer_of(model, learning_rate_scheduler=(0.5, 2.0), epochs=3, **PLAIN).fit()
    assert model.weight[0].item() == pytest.approx(-0.5 * (1 + 0.5 ** (1 / 2) + 0.5))


def test_weight_decay_is_added_to_the_gradient() -> None:
    model = Toy(slope, start=2.0)
    trainer_of(model, weight_decay=0.25, epochs=1, **PLAIN).fit()
    assert model.weight[0].item() == pytest.approx(2 - 0.5 * (1 + 0.25 * 2))


class Grouped(Toy):
    """A weight without decay, and others at half the rate; in each epoch the rate falls to a half, step by step."""

    groups: list[dict[str, Any]] | None = None

    def parameter_groups(self) -> list[dict[str, Any]]:
        decayed = {"params": [self.weight], "weight_decay": 0.0}
        return self.groups or [decayed, {"params": [self.other], "rate_factor": 0.5}]

    def rate_factor(self, epoch: float) -> float:
        return 1 - (epoch % 1) / 2


def test_each_group_has_its_own_rate_and_options() -> None:
    model = Grouped(lambda model, step: model.weight.sum() + model.other.sum(), start=2.0)
    trainer_of(model, weight_decay=0.25, epochs=1, **PLAIN).fit()
    assert model.weight[0].item() == pytest.approx(2 - 0.5)
    assert model.other[0].item() == pytest.approx(2 - 0.25 * (1 + 0.25 * 2))


def test_a_models_schedule_multiplies_the_rate_of_each_step() -> None:
    """84 rows make three steps of an epoch, at 1, 5/6 and 4/6 of its rate."""
    model = Grouped(slope, start=0.0)
    settings = {"learner": "sgd", "learning_rate": 0.5, "learning_rate_scheduler": (0.1, 1.0)}
    trainer_of(model, epochs=2, **settings).fit()
    assert model.weight[0].item() == pytest.approx(-0.5 * 1.1 * (1 + 5 / 6 + 4 / 6))


def test_one_group_of_all_parameters_steps_as_no_groups_do() -> None:
    class One(Grouped):
        def parameter_groups(self) -> list[dict[str, Any]]:
            return [{"params": self.parameters()}]

        def rate_factor(self, epoch: float) -> float:
            return 1.0

    models = []
    for kind in (Toy, One):
        torch.manual_seed(0)
        models.append(kind(noisy))
        trainer_of(models[-1]).fit()
    assert torch.equal(models[0].weight, models[1].weight)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (lambda toy: [{"params": [toy.weight]}], "expected each parameter in one group, got other in none"),
        (lambda toy: [{"params": [toy.weight, toy.other]}, {"params": [toy.other]}], "got other 2 times"),
        (
            lambda toy: [{"params": [toy.weight, toy.other, torch.ones(3)]}],
            r"got a tensor \(3,\) that isn't a parameter of it",
        ),
        (
            lambda toy: [{"params": [toy.weight, toy.other], "lr": 0.1}],
            "expected keys among .*weight_decay, as the learner is adam, got lr; try rate_factor",
        ),
        (lambda toy: [{"params": [toy.weight, toy.other], "weigth_decay": 0.1}], "did you mean weight_decay"),
        (lambda toy: [toy.weight, toy.other], "expected mappings with params"),
        (lambda toy: [{"weight_decay": 0.1}], "expected mappings with params, .*KeyError: 'params'"),
        (
            lambda toy: [{"params": [toy.weight, toy.other], "rate_factor": math.nan}],
            "rate_factor: expected a finite number of 0 or more, got nan",
        ),
    ],
)
def test_groups_that_do_not_fit_the_model_or_the_learner_are_named(
    groups: Callable[[Toy], list[dict[str, Any]]], message: str
) -> None:
    model = Grouped(slope)
    model.groups = groups(model)
    with pytest.raises(PluginError, match=f"Grouped: parameter_groups: .*{message}"):
        trainer_of(model)


def test_a_factor_that_is_none_is_named_by_its_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Grouped, "rate_factor", lambda self, epoch: -1.0 if epoch > 1 else 1.0)
    with pytest.raises(
        PluginError, match=r"Grouped: rate_factor\(1.33\): expected a finite number of 0 or more, got -1"
    ):
        trainer_of(Grouped(slope)).fit()


def test_the_gradients_norm_is_clipped_over_all_parameters() -> None:
    model = Toy(lambda model, step: model.weight.sum() + 3 * model.other.sum(), start=0.0)
    trainer_of(model, clip_grad_norm={"max_norm": 1.0}, epochs=1, **PLAIN).fit()
    norm = math.sqrt(DATA.n_items + 2 * 9)
    assert model.weight[0].item() == pytest.approx(-0.5 / norm, rel=1e-5)
    assert model.other[0].item() == pytest.approx(-1.5 / norm, rel=1e-5)


@pytest.mark.parametrize("to_none", [True, False])
def test_only_zero_filled_gradients_let_momentum_move_what_has_no_gradient(to_none: bool) -> None:
    moved: list[float] = []

    def first_step_only(model: Toy, step: int) -> Tensor:
        moved.append(model.other[0].item())
        return model.weight.sum() + (model.other.sum() if step == 0 else 0)

    trainer_of(Toy(first_step_only), epochs=1, learner="adam", zero_grad_to_none=to_none).fit()
    after_first, after_second = moved[2], moved[4]  # the loss is asked twice a step
    assert after_first < 1
    assert (after_second < after_first) == (not to_none)


@pytest.mark.parametrize(
    ("learner", "kind"),
    [
        ("adam", torch.optim.Adam),
        ("sgd", torch.optim.SGD),
        ("adagrad", torch.optim.Adagrad),
        ("rmsprop", torch.optim.RMSprop),
    ],
)
def test_each_of_mmrecs_learners_steps_as_torchs_plain_one_does(learner: Any, kind: type) -> None:
    settings = Settings(learner=learner, learning_rate=0.01, weight_decay=0.1)
    ours, theirs = Toy(slope), Toy(slope)
    optimizers = [build_optimizer(ours, settings), kind(theirs.parameters(), lr=0.01, weight_decay=0.1)]
    for step in range(10):
        for model, optimizer in zip((ours, theirs), optimizers, strict=True):
            optimizer.zero_grad()
            ((model.weight - step) ** 2).sum().backward()
            optimizer.step()
    torch.testing.assert_close(ours.weight, theirs.weight, rtol=0, atol=1e-6)


# Repeating and continuing


def weights_after(seed: int) -> list[float]:
    torch.manual_seed(seed)
    model = Toy(noisy)
    trainer_of(model, seed=seed).fit()
    return model.weight.tolist()


def test_the_same_seed_gives_the_same_weights_and_another_seed_others() -> None:
    assert weights_after(1) == weights_after(1)
    assert weights_after(1) != weights_after(2)


class Stop(Exception):
    """What ends a run from outside."""


SCORES = [0.1, 0.3, 0.2, 0.4, 0.1, 0.2, 0.1]


@pytest.mark.parametrize("stop_after", [0, 1, 2, 4])
@pytest.mark.parametrize(
    ("learner", "kind"), [("adam", Toy), ("sgd", Toy), ("adagrad", Toy), ("rmsprop", Toy), ("adam", Grouped)]
)
def test_a_run_that_was_stopped_continues_to_the_same_bits(
    learner: str, kind: type[Toy], stop_after: int, tmp_path: Path
) -> None:
    settings = {"learner": learner, "epochs": 7, "stopping_step": 1, "learning_rate_scheduler": (0.9, 2.0)}

    def save(state: TrainingState) -> None:
        save_checkpoint(tmp_path, state)

    def remember(reports: list[Any], stop: int | None = None) -> Callable[[EpochReport], None]:
        def on_epoch(report: EpochReport) -> None:
            reports.append((report.epoch, dict(report.losses), report.improved))
            if report.epoch == stop:
                raise Stop

        return on_epoch

    torch.manual_seed(5)
    whole, whole_reports = kind(noisy), []
    whole_fit = trainer_of(whole, scores=SCORES, **settings).fit(on_epoch=remember(whole_reports))

    torch.manual_seed(5)
    halted, reports = kind(noisy), []
    with pytest.raises(Stop):
        trainer_of(halted, scores=SCORES, **settings).fit(
            on_epoch=remember(reports, stop=stop_after), on_checkpoint=save
        )

    torch.manual_seed(99)  # what a new process starts with is not what the stopped one had
    resumed = kind(noisy, start=7.0)
    trainer = trainer_of(resumed, scores=SCORES[stop_after + 1 :], seed=99, **settings)
    state = load_checkpoint(tmp_path, TrainerNumbers)
    assert state is not None
    trainer.restore(state)
    fit = trainer.fit(on_epoch=remember(reports), on_checkpoint=save)
    assert fit == whole_fit
    assert reports == whole_reports
    assert torch.equal(resumed.weight, whole.weight)
    assert torch.equal(resumed.other, whole.other)


# Checkpoints on disk


def state(epoch: int, best_epoch: int) -> TrainingState[TrainerNumbers]:
    history = (EpochReport(0, {"bpr": 1 / 7}, 0.5),)
    numbers = TrainerNumbers(epoch, 0, best_epoch, 0.1 + 0.2, {"a@1": 1 / 3}, None, history)
    return TrainingState({"model.w": torch.tensor([epoch / 3])}, numbers, {"w": torch.tensor([best_epoch / 3])})


def test_a_checkpoint_comes_back_as_it_was_to_the_last_bit(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path, TrainerNumbers) is None
    save_checkpoint(tmp_path, state(4, 2))
    loaded = load_checkpoint(tmp_path, TrainerNumbers)
    assert loaded is not None
    assert loaded.numbers == state(4, 2).numbers
    assert torch.equal(loaded.tensors["model.w"], torch.tensor([4 / 3]))
    assert torch.equal(loaded.best["w"], torch.tensor([2 / 3]))


def test_a_newer_checkpoint_replaces_the_older_and_its_best_weights(tmp_path: Path) -> None:
    for newer in (state(1, 0), state(2, 1), state(3, 1)):
        save_checkpoint(tmp_path, newer)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best-1.safetensors", "state.safetensors"]


def test_a_kill_between_the_two_files_leaves_the_older_pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def save_and_die(path: Path, *content: Any) -> None:
        if path.name == resume.STATE:
            raise Stop
        save_weights(path, *content)

    save_checkpoint(tmp_path, state(1, 0))
    monkeypatch.setattr(resume, "save_weights", save_and_die)
    with pytest.raises(Stop):
        save_checkpoint(tmp_path, state(2, 1))
    loaded = load_checkpoint(tmp_path, TrainerNumbers)
    assert loaded is not None
    assert loaded.numbers.epoch == 1
    assert torch.equal(loaded.best["w"], torch.tensor([0.0]))


def test_a_removed_checkpoint_is_gone_and_removing_none_does_no_harm(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, state(1, 0))
    dead_temporary(tmp_path / "state.safetensors").write_bytes(b"half a file")
    remove_checkpoint(tmp_path)
    assert not tmp_path.exists()
    remove_checkpoint(tmp_path / "never")


def test_a_checkpoint_whose_numbers_do_not_fit_is_named_by_key(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, state(1, 0))
    path = tmp_path / "state.safetensors"
    save_weights(path, load_weights(path), {"numbers": '{"epoch": "one", "best_epoch": 0}'})
    message = f"{path}: epoch: expected a whole number, got 'one'; try deleting {tmp_path}, to start over"
    with pytest.raises(DataError, match=re.escape(message)):
        load_checkpoint(tmp_path, TrainerNumbers)


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, state(1, 0))
    path = tmp_path / "state.safetensors"
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(DataError, match="expected a file of safetensors") as caught:
        load_checkpoint(tmp_path, TrainerNumbers)
    assert str(path) in str(caught.value)
    with pytest.raises(DataError, match=r"none\.safetensors: no such file"):
        load_weights(tmp_path / "none.safetensors")


def test_the_random_state_that_is_saved_and_restored_is_that_of_the_models_own_gpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    states, second = {"cuda:0": torch.tensor([1]), "cuda:1": torch.tensor([2])}, torch.device("cuda:1")
    monkeypatch.setattr("torch.cuda.get_rng_state", lambda device="cuda:0": states[str(device)])
    monkeypatch.setattr(
        "torch.cuda.set_rng_state", lambda state, device="cuda:0": states.__setitem__(str(device), state)
    )
    trainer, other = (trainer_of(Toy(slope)) for _ in range(2))
    trainer._device = other._device = second  # where no tensor can be, here
    trainer.fit()
    state = trainer.state()
    states["cuda:1"] = torch.tensor([3])
    other.restore(state)
    assert states == {"cuda:0": torch.tensor([1]), "cuda:1": torch.tensor([2])}


# When checkpoints are written


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that checkpoints see, in seconds; a test moves it on."""
    now = [1000.0]
    monkeypatch.setattr(resume.time, "monotonic", lambda: now[0])
    return now


def saved_epoch(folder: Path) -> int | None:
    found = load_checkpoint(folder, TrainerNumbers)
    return None if found is None else found.numbers.epoch


def test_a_checkpoint_is_written_when_so_many_seconds_of_training_have_passed(
    clock: list[float], tmp_path: Path
) -> None:
    with Checkpoints[TrainerNumbers](tmp_path, seconds=10) as checkpoints:
        written = []
        for epoch, now in enumerate((1000, 1009, 1010, 1012, 1019.9, 1020, 1035, 1044), start=1):
            clock[0] = now
            checkpoints.offer(state(epoch, 0))
            written.append(saved_epoch(tmp_path))
        assert written == [None, None, 3, 3, 3, 6, 7, 7]
    assert saved_epoch(tmp_path) == 8


def test_with_zero_seconds_each_evaluation_has_its_checkpoint(tmp_path: Path) -> None:
    with Checkpoints[TrainerNumbers](tmp_path, seconds=0) as checkpoints:
        for epoch in (1, 2):
            checkpoints.offer(state(epoch, 0))
            assert saved_epoch(tmp_path) == epoch


def test_a_state_that_is_not_due_is_copied_to_the_memory_of_the_one_before(tmp_path: Path) -> None:
    with Checkpoints[TrainerNumbers](tmp_path, seconds=600) as checkpoints:
        places = set()
        for epoch in (1, 2, 3):
            live = state(epoch, 0)
            checkpoints.offer(live)
            live.tensors["model.w"].fill_(-1)  # training goes on
            assert checkpoints._unwritten is not None
            places.add(checkpoints._unwritten.tensors["model.w"].data_ptr())
        assert len(places) == 1
    loaded = load_checkpoint(tmp_path, TrainerNumbers)
    assert loaded is not None
    assert torch.equal(loaded.tensors["model.w"], torch.tensor([3 / 3]))


def test_a_state_at_its_best_epoch_does_not_repeat_the_weights(tmp_path: Path) -> None:
    names = []

    def save(state: TrainingState[TrainerNumbers]) -> None:
        names.append({name for name in state.tensors if name.startswith("model.")})

    trainer_of(Toy(noisy), scores=[0.1, 0.2, 0.1]).fit(on_checkpoint=save)
    assert names == [set(), set(), {"model.weight", "model.other"}, set()]


def test_the_last_state_has_no_optimizer_and_continues_to_the_same_result(tmp_path: Path) -> None:
    torch.manual_seed(5)
    whole, scores = Toy(noisy), [0.1, 0.4, 0.3, 0.2]

    def validate() -> Validation:
        score = scores[whole.steps // 3 - 1]
        return Validation(score, {"recall@20": score}, {"items": torch.tensor([whole.steps])})

    with Checkpoints[TrainerNumbers](tmp_path, seconds=600) as checkpoints:
        fit = trainer_of(whole, validate=validate, epochs=4).fit(on_checkpoint=checkpoints.offer)
    assert {name.split(".")[0] for name in load_weights(tmp_path / "state.safetensors")} == {"generator"}

    def broken(model: Toy, step: int) -> Tensor:
        raise AssertionError("training had ended")

    after, resumed = torch.get_rng_state(), Toy(broken, start=7.0)
    trainer = trainer_of(resumed, scores=(), epochs=4)
    found = load_checkpoint(tmp_path, TrainerNumbers)
    assert found is not None
    torch.manual_seed(99)
    trainer.restore(found)
    again = trainer.fit()
    assert again == fit
    assert (again.stopped, again.history) == ("epochs", fit.history)
    assert again.validation.found["items"].tolist() == fit.validation.found["items"].tolist() == [6]
    assert torch.equal(resumed.weight, whole.weight)
    assert torch.equal(torch.get_rng_state(), after)  # a model may rank at random


MOMENTS = ("step", "evaluation", "observer", "copy", "copy of some tensors", "write", "write twice")


@pytest.mark.parametrize("epoch", [2, 3])  # the best, whose state leaves weights out, and the one after it
@pytest.mark.parametrize("moment", MOMENTS)
def test_wherever_ctrl_c_arrives_the_state_of_the_last_evaluation_is_saved_and_continues_to_the_same_bits(
    moment: str, epoch: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores, options = [0.1, 0.2, 0.3, 0.1, 0.2, 0.1], {"epochs": 6, "stopping_step": 9}
    torch.manual_seed(5)
    whole = Toy(noisy)
    whole_fit = trainer_of(whole, scores=scores, **options).fit()

    with monkeypatch.context() as patch:
        armed = [False]

        def stop_if(now: bool) -> None:
            if now and armed[0]:
                armed[0] = False
                raise KeyboardInterrupt

        def loss(model: Toy, step: int) -> Tensor:
            stop_if(moment == "step" and step == 3 * epoch + 1)  # the second of the epoch's three
            return noisy(model, step)

        def validate() -> Validation:
            stop_if(moment == "evaluation" and halted.steps == 3 * (epoch + 1))
            score = scores[halted.steps // 3 - 1]
            return Validation(score, {"recall@20": score})

        def on_epoch(report: EpochReport) -> None:
            stop_if(moment == "observer" and report.epoch == epoch)

        def copy(checkpoints: Any, tensors: Any) -> dict[str, Tensor]:
            now = halted.steps == 3 * (epoch + 1)
            stop_if(now and moment == "copy")
            if now and moment == "copy of some tensors":
                copied(checkpoints, dict(list(tensors.items())[::2]))
                stop_if(True)
            return copied(checkpoints, tensors)

        writes = []

        def write(path: Path, *content: Any) -> None:
            if moment.startswith("write") and path.name == resume.STATE and halted.steps == 3 * (epoch + 1):
                writes.append(path)
                if len(writes) == 1 or moment == "write twice":
                    raise KeyboardInterrupt
            save_weights(path, *content)

        copied = Checkpoints._copied
        patch.setattr(Checkpoints, "_copied", copy)
        patch.setattr(resume, "save_weights", write)
        torch.manual_seed(5)
        halted, armed[0] = Toy(loss), True
        trainer = trainer_of(halted, validate=validate, **options)
        seconds = 0 if moment.startswith("write") else 600
        with pytest.raises(KeyboardInterrupt), Checkpoints[TrainerNumbers](tmp_path, seconds) as checkpoints:
            trainer.fit(on_epoch=on_epoch, on_checkpoint=checkpoints.offer)

    found = load_checkpoint(tmp_path, TrainerNumbers)
    assert found is not None
    assert found.numbers.epoch == epoch + (moment not in ("step", "evaluation", "write twice"))
    resumed = Toy(noisy, start=7.0)
    trainer = trainer_of(resumed, scores=scores[found.numbers.epoch :], seed=99, **options)
    trainer.restore(found)
    assert trainer.fit() == whole_fit
    assert torch.equal(resumed.weight, whole.weight)
    assert torch.equal(resumed.other, whole.other)


def test_where_a_device_has_no_room_for_a_copy_each_state_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> dict[str, Tensor]:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(Checkpoints, "_copied", full)
    with Checkpoints[TrainerNumbers](tmp_path, seconds=600) as checkpoints:
        for epoch in (1, 2):
            checkpoints.offer(state(epoch, 0))
            assert saved_epoch(tmp_path) == epoch


def test_training_that_fails_leaves_the_state_of_the_last_evaluation(tmp_path: Path) -> None:
    def loss(model: Toy, step: int) -> Tensor:
        if step == 7:  # of the third epoch
            raise MemoryError
        return noisy(model, step)

    with pytest.raises(MemoryError), Checkpoints[TrainerNumbers](tmp_path, seconds=600) as checkpoints:
        trainer_of(Toy(loss)).fit(on_checkpoint=checkpoints.offer)
    assert saved_epoch(tmp_path) == 2


def test_best_weights_that_no_state_names_are_made_again(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, state(1, 0))
    save_weights(tmp_path / "best-1.safetensors", {"w": torch.zeros(1)})  # then the process was killed
    assert saved_epoch(tmp_path) == 1
    save_checkpoint(tmp_path, state(2, 1))
    loaded = load_checkpoint(tmp_path, TrainerNumbers)
    assert loaded is not None
    assert torch.equal(loaded.best["w"], torch.tensor([1 / 3]))


def test_a_checkpoint_of_the_version_before_is_refused_with_the_key_that_it_lacks(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, state(1, 0))
    path = tmp_path / "state.safetensors"
    numbers = '{"epoch": 1, "misses": 0, "best_epoch": 0, "best_score": 0.5, "best_metrics": {}, "history": []}'
    save_weights(path, load_weights(path), {"numbers": numbers})
    with pytest.raises(DataError, match=f"stopped: expected .*; try deleting {tmp_path}, to start over"):
        load_checkpoint(tmp_path, TrainerNumbers)

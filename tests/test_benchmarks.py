"""The benchmark's floors are honest only if they compute what the real code computes. Nothing here looks at a clock."""

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import checkpoints, host, small_runs
from benchmarks.counting import count
from benchmarks.floors import EvaluationFloor, SamplingFloor, VBPRFloor
from benchmarks.synthetic import QUICK, features, interactions
from mmrec_lmm.config.settings import Settings
from mmrec_lmm.data.sampling import TrainingRows
from mmrec_lmm.evaluation.measures import Measures
from mmrec_lmm.evaluation.ranking import Evaluator
from mmrec_lmm.plugin.contracts import Recommender
from mmrec_lmm.plugin.item_features import ItemFeatures
from mmrec_lmm.plugin.registry import load_registry
from mmrec_lmm.training.loop import Validation
from mmrec_lmm.training.trainer import Trainer
from mmrec_lmm.types import Interactions, TrainingData

SETTINGS = Settings(train_batch_size=300)  # of 2,000 rows: the last batch is short
CUTOFFS = (5, 20)


@pytest.fixture
def splits() -> dict[str, Interactions]:
    return interactions(QUICK, np.random.default_rng(0))


@pytest.fixture
def model(splits: dict[str, Interactions]) -> Recommender:
    registry = load_registry()
    torch.manual_seed(0)
    tables = ItemFeatures.from_tables(features(QUICK, np.random.default_rng(1)))
    data = TrainingData(QUICK.users, QUICK.items, splits["train"])
    vbpr: Recommender = registry.models.load("VBPR", "cls")(data, tables, registry.models.load("VBPR", "config")())
    return vbpr


@pytest.fixture
def floor(model: Recommender) -> VBPRFloor:
    tables = [model.features()[modality] for modality in model.modalities]
    return VBPRFloor(model.state_dict(), tables, model.config.reg_weight)


@pytest.fixture
def rows(splits: dict[str, Interactions]) -> TrainingRows:
    return TrainingRows(splits["train"], QUICK.users, SETTINGS.train_batch_size)


def test_the_floor_of_sampling_draws_the_very_batches_of_the_real_code(rows: TrainingRows) -> None:
    sampling = SamplingFloor(rows, torch.Generator().manual_seed(3))
    generator = torch.Generator().manual_seed(3)
    for _ in range(2):
        for batch, (users, positives, negatives) in zip(rows.epoch(generator), sampling(), strict=True):
            assert torch.equal(batch.users, users)
            assert torch.equal(batch.positives, positives)
            assert torch.equal(batch.negatives, negatives)


def test_the_floor_of_an_evaluation_finds_every_users_metrics(
    model: Recommender, floor: VBPRFloor, splits: dict[str, Interactions]
) -> None:
    registry = load_registry()
    metrics = ("Recall", "NDCG", "Precision", "MAP")
    ranking = Evaluator(splits["test"], [splits["train"]], QUICK.items).rank(model, max(CUTOFFS))
    real = Measures(registry.metrics, metrics, splits["train"], QUICK.users, QUICK.items).values(ranking, CUTOFFS)
    found = EvaluationFloor(floor, splits["test"], splits["train"], CUTOFFS)()
    assert found.any()
    for values, name in zip(found, metrics, strict=True):
        for column, k in enumerate(CUTOFFS):
            np.testing.assert_allclose(values[:, column], real[f"{name.lower()}@{k}"], rtol=1e-12)


def test_the_floor_of_an_epoch_ends_with_the_trainers_weights_and_losses(
    model: Recommender, floor: VBPRFloor, rows: TrainingRows
) -> None:
    generator, other = (torch.Generator().manual_seed(5) for _ in range(2))
    trainer = Trainer(model, rows, SETTINGS, validate=lambda: Validation(0.0, {}), generator=generator)
    before = [weight.clone() for weight in floor.weights]
    losses = trainer.train_epoch(0)
    found = floor.epoch(SamplingFloor(rows, other)(), SETTINGS.train_batch_size, SETTINGS.learning_rate)
    torch.testing.assert_close(found, torch.tensor([losses["bpr"], losses["reg"]]))
    for ours, theirs, start in zip(floor.weights, model.state_dict().values(), before, strict=True):
        assert not torch.equal(theirs, start)
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=0)  # of seven steps of 0.001


def test_the_synthetic_data_have_the_size_asked_for_and_no_pair_twice(splits: dict[str, Interactions]) -> None:
    assert {split: len(part) for split, part in splits.items()} == {
        "train": QUICK.train,
        "valid": QUICK.valid,
        "test": QUICK.test,
    }
    pairs = np.concatenate([part.users * QUICK.items + part.items for part in splits.values()])
    assert len(np.unique(pairs)) == len(pairs)
    for split, least in (("train", 3), ("valid", 1), ("test", 1)):
        assert np.bincount(splits[split].users, minlength=QUICK.users).min() >= least


def test_the_same_seed_gives_the_same_data(splits: dict[str, Interactions]) -> None:
    again = interactions(QUICK, np.random.default_rng(0))
    for split, part in splits.items():
        np.testing.assert_array_equal(part.users, again[split].users)
        np.testing.assert_array_equal(part.items, again[split].items)


def test_a_product_counts_its_arithmetic_and_its_three_matrices_and_a_view_counts_nothing() -> None:
    a, b = torch.ones(2, 3), torch.ones(5, 3)
    counted = count(lambda: a @ b.T)
    assert (counted.operations, counted.flops) == (1, 2 * 2 * 3 * 5)
    assert counted.bytes == 4 * (2 * 3 + 3 * 5 + 2 * 5)


def test_a_gather_counts_the_rows_that_it_copies_and_not_the_table() -> None:
    table, rows = torch.ones(1000, 4), torch.tensor([3, 5])
    assert count(lambda: table.index_select(0, rows)).bytes == 2 * 8 + 2 * (2 * 4 * 4)


def test_the_harness_prints_a_verdict_on_each_job(capsys: pytest.CaptureFixture[str]) -> None:
    host.main(["--quick", "--repeats", "2"])
    printed = capsys.readouterr().out
    for job in ("sampling", "evaluation", "VBPR epoch"):
        assert re.search(rf"\| {job} \|.*\| (ok|miss) \|", printed)
    assert "GFLOP/s" in printed


@pytest.mark.slow
def test_the_benchmark_of_small_runs_accounts_for_all_of_their_time(capsys: pytest.CaptureFixture[str]) -> None:
    small_runs.main(["--quick", "--jobs", "1"])
    printed = capsys.readouterr().out
    for model in small_runs.STARTED:
        row = re.search(rf"\| {model} \| (.*) \|", printed)
        assert row
        moments = [float(cell.split()[0]) for cell in row[1].split(" | ")]
        assert len(moments) == 4
        assert 0 < moments[0] <= moments[1] <= moments[2] <= moments[3]
    shares = re.search(r"\| `--jobs 1` \| [\d.]+ \| (.*) \|", printed)
    assert shares
    assert abs(sum(map(int, shares[1].split(" | "))) - 100) <= 3
    assert all(int(share) >= 0 for share in shares[1].split(" | "))


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="only Linux counts the bytes that a process writes")
def test_by_the_default_rule_a_short_run_writes_no_state_but_that_of_the_trained_model() -> None:
    inputs = checkpoints.inputs_of(QUICK, np.random.default_rng(0))
    rare = Settings(epochs=3, device="cpu")
    often = dataclasses.replace(rare, checkpoint_seconds=0.0)
    one, other = (checkpoints.measure("VBPR", inputs, rule) for rule in (rare, often))
    assert [size > 0 for size in one.written] == [False, False, False, True]
    assert [size > 0 for size in other.written] == [True, True, True, True]
    assert one.other_bytes == one.total
    assert sum(other.written) < other.total
    assert len(one.epochs) == 3

"""Whole runs on a data set of 12 users: what a run is named by, keeps, repeats and survives."""

import dataclasses
import json
import logging
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from mmrec_lmm.config.settings import NOT_IDENTITY, Settings
from mmrec_lmm.disk.sealed import read_tensors
from mmrec_lmm.errors import ConfigError, DataError, RunError, TrainingDiverged
from mmrec_lmm.evaluation.ranking import Evaluator, Ranking
from mmrec_lmm.logs import metric_line
from mmrec_lmm.machine import TORCH_THREADS
from mmrec_lmm.plugin.registry import Registry, load_registry
from mmrec_lmm.running import grid as grids
from mmrec_lmm.running import provenance, run_folder, runner
from mmrec_lmm.running.grid import run_grid
from mmrec_lmm.running.inputs import gather
from mmrec_lmm.running.provenance import run_id
from mmrec_lmm.running.recommend import recommend
from mmrec_lmm.running.runner import Interrupted
from mmrec_lmm.training.resume import save_weights
from mmrec_lmm.types import UNRECORDED, Axes, EpochReport, Interactions, RunResult, RunSpec

TOYS = str(Path(__file__).with_name("plugin_toys.py"))
Specs = Callable[..., tuple[RunSpec, ...]]

#: What is read at the first rank only, so that one item decides.
FIRST = {"topk": "1", "metrics": "Recall", "valid_metric": "Recall@1"}


@pytest.fixture
def toys() -> Registry:
    """The registry with the models of plugin_toys.py."""
    return load_registry([TOYS])


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "runs"


@pytest.fixture
def threads() -> Iterator[None]:
    """Puts back the number of threads that a run may set."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def files(folder: Path) -> dict[str, bytes]:
    """What a finished run keeps, byte by byte, except where it says when and how fast it ran."""
    names = (run_folder.WEIGHTS, run_folder.PER_USER, run_folder.TOPK)
    return {name: (folder / name).read_bytes() for name in names}


def weights(folder: Path) -> dict[str, bytes]:
    """A run's weights, without the name of the run that is in their file."""
    tensors = read_tensors(folder / run_folder.WEIGHTS, cure="")
    return {name: values.tobytes() for name, values in tensors.items()}


def numbers(result: RunResult) -> tuple[Any, ...]:
    return dict(result.valid), dict(result.test), result.best_epoch, result.epochs, result.stopped


def history(result: RunResult) -> list[EpochReport]:
    """A run's epochs without their seconds, the one thing that varies."""
    reports = run_folder.load_history(result.path)
    return [dataclasses.replace(report, train_seconds=0.0, valid_seconds=0.0) for report in reports]


# What a run is named by

#: Another value of each of the host's settings.
OTHER: Mapping[str, Any] = {
    "data_path": "elsewhere",
    "inter_file_name": "copy.inter",
    "vision_feature_file": "v.npy",
    "text_feature_file": "t.npy",
    "USER_ID_FIELD": "user",
    "ITEM_ID_FIELD": "item",
    "inter_splitting_label": "split",
    "field_separator": ",",
    "filter_out_cod_start_users": False,
    "TIME_FIELD": "time",
    "split": "ratio",
    "split_seed": 1,
    "text_fields": ("title",),
    "image_background": "black",
    "missing": "mean",
    "normalize": "unit",
    "whiten": True,
    "seed": 1000,
    "epochs": 4,
    "stopping_step": 21,
    "min_steps": 5,
    "train_batch_size": 31,
    "sampler": "popularity",
    "n_negatives": 2,
    "learner": "sgd",
    "learning_rate": 0.002,
    "learning_rate_scheduler": (0.96, 50.0),
    "weight_decay": 0.1,
    "clip_grad_norm": {"max_norm": 5.0},
    "zero_grad_to_none": False,
    "eval_step": 2,
    "valid_users": 3,
    "eval_batch_size": 7,
    "metrics": ("Recall",),
    "topk": (20,),
    "valid_metric": "NDCG@20",
    "mask_valid_in_test": True,
    "save_recommended_topk": False,
    "protocol": "mmrec",
    "device": "cpu",
    "use_gpu": False,
    "gpu_id": 1,
    "threads": TORCH_THREADS + 1,
    "workers": 2,
    "encode_batch_size": 3,
    "encode_dtype": "bfloat16",
    "encode_compile": True,
    "recompute": True,
    "checkpoint_seconds": 0.0,
    "state": "ERROR",
}


def test_each_setting_of_the_host_is_known_to_this_test() -> None:
    assert set(OTHER) == {field.name for field in dataclasses.fields(Settings)}


@pytest.mark.parametrize("name", OTHER)
def test_a_setting_is_part_of_a_runs_name_exactly_if_it_can_change_a_number(
    name: str, specs: Specs, registry: Registry
) -> None:
    [spec] = specs()
    inputs = gather(spec, registry)
    changed = dataclasses.replace(spec, settings=dataclasses.replace(spec.settings, **{name: OTHER[name]}))
    assert getattr(changed.settings, name) != getattr(spec.settings, name)
    assert (run_id(changed, inputs, registry) == run_id(spec, inputs, registry)) == (name in NOT_IDENTITY)


@pytest.mark.parametrize(
    "change",
    [
        {"reg_weight": "0.5"},
        {"embedding_size": "5"},
        {"modalities": "text"},
        {"modalities": "image"},
        {"control": "shuffled"},
        {"control": "random"},
        {"control": "constant"},
        {"control": "none"},
        {"encoder": "basic"},
        {"missing": "mean"},
        {"normalize": "unit"},
    ],
    ids=str,
)
def test_model_parameters_modalities_controls_and_encoders_each_make_another_run(
    change: dict[str, str], specs: Specs, registry: Registry
) -> None:
    [one], [other] = specs(), specs(**change)
    assert run_id(one, gather(one, registry), registry) != run_id(other, gather(other, registry), registry)


def test_an_encoders_parameters_make_another_run(specs: Specs, registry: Registry) -> None:
    one, other = specs(encoder="basic"), specs(encoder="basic", **{"encoder.text_dim": "64"})
    assert run_id(one[0], gather(one[0], registry), registry) != run_id(other[0], gather(other[0], registry), registry)


def test_another_model_on_the_same_data_is_another_run(specs: Specs, toys: Registry) -> None:
    names = {
        run_id(spec, gather(spec, toys), toys)
        for model in ("Favorite", "Fragile", "VBPR")
        for spec in specs(model, known=toys)
    }
    assert len({name[-8:] for name in names}) == 3


def test_leaving_the_threads_to_torch_names_the_run_as_their_number_does(specs: Specs, registry: Registry) -> None:
    [left], [said] = specs(threads="0"), specs(threads=str(TORCH_THREADS))
    assert run_id(left, gather(left, registry), registry) == run_id(said, gather(said, registry), registry)


def test_each_run_computes_with_its_own_number_of_threads(
    specs: Specs, registry: Registry, out: Path, threads: None
) -> None:
    used = [result.record.threads for result in run_grid(specs(threads="[2, 0]"), registry, out=out).results]
    assert used == [2, TORCH_THREADS]
    assert torch.get_num_threads() == TORCH_THREADS


def test_a_run_is_called_by_model_data_set_and_eight_hex_digits(specs: Specs, registry: Registry) -> None:
    [spec] = specs()
    assert re.fullmatch(r"VBPR-toy-[0-9a-f]{8}", run_id(spec, gather(spec, registry), registry))


def test_contents_of_data_and_features_name_a_run_and_their_places_do_not(
    specs: Specs, registry: Registry, data_path: Path
) -> None:
    def name(path: Path) -> str:
        [spec] = specs(data_path=str(path))
        return run_id(spec, gather(spec, registry), registry)

    copy = data_path.with_name("elsewhere")
    shutil.copytree(data_path, copy)
    assert name(copy) == name(data_path)
    values = np.load(copy / "toy" / "text_feat.npy")
    np.save(copy / "toy" / "text_feat.npy", values + 1)
    other_features = name(copy)
    np.save(copy / "toy" / "text_feat.npy", values)
    inter = copy / "toy" / "toy.inter"
    inter.write_text(inter.read_text().replace("\n0\t4\t0\n", "\n"))
    assert len({name(data_path), other_features, name(copy)}) == 3


# What a run keeps


def test_a_finished_run_keeps_config_weights_per_user_metrics_lists_and_result(
    specs: Specs, registry: Registry, out: Path
) -> None:
    [spec] = specs()
    result = run_grid([spec], registry, out=out).best
    assert result.path == out / result.run_id
    kept = {path.name for path in result.path.iterdir() if path.is_file() and path.name != ".lock"}
    assert kept == {
        "config.json", "best.safetensors", "per_user.safetensors", "history.jsonl", "topk.tsv", "result.json",
    }  # fmt: skip
    assert not (result.path / "checkpoint" / "state.safetensors").exists()
    assert run_folder.load_config(result.path, registry) == spec
    stored = json.loads((result.path / "result.json").read_text())
    assert stored["test"] == dict(result.test)
    assert stored["parameters"] == {"seed": 999}
    assert stored["record"]["present"] == {"image": 15, "text": 15}


def test_a_run_with_an_encoder_is_read_back_with_the_encoders_own_configuration(
    specs: Specs, registry: Registry, out: Path
) -> None:
    [spec] = specs(encoder="basic", **{"encoder.ngrams": "[2]"})
    result = run_grid([spec], registry, out=out).best
    assert run_folder.load_config(result.path, registry) == spec
    assert result.record.present == {"image": 15, "text": 15}


def test_the_means_over_users_are_the_figures_of_the_result(specs: Specs, registry: Registry, out: Path) -> None:
    result = run_grid(specs(), registry, out=out).best
    per_user = run_folder.load_per_user(result.path)
    for split, figures in (("valid", result.valid), ("test", result.test)):
        assert per_user[f"{split}/users"].tolist() == list(range(12))
        assert set(figures) == {
            f"{metric}@{k}" for metric in ("recall", "ndcg", "precision", "map") for k in (5, 10, 20, 50)
        }
        for name, value in figures.items():
            assert per_user[f"{split}/{name}"].mean() == value


def test_figures_follow_from_the_lists_that_are_kept(specs: Specs, registry: Registry, out: Path) -> None:
    [spec] = specs()
    result = run_grid([spec], registry, out=out).best
    lists = pd.read_csv(result.path / "topk.tsv", sep="\t")
    test = gather(spec, registry).dataset.test
    truth = dict(zip(test.users.tolist(), test.items.tolist(), strict=True))
    assert list(lists.columns[:3]) == ["id", "top_0", "top_1"]
    hits = [truth[row["id"]] in row.iloc[1:6].tolist() for _, row in lists.iterrows()]
    assert np.mean(hits) == pytest.approx(result.test["recall@5"])


def test_epochs_are_selected_on_a_sample_of_users_that_is_the_same_for_every_seed(
    specs: Specs, registry: Registry, out: Path
) -> None:
    def users(**change: str) -> list[int]:
        result = run_grid(specs(**change), registry, out=out).best
        per_user = run_folder.load_per_user(result.path)
        assert len(per_user["test/users"]) == 12
        assert per_user["valid/recall@20"].mean() == result.valid["recall@20"]
        assert run_folder.load_history(result.path)[result.best_epoch].valid == result.valid
        return list(per_user["valid/users"])

    five = users(valid_users="5")
    assert len(five) == 5
    assert users(valid_users="5", seed="3") == five
    assert set(five) < set(users(valid_users="8"))
    assert users(valid_users="12") == users(valid_users="1000") == users() == list(range(12))


def test_users_of_a_sample_have_all_their_rows() -> None:
    rows = Interactions(np.array([4, 1, 4, 2, 9, 1]), np.arange(6))
    found = runner.of_some_users(rows, 2)
    assert len(set(found.users)) == 2
    kept = np.isin(rows.users, found.users)
    assert (found.users.tolist(), found.items.tolist()) == (rows.users[kept].tolist(), rows.items[kept].tolist())


@pytest.mark.parametrize(("count", "named"), [("0", set()), ("5", {"valid_users"})])
def test_a_sample_is_part_of_a_runs_name_only_if_there_is_one(
    count: str, named: set[str], specs: Specs, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    identities: list[Any] = []
    monkeypatch.setattr(provenance, "fingerprint", lambda identity: (identities.append(identity), "0" * 8)[1])
    [spec] = specs(valid_users=count)
    run_id(spec, gather(spec, registry), registry)
    assert set(identities[-1]["settings"]) & {"valid_users"} == named


def test_masking_validation_items_in_test_is_an_option_that_mmrec_has_off(
    specs: Specs, registry: Registry, out: Path
) -> None:
    valid = gather(specs()[0], registry).dataset.valid
    pairs = set(zip(valid.users.tolist(), valid.items.tolist(), strict=True))

    def listed(**change: str) -> set[tuple[int, int]]:
        lists = pd.read_csv(run_grid(specs(**change), registry, out=out).best.path / "topk.tsv", sep="\t")
        return {(int(row.iloc[0]), int(item)) for _, row in lists.iterrows() for item in row.iloc[1:]}

    assert pairs <= listed()
    assert not pairs & listed(mask_valid_in_test="true")


def test_the_history_of_a_run_is_what_observers_saw_of_its_epochs(
    specs: Specs, toys: Registry, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[EpochReport] = []
    monkeypatch.setattr(Registry, "notify_epoch", lambda self, spec, report: seen.append(report))
    result = run_grid(specs(epochs="4", eval_step="2"), toys, out=out).best
    assert run_folder.load_history(result.path) == seen
    assert [report.valid is None for report in seen] == [True, False, True, False]
    assert seen[result.best_epoch].valid == result.valid
    run_grid(specs(epochs="0"), toys, out=out)  # has no epoch to tell of
    diverged = run_grid(specs("Fragile", known=toys, breaks_at="2", epochs="9"), toys, out=out).best
    assert [report.epoch for report in history(diverged)] == [0, 1]


def test_a_damaged_history_is_named(finished: RunResult) -> None:
    path = finished.path / "history.jsonl"
    path.write_text(path.read_text()[:-5])
    with pytest.raises(DataError, match=rf"{re.escape(str(path))}:\d: expected JSON, got a damaged file"):
        run_folder.load_history(finished.path)


def test_lists_are_not_kept_where_they_are_not_wanted(specs: Specs, registry: Registry, out: Path) -> None:
    result = run_grid(specs(save_recommended_topk="false"), registry, out=out).best
    assert not (result.path / "topk.tsv").exists()


# Once, again, and by force


def test_a_finished_run_gives_its_stored_result_without_training(
    specs: Specs, registry: Registry, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run_grid(specs(), registry, out=out).best
    monkeypatch.setattr(runner, "train", None)
    again = run_grid(specs(), registry, out=out).best
    assert run_folder.document(again) == run_folder.document(first)


def test_a_run_by_force_trains_again_and_comes_to_the_same(
    specs: Specs, registry: Registry, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = []
    train = runner.train
    monkeypatch.setattr(runner, "train", lambda *args, **options: trained.append(1) or train(*args, **options))
    first = run_grid(specs(), registry, out=out).best
    before = files(first.path)
    forced = run_grid(specs(), registry, out=out, force=True).best
    assert len(trained) == 2
    assert numbers(forced) == numbers(first)
    assert files(forced.path) == before


def test_another_seed_gives_other_weights(specs: Specs, registry: Registry, out: Path) -> None:
    one, other = run_grid(specs(seed="[1, 2]"), registry, out=out).results
    assert weights(one.path) != weights(other.path)


def test_validation_is_ranked_once_an_epoch_and_test_once_at_the_end(
    specs: Specs, registry: Registry, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [spec] = specs(epochs="4")
    dataset = gather(spec, registry).dataset
    made: list[str] = []
    ranked: list[str] = []

    class Counting(Evaluator):
        def __init__(self, held_out: Interactions, *rest: Any) -> None:
            super().__init__(held_out, *rest)
            [self.split] = [s for s in ("valid", "test") if np.array_equal(getattr(dataset, s).items, held_out.items)]
            made.append(self.split)

        def rank(self, *args: Any, **options: Any) -> Ranking:
            ranked.append(self.split)
            return super().rank(*args, **options)

    monkeypatch.setattr(runner, "Evaluator", Counting)
    run_grid([spec], registry, out=out)
    assert ranked == ["valid"] * 4 + ["test"]
    assert made == ["valid", "test"]


@pytest.mark.parametrize("model", ["VBPR", "Dropout"])
def test_mmrecs_protocol_logs_test_at_each_evaluation_and_changes_nothing_of_the_run(
    model: str, specs: Specs, toys: Registry, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "mmrec_lmm")
    ours = run_grid(specs(model, known=toys), toys, out=tmp_path / "ours").best
    assert caplog.text.count("test result: ") == 1
    caplog.clear()
    theirs = run_grid(specs(model, known=toys, protocol="mmrec"), toys, out=tmp_path / "theirs").best
    assert caplog.text.count("test result: ") == 3 + 1
    assert theirs.run_id == ours.run_id
    assert numbers(theirs) == numbers(ours)
    assert files(theirs.path) == files(ours.path)
    assert history(theirs) == history(ours)
    lines = [record.getMessage() for record in caplog.records]
    epoch = next(place for place, line in enumerate(lines) if line.startswith(f"epoch {ours.best_epoch} evaluating"))
    assert lines[epoch + 2] == f"test result: \n{metric_line(ours.test)}"


def test_held_out_rows_do_not_reach_training(specs: Specs, toys: Registry, data_path: Path, out: Path) -> None:
    [spec] = specs("VBPR", known=toys, epochs="1")
    before = run_grid([spec], toys, out=out).best
    inter = data_path / "toy" / "toy.inter"
    rows = pd.read_csv(inter, sep="\t")
    held_out = rows.x_label > 0
    rows.loc[held_out, "x_label"] = 3 - rows.loc[held_out, "x_label"]  # validation and test change places
    rows.to_csv(inter, sep="\t", index=False)
    after = run_grid([spec], toys, out=out).best
    assert after.run_id != before.run_id
    assert weights(after.path) == weights(before.path)


# Grids


def test_the_winner_is_the_best_on_validation_even_where_test_disagrees(
    specs: Specs, toys: Registry, out: Path
) -> None:
    # Item 12 is one user's test item and nobody's in validation, item 0 the other way round
    grid = run_grid(specs("Favorite", known=toys, favorite="[12, 0]", **FIRST), toys, out=out)
    assert [dict(result.parameters) for result in grid.results] == [
        {"seed": 999, "favorite": 12},
        {"seed": 999, "favorite": 0},
    ]
    assert [result.valid["recall@1"] for result in grid.results] == [0, 1 / 12]
    assert [result.test["recall@1"] for result in grid.results] == [1 / 12, 0]
    assert grid.best.parameters["favorite"] == 0
    assert grid.best_on_test is None


def test_under_mmrecs_protocol_the_best_on_test_stands_beside_the_winner_and_says_so(
    specs: Specs, toys: Registry, out: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "mmrec_lmm")
    asked = specs("Favorite", known=toys, favorite="[12, 0]", protocol="mmrec", **FIRST)
    grid = run_grid(asked, toys, out=out)
    assert grid.best.parameters["favorite"] == 0
    assert grid.best_on_test is not None
    assert grid.best_on_test.parameters["favorite"] == 12
    assert caplog.text.count("████Current BEST by MMRec's protocol, selected on TEST████:\nParameters: ") == 2
    assert (
        "████BEST by MMRec's protocol, selected on TEST████:\nParameters: ['seed', 'favorite']=(999, 12)" in caplog.text
    )
    run_grid(specs("Favorite", known=toys, favorite="[12, 0]", **FIRST), toys, out=out)  # the same runs


def test_mmrec_compares_four_decimals_and_keeps_the_first() -> None:
    def result(name: str, value: float) -> RunResult:
        return RunResult(name, Path(name), {"x": name}, {"recall@20": 0.0}, {"recall@20": value}, 0, 1, "epochs")

    spec = RunSpec("VBPR", "toy", Settings(), None)
    assert grids.best_on_test([result("a", 0.10001), result("b", 0.10004)], spec).parameters == {"x": "a"}
    assert grids.best_on_test([result("a", 0.10001), result("b", 0.10006)], spec).parameters == {"x": "b"}


def test_of_equal_points_the_first_wins(specs: Specs, toys: Registry, out: Path) -> None:
    grid = run_grid(specs("Favorite", known=toys, favorite="[12, 13]", **FIRST), toys, out=out)
    assert grid.best.parameters["favorite"] == 12


def test_a_grids_points_share_their_inputs(
    specs: Specs, registry: Registry, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    all_gather = []
    monkeypatch.setattr(grids, "gather", lambda *args, **options: all_gather.append(1) or gather(*args, **options))
    grid = run_grid(specs(reg_weight="[0.1, 0.2, 0.3]"), registry, out=out)
    assert [result.parameters["reg_weight"] for result in grid.results] == [0.1, 0.2, 0.3]
    assert len(all_gather) == 1


def test_a_control_is_shuffled_anew_for_each_seed(specs: Specs, registry: Registry, out: Path) -> None:
    one, other = run_grid(specs(seed="[1, 2]", control="shuffled"), registry, out=out).results
    assert one.record.features != other.record.features


def test_seeds_are_replicates_and_the_point_is_selected_on_their_mean(specs: Specs, toys: Registry, out: Path) -> None:
    grid = run_grid(specs("Favorite", known=toys, favorite="[12, 0]", seed="[1, 2]", **FIRST), toys, out=out)
    assert [(dict(point.parameters), point.seeds) for point in grid.points] == [
        ({"favorite": 12}, [1, 2]),
        ({"favorite": 0}, [1, 2]),
    ]
    assert dict(grid.winner.parameters) == {"favorite": 0}
    assert grid.winner.mean("valid")["recall@1"] == 1 / 12
    assert grid.winner.deviation("valid") == dict.fromkeys(grid.results[0].valid, 0.0)


def test_a_lucky_seed_does_not_make_a_point_the_winner() -> None:
    def result(seed: int, weight: float, score: float) -> RunResult:
        parameters = {"seed": seed, "weight": weight}
        return RunResult(
            "", Path(), parameters, {"recall@20": score}, {}, 0, 1, "epochs", dataclasses.replace(UNRECORDED, seed=seed)
        )

    lucky = [result(1, 0.1, 0.9), result(2, 0.1, 0.1), result(3, 0.1, 0.2)]
    steady = [result(1, 0.2, 0.5), result(2, 0.2, 0.5), result(3, 0.2, 0.5)]
    spec = RunSpec("VBPR", "toy", Settings(), None)
    assert grids.best_point([*lucky, *steady], spec).parameters == {"weight": 0.2}
    assert grids.best_point([*lucky, *steady[:2]], spec).parameters == {"weight": 0.1}  # a seed of the other failed
    [point] = grids.points_of(lucky)
    assert point.mean("valid")["recall@20"] == pytest.approx(0.4)
    assert point.deviation("valid") == {"recall@20": pytest.approx(0.19**0.5)}


@pytest.mark.parametrize("model", ["VBPR", "LATTICE"])
def test_without_features_a_model_is_one_run_whatever_the_encoder_and_paradigm(
    specs: Specs, registry: Registry, out: Path, model: str
) -> None:
    kinds = [
        {"encoder": "basic"},
        {"encoder": "clip", "encoder.variant": "tiny"},
        {"encoder": "vlmo", "encoder.variant": "tiny", "paradigm": "ft"},
        {"encoder": "beit3", "encoder.variant": "tiny", "paradigm": "ete", "missing": "mean"},
    ]
    found = [run_grid(specs(model, control="none", **kind), registry, out=out).best for kind in kinds]
    assert len({result.run_id for result in found}) == 1
    record = found[0].record
    assert record.axes == Axes(model, "toy", modalities=("image", "text"), control="none")
    assert record.present == {"image": 0, "text": 0}
    assert record.seconds.encoder == 0
    spec = run_folder.load_config(found[0].path, registry)
    again = runner.run(spec, registry, inputs=gather(spec, registry), out=out)  # as replay and recommend do
    assert again.run_id == found[0].run_id
    [text] = specs(model, control="none", encoder="basic", modalities="text")
    assert run_grid([text], registry, out=out).best.run_id != found[0].run_id


def test_a_run_keeps_what_random_rankings_would_score(specs: Specs, registry: Registry, out: Path) -> None:
    chance = run_grid(specs(valid_metric="Recall@5"), registry, out=out).best.record.chance
    assert chance is not None
    assert chance.metric == "recall@5"
    assert 0 < chance.test.mean < 1
    assert chance.test.deviation > 0


def test_runs_from_before_min_steps_are_read_as_they_were_made(specs: Specs, registry: Registry, out: Path) -> None:
    result = run_grid(specs(), registry, out=out).best
    config = json.loads((result.path / run_folder.CONFIG).read_text())
    assert config["settings"].pop("min_steps") == Settings.min_steps
    (result.path / run_folder.CONFIG).write_text(json.dumps(config))
    assert run_folder.load_config(result.path, registry).settings.min_steps == 0


def test_a_grid_goes_on_past_a_point_that_fails(
    specs: Specs, toys: Registry, out: Path, caplog: pytest.LogCaptureFixture
) -> None:
    grid = run_grid(specs("Fragile", known=toys, breaks_at="[0, -1]"), toys, out=out)
    [(point, reason)] = grid.failures
    assert dict(point) == {"seed": 999, "breaks_at": 0}
    assert reason.startswith(f"plugin {toys.models.provider('Fragile')}: model Fragile: loss term 'fragile' became nan")
    assert [result.parameters["breaks_at"] for result in grid.results] == [-1]
    assert grid.best is grid.results[0]
    assert "Parameters: ['seed', 'breaks_at']=(999, 0) failed: plugin " in caplog.text


def test_a_grid_of_failures_is_an_error(specs: Specs, toys: Registry, out: Path) -> None:
    with pytest.raises(
        RunError, match=r"all 2 points of the grid failed; the last one: plugin .*: loss term 'fragile' became nan"
    ):
        run_grid(specs("Fragile", known=toys, seed="[1, 2]"), toys, out=out)


def test_one_run_that_fails_says_why_itself_and_leaves_no_result(specs: Specs, toys: Registry, out: Path) -> None:
    with pytest.raises(TrainingDiverged, match="before any evaluation"):
        run_grid(specs("Fragile", known=toys), toys, out=out)
    assert run_folder.list_results(out) == []


def test_a_loss_that_breaks_after_an_evaluation_keeps_the_best_weights_and_finishes(
    specs: Specs, toys: Registry, out: Path
) -> None:
    result = run_grid(specs("Fragile", known=toys, breaks_at="2", epochs="9"), toys, out=out).best
    assert (result.stopped, result.best_epoch, result.epochs) == ("diverged", 0, 3)
    assert result.test["recall@20"] == 1.0


# Interruptions


def interrupting(tmp_path: Path, epoch: int) -> Registry:
    """A registry with an observer through which Ctrl-C arrives at the end of an epoch."""
    plugin = tmp_path / f"interrupt_{epoch}.py"
    plugin.write_text(
        "from mmrec_lmm.api import hookimpl\n"
        "@hookimpl\n"
        "def mmrec_epoch_finished(run, epoch):\n"
        f"    if epoch.epoch == {epoch}:\n"
        "        raise KeyboardInterrupt\n"
    )
    return load_registry([TOYS, str(plugin)])


@pytest.mark.parametrize("model", ["VBPR", "Dropout"])
@pytest.mark.parametrize("epoch", [1, 2, 5])
def test_an_interrupted_run_resumes_to_the_same_bits(
    model: str, epoch: int, specs: Specs, toys: Registry, tmp_path: Path
) -> None:
    asked = specs(model, known=toys, epochs="6", eval_step="2" if epoch == 5 else "1")
    whole = run_grid(asked, toys, out=tmp_path / "whole").best
    with pytest.raises(Interrupted) as caught:
        run_grid(asked, interrupting(tmp_path, epoch), out=tmp_path / "halted")
    assert str(caught.value) == (
        f"{whole.run_id}: interrupted; the state after epoch {epoch} is saved; the same command with --resume continues"
    )
    assert caught.value.exit_code == 130
    assert run_folder.list_results(tmp_path / "halted") == []

    torch.manual_seed(0)  # a new process starts in another random state
    resumed = run_grid(asked, toys, out=tmp_path / "halted", resume=True).best
    assert resumed.run_id == whole.run_id
    assert numbers(resumed) == numbers(whole)
    assert files(resumed.path) == files(whole.path)
    assert history(resumed) == history(whole)
    assert len(history(whole)) == 6
    assert not list((resumed.path / "checkpoint").glob("*"))


def test_seconds_of_training_count_all_epochs_and_those_of_the_encoder_whoever_let_it(
    specs: Specs, toys: Registry, tmp_path: Path, out: Path
) -> None:
    with pytest.raises(Interrupted):
        run_grid(specs(encoder="basic"), interrupting(tmp_path, 2), out=out)
    result = run_grid(specs(encoder="basic"), toys, out=out, resume=True).best
    seconds = result.record.seconds
    assert seconds.train == sum(
        report.train_seconds + report.valid_seconds for report in run_folder.load_history(result.path)
    )
    assert seconds.encoder is not None
    assert seconds.encoder > 0
    again = run_grid(specs(encoder="basic", seed="5"), toys, out=out).best.record.seconds
    assert again.encoder == seconds.encoder


def test_a_checkpoint_of_other_code_is_refused_with_what_to_do(
    specs: Specs, toys: Registry, tmp_path: Path, out: Path
) -> None:
    with pytest.raises(Interrupted):
        run_grid(specs(), interrupting(tmp_path, 2), out=out)
    [path] = out.glob("*/checkpoint/state.safetensors")
    with safe_open(path, framework="pt") as file:
        numbers = file.metadata()["numbers"]
    save_weights(path, {f"of_old.{name}": value for name, value in load_file(path).items()}, {"numbers": numbers})
    with pytest.raises(DataError, match=r"checkpoint: expected a checkpoint of this code, got .* start over"):
        run_grid(specs(), toys, out=out, resume=True)


def test_an_interruption_before_the_first_evaluation_says_that_nothing_is_saved(
    specs: Specs, toys: Registry, tmp_path: Path, out: Path
) -> None:
    with pytest.raises(
        Interrupted, match="interrupted before the first evaluation; nothing is saved, the same command starts over"
    ):
        run_grid(specs(eval_step="2"), interrupting(tmp_path, 0), out=out)
    whole = run_grid(specs(eval_step="2"), toys, out=tmp_path / "whole").best
    assert files(run_grid(specs(eval_step="2"), toys, out=out, resume=True).best.path) == files(whole.path)


@pytest.mark.parametrize("model", ["VBPR", "Dropout"])
def test_a_run_interrupted_in_ranking_is_not_trained_again(
    model: str, specs: Specs, toys: Registry, tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run_grid(specs(model, known=toys), toys, out=tmp_path / "whole").best

    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(runner, "rank", interrupt)
        with pytest.raises(Interrupted, match=r"interrupted; the trained model is saved; .* --resume continues"):
            run_grid(specs(model, known=toys), toys, out=out)
    monkeypatch.setattr(runner.Trainer, "train_epoch", interrupt)
    resumed = run_grid(specs(model, known=toys), toys, out=out, resume=True).best
    assert numbers(resumed) == numbers(whole)
    assert files(resumed.path) == files(whole.path)
    assert history(resumed) == history(whole)


def test_without_resume_an_interrupted_run_starts_anew(
    specs: Specs, toys: Registry, tmp_path: Path, out: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "mmrec_lmm")
    with pytest.raises(Interrupted):
        run_grid(specs(), interrupting(tmp_path, 2), out=out)
    run_grid(specs(), toys, out=out)
    assert "continuing" not in caplog.text
    assert caplog.text.count("epoch 0 training") == 2


def test_a_resumed_run_without_a_checkpoint_says_that_it_starts_over(
    specs: Specs, toys: Registry, tmp_path: Path, out: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "mmrec_lmm")
    said = "has no checkpoint yet: it starts over"
    with pytest.raises(Interrupted):
        run_grid(specs(), interrupting(tmp_path, 2), out=out, resume=True)
    assert said not in caplog.text, "it is new"
    shutil.rmtree(next(out.iterdir()) / "checkpoint")
    run_grid(specs(), toys, out=out, resume=True)
    assert said in caplog.text


def test_an_interruption_ends_the_whole_grid(specs: Specs, tmp_path: Path, out: Path) -> None:
    with pytest.raises(Interrupted):
        run_grid(specs(seed="[1, 2]"), interrupting(tmp_path, 1), out=out)
    assert len(list(out.iterdir())) == 1


def test_a_forced_run_that_is_interrupted_leaves_the_earlier_result_intact(
    specs: Specs, toys: Registry, tmp_path: Path, out: Path
) -> None:
    first = run_grid(specs(), toys, out=out).best
    before = files(first.path)
    with pytest.raises(Interrupted):
        run_grid(specs(), interrupting(tmp_path, 1), out=out, force=True)
    assert files(first.path) == before
    assert run_folder.document(run_grid(specs(), toys, out=out).best) == run_folder.document(first)


def test_two_processes_cannot_do_the_same_run_at_once(specs: Specs, registry: Registry, out: Path) -> None:
    [spec] = specs()
    folder = out / run_id(spec, gather(spec, registry), registry)
    with run_folder.claimed(folder), pytest.raises(RunError) as caught:
        run_grid([spec], registry, out=out)
    assert str(caught.value) == (f"{folder}: another process is at work on this very run; wait for it, or end it")
    assert run_grid([spec], registry, out=out).best.path == folder


# Observers


def test_observers_see_each_epoch_and_then_the_result_that_is_on_disk(specs: Specs, tmp_path: Path, out: Path) -> None:
    seen = tmp_path / "seen.txt"
    plugin = tmp_path / "observer.py"
    plugin.write_text(
        "from mmrec_lmm.api import hookimpl\n"
        f"seen = open({str(seen)!r}, 'a', buffering=1)\n"
        "@hookimpl\n"
        "def mmrec_epoch_finished(run, epoch):\n"
        "    print(run.model, 'epoch', epoch.epoch, sorted(epoch.losses), len(epoch.valid), file=seen)\n"
        "@hookimpl\n"
        "def mmrec_run_finished(run, result):\n"
        "    print(run.model, 'result', (result.path / 'result.json').exists(), file=seen)\n"
    )
    registry = load_registry([str(plugin)])
    run_grid(specs(epochs="2"), registry, out=out)
    run_grid(specs(epochs="2"), registry, out=out)  # a stored result is no new one
    assert seen.read_text().splitlines() == [
        "VBPR epoch 0 ['bpr', 'reg'] 16",
        "VBPR epoch 1 ['bpr', 'reg'] 16",
        "VBPR result True",
    ]


# Finished runs, found again


@pytest.fixture
def finished(specs: Specs, registry: Registry, out: Path) -> RunResult:
    return run_grid(specs(learning_rate="0.1"), registry, out=out).best  # far from the weights that it began with


def test_a_run_is_found_by_its_name_the_start_of_it_in_any_case_and_its_folder(finished: RunResult, out: Path) -> None:
    for name in (finished.run_id, finished.run_id[:-2], "vbpr-TOY", str(finished.path)):
        assert run_folder.find_run(out, name) == finished.path


def test_a_name_that_fits_no_run_or_several_is_an_error(
    finished: RunResult, specs: Specs, registry: Registry, out: Path
) -> None:
    with pytest.raises(DataError) as caught:
        run_folder.find_run(out, finished.run_id[1:])
    assert str(caught.value) == (
        f"{finished.run_id[1:]}: expected a finished run in {out}, got none of that name; did you mean "
        f"{finished.run_id}?; try `list runs`"
    )
    other = run_grid(specs(seed="5"), registry, out=out).best
    names = ", ".join(sorted([finished.run_id, other.run_id]))
    with pytest.raises(
        ConfigError, match=re.escape(f"VBPR: expected the start of one run's id, got that of 2; try {names}")
    ):
        run_folder.find_run(out, "VBPR")


def test_a_damaged_result_is_named(finished: RunResult) -> None:
    path = finished.path / "result.json"
    path.write_text(path.read_text()[:50])
    with pytest.raises(DataError, match=re.escape(f"{path}: expected JSON")):
        run_folder.load_result(finished.path)
    path.write_text('{"score": 1}')
    with pytest.raises(DataError, match=re.escape(f"{path}: run_id: expected text, got nothing; try --force")):
        run_folder.load_result(finished.path)


def test_a_result_of_a_later_version_is_refused_and_a_wrong_value_is_named(finished: RunResult) -> None:
    path = finished.path / "result.json"
    text = path.read_text()
    path.write_text(text.replace('"record_version": 1', '"record_version": 9'))
    with pytest.raises(DataError, match=r"record.record_version: expected at most 1, got 9; try a later mmrec-lmm"):
        run_folder.load_result(finished.path)
    path.write_text(text.replace('"numerics_version": ', '"numerics_version": "x", "was": '))
    with pytest.raises(DataError, match=r"result.json: record.numerics_version: expected a whole number, got 'x'; try"):
        run_folder.load_result(finished.path)


def asked(*users: int) -> dict[str, str]:
    return {str(user): "--users" for user in users}


def test_recommendations_are_the_lists_of_the_run_with_own_ids_and_titles(
    finished: RunResult, registry: Registry, out: Path
) -> None:
    rows = recommend(finished.run_id, asked(3, 0), 8, registry, out=out)
    lists = pd.read_csv(finished.path / "topk.tsv", sep="\t", index_col="id")
    assert [(row.user, row.rank, row.item) for row in rows.itertuples(index=False)] == [
        (str(user), rank + 1, f"T{lists.loc[user, f'top_{rank}']:02d}") for user in (3, 0) for rank in range(8)
    ]
    for row in rows.itertuples(index=False):
        item = int(row.item[1:])
        assert row.title == ("" if item == 14 else f"{['red', 'blue'][item % 2]} thing {item}")


def test_recommendations_leave_out_training_items_and_end_where_candidates_do(
    finished: RunResult, registry: Registry, out: Path
) -> None:
    rows = recommend(finished.run_id, asked(4), 50, registry, out=out, internal_ids=True)
    assert sorted(rows["item"]) == [1, 3, 4, 5, 6, 7, 9, 11, 13, 15]
    assert rows["rank"].tolist() == list(range(1, 11))


def test_recommendations_for_an_unknown_user_are_refused(finished: RunResult, registry: Registry, out: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"--users: expected ids from 0 to 11, as the data set has no u_id_mapping.csv, g"
    ):
        recommend(finished.run_id, asked(0, 12), 2, registry, out=out)
    for user in ("-1", "12", "0.0", "x", "9" * 30):
        with pytest.raises(
            ConfigError, match=f"--users: expected numbers from 0 to 11 with --internal-ids, got {user}"
        ):
            recommend(finished.run_id, {user: "--users"}, 2, registry, out=out, internal_ids=True)


@pytest.mark.parametrize("part", ["data", "features"])
def test_recommendations_from_changed_inputs_are_refused(
    part: str, finished: RunResult, registry: Registry, out: Path, data_path: Path
) -> None:
    if part == "data":
        with (data_path / "toy" / "toy.inter").open("a") as file:
            file.write("0\t3\t0\n")
    else:
        np.save(data_path / "toy" / "image_feat.npy", np.ones((16, 5)))
    with pytest.raises(DataError, match=f"{finished.run_id}: the {part} changed since this run; try running it again"):
        recommend(finished.run_id, asked(0), 2, registry, out=out)

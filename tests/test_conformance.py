"""The conformance kit: sound plugins pass, and each planted fault is caught by name, with advice."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import call, plugin

from mmrec_lmm.errors import ConfigError, PluginError, TrainingDiverged
from mmrec_lmm.plugin.registry import load_registry
from mmrec_lmm.running.runner import run
from mmrec_lmm.testing import checks_of_samplers
from mmrec_lmm.testing.conformance import Check, checks_of, outcome
from mmrec_lmm.types import RunSpec

FAULTS = str(Path(__file__).parent / "plugin_faults.py")
CHECKS = {(check.subject, check.name): check for check in checks_of([FAULTS])}

PLANTED = [
    ("Sparse", "state", "Sparse: graph: expected a dense tensor .*, got sparse_coo; try .*persistent=False"),
    ("Drops", "contract", "Drops: scoring twice gives two answers: draw noise and dropout in training alone"),
    ("Drops", "state", "Drops: scoring twice gives two answers"),
    ("Drops", "batches", "Drops: scoring twice gives two answers"),
    ("Drops", "training rows", "Drops: scoring twice gives two answers"),
    ("Broadcasts", "contract", r"Broadcasts: negatives=.several.: expected the same loss .* \(B,\) and \(B, 1\), got"),
    (
        "TakesOne",
        "contract",
        r"TakesOne: negatives=.several.: expected a loss .* shape \(B, 2\), got RuntimeError: .*negatives=.one.",
    ),
    ("Means", "modalities", "Means: loss term bpr is nan where no item has image.*features.present"),
    ("Peeks", "training rows", "Peeks: parameter users changes with the rows of validation and test: build it from"),
    ("TestGraph", "training rows", "TestGraph: buffer graph changes with the rows of validation and test: build it"),
    ("Square", "memory", "Square: aten.mm makes a tensor of 2,048 x 2,048 numbers, items x items.*nearest_neighbors"),
    ("NumpySquare", "memory", r"NumpySquare: arrays of numpy take \d+\.\d MB, items x items"),
    ("Noise", "seed", "Noise: parameter users differs between two runs of one seed: draw from torch's default"),
    ("Copies", "live features", "Copies: scores ignore text features that changed: it keeps a copy; .*self.features()"),
    ("Misspells", "contract", r"Misspells: AttributeError: .* no attribute 'item' \(.*plugin_faults.py:\d+\)"),
    ("Neighbors", "batches", "Neighbors: a user's scores depend on the batch: compute each row"),
    ("Idle", "gradients", "Idle: parameter bias gets no gradient in 3 epochs: use it in training_loss"),
    ("Forgets", "state", "Forgets: training that resumes from a checkpoint ends with other scores.*buffer"),
    ("Scoreless", "whole", "Scoreless: expected a class that defines scorer, got one that lacks it; try DotProduct"),
    ("NaNs", "contract", "NaNs: a score isn't finite"),
    (
        "entangled",
        "alone",
        "entangled: expected the same text features from an encoder of text alone as .* generator of",
    ),
    ("MeanOfAll", "values", r"MeanOfAll: expected one number for each of 40 users, \(40,\), at 1, got float64 \(\)"),
    ("FirstRanks", "values", "FirstRanks: its value at 1 depends on later ranks"),
    ("ReadsFeatures", "lists", r'ReadsFeatures: it reads ranked.features: its spec needs needs=\("features",\)'),
    ("EmptyLists", "lists", "EmptyLists: a value at 1 is NaN or infinite: lists may be empty or short"),
    ("AllRanks", "lists", "AllRanks: its value at 1 depends on later ranks: begin with ranked.items"),
    ("OneForAll", "lists", r"OneForAll: expected one number for each of 40 users, .*; per_user=False says that"),
    ("Unseeded", "seed", "Unseeded: it draws other items from the same generator: draw from `generator` alone"),
    ("Turns", "seed", "Turns: its second draw isn't that of a run that resumes after the first"),
    ("Outside", "draws", "Outside: expected items from 0 to 15 from draw, got 1 to 16"),
    ("Narrow", "ends", "Narrow: expected an item that user 0 doesn't have, got none in 1,000 draws.*lacks one of 8"),
    ("Searches", "ends", "Searches: it searches without end for an item where a user has all: set redraws = True"),
    ("Spares", "training rows", "Spares: what it draws changes with the rows of validation and test: build it from"),
    ("Dense", "memory", "Dense: .* makes a tensor of 2,048 x 2,048 numbers, for 2,048 users and items: keep the"),
    ("Drawless", "whole", "Drawless: expected a class that defines draw, got one that lacks it"),
]


@pytest.mark.parametrize(("subject", "name", "words"), PLANTED, ids=[f"{one[0]}-{one[1]}" for one in PLANTED])
def test_a_planted_fault_is_caught_by_name(
    subject: str, name: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks_of_samplers, "_PATIENCE", 0.2)
    state, reason = outcome(CHECKS[subject, name])
    assert state == "failed"
    assert re.search(words, reason), reason


@pytest.mark.parametrize("model", ["Sound", "Guided", "Counts", "Rows", "Several"])
def test_sound_models_pass_every_check(model: str) -> None:
    found = {name: outcome(check) for (subject, name), check in CHECKS.items() if subject == model}
    assert len(found) == 11
    assert [one for one in found.items() if one[1][0] == "failed"] == []
    assert found["gradients"][0] == ("n/a" if model == "Counts" else "ok")
    assert found["run"][0] == found["state"][0] == found["memory"][0] == "ok"


def test_a_sound_encoder_passes_every_check() -> None:
    found = {name: outcome(check) for (subject, name), check in CHECKS.items() if subject == "tinyencoder"}
    assert found == dict.fromkeys(["contract", "preparation", "rows", "alone", "declared"], ("ok", ""))


def test_a_sound_sampler_passes_every_check_and_a_careless_one_promises_nothing() -> None:
    found = {name: outcome(check) for (subject, name), check in CHECKS.items() if subject == "Any"}
    assert found == dict.fromkeys(checks_of_samplers.CHECKS, ("ok", ""))
    state, reason = outcome(CHECKS["Careless", "positives"])
    assert state == "n/a"
    assert re.match(r"it promises nothing: \d+ of 360 items are some that the user has in training", reason)


def test_the_other_checks_pass_for_a_faulty_model() -> None:
    """A fault is named by the checks that concern it, not by all."""
    others = [check for (subject, name), check in CHECKS.items() if subject == "Idle" and name != "gradients"]
    assert {outcome(check)[0] for check in others} == {"ok"}


def test_what_ships_keeps_the_contract() -> None:
    names = ["Recall", "NDCG", "Precision", "MAP", "Hit", "MRR", "Coverage", "Gini", "Novelty", "ILD", "AUC"]
    for check in checks_of(names=["BPR", "basic", "uniform", "popularity", *names]):
        state, reason = outcome(check)
        assert state != "failed", reason


def test_the_command_checks_a_file_and_a_name_and_says_how_many_failed() -> None:
    found = call("plugin", "check", FAULTS.replace("plugin_faults", "plugin_toys"))
    assert found.code == 1  # Favorite's and Fragile's parameter learns nothing that ranks
    assert "failed model Fragile: contract" in found.out
    assert re.search(r"^\d+ checks, \d+ failed$", found.out, re.MULTILINE)
    found = call("plugin", "check", "recall", "mmrec-lmm:metrics")
    assert found.code == 0
    assert found.out.splitlines()[0] == "ok     metric Recall: values"
    assert call("plugin", "check", "recal").err.startswith("error: recal: expected the name of a model")
    assert "did you mean Recall?" in call("plugin", "check", "recal").err


def test_a_new_plugin_has_a_name_that_no_other_of_its_kind_has(tmp_path: Path) -> None:
    for name, kind in (("vbpr", "model"), ("recall", "metric"), ("random", "model")):
        found = call("plugin", "new", kind, name, "-o", tmp_path / name)
        assert found.code == 2
        assert f"error: {name}: expected the name of a new {kind if name != 'random' else 'module'}" in found.err
    assert not [*tmp_path.iterdir()]
    assert call("plugin", "new", "observer", "vbpr", "-o", tmp_path / "vbpr").code == 0


def test_a_plugin_that_cant_be_loaded_is_an_error_of_the_check(tmp_path: Path) -> None:
    broken = plugin(tmp_path / "newer.py", "MMREC_LMM_API = 99\n")
    with pytest.raises(PluginError, match=r"newer.py: MMREC_LMM_API: expected version 1 .*, got 99; try upgrading"):
        checks_of([str(broken)])
    with pytest.raises(ConfigError, match="nothing: expected the name of"):
        checks_of(names=["nothing"])


@pytest.mark.parametrize(
    ("model", "error", "words"),
    [
        ("Sparse", PluginError, r"plugin .*plugin_faults.py: model Sparse: graph: expected a dense tensor"),
        ("Scoreless", PluginError, r"plugin .*plugin_faults.py: model Scoreless: expected a class that defines scorer"),
        ("NaNs", TrainingDiverged, r"plugin .*plugin_faults.py: model NaNs: a score is NaN"),
    ],
)
def test_a_run_of_a_faulty_model_is_one_error_that_names_the_plugin(
    model: str, error: type[Exception], words: str, specs: Callable[..., tuple[RunSpec, ...]], tmp_path: Path
) -> None:
    known = load_registry([FAULTS])
    with pytest.raises(error, match=words):
        run(specs(model, known=known)[0], known, out=tmp_path / "runs")


def test_a_check_that_raises_names_the_place(tmp_path: Path) -> None:
    def broken() -> None:
        raise ValueError("no\nway")

    state, reason = outcome(Check("model", "X", "seed", broken))
    assert state == "failed"
    assert reason.startswith(f"model X: ValueError: no way ({__file__}:")


def test_a_long_error_is_cut_before_its_place() -> None:
    def broken() -> None:
        raise NotImplementedError("no backend " * 1000)

    _, reason = outcome(Check("model", "X", "seed", broken))
    assert re.fullmatch(rf"model X: NotImplementedError: (no backend )+\.\.\. \({__file__}:\d+\)", reason)
    assert len(reason) < 500 + len(__file__)

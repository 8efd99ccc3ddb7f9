"""What would give a wrong number without a word: runs that aren't alike, one key given twice, empty values, columns
that are another's, and plugins that change what others read."""

import dataclasses
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from helpers import Answer, call, plugin

from mmrec_lmm import cache
from mmrec_lmm.board import submit
from mmrec_lmm.board.bundle import read_manifest
from mmrec_lmm.board.folder import BOARD, add, new_board, open_board
from mmrec_lmm.board.submit import submit_run
from mmrec_lmm.board.verify import verify
from mmrec_lmm.config.resolve import Request, Value, resolve_request
from mmrec_lmm.config.settings import Settings
from mmrec_lmm.data.loading import load_dataset
from mmrec_lmm.errors import ConfigError, DataError, PluginError
from mmrec_lmm.library.request import only_encoding
from mmrec_lmm.library.runs import run as run_from_python
from mmrec_lmm.plugin.registry import Registry, load_registry
from mmrec_lmm.running import run_folder, runner
from mmrec_lmm.running.grid import run_grid
from mmrec_lmm.running.replay import differing
from mmrec_lmm.studies.contrast import with_other_seeds
from mmrec_lmm.studies.file import load_study
from mmrec_lmm.types import EncoderName, RunResult, RunSpec

Specs = Callable[..., tuple[RunSpec, ...]]


@pytest.fixture
def made(specs: Specs, registry: Registry, tmp_path: Path) -> Callable[..., RunResult]:
    """A finished run on `toy`."""
    small = {"epochs": "2", "topk": "[5, 20]", "threads": "1"}

    def made(**values: Any) -> RunResult:
        return run_grid(specs(**small | values), registry, out=tmp_path / "runs").results[0]

    return made


def recorded(result: RunResult, **values: Any) -> RunResult:
    """The run with other values in its record, as one that another code, or version, has made."""
    path = result.path / run_folder.RESULT
    document = json.loads(path.read_text())
    document["record"] |= values
    path.write_text(json.dumps(document))
    found = run_folder.load_result(result.path)
    assert found is not None
    return found


@pytest.fixture
def strangers(made: Callable[..., RunResult], data_path: Path) -> tuple[RunResult, RunResult, list[RunResult]]:
    """A run, its run of another seed, and runs of other seeds whose features or code are others."""
    np.save(data_path / "toy" / "other.npy", np.random.default_rng(0).random((16, 8), np.float32))
    own, other = made(seed="1", normalize="unit"), made(seed="2", normalize="unit", eval_batch_size="7")
    code = made(seed="6", normalize="unit")
    others = [
        made(seed="3"),
        made(seed="4", normalize="unit", whiten="true"),
        made(seed="5", normalize="unit", vision_feature_file="other.npy"),
        recorded(code, code={**code.record.code, "sampler": 64 * "0"}),
        recorded(made(seed="7", normalize="unit"), numerics_version=1),
    ]
    return own, other, others


def test_runs_of_other_features_or_code_do_not_count_as_seeds_of_a_run(
    strangers: tuple[RunResult, RunResult, list[RunResult]], registry: Registry, tmp_path: Path, data_path: Path
) -> None:
    own, other, others = strangers
    assert [run.run_id for run in with_other_seeds(own)] == [own.run_id, other.run_id]
    bundle = submit_run(own.path, registry, tmp_path / "one.zip")
    (row,) = read_manifest(bundle).rows
    assert row.runs == (own.run_id, other.run_id)
    assert {one.run for one in row.attempts if one.kind == "earlier"} == {one.run_id for one in others}
    found = verify(bundle, registry, data_path=str(data_path))
    assert (found.tier, found.stopped) == ("recomputed", None)


def test_a_bundle_that_pools_runs_of_other_configurations_is_refused(
    made: Callable[..., RunResult], registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data_path: Path
) -> None:
    np.save(data_path / "toy" / "other.npy", np.random.default_rng(0).random((16, 8), np.float32))
    own = made(seed="1")
    monkeypatch.setattr(submit, "_is_point", lambda one, result: True)
    for values, what in (
        ({"normalize": "unit"}, "normalize"),
        ({"learning_rate": "0.5"}, "learning_rate"),
        ({"vision_feature_file": "other.npy"}, "file of image features"),
    ):
        other = made(seed="2", **values)
        bundle = submit_run(own.path, registry, tmp_path / f"{other.run_id}.zip")
        stopped = verify(bundle, registry, data_path=str(data_path)).stopped
        assert stopped is not None
        assert (stopped.tier, stopped.check) == ("recomputed", "rows")
        assert f"differ in the seed alone, got {other.run_id} with another {what} than" in stopped.reason
        other.path.rename(tmp_path / other.run_id)  # the next one is alone with `own`


def test_anybodys_configuration_is_compared() -> None:
    odd = {"settings": 3, "model_config": [1], "paradigm": None}
    assert differing(odd, {"settings": {"seed": 1}, "model_config": None, "paradigm": "pt"}).keys() == {
        "settings", "model_config", "paradigm", "seed",
    }  # fmt: skip


def test_the_best_study_reads_the_files_of_its_row_or_says_that_it_can_not(
    specs: Specs, made: Callable[..., RunResult], registry: Registry, tmp_path: Path, data_path: Path
) -> None:
    other = data_path / "toy" / "other.npy"
    np.save(other, np.load(data_path / "toy" / "image_feat.npy") * 2)
    folder = tmp_path / "board"
    new_board(
        folder, registry, name="toys", dataset="toy", split=None, data_path=str(data_path), baseline="Pop",
        metrics=["Recall@20"],
    )  # fmt: skip
    text = (folder / BOARD).read_text()
    (folder / BOARD).write_text(text.replace("mask_valid_in_test: false", "mask_valid_in_test: no"))  # as YAML has it
    bundle = submit_run(made(vision_feature_file="other.npy").path, registry, tmp_path / "one.zip")
    add(open_board(folder, registry), bundle, registry, data_path=str(data_path))
    study = call("best", "-m", "VBPR", "-d", "toy", "--board", folder).out
    assert "vision_feature_file: other.npy" in study
    assert "data_path" not in study

    (spec,) = specs(epochs="3", topk="[5, 20]", threads="1")
    given = runner.run(dataclasses.replace(spec, features={"image": other}), registry, out=tmp_path / "given")
    alone = tmp_path / "alone"
    new_board(
        alone, registry, name="toys", dataset="toy", split=None, data_path=str(data_path), baseline="Pop",
        metrics=["Recall@20"],
    )  # fmt: skip
    add(
        open_board(alone, registry), submit_run(given.path, registry, tmp_path / "two.zip"), registry,
        data_path=str(data_path),
    )  # fmt: skip
    answer = call("best", "-m", "VBPR", "-d", "toy", "--board", alone)
    assert (answer.code, answer.out) == (2, "")
    assert "expected a row that a study can make, got one with --features image=other.npy" in answer.err


# Columns

ROWS = [(0, 0, 0), (0, 1, 1), (1, 1, 0), (1, 2, 2), (2, 2, 0), (2, 0, 1), (0, 2, 2)]


def data(folder: Path, head: str = "userID\titemID\tx_label\tfold", rows: Any = None, **settings: Any) -> Any:
    folder.mkdir(exist_ok=True)
    rows = [(user, item, label, (label + user) % 3) for user, item, label in ROWS] if rows is None else rows
    text = "".join("\t".join(map(str, row)) + "\n" for row in rows)
    (folder / "toy.inter").write_text(f"{head}\n{text}")
    return load_dataset(folder, "toy", Settings(**settings))


def test_data_read_by_other_columns_is_other_data(tmp_path: Path) -> None:
    one = data(tmp_path / "a")
    other = data(tmp_path / "a", inter_splitting_label="fold", filter_out_cod_start_users=False)
    assert one.fingerprint != other.fingerprint
    for name in ("user_id:token", "userID", "userID:token"):  # as MMRec's overall.yaml has it: the same column
        assert data(tmp_path / "a", USER_ID_FIELD=name).fingerprint == one.fingerprint
    two = "userID\titemID\tx_label\tbuyer"
    rows = [(user, item, label, 2 - user) for user, item, label in ROWS]
    assert (
        data(tmp_path / "b", two, rows).fingerprint
        != data(tmp_path / "b", two, rows, USER_ID_FIELD="buyer").fingerprint
    )


def test_users_who_are_measured_without_training_rows_make_other_data(tmp_path: Path) -> None:
    rows = [*((*row, 0) for row in ROWS), (3, 0, 2, 0)]
    found = {
        data(tmp_path / "a", rows=rows, filter_out_cod_start_users=left_out).fingerprint for left_out in (True, False)
    }
    assert len(found) == 2
    found = {data(tmp_path / "b", filter_out_cod_start_users=left_out).fingerprint for left_out in (True, False)}
    assert len(found) == 1  # there are none


@pytest.mark.parametrize(
    "values",
    [
        {"ITEM_ID_FIELD": "userID"},
        {"USER_ID_FIELD": "itemID"},
        {"inter_splitting_label": "itemID"},
        {"split": "ratio", "ITEM_ID_FIELD": "userID:token"},
    ],
)
def test_one_column_serves_no_two_purposes(values: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"expected columns of their own for users, items and labels, got \w+ID"):
        data(tmp_path / "a", **values)


def test_a_seed_of_no_split_is_said(tmp_path: Path) -> None:
    assert any("split_seed: 3 draws nothing" in note for note in data(tmp_path / "a", split_seed=3).notes)
    assert not any("split_seed" in note for note in data(tmp_path / "a", split="ratio", split_seed=3).notes)


def test_a_file_of_features_that_a_run_does_not_read_is_refused(
    specs: Specs, registry: Registry, data_path: Path, tmp_path: Path
) -> None:
    given = {"text": data_path / "toy" / "text_feat.npy"}
    (spec,) = specs(modalities="image", epochs="1")
    with pytest.raises(ConfigError, match=r"--features: expected modalities that the run has \(image\), got text"):
        runner.run(dataclasses.replace(spec, features=given), registry, out=tmp_path / "runs")


def test_times_that_are_all_equal_are_said(tmp_path: Path) -> None:
    rows = [(user, item, label, 0) for user in range(3) for item, label in enumerate((0, 1, 2))]
    found = data(tmp_path / "a", "userID\titemID\tx_label\ttimestamp", rows, split="leave-one-out")
    assert any("timestamp: all times are equal (0), so they order nothing" in note for note in found.notes)


def test_a_catalog_whose_columns_are_written_otherwise_is_said(
    specs: Specs, registry: Registry, data_path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    items = pd.read_csv(data_path / "toy" / "items.tsv", sep="\t", dtype=str, keep_default_na=False)
    items.rename(columns={"title": "Title"}).to_csv(data_path / "toy" / "items.tsv", sep="\t", index=False)
    with caplog.at_level(logging.WARNING):
        runner.run(specs(encoder="basic", epochs="1")[0], registry, out=tmp_path / "runs")
    assert "text_fields: the columns Title of the catalog of toy aren't read" in caplog.text
    assert "--text_fields='[Title, brand, categories, description]'" in caplog.text


# Keys


def resolved(registry: Registry, encoder: str = "st:tiny", **keys: Any) -> RunSpec:
    request = Request("VBPR", "toy", EncoderName.parse(encoder), overrides=keys)
    return resolve_request(request, registry).runs[0]


def test_an_empty_value_is_not_the_default(registry: Registry) -> None:
    for key in ("split", "inter_file_name", "encoder.max_tokens", "seed", "metrics", "sampler"):
        with pytest.raises(ConfigError, match=key):
            resolved(registry, **{key: ""})
    assert resolved(registry).encoder_config.prompt is None  # the model's own
    assert resolved(registry, **{"encoder.prompt": ""}).encoder_config.prompt == ""  # none
    assert resolved(registry, split="null").settings.split is None
    for answer in (
        call("run", "-m", "VBPR", "-d", "toy", "--split="),
        call("run", "-m", "VBPR", "-d", "toy", "--split", ""),
    ):
        assert (answer.code, "unknown split" in answer.err) == (2, True), answer.err
    answer = call("run", "-m", "VBPR", "-d", "toy", "--paradigm", "")
    assert (answer.code, "unknown paradigm" in answer.err) == (2, True), answer.err


def test_a_typed_text_keeps_what_yaml_would_take_for_a_comment(registry: Registry) -> None:
    run = resolved(registry, TIME_FIELD="the time #2", data_path="/mnt/data #1", learner=" Adam ", seed="7 # lucky")
    assert (run.settings.TIME_FIELD, run.settings.data_path) == ("the time #2", "/mnt/data #1")
    assert (run.settings.learner, run.settings.seed) == ("adam", 7)
    assert resolved(registry, TIME_FIELD="'the time' # 2").settings.TIME_FIELD == "the time"
    for prompt in ("a photo of ", " a", "query: ", "# "):  # texts follow it at once
        assert resolved(registry, "hf:tiny", **{"encoder.prompt": prompt}).encoder_config.prompt == prompt


@pytest.mark.parametrize("value", ["recall@2０", "recall@٢0"])
def test_digits_of_other_scripts_make_no_cutoff(value: str, registry: Registry) -> None:
    with pytest.raises(ConfigError, match="valid_metric must be METRIC@K"):
        resolved(registry, valid_metric=value)


def refused(answer: Answer, words: str) -> None:
    assert (answer.code, answer.out) == (2, ""), answer.out
    assert words in answer.err


def test_one_key_is_given_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    common = ("run", "-m", "VBPR", "-d", "toy")
    refused(
        call(*common, "--data-path", "a", "--data_path=b"), "data_path: expected one value, got 'a' and 'b'; try one"
    )
    refused(
        call(*common, "--encoder", "clip", "--weights", "a", "--encoder.weights=b"),
        "encoder.weights: expected one value, got 'a' and 'b'",
    )
    features = ("--features", "image=a.npy", "--features", "image=b.npy")
    refused(call(*common, *features), "--features: image: expected one value, got a.npy and b.npy; try one")
    (tmp_path / "runs").mkdir()
    refused(
        call("results", "export", "--where", "model=a", "model=b"), "--where: model: expected one value, got a and b"
    )
    with pytest.raises(ConfigError, match="seed: expected one value, got 1 and 2; try one"):
        run_from_python("VBPR", "toy", seed=2, settings={"seed": 1})
    with pytest.raises(ConfigError, match=r"encoder\.weights: expected one value, got 'a' and 'b'"):
        run_from_python("VBPR", "toy", encoder="clip", weights="a", settings={"encoder.weights": "b"})


def test_a_key_of_a_section_is_given_in_it_or_by_its_full_name(registry: Registry, tmp_path: Path) -> None:
    (tmp_path / "configs").mkdir()
    file = tmp_path / "configs" / "overall.yaml"
    for text in ("ete: {tune: lora}\nete.tune: side\n", "ete.tune: side\nete:\n  rows: 8\n  tune: lora\n"):
        file.write_text(text)
        with pytest.raises(
            ConfigError, match=rf"{file}:[24]: ete.tune: expected one value, got one in its section and"
        ):
            resolve_request(Request("VBPR", "toy", configs=tmp_path / "configs"), registry)
    file.write_text("ete: {tune: lora}\nete.rows: 8\nencoder:\n")
    run = resolve_request(Request("VBPR", "toy", paradigm="ete", configs=tmp_path / "configs"), registry).runs[0]
    assert (run.paradigm_config.tune, run.paradigm_config.rows) == ("lora", 8)


STUDY = "models: [VBPR, BPR]\ndatasets: [toy]\nparadigms: [pt, ft]\nencoders: ['clip:tiny']\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("settings: {ft: {epochs: 2}, ft.epochs: 3}", "ft.epochs: expected one value, got one in its section"),
        ("for: [{model: VBPR, set: {ft.epochs: 3, ft: {epochs: 2}}}]", "ft.epochs: expected one value, got one in its"),
        (
            "grids: {VBPR: {reg_weight: [1]}, vbpr: {reg_weight: [2]}}",
            "grids: expected one for each model, got two for",
        ),
        ("metrics: [Recall@20, recall@20]", "metrics must be different metrics, at least one"),
        ("metrics: []", "metrics must be different metrics, at least one"),
        ("alpha: 0", "alpha must be above 0 and below 1, got 0"),
        ("alpha: 5", "alpha must be above 0 and below 1, got 5"),
    ],
)
def test_a_study_says_one_thing(text: str, words: str, registry: Registry, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(f"{STUDY}{text}\n")
    with pytest.raises(ConfigError) as caught:
        load_study(file).cells(registry)
    assert words in str(caught.value)
    assert f"{file}:5: " in str(caught.value)


def test_a_board_says_one_thing(registry: Registry, tmp_path: Path, data_path: Path) -> None:
    new_board(
        tmp_path, registry, name="toys", dataset="toy", split=None, data_path=str(data_path), baseline="Pop",
        metrics=["Recall@20"],
    )  # fmt: skip
    again = ("board", "new", tmp_path / "b", "-d", "toy", "--name", "b", "--metrics", "Recall@20,recall@20")
    refused(
        call(*again), "--metrics: expected different metrics, at least one, got Recall@20, recall@20; try each once"
    )
    text = (tmp_path / BOARD).read_text()
    for change, words in (
        ("alpha: 5", "alpha must be above 0 and below 1, got 5"),
        ("alpha: 0", "alpha must be above 0 and below 1, got 0"),
        ("title: a\ntest: wilcoxon\nalpha: 1", "alpha must be"),
    ):
        (tmp_path / BOARD).write_text(f"{text}{change}\n")
        with pytest.raises(ConfigError, match=words):
            open_board(tmp_path, registry)
    for listed, words in (("[Recall@20, recall@20]", "different metrics"), ("[Recall@0]", "expected METRIC@K, got")):
        (tmp_path / BOARD).write_text(text.replace("metrics:\n- Recall@20\n", f"metrics: {listed}\n"))
        with pytest.raises(ConfigError, match=words):
            open_board(tmp_path, registry)


def test_features_are_made_for_one_value_of_each_key(registry: Registry, data_path: Path) -> None:
    lists = ("--encoder.text_dim=[8, 16]", "--text_fields=[[title], [brand]]")
    for key in lists:
        answer = call("encode", "-d", "toy", "--encoder", "basic", "--data-path", data_path, key)
        refused(answer, f"encode: expected one value of each key, got {key.strip('-').partition('=')[0]} (2 values)")
    request = Request("", "toy", EncoderName("basic"), overrides={"seed": Value([1, 2])})
    assert only_encoding(resolve_request(request, registry)).encoder == "basic"  # a seed changes no feature


@pytest.mark.parametrize("name", ["~/x y", "~"])
def test_a_home_that_no_shell_has_read_is_the_users(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("MMREC_LMM_HOME", name)
    assert cache.home() == Path(name.replace("~", str(tmp_path)))


# Plugins that change what others read

PLUGIN = """
import numpy as np
import torch
from torch import nn
from mmrec_lmm.api import *
from mmrec_lmm.data.sampling import Uniform
from mmrec_lmm_plugins.models.bpr import BPR, BPRConfig


class Shifting(BPR):
    def __init__(self, data, features, config):
        data.train.items += 1
        super().__init__(data, features, config)


class Training(BPR):
    def __init__(self, data, features, config):
        super().__init__(data, features, config)
        self.table = nn.Embedding.from_pretrained(features()["image"], freeze=False)

    def training_loss(self, batch):
        return {**super().training_loss(batch), "table": self.table(batch.positives).square().mean()}


class Centering(BPR):
    def __init__(self, data, features, config):
        super().__init__(data, features, config)
        features()["image"].sub_(features()["image"].mean(dim=0))


class Sorting(Sampler):
    def __init__(self, data, config):
        super().__init__(data, config)
        data.train.users.sort()

    def draw(self, users, generator):
        return torch.zeros_like(users)


class Adding(Sampler):
    def draw(self, users, generator):
        return users.add_(1)


class Beyond(Uniform):
    def draw(self, users, generator):
        return torch.full_like(users, 10**6)


def sorted_split(users, items, times, rng):
    users.sort()
    return np.arange(len(users)) % 3


def no_hits(hits, n_positives, k):
    hits[:] = False
    return hits[:, 0].astype(float)


def no_lists(ranked, k):
    ranked.items.sort(axis=1)
    return ranked.items[:, 0].astype(float)


@hookimpl
def mmrec_register_models():
    return [
        ModelSpec("shifting", Shifting, BPRConfig, uses_features=False),
        ModelSpec("training", Training, BPRConfig),
        ModelSpec("centering", Centering, BPRConfig),
    ]


@hookimpl
def mmrec_register_samplers():
    return [SamplerSpec("sorting", Sorting), SamplerSpec("adding", Adding), SamplerSpec("beyond", Beyond)]


@hookimpl
def mmrec_register_splits():
    return [SplitSpec("sorted", sorted_split)]


@hookimpl
def mmrec_register_metrics():
    return [MetricSpec("NoHits", no_hits), MetricSpec("NoLists", no_lists, context=True)]
"""


@pytest.mark.parametrize(
    ("values", "who"),
    [
        ({"model": "shifting"}, "model shifting: expected it to leave its arguments as they are"),
        (
            {"model": "training"},
            r"model training: expected it to leave the item features as they are, got the parameter table\.weight",
        ),
        (
            {"model": "centering"},
            "model centering: expected it to leave the item features as they are, got a change of",
        ),
        ({"sampler": "sorting"}, "sampler sorting: expected it to leave its arguments as they are"),
        ({"sampler": "adding"}, "sampler adding: expected draw to leave the users of the training rows as they are"),
        ({"sampler": "beyond"}, r"sampler beyond: expected items from 0 to \d+ from draw"),
        ({"split": "sorted"}, "split sorted: expected it to leave its arguments as they are"),
        ({"metrics": "[Recall, NoHits]"}, "metric NoHits: expected it to leave its arguments as they are"),
        ({"metrics": "[Recall, NoLists]"}, "metric NoLists: expected it to leave its arguments as they are"),
    ],
)
def test_a_plugin_that_changes_what_it_is_given_is_named(
    values: dict[str, str], who: str, specs: Specs, tmp_path: Path
) -> None:
    file = plugin(tmp_path / "changing.py", PLUGIN)
    registry = load_registry([str(file)])
    (spec,) = specs(known=registry, **{"model": "BPR", "epochs": "1", **values})
    with pytest.raises(PluginError, match=f"plugin {file}: {who}"):
        runner.run(spec, registry, out=tmp_path / "runs")

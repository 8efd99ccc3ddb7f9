"""Model files in MMRec's interface, run unedited: beside their native twins, beside each other, and with faults.

The files are in `mmrec_checkout`, laid out as MMRec's own. Shapes: U users, I items.
"""

import json
import random
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import conftest
import numpy as np
import pytest
import scipy.sparse
import torch
from helpers import Answer, call, plugin
from torch import Tensor

import mmrec_lmm
from mmrec_lmm.bridge import adapter
from mmrec_lmm.bridge.data_folder import NEIGHBORS, co_occurrences
from mmrec_lmm.bridge.stand_ins import STAND_INS, scatter, scatter_max, scatter_softmax, sparsesvd
from mmrec_lmm.errors import MMRecError, NotApplicable, PluginError, RunError
from mmrec_lmm.plugin.item_features import ItemFeatures
from mmrec_lmm.plugin.registry import load_registry
from mmrec_lmm.testing import batch_of, check_model, scores_of
from mmrec_lmm.types import Batch, FeatureTable, Interactions, TrainingData

CHECKOUT = Path(__file__).resolve().parent / "mmrec_checkout"
MODELS = CHECKOUT / "src" / "models"
NAMES = sorted(path.stem for path in MODELS.glob("*.py"))
N_USERS, N_ITEMS = 14, 11


def world() -> TrainingData:
    """Random pairs, none of them twice; the last item has none."""
    rng = np.random.default_rng(3)
    pairs = np.argwhere(rng.random((N_USERS, N_ITEMS - 1)) < 0.4)
    return TrainingData(N_USERS, N_ITEMS, Interactions(pairs[:, 0].copy(), pairs[:, 1].copy()))


DATA = world()
BATCH = batch_of(DATA, 16)


def tables(*modalities: str, seed: int = 0, absent: int | None = None) -> dict[str, FeatureTable]:
    rng = np.random.default_rng(seed)
    found = {}
    for modality, width in (("image", 6), ("text", 5)):
        values = rng.normal(size=(N_ITEMS, width)).astype(np.float32)
        present = np.arange(N_ITEMS) != absent
        found[modality] = FeatureTable(modality, values * present[:, None], present, f"{modality}-{seed}")
    return {modality: found[modality] for modality in modalities or found}


def bridged(
    file: Path | str, own: Mapping[str, FeatureTable] | None = None, *, joint: bool = False, **keys: Any
) -> Any:
    """The model of a file on `world`."""
    path = Path(file) if str(file).endswith(".py") else MODELS / f"{file}.py"
    models = load_registry([f"mmrec_lmm.bridge:{path}"]).models
    cls, config = (models.load(path.name, part) for part in ("cls", "config"))
    torch.manual_seed(1)
    features = ItemFeatures.from_tables(tables() if own is None else own, joint=joint)
    return cls(DATA, features, config(**keys))


def native(name: str, own: Mapping[str, FeatureTable] | None = None, **keys: Any) -> Any:
    models = load_registry().models
    cls, config = (models.load(name, part) for part in ("cls", "config"))
    return cls(DATA, ItemFeatures.from_tables(tables() if own is None else own), config(**keys))


def write(folder: Path, body: str, name: str = "mine.py") -> Path:
    """A model file with the usual imports before `body`."""
    folder.mkdir(parents=True, exist_ok=True)
    head = "import torch\nimport torch.nn as nn\nfrom common.abstract_recommender import GeneralRecommender\n"
    (folder / name).write_text(head + body)
    return folder / name


METHODS = """
    def calculate_loss(self, interaction):
        return self.users[interaction[0]].square().mean()
    def full_sort_predict(self, interaction):
        return self.users[interaction[0]] @ torch.ones(1, self.n_items)
"""
TABLE = "        self.users = nn.Parameter(torch.ones(self.n_users, 1))\n"


def model_text(lines: str = "", methods: str = METHODS, name: str = "Mine") -> str:
    """A class with lines in its constructor."""
    inner = "".join(f"        {line}\n" for line in lines.splitlines())
    return f"""class {name}(GeneralRecommender):
    def __init__(self, config, dataset):
        super().__init__(config, dataset)
{TABLE}{inner}{methods}"""


# Beside the native twins

SMALL = {"embedding_size": 4, "reg_weight": 0.1}
FREEDOM = {**SMALL, "n_mm_layers": 1, "n_ui_layers": 2, "knn_k": 3, "mm_image_weight": 0.3, "dropout": 0.0}
BM3 = {**SMALL, "n_layers": 2, "dropout": 0.0, "cl_weight": 2.0}
TABLES = {f"{table}.weight": f"{table}.weight" for table in ("user_embedding", "item_id_embedding")}
CONTENT = {f"{m}_{part}.weight": f"{m}_{part}.weight" for m in ("image", "text") for part in ("embedding", "trs")}
BIASES = {f"{m}_trs.bias": f"{m}_trs.bias" for m in ("image", "text")}
PREDICTOR = {f"predictor.{part}": f"predictor.{part}" for part in ("weight", "bias")}
LIGHTGCN = {"user_embedding.weight": "user_embedding", "item_embedding.weight": "item_embedding"}

TWINS = {
    "lightgcn": ("LightGCN", {**SMALL, "n_layers": 2}, LIGHTGCN),
    "offset": ("LightGCN", {**SMALL, "n_layers": 2}, {}),
    "bpr": ("BPR", SMALL, {"user_embedding": "user_embedding", "item_embedding": "item_embedding"}),
    "vbpr": ("VBPR", SMALL, {n: n for n in ("u_embedding", "i_embedding", "item_linear.weight", "item_linear.bias")}),
    "freedom": ("FREEDOM", FREEDOM, {**TABLES, **CONTENT}),
    "bm3": ("BM3", BM3, {**TABLES, **CONTENT, **BIASES, **PREDICTOR}),
}


@pytest.mark.parametrize("name", TWINS)
def test_a_file_has_the_loss_the_gradients_and_the_scores_of_its_native_twin(name: str) -> None:
    """From equal weights and batches, to 1e-6; over two steps of the batch, as a file may change what it is given."""
    twin, keys, names = TWINS[name]
    extra = {"use_neg_sampling": False} if name == "bm3" else {}
    ours, theirs = native(twin, **keys), bridged(name, **keys, **extra)
    parameters = dict(theirs.model.named_parameters())
    with torch.no_grad():
        for own, other in names.items():
            parameters[own].copy_(ours.get_parameter(other))
        if name == "offset":
            parameters["nodes"].copy_(torch.cat([ours.user_embedding, ours.item_embedding]))
        if name == "freedom":  # whose native twin has no bias, as it cancels
            parameters["image_trs.bias"].zero_(), parameters["text_trs.bias"].zero_()
    before = torch.stack([BATCH.users, BATCH.positives, BATCH.negatives])
    for model in (ours, theirs):
        model.train()
        model.on_epoch_start(0)
        for _ in range(2):
            model.zero_grad()
            loss = torch.stack([*model.training_loss(BATCH).values()]).sum()
            loss.backward()
        model.loss = loss.detach()
    assert torch.equal(before, torch.stack([BATCH.users, BATCH.positives, BATCH.negatives]))
    torch.testing.assert_close(theirs.loss, ours.loss, atol=1e-6, rtol=0)
    for own, other in names.items():
        torch.testing.assert_close(parameters[own].grad, ours.get_parameter(other).grad, atol=1e-6, rtol=0)
    torch.testing.assert_close(scores_of(theirs), scores_of(ours), atol=1e-6, rtol=0)


def test_a_tuple_loss_is_logged_by_term_and_epochs_are_processed() -> None:
    model = bridged("bpr", **SMALL)
    twin = native("BPR", **SMALL)
    model.model.load_state_dict(twin.state_dict())
    terms = model.training_loss(BATCH)
    assert list(terms) == ["loss1", "loss2"]
    torch.testing.assert_close([*terms.values()], [*twin.training_loss(BATCH).values()], atol=1e-6, rtol=0)
    model.on_epoch_start(0)
    model.on_epoch_start(1)
    assert model.model.epochs == 2


def test_helpers_have_the_values_of_their_definitions() -> None:
    model = bridged("helpers", embedding_size=4, n_layers=2, knn_k=3).model
    text = tables("text")["text"].values
    unit = text / np.linalg.norm(text, axis=1, keepdims=True)
    sim = unit @ unit.T
    kept = np.zeros_like(sim)
    for item in range(N_ITEMS):
        best = np.argsort(-sim[item])[:3]
        kept[item, best] = sim[item, best]
    np.testing.assert_allclose(model.sim, sim, atol=1e-6)
    degrees = kept.sum(1)
    symmetric = kept / np.sqrt(degrees)[:, None] / np.sqrt(degrees)
    np.testing.assert_allclose(model.dense, symmetric, atol=1e-5)
    assert model.sparse.layout == torch.sparse_coo
    np.testing.assert_allclose(model.sparse.to_dense(), symmetric, atol=1e-5)
    np.testing.assert_allclose(model.walk, kept / degrees[:, None], atol=1e-5)
    assert torch.equal(model.plain, model.walk)
    assert model.ring[1].tolist() == [1.0] * N_ITEMS
    assert model.first.bias.tolist() == [0.0, 0.0]
    assert model.second.weight.abs().max() <= np.sqrt(6 / 4)
    assert model.stopped == (0.2, 4, True, False)
    assert model.score == "recall@20: 0.1235"
    assert model.twice == 6


def test_the_encoder_helper_is_lightgcn_with_a_random_share_of_edges() -> None:
    model = bridged("helpers", embedding_size=4, n_layers=2, knn_k=3)
    encoder, twin = model.model.encoder, native("LightGCN", embedding_size=4, n_layers=2)
    with torch.no_grad():
        twin.user_embedding.copy_(encoder.embedding_dict["user_emb"])
        twin.item_embedding.copy_(encoder.embedding_dict["item_emb"])
        expected = twin.vectors()
        for found, wanted in zip(encoder.get_embedding(), expected, strict=True):
            torch.testing.assert_close(found, wanted, atol=1e-6, rtol=0)
        inputs = [BATCH.users, BATCH.positives]
        assert not torch.allclose(encoder(inputs)[0], expected[0][BATCH.users])
        encoder.drop_flag = False
        torch.testing.assert_close(encoder(inputs)[1], expected[1][BATCH.positives], atol=1e-6, rtol=0)


# Runs


def run(model: Path | str, data_path: Path, *flags: object) -> Answer:
    path = MODELS / f"{model}.py" if isinstance(model, str) else model
    out = data_path.parent / "runs"
    return call(
        "run", "-m", path, "-d", "toy", "--data-path", data_path, "--out", out, "--missing=mean", "--epochs=2", *flags
    )


def results(answer: Answer) -> list[dict[str, Any]]:
    """Each run's result.json, in the order of the grid."""
    assert answer.code == 0, answer.err
    found = json.loads(answer.out)
    return [json.loads((Path(one["path"]) / "result.json").read_text()) for one in found.get("points", [found])]


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in ("bpr", "freedom") else pytest.mark.slow) for n in NAMES]
)
def test_each_file_runs_and_its_run_is_built_again(name: str, data_path: Path) -> None:
    """Two epochs, then recommendations from the saved weights: they begin as the run's own lists do."""
    answer = run(name, data_path, "--json")
    result = results(answer)[0]
    report = result["record"][f"{name}.py"]
    assert report["file"] == f"{name}.py"
    assert report["keys"]["train_batch_size"] == 2048
    assert not report["keys_without_value"]
    folder = data_path.parent / "runs" / result["run_id"]
    lists = [line.split("\t")[:2] for line in (folder / "topk.tsv").read_text().splitlines()[1:]]
    found = call("recommend", folder, "--users", "all", "-k", "1", "--internal-ids", "--out", folder.parent)
    assert found.code == 0, found.err
    best = {row[0]: row[2] for row in map(str.split, found.out.splitlines()[2:])}
    assert lists
    assert all(best[user] == item for user, item in lists), (lists, best)


def test_yaml_of_the_checkout_is_a_grid_and_lists_stay_lists(data_path: Path) -> None:
    found = results(run("bpr", data_path, "--json"))
    assert [one["parameters"]["reg_weight"] for one in found] == [0.1, 0.01]
    shown = call("config", "show", "-m", MODELS / "freedom.py", "-d", "toy", "--data-path", data_path)
    assert "FREEDOM.yaml" in shown.out
    model = bridged("freedom", **FREEDOM, weight_size=(64, 64))
    assert model._values["weight_size"] + [1] == [64, 64, 1]
    assert model._values["no such key"] is None
    assert "no such key" not in model._values


def test_a_checkouts_data_are_found_from_any_folder(data_path: Path, tmp_path: Path) -> None:
    """MMRec's programs start in src/, so `data_path: ../data/` is the checkout's own."""
    shutil.copytree(CHECKOUT, tmp_path / "own")
    shutil.move(data_path, tmp_path / "own" / "data")
    configs = tmp_path / "own" / "src" / "configs"
    (configs / "overall.yaml").write_text("data_path: ../data/\n")
    shown = call("config", "show", "-m", MODELS / "bpr.py", "-d", "toy", "--configs", configs)
    assert f" {tmp_path}/own/data " in shown.out, shown
    (configs / "overall.yaml").write_text(f"data_path: {tmp_path}/other\n")
    shown = call("config", "show", "-m", MODELS / "bpr.py", "-d", "toy", "--configs", configs)
    assert f" {tmp_path}/other " in shown.out, shown


def test_a_changed_file_trains_again_and_an_unchanged_one_does_not(data_path: Path, tmp_path: Path) -> None:
    shutil.copytree(CHECKOUT, tmp_path / "own")
    file = tmp_path / "own" / "src" / "models" / "offset.py"
    first = results(run(file, data_path, "--json"))[0]
    path = data_path.parent / "runs" / first["run_id"] / "result.json"
    made = [path.stat().st_mtime_ns]
    assert results(run(file, data_path, "--json"))[0] == first
    assert path.stat().st_mtime_ns == made[0]
    for changed in (file, file.with_name("lightgcn.py")):  # which the first imports
        changed.write_text(changed.read_text() + "\n# changed\n")
        record = results(run(file, data_path, "--json"))[0]["record"]
        assert path.stat().st_mtime_ns > made[-1]
        assert record["code"]["model"] != first["record"]["code"]["model"]
        made.append(path.stat().st_mtime_ns)


def test_the_python_door_takes_a_path(data_path: Path) -> None:
    made = mmrec_lmm.run(
        MODELS / "vbpr.py", "toy", data_path=data_path, out=data_path.parent / "runs", epochs=1, progress=False
    )
    assert made.record.axes.model == "vbpr.py"
    assert len(made.recommend([0], k=3, internal_ids=True)) == 3


def test_a_study_compares_a_file_with_its_native_twin(data_path: Path, tmp_path: Path) -> None:
    file = tmp_path / "twins.yaml"
    file.write_text(
        f"models: [BPR, bpr.py]\ndatasets: [toy]\nsettings: {{data_path: {data_path}, epochs: 1, reg_weight: 0.1}}\n"
    )
    plugin = f"mmrec_lmm.bridge:{MODELS / 'bpr.py'}"
    done = call("study", "run", file, "-p", plugin, "--out", tmp_path / "runs")
    assert done.code == 0, done.err
    shown = call("study", "table", file, "-p", plugin, "--out", tmp_path / "runs")
    assert "bpr.py" in shown.out
    for verb in ("run", "table"):
        without = call("study", verb, file, "--out", tmp_path / "runs")
        assert without.err.endswith("try -p mmrec_lmm.bridge:PATH/bpr.py, of that very file name\n"), without.err


# Saved state


def test_what_a_file_keeps_in_attributes_is_saved_with_its_weights() -> None:
    """Scores of `usergraph` come from the last batch; a fresh model has them after loading, and goes on alike."""
    first, second = (bridged("usergraph", {}, embedding_size=4, aggr_mode="add") for _ in range(2))
    optimizer = torch.optim.Adam(first.parameters(), lr=0.1)
    first.on_epoch_start(0)
    torch.stack([*first.training_loss(BATCH).values()]).sum().backward()
    optimizer.step()
    state = {name: value.clone() for name, value in first.state_dict().items()}
    assert {"attributes.result.tensor", "attributes.shift.number"} <= state.keys()
    assert "model.result" not in state
    with pytest.raises(AssertionError):
        torch.testing.assert_close(scores_of(second), scores_of(first))
    second.load_state_dict(state)
    assert torch.equal(scores_of(second), scores_of(first))
    assert second.model.shift == first.model.shift
    losses = []
    for model in (first, second):
        model.on_epoch_start(1)
        losses.append(model.training_loss(BATCH)["loss"].item())
    assert losses[0] == losses[1]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["usergraph", "helpers"])
def test_an_interrupted_run_resumes_to_the_same_bits(
    name: str, data_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    observer = "    if epoch.epoch == 1 and os.environ.get('STOP'):\n        raise KeyboardInterrupt\n"
    stopper = plugin(tmp_path / "stop.py", f"@hookimpl\ndef mmrec_epoch_finished(run, epoch):\n{observer}")
    flags = ("-p", stopper, "--epochs=4", "--checkpoint_seconds=0", "--json")
    whole = Path(json.loads(run(name, data_path, *flags).out)["path"])
    files = {file: (whole / file).read_bytes() for file in ("best.safetensors", "topk.tsv", "per_user.safetensors")}
    monkeypatch.setenv("STOP", "1")
    assert run(name, data_path, *flags, "--force").code == 130
    monkeypatch.delenv("STOP")
    assert json.loads(run(name, data_path, *flags, "--force", "--resume").out)["path"] == str(whole)
    assert {file: (whole / file).read_bytes() for file in files} == files


def test_a_sparse_buffer_is_saved_as_what_it_is_made_of(tmp_path: Path) -> None:
    lines = "self.register_buffer('graph', torch.eye(self.n_users).to_sparse())"
    methods = METHODS.replace("        return self.users[interaction[0]].sq", "        self.graph = self.graph * 2\n"
        "        return self.users[interaction[0]].sq")  # fmt: skip
    first, second = (bridged(write(tmp_path, model_text(lines, methods)), {}) for _ in range(2))
    first.training_loss(BATCH)
    second.load_state_dict(first.state_dict())
    assert torch.equal(second.model.graph.to_dense(), 2 * torch.eye(N_USERS))


def test_sparse_attributes_come_back() -> None:
    keys = {**FREEDOM, "dropout": 0.5}
    first, second = bridged("freedom", **keys), bridged("freedom", **keys)
    first.on_epoch_start(0)
    second.load_state_dict(first.state_dict())
    assert torch.equal(second.model.pruned.to_dense(), first.model.pruned.to_dense())
    assert second.model.pruned.layout == torch.sparse_coo


@pytest.mark.parametrize(
    ("kept", "read"),
    [
        ("(self.users * 1, self.users.detach().to_sparse())", "self.out[0]"),
        ("[self.users * 1, 3]", "self.out[0]"),
        ("{'item': 1.5, 'user': self.users * 1}", "self.out['user']"),
        ("self.users.detach().numpy().copy()", "torch.from_numpy(self.out)"),
    ],
)
def test_what_a_file_keeps_together_is_saved_with_its_weights(kept: str, read: str, tmp_path: Path) -> None:
    """Scores come from what the last batch left, as a tuple, a list, a dict or an array."""
    methods = METHODS.replace("        return self.users[interaction[0]].sq", f"        self.out = {kept}\n"
        "        return self.users[interaction[0]].sq")  # fmt: skip
    methods = methods.replace("return self.users[interaction[0]] @", f"return {read}[interaction[0]] @")
    file = write(tmp_path, model_text("self.out = None\nself.fixed = (torch.ones(2), 1)", methods))
    first, second = bridged(file, {}), bridged(file, {})
    with torch.no_grad():
        first.model.users.copy_(torch.arange(N_USERS)[:, None])
    first.training_loss(BATCH)
    state = {name: value.clone() for name, value in first.state_dict().items()}
    assert not [name for name in state if "fixed" in name]
    with torch.no_grad():
        first.model.users.zero_()
    first.training_loss(BATCH)  # a later batch
    assert (scores_of(first) == 0).all()
    for model in (first, second):
        model.load_state_dict(state)
        assert torch.equal(scores_of(model), torch.arange(N_USERS)[:, None].expand(N_USERS, N_ITEMS).float())
        assert type(model.model.out) is type(first.model.out)


def test_a_large_attribute_is_saved_only_if_scores_depend_on_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmrec_lmm.bridge.state.LARGE", 8)
    methods = METHODS.replace("return self.users[interaction[0]].sq", "self.used = self.users.detach() + 1\n"
        "        self.built = self.users.detach() + 2\n        return self.users[interaction[0]].sq")  # fmt: skip
    methods = methods.replace("return self.users[interaction[0]] @", "return self.used[interaction[0]] @")
    model = bridged(write(tmp_path, model_text(methods=methods)), {})
    model.training_loss(BATCH)
    assert {"attributes.used.tensor", "attributes.built.tensor"} <= model.state_dict().keys()
    scores_of(model)
    assert "attributes.used.tensor" in model.state_dict()
    assert "attributes.built.tensor" not in model.state_dict()
    assert scores_of(model).unique().tolist() == [2.0]


def test_random_numbers_of_a_file_are_its_own_and_follow_from_seed_and_epoch() -> None:
    outside = random.getstate(), np.random.get_state()[1].tolist()
    first, second = (bridged("usergraph", {}, embedding_size=4, aggr_mode="add") for _ in range(2))
    first.on_epoch_start(0)
    first.on_epoch_start(1)
    second.on_epoch_start(1)  # as after a resumption
    assert first.model.shift == second.model.shift
    assert first.model.sampled == second.model.sampled
    assert (random.getstate(), np.random.get_state()[1].tolist()) == outside


# Features and folders


def test_graphs_that_a_file_keeps_are_never_those_of_other_features(tmp_path: Path) -> None:
    graphs = [bridged("freedom", tables(seed=seed), **FREEDOM).model.graph for seed in (0, 1, 0)]
    assert not torch.equal(graphs[0], graphs[1])
    assert torch.equal(graphs[0], graphs[2])
    home = Path(bridged("freedom", **FREEDOM)._values["data_path"])
    assert [path.name for path in home.rglob("*.pt")] == ["mm_graph_3.pt"]
    (home / "data" / "mm_graph_3.pt").write_bytes(b"half")  # of a process that was killed
    (home / "data" / ".building").touch()
    assert torch.equal(bridged("freedom", **FREEDOM).model.graph, graphs[0])


def test_a_file_that_reads_feature_files_itself_gets_those_of_the_run(tmp_path: Path) -> None:
    lines = """import os
import numpy as np
place = os.path.abspath(config["data_path"] + config["dataset"])
self.raw = np.load(os.path.join(place, config["text_feature_file"]))"""
    model = bridged(write(tmp_path, model_text(lines)))
    np.testing.assert_array_equal(model.model.raw, tables()["text"].values)


def test_training_leaves_the_features_as_they_are() -> None:
    features = tables()
    before = {modality: table.values.copy() for modality, table in features.items()}
    model = bridged("freedom", features, **FREEDOM)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    model.on_epoch_start(0)
    model.training_loss(BATCH)["loss"].backward()
    optimizer.step()
    moved = model.model.text_embedding.weight.detach().numpy()
    assert not np.array_equal(moved, before["text"])
    for modality, table in features.items():
        np.testing.assert_array_equal(table.values, before[modality])


def test_joint_features_are_live_where_the_file_reads_them_in_each_step() -> None:
    models = load_registry([f"mmrec_lmm.bridge:{MODELS / 'live.py'}"]).models
    cls, config = (models.load("live.py", part) for part in ("cls", "config"))
    check_model(cls, config(embedding_size=4))
    check_model(cls, config(embedding_size=4), joint=True)


@pytest.mark.parametrize(
    ("name", "keys", "said"),
    [
        ("freedom", FREEDOM, r"freedom.py:\d+: .*got image_embedding.weight, a trained copy of the image features"),
        ("vbpr", SMALL, r"vbpr.py:\d+: .*got one that uses only what was made of them at construction"),
    ],
)
def test_a_file_that_copies_features_is_not_applicable_to_joint_ones(name: str, keys: Any, said: str) -> None:
    with pytest.raises(NotApplicable, match=said):
        bridged(name, joint=True, **keys).training_loss(BATCH)


def test_a_key_without_a_value_is_not_in_the_configuration(tmp_path: Path) -> None:
    """As in MMRec, where a file's own default then holds."""
    lines = "self.tau = config['tau'] if 'tau' in config else 0.2\nself.nu = config.final_config_dict.get('nu', 3)"
    file = write(tmp_path, model_text(lines))
    assert (bridged(file, {}).model.tau, bridged(file, {}).model.nu) == (0.2, 3)
    assert bridged(file, {}, tau=0.5).model.tau == 0.5
    assert bridged(file, {}, tau=0).model.tau == 0


CACHED = """place = os.path.join(config['data_path'] + config['dataset'], 'graph.pt')
if not os.path.exists(place):
    torch.save({'graph': scipy.sparse.eye(3, format='csr'), 'sizes': np.arange(3)}, place)
self.cached = torch.load(place)
"""


def test_a_file_loads_any_object_that_it_cached_itself(tmp_path: Path) -> None:
    """As before torch 2.6; what another program wrote is still read as tensors alone."""
    head = "import os\nimport numpy as np\nimport scipy.sparse\n"
    file = write(tmp_path, head + model_text(CACHED))
    for _ in range(2):
        assert bridged(file, {}).model.cached["graph"].nnz == 3
    torch.save({"sizes": np.arange(3)}, tmp_path / "other.pt")
    line = f"config['data_path']\nself.cached = torch.load({str(tmp_path / 'other.pt')!r})"
    with pytest.raises(PluginError, match="Weights only load failed"):
        bridged(write(tmp_path, model_text(line), "other.py"), {})


def test_a_file_that_can_read_rows_of_test_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapter, "_warn_once", adapter._warn_once.__wrapped__)
    lines = "place = config['data_path'] + config['dataset'] + '/'"
    for ending, said in (("+ config['inter_file_name']", 1), ("+ 'baby.inter'", 1), ("+ 'mine.npy'", 0)):
        caplog.clear()
        bridged(write(tmp_path, model_text(f"{lines} {ending}\nself.inter = dataset.inter_matrix()")), {})
        found = [one.message for one in caplog.records if "the rows of validation and test" in one.message]
        assert len(found) == said, ending


def test_folders_that_a_failed_construction_left_are_removed(tmp_path: Path) -> None:
    lines = """place = os.path.join(config['data_path'] + config['dataset'], 'parts')
os.makedirs(place, exist_ok=True)
self.found = os.listdir(place)
open(os.path.join(place, 'part'), 'w').close()
if config['stops']:
    raise ValueError('stopped')
"""
    file = write(tmp_path, "import os\n" + model_text(lines))
    with pytest.raises(PluginError, match="stopped"):
        bridged(file, {}, stops=True)
    assert bridged(file, {}, stops=False).model.found == []


def test_graph_files_have_the_largest_co_occurrences() -> None:
    train = DATA.train
    found = co_occurrences(train.users, train.items, (N_USERS, N_ITEMS))
    items = {user: set(train.items[train.users == user].tolist()) for user in range(N_USERS)}
    for user in range(N_USERS):
        shared = {other: len(items[user] & items[other]) for other in range(N_USERS) if other != user}
        expected = sorted((other for other in shared if shared[other]), key=lambda other: (-shared[other], other))
        assert found[user] == [expected, [float(shared[other]) for other in expected]]
    many = co_occurrences(np.arange(300), np.zeros(300, dtype=int), (300, 1))
    assert {len(others) for others, _ in many.values()} == {NEIGHBORS}


# Isolation


def test_a_file_is_executed_once_until_it_changes(tmp_path: Path) -> None:
    file = write(tmp_path, model_text())
    first, second = bridged(file), bridged(file)
    assert type(first) is type(second)
    file.write_text(file.read_text() + "# more\n")
    assert type(bridged(file)) is not type(first)


def test_two_files_with_modules_of_equal_names_have_each_their_own(tmp_path: Path) -> None:
    names, path = set(sys.modules), list(sys.path)
    body = model_text(
        "from utils.own import factor\nself.factor = factor", METHODS + "    def later(self):\n"
        "        import utils.own as again\n        from .sibling import word\n        return again.factor, word\n"
    )  # fmt: skip
    models = []
    for number, name in enumerate(("one", "two")):
        file = write(tmp_path / name / "models", body)
        (tmp_path / name / "utils").mkdir()
        (tmp_path / name / "utils" / "own.py").write_text(f"import sys\nsys.path.append('x')\nfactor = {number}\n")
        (file.parent / "sibling.py").write_text(f"word = {name!r}\n")
        models.append(bridged(file).model)
    assert [model.factor for model in models] == [0, 1]
    assert [model.later() for model in models] == [(0, "one"), (1, "two")]
    new = set(sys.modules) - names
    assert {name.partition(".")[0] for name in new} & {"common", "utils", "models", "torch_scatter"} == set()
    assert sys.path == path
    for name in ("common", "utils.own", "models"):
        top = name.partition(".")[0]
        assert top not in sys.modules or "mmrec" not in str(sys.modules[top])


def test_nothing_outside_sees_what_is_offered_to_a_file() -> None:
    bridged("lightgcn", **TWINS["lightgcn"][1])
    bridged("vbpr", **SMALL)
    assert not hasattr(np, "float")
    assert not hasattr(scipy.sparse.dok_matrix((1, 1)), "_update")
    assert "cuda" not in vars(torch.Tensor)
    assert not hasattr(scipy.sparse.csr_matrix((1, 1)), "A")
    with (
        pytest.raises((RuntimeError, AssertionError)) if not torch.cuda.is_available() else pytest.MonkeyPatch.context()
    ):
        torch.zeros(1).cuda()


def test_what_a_file_prints_goes_to_the_log(data_path: Path, tmp_path: Path) -> None:
    answer = run(write(tmp_path, model_text("print('hello', 3)")), data_path, "--json")
    assert results(answer)
    log = next((data_path.parent / "runs" / "log").glob("*.log")).read_text()
    assert "hello 3" in log


# Faults

BAD: dict[str, tuple[str, str]] = {
    "a syntax error": ("class Mine(:\n    pass\n", r"mine.py:4: expected Python, got a syntax error"),
    "no class": ("x = 1\n", r"mine.py:1: expected a model class, .* got no class"),
    "another class": ("class Other(nn.Module):\n    pass\n", r"mine.py:4: expected a model class, .*Other \(line 4\)"),
    "two classes": (
        model_text(name="First") + model_text(name="Second"),
        r"mine.py:4: expected one model class, got First \(line 4\), Second \(line 13\); try calling .*first.py",
    ),
    "no package": (
        "import no_such_package_at_all\n",
        r"mine.py:4: expected the package no_such_.*pip ins",
    ),
    "no helper": (
        "from utils.utils import build_simm\n",
        r"mine.py:4: expected a helper of utils.utils .*mean build_sim",
    ),
    "no module": (
        "from utils.graph import x\n",
        r"mine.py:4: expected a module of MMRec's .* got utils.graph",
    ),
    "a plugin": (
        "def mmrec_register_models(): ...\n",
        r"mine.py:1: expected a model file .* got a plugin; try -p",
    ),
    "another encoding": ("\0", r"mine.py:1: expected Python in UTF-8, got bytes of another encoding; try saving"),
    "a misspelled class": ("Linaer = 1\nx = Linnaer\n", r"mine.py:5: .*NameError: .*; did you mean Linaer\?"),
    "an exit": ("exit(3)\n", r"mine.py:4: expected it to be imported, got SystemExit: 3"),
    "an error": ("1 / 0\n", r"mine.py:4: expected it to be imported, got ZeroDivisionError"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_file_that_cannot_be_loaded_is_one_message_with_its_line(what: str, tmp_path: Path) -> None:
    body, said = BAD[what]
    answer = call("run", "-m", write(tmp_path, body), "-d", "toy")
    assert answer.code == 2
    assert answer.err.startswith(f"error: {tmp_path}/mine.py:"), answer.err
    with pytest.raises(PluginError, match=said):
        bridged(tmp_path / "mine.py")
    assert answer.err.count("\n") == 1


CALLS: dict[str, tuple[str, str, type[MMRecError]]] = {
    "a GPU": (
        "self.x = torch.zeros(1, device='cuda')",
        r"mine.py:8: expected a GPU, which it asks for by name, got none .*--device cuda",
        NotApplicable,
    ),
    "a key": (
        "self.layer = nn.Linear(3, config['width_of_it'])",
        r"mine.py:8: expected a value of width_of_it, got none, .* try --width_of_it=VALUE",
        PluginError,
    ),
    "features": (
        "self.width = self.v_feat.shape[1]",
        r"mine.py:8: expected image features \(v_feat\), got none; try --features image=FILE.npy",
        NotApplicable,
    ),
    "arguments": (
        f"class Mine(nn.Module):\n    def __init__(self, config):\n        super().__init__()\n{METHODS}",
        r"mine.py:4: .*TypeError: .*takes 2 positional arguments but 3 were given",
        PluginError,
    ),
    "itself": ("self.x = self.y", r"mine.py:8: expected it to be constructed, got AttributeError", PluginError),
    "sizes": ("torch.zeros(2, 3) @ torch.zeros(2, 3)", r"mine.py:8: Mine failed in __init__: RuntimeError", RunError),
    "a loader's method": ("dataset.batches()", r"mine.py:8: .*has, got batches; it has .*inter_matrix", PluginError),
}


@pytest.mark.parametrize("what", CALLS)
def test_a_file_that_fails_is_one_message_with_its_line(what: str, tmp_path: Path) -> None:
    line, said, kind = CALLS[what]
    if what == "a GPU" and torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(kind, match=said):
        bridged(write(tmp_path, line if line.startswith("class") else model_text(line)), tables("text"))


@pytest.mark.parametrize(
    ("methods", "said"),
    [
        (
            "return self.users",
            r"mine.py:9: expected a loss of one number, .* of shape \(14, 1\); try its mean",
        ),
        ("return {'bpr': self.users.mean()}", r"mine.py:9: expected a loss of one number, .* got loss of type dict;"),
        ("return self.users.mean(), None", r"mine.py:9: expected a loss of one number, .* got loss2 of type NoneType"),
        ("return torch.zeros(())", r"mine.py:9: expected a loss that depends on a parameter, .*--req_training=false"),
    ],
)
def test_a_loss_that_cannot_be_trained_is_said(methods: str, said: str, tmp_path: Path) -> None:
    body = METHODS.replace("return self.users[interaction[0]].square().mean()", methods)
    with pytest.raises(PluginError, match=said):
        bridged(write(tmp_path, model_text(methods=body)), {}).training_loss(BATCH)


def test_zero_rows_that_make_a_loss_nan_are_named_with_what_to_do() -> None:
    model = bridged("freedom", tables(absent=4), **FREEDOM)
    model.model.graph = model.model.graph * float("nan")  # as a graph is whose cosines are 0 / 0
    model.on_epoch_start(0)
    with pytest.raises(RunError, match=r"freedom.py:\d+: .*1 of 11 items lack image features.*try --missing=mean"):
        model.training_loss(BATCH)


def test_features_that_a_file_cannot_have_are_said() -> None:
    audio = {"audio": FeatureTable("audio", np.ones((N_ITEMS, 2), np.float32), np.ones(N_ITEMS, bool), "a")}
    with pytest.raises(NotApplicable, match=r"vbpr.py: expected image or text features .* got audio; try --modalities"):
        bridged("vbpr", audio, **SMALL)


def test_a_model_file_that_is_given_as_a_plugin_is_sent_on() -> None:
    answer = call("list", "models", "-p", MODELS / "bpr.py")
    assert answer.code == 2
    assert answer.err.endswith(f"; if this is a model file of MMRec's, try -m {MODELS / 'bpr.py'}\n")


def test_a_missing_file_and_a_missing_class_of_trains_nothing(data_path: Path, tmp_path: Path) -> None:
    answer = call("run", "-m", "nowhere/freedom.py", "-d", "toy")
    assert (answer.code, answer.err.count("\n")) == (2, 1)
    assert "nowhere/freedom.py: expected a Python file with a model, got no such file" in answer.err
    file = write(tmp_path, model_text())
    result = results(run(file, data_path, "--req_training=false", "--json"))[0]
    assert result["stopped"] == "untrained"


# Parts of libraries


def test_scatter_has_the_values_of_its_documentation() -> None:
    src, index = torch.tensor([[1.0, 2.0], [3.0, 5.0], [4.0, 0.5]]), torch.tensor([1, 1, 3])
    assert scatter(src, index, dim=0).tolist() == [[0, 0], [4, 7], [0, 0], [4, 0.5]]
    assert scatter(src, index, dim=0, dim_size=5, reduce="mean")[1].tolist() == [2, 3.5]
    values, places = scatter_max(src, index, dim=0)
    assert values[1].tolist() == [3, 5]
    assert places.tolist() == [[3, 3], [1, 1], [3, 3], [2, 2]]
    shares = scatter_softmax(torch.tensor([1.0, 1.0, 7.0]), torch.tensor([0, 0, 1]))
    assert shares.tolist() == [0.5, 0.5, 1.0]


def test_message_passing_is_a_sum_over_incoming_edges() -> None:
    parts: Mapping[str, Any] = STAND_INS["torch_geometric"]()
    layer: Callable[..., Tensor] = parts["torch_geometric.nn"]["MessagePassing"](aggr="mean").propagate
    edges, x = torch.tensor([[0, 1, 2], [2, 2, 0]]), torch.tensor([[1.0], [3.0], [5.0]])
    assert layer(edges, x=x).tolist() == [[5.0], [0.0], [2.0]]
    utils = parts["torch_geometric.utils"]

    class Attention(parts["torch_geometric.nn.conv"]["MessagePassing"]):  # type: ignore[misc]
        def message(self, x_i: Tensor, x_j: Tensor, size_i: int, edge_index_i: Tensor) -> Tensor:
            weights = utils["softmax"]((x_i * x_j).sum(-1), edge_index_i, num_nodes=size_i)
            return x_j * weights.view(-1, 1)

        def update(self, aggr_out: Tensor) -> Tensor:
            return aggr_out + 1

    first, second = np.exp(5 * 1.0), np.exp(5 * 3.0)
    found = Attention(aggr="add").propagate(edges, size=(3, 3), x=x)
    torch.testing.assert_close(found[2].item(), (first + 3 * second) / (first + second) + 1, atol=1e-5, rtol=0)
    assert found[1].item() == 1.0
    loops = utils["add_self_loops"](edges, num_nodes=3)[0]
    assert utils["remove_self_loops"](loops)[0].tolist() == edges.tolist()
    assert utils["degree"](edges[1], 3).tolist() == [1.0, 0.0, 2.0]
    assert utils["softmax"](torch.zeros(3), edges[1], num_nodes=3).tolist() == [0.5, 0.5, 1.0]


def test_sparsesvd_gives_the_largest_triplets_first() -> None:
    matrix = scipy.sparse.csc_matrix(np.diag([3.0, 1.0, 2.0, 0.5]))
    for k in (2, 4):
        left, values, right = sparsesvd(matrix, k)
        np.testing.assert_allclose(values, [3.0, 2.0, 1.0, 0.5][:k], atol=1e-9)
        rebuilt = left.T @ np.diag(values) @ right
        np.testing.assert_allclose(rebuilt[0, 0], 3.0, atol=1e-9)


# A whole checkout


def test_a_checkout_is_taken_over(tmp_path: Path) -> None:
    checkout, to, data = tmp_path / "MMRec", tmp_path / "mine", tmp_path / "data"
    shutil.copytree(CHECKOUT, checkout)
    conftest.write_toy(checkout / "data" / "toy")
    (checkout / "data" / "toy" / "image_adj_10_True.pt").write_bytes(b"")
    (checkout / "data" / "empty").mkdir()
    (checkout / "src" / "models" / "broken.py").write_text("class Broken(:\n")
    answer = call("import-mmrec", checkout, "--to", to, "--data-path", data)
    assert answer.code == 0, answer.err
    assert "broken.py:1: expected Python" in answer.out
    assert "data sets: toy" in answer.out
    assert "empty: left out: expected empty.inter there, got none" in answer.err
    assert not (data / "toy" / "image_adj_10_True.pt").exists()
    assert f"next: mmrec-lmm run -m {to}/models/{NAMES[0]}.py -d toy" in answer.err
    assert results(run(to / "models" / "bm3.py", data, "--json"))
    again = call("import-mmrec", checkout, "--to", to, "--data-path", data)
    assert again.code == 2
    assert "--force" in again.err
    forced = call("import-mmrec", checkout, "--to", to, "--data-path", data, "--force", "--json")
    found = json.loads(forced.out)
    assert {Path(one["path"]).stem: one["features"] for one in found["models"]}["vbpr"] == ["image", "text"]
    assert [Path(one["path"]).stem for one in found["models"] if one["error"]] == ["broken"]
    (to / "mine.txt").touch()
    kept = call("import-mmrec", checkout, "--to", to, "--data-path", data, "--force")
    assert kept.code == 2
    assert "got one with mine.txt; try another --to" in kept.err
    assert (to / "mine.txt").exists()
    nothing = call("import-mmrec", tmp_path / "data")
    assert nothing.code == 4
    assert "expected a checkout of MMRec" in nothing.err


def test_a_library_that_is_installed_is_the_one_that_a_file_gets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = "from torch_scatter import scatter\nself.kind = scatter"
    assert bridged(write(tmp_path / "one", model_text(lines))).model.kind is scatter
    (tmp_path / "torch_scatter.py").write_text("scatter = 'the library'\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "torch_scatter", raising=False)
    assert bridged(write(tmp_path / "two", model_text(lines))).model.kind == "the library"
    sys.modules.pop("torch_scatter")  # monkeypatch would put it back


def test_a_file_in_a_folder_below_models_has_the_same_checkout(tmp_path: Path) -> None:
    lines = "from models.base import word\nfrom .near import other\nself.words = word + other"
    file = write(tmp_path / "src" / "models" / "mine", model_text(lines))
    (file.parent / "near.py").write_text("other = 'b'\n")
    (file.parents[1] / "base.py").write_text("word = 'a'\n")
    assert bridged(file).model.words == "ab"


def test_batches_without_negatives_have_two_rows() -> None:
    model = bridged("bm3", **BM3, use_neg_sampling=False)
    empty = Batch(BATCH.users, BATCH.positives, BATCH.users.new_empty(len(BATCH), 0))
    assert model.training_loss(empty)["loss"].isfinite()
    spec = load_registry([f"mmrec_lmm.bridge:{MODELS / 'bm3.py'}"]).models.get("bm3.py")
    assert spec.negatives == "none"

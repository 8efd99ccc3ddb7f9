"""What the files of MMRec's zoo touch when they run: libraries, loaders, configuration, folders, and faults.

The model files are in `mmrec_checkout`, each in the manner of a family there.
"""

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import call
from test_bridge import BATCH, DATA, METHODS, MODELS, N_ITEMS, N_USERS, bridged, model_text, tables, write

from mmrec_lmm import machine
from mmrec_lmm.bridge.data_folder import DataFolder
from mmrec_lmm.bridge.model_file import loaded_file
from mmrec_lmm.bridge.scope import process_kept, running
from mmrec_lmm.errors import MMRecError, NotApplicable, PluginError, RunError
from mmrec_lmm.testing import scores_of

SMALL = {"embedding_size": 4}
KEYS: dict[str, dict[str, Any]] = {
    "attention": SMALL,
    "duo": {**SMALL, "knn_k": 3},
    "variational": {**SMALL, "beta": 0.1},
    "hypergraph": {**SMALL, "n_ui_layers": 2, "hyper_num": 3, "keep_rate": 0.5},
    "itemknn": {"knn_k": 3, "shrink": 10, "req_training": False},
    "momentum": {**SMALL, "momentum": 0.9, "n_layers": 2},
    "spectral": {**SMALL, "n_layers": 2, "own_dropout": 0.1},
}


def of_zoo(name: str) -> Any:
    return bridged(name, **KEYS[name])


def train(model: Any, steps: int = 3) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for step in range(steps):
        model.on_epoch_start(step)
        model.train()
        optimizer.zero_grad()
        torch.stack([*model.training_loss(BATCH).values()]).sum().backward()
        optimizer.step()
        model.on_epoch_end(step)


@pytest.mark.parametrize("name", KEYS)
def test_a_file_of_each_family_trains_and_its_scores_come_back(name: str) -> None:
    """Saved weights give the same scores to the bit, also where scores are drawn, or are of what a batch left."""
    first, second = of_zoo(name), of_zoo(name)
    if name != "itemknn":
        train(first)
    state = {key: value.clone() for key, value in first.state_dict().items()}
    scores = scores_of(first)
    assert scores.isfinite().all()
    assert (scores.std(dim=1) > 0).all()
    second.load_state_dict(state)
    assert torch.equal(scores_of(second), scores)
    one = first.eval().scorer()(torch.tensor([3]))  # a file may squeeze a single row
    torch.testing.assert_close(one, scores[3:4], atol=1e-6, rtol=1e-5)


def test_evaluation_takes_nothing_from_the_random_numbers_of_training() -> None:
    model = of_zoo("hypergraph")
    before = torch.get_rng_state()
    assert torch.equal(scores_of(model), scores_of(model))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_parameter_of_a_part_is_replaced_by_a_tensor() -> None:
    """As in `self.state = nn.Parameter(...).to(device)` of a plain nn.Module, which torch refuses elsewhere."""
    model = of_zoo("attention")
    assert "model.modalities.0.state" in model.state_dict()
    train(model, 1)
    assert "attributes.modalities.0.state.tensor" in model.state_dict()
    with pytest.raises(TypeError):
        torch.nn.Linear(1, 1).weight = torch.zeros(1)  # others are as they were


def test_a_copy_of_the_configuration_has_its_own_values_and_is_recorded() -> None:
    model = of_zoo("momentum")
    assert (model.model.online.n_layers, model.model.config["n_layers"]) == (1, 2)
    assert model.report()["keys"]["n_layers"] == 2


def test_modules_of_the_checkout_are_found_and_stay_apart() -> None:
    """A folder that the file puts into sys.path, one without __init__.py, and importlib.import_module."""
    path = list(sys.path)
    model = of_zoo("spectral").model
    assert sys.path == path
    assert not {"frequency_filter", "layers", "layers.sums", "models.lightgcn"} & sys.modules.keys()
    kind = type(model.filter)
    assert pickle.loads(pickle.dumps(kind)) is kind  # libraries look for its module, too
    assert sys.modules[kind.__module__].__file__ == str(MODELS / "blocks" / "frequency_filter.py")


def test_a_star_import_has_what_is_offered_and_what_the_checkout_adds(tmp_path: Path) -> None:
    file = write(
        tmp_path / "models",
        "from utils.utils import *\n" + model_text("self.own, self.sim = own, build_sim.__module__"),
    )
    (tmp_path / "utils").mkdir()
    (tmp_path / "utils" / "utils.py").write_text("own = 7\ndef build_sim(): ...\n")
    model = bridged(file).model
    assert (model.own, model.sim) == (7, "mmrec_lmm.bridge.interface")


def test_a_broken_change_leaves_the_loaded_file_whole(tmp_path: Path) -> None:
    file = write(tmp_path / "models", "from layers.one import One\n" + model_text("self.one = One()"))
    (tmp_path / "layers").mkdir()
    part = tmp_path / "layers" / "one.py"
    part.write_text("class One:\n    pass\n")
    kind = type(bridged(file).model.one)
    part.write_text("1 / 0\n")
    with pytest.raises(PluginError, match=r"one.py:1: .*ZeroDivisionError"):
        bridged(file)
    assert pickle.loads(pickle.dumps(kind)) is kind


# Loaders and configuration


def test_a_loader_gives_batches_with_negatives_that_the_user_lacks(tmp_path: Path) -> None:
    model = bridged(write(tmp_path, model_text("self.loader = dataset")), {}).model
    batches = list(model.loader)
    rows = torch.cat(batches, dim=1)
    assert rows.shape == (3, len(DATA.train))
    pairs = set(zip(DATA.train.users.tolist(), DATA.train.items.tolist(), strict=True))
    assert set(map(tuple, rows[:2].T.tolist())) == pairs
    assert not set(map(tuple, rows[::2].T.tolist())) & pairs
    assert not torch.equal(rows, torch.cat(list(model.loader), dim=1))
    assert model.loader.sparsity == pytest.approx(1 - len(pairs) / (N_USERS * N_ITEMS))
    users = model.loader.history_users_per_i
    assert {(user, item) for item, found in users.items() for user in found} == pairs


@pytest.mark.parametrize(
    "lines",
    [
        "self.k = [config[key] for key in ('own_k', 'other')][0]",
        "for key in ['own_k']:\n    self.k = config[key]",
        "self.k = config.final_config_dict['own_k']",
        "self.k = options['own_k']",
    ],
)
def test_keys_are_discovered_however_they_are_read(lines: str, tmp_path: Path) -> None:
    text = model_text(lines)
    if "options" in lines:
        text = text.replace("config", "options")
    file = write(tmp_path, text)
    assert bridged(file, {}, own_k=3).model.k == 3
    assert loaded_file(file).keys["own_k"].startswith(f"{file}:")


def test_what_a_file_prints_to_a_file_is_there(tmp_path: Path) -> None:
    place = tmp_path / "notes.txt"
    bridged(
        write(tmp_path, model_text(f"with open({str(place)!r}, 'w') as notes:\n    print('a', 'b', file=notes)")), {}
    )
    assert place.read_text() == "a b\n"


# Devices and the process


def test_a_file_that_asks_for_a_gpu_gets_the_answer_of_its_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with running(torch.device("cpu"), needs={"device"}):
        assert not torch.cuda.is_available()
    assert torch.cuda.is_available()


def test_switches_of_cudnn_are_put_back() -> None:
    before = torch.backends.cudnn.deterministic
    with process_kept():
        torch.backends.cudnn.deterministic = not before
    assert torch.backends.cudnn.deterministic == before


def test_graphs_of_a_gpu_are_kept_apart(tmp_path: Path) -> None:
    """A file that saves a graph loads it to where it was, and often moves it nowhere."""
    roots = {DataFolder(DATA, {}, "code", "data", torch.device(kind)).root for kind in ("cpu", "cuda:0", "cuda:1")}
    assert len(roots) == 2


def test_a_guard_of_memory_takes_pythons_types() -> None:
    with machine.OneAllocation("model X"):
        assert [torch.zeros(2, dtype=kind).dtype for kind in (int, float, bool)] == [  # type: ignore[call-overload]
            torch.int64,
            torch.float64,
            torch.bool,
        ]


def test_data_of_a_tensor_that_are_exchanged_are_saved(tmp_path: Path) -> None:
    methods = METHODS.replace("        return self.users[interaction[0]].sq", "        self.bank.data = self.bank + 1\n"
        "        return self.users[interaction[0]].sq")  # fmt: skip
    methods = methods.replace("return self.users[interaction[0]] @", "return self.bank[interaction[0]] @")
    file = write(tmp_path, model_text("self.bank = torch.zeros(self.n_users, 1)", methods))
    first, second = bridged(file, {}), bridged(file, {})
    first.training_loss(BATCH)
    second.load_state_dict(first.state_dict())
    assert (scores_of(second) == 1).all()


# Faults

GUARDED = """if self.v_feat is not None:
    self.image_trs = nn.Linear(self.v_feat.shape[1], 2)
self.width = self.image_trs.out_features"""
UNSET = """if self.v_feat is not None:
    width = self.v_feat.shape[1]
self.width = width"""

CALLS: dict[str, tuple[str, str, type[MMRecError]]] = {
    "a part that needs features": (GUARDED, r"mine.py:10: expected image features \(v_feat\), got none", NotApplicable),
    "a variable that needs features": (UNSET, r"mine.py:10: expected image features \(v_feat\), got", NotApplicable),
    "the key of the line first": (
        "self.first = config['first_k']\nself.own_k = config['own_k']\nself.layers = list(range(self.own_k))",
        r"mine.py:10: expected a value of own_k \(.*:9\), first_k \(.*:8\), .* try --own_k=VALUE",
        PluginError,
    ),
    "a key that no flag can have": (
        "self.x = 1 + config['data.own']",
        r"mine.py:8: expected a value of data.own, got .* try a file configs/model/mine.yaml",
        PluginError,
    ),
    "what a key decides": (
        "if config['cf_model'] == 'mf':\n    self.gate = 1\nself.x = self.gate",
        r"mine.py:10: .* no attribute 'gate'; it got no value of cf_model \(.*mine.py:8\), which may be why",
        PluginError,
    ),
    "a part of a library": (
        "import torch_geometric\nself.x = torch_geometric.nn.GCNConv(1, 1)",
        r"mine.py:9: expected a part of torch_geometric .* try pip install torch_geometric",
        PluginError,
    ),
    "a library to build": (
        "from torch_sparse import SparseTensor",
        r"mine.py:8: expected the package torch_sparse, .* pip install --no-build-isolation torch-sparse, or put",
        PluginError,
    ),
    "a file elsewhere": (
        "open('../data/own/graph.txt')",
        r"mine.py:8: .*'../data/own/graph.txt'; try the folder that its path starts at",
        PluginError,
    ),
    "a file of the data": (
        "open(config['data_path'] + config['dataset'] + '/own.txt')",
        r"mine.py:8: .*own.txt'; try putting it into the data set's folder",
        PluginError,
    ),
}


@pytest.mark.parametrize("what", CALLS)
def test_what_a_file_lacks_is_one_message_with_its_line(what: str, tmp_path: Path) -> None:
    lines, said, kind = CALLS[what]
    with pytest.raises(kind, match=said) as found:
        bridged(write(tmp_path, model_text(lines)), tables("text"))
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("line", "value", "said"),
    [
        ("self.x = nn.Embedding(3, config['own_k'])", [8], r"own_k = \[8\] \(.*mine.py:8\), which may be why; a list"),
        ("self.k = config['own_k']\nself.x = 1 / self.k", "1e-3", r"own_k = '1e-3' \(.*mine.py:8\), which may be why"),
    ],
)
def test_a_value_of_another_type_is_named(line: str, value: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(PluginError, match=rf"TypeError: .*; it got {said}"):
        bridged(write(tmp_path, model_text(line)), {}, own_k=value)


def test_an_assertion_without_words_is_its_line(tmp_path: Path) -> None:
    with pytest.raises(PluginError, match=r"mine.py:8: .*got AssertionError: assert self.n_users < 0$"):
        bridged(write(tmp_path, model_text("assert self.n_users < 0")), {})


def test_numbers_that_are_nan_from_the_start_are_said_with_their_line(tmp_path: Path) -> None:
    root = METHODS.replace("].square().mean()", "].square().neg().log().mean()")
    model = bridged(write(tmp_path, model_text(methods=root)), {})
    model.on_epoch_start(0)
    with pytest.raises(RunError, match=r"mine.py:9: .*got nan \(loss\) in the first batch, before any step; try"):
        model.training_loss(BATCH)
    resumed = bridged(tmp_path / "mine.py", {})
    resumed.on_epoch_start(3)
    assert resumed.training_loss(BATCH)["loss"].isnan(), "of weights that diverged: the host ends at the best epoch"
    quotient = METHODS.replace("return self.users[interaction[0]] @", "return 0 / torch.zeros(14, 1) @")
    with pytest.raises(RunError, match=r"mine.py:11: expected scores that are numbers, got NaN for \d+ of \d+ in the"):
        scores_of(bridged(write(tmp_path, model_text(methods=quotient)), {}))


def test_sparse_tensors_of_a_file_bring_no_warning_of_torchs(tmp_path: Path) -> None:
    """torch warns once in a process, so another one makes them."""
    file = write(tmp_path, model_text("self.graph = torch.sparse_coo_tensor([[0], [1]], [1.0], (2, 2))"))
    code = "from test_bridge import *; bridged(Path(sys.argv[1]), {})"
    ran = subprocess.run(
        [sys.executable, "-W", "error:Sparse invariant", "-c", f"import sys; {code}", str(file)],
        check=False, capture_output=True, text=True, cwd=Path(__file__).parent,
    )  # fmt: skip
    assert (ran.returncode, ran.stderr) == (0, "")


def test_an_attribute_of_the_checkouts_own_base_class_is_named(tmp_path: Path) -> None:
    file = write(tmp_path / "models", model_text("self.x = self.a_feat"))
    (tmp_path / "common").mkdir()
    (tmp_path / "common" / "abstract_recommender.py").write_text("self.a_feat = None\n")
    with pytest.raises(
        PluginError, match=r"mine.py:8: .*'a_feat'; .*abstract_recommender.py sets it, which isn't used"
    ):
        bridged(file)


@pytest.mark.parametrize(
    ("scores", "got"), [("scores.view(-1)", rf"\({N_USERS * N_ITEMS},\)"), ("scores, 1", "tuple"), ("None", "NoneType")]
)
def test_scores_of_another_form_are_said(scores: str, got: str, tmp_path: Path) -> None:
    methods = METHODS.replace(
        "        return self.users[interaction[0]] @", "        scores = self.users[interaction[0]] @"
    )
    file = write(tmp_path, model_text(methods=f"{methods}        return {scores}\n"))
    expected = rf"mine.py:11: expected scores \({N_USERS}, {N_ITEMS}\) .* from full_sort_predict, got {got}"
    with pytest.raises(PluginError, match=expected):
        scores_of(bridged(file, {}))


@pytest.fixture
def without_gpu() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")


@pytest.mark.usefixtures("without_gpu")
@pytest.mark.parametrize(
    "line", ["torch.cuda.LongTensor(np.arange(2))", "torch.zeros(1).to('cuda:0')", "torch.cuda.set_device(0)"]
)
def test_a_class_that_needs_a_gpu_is_said_in_training_too(line: str, tmp_path: Path) -> None:
    methods = METHODS.replace("        return self.users[interaction[0]].sq", f"        {line}\n"
        "        return self.users[interaction[0]].sq")  # fmt: skip
    model = bridged(write(tmp_path, "import numpy as np\n" + model_text(methods=methods)), {})
    with pytest.raises(NotApplicable, match=r"mine.py:11: expected a GPU, which it asks for by name, got none"):
        model.training_loss(BATCH)


def test_a_checkouts_other_folders_are_taken_over(tmp_path: Path) -> None:
    models = tmp_path / "MMRec" / "src" / "models"
    write(models, "from layers.one import One\nimport single\n" + model_text("self.one = One()"))
    (models.parent / "layers").mkdir()
    (models.parent / "layers" / "one.py").write_text("from layers.two import Two as One\n")
    (models.parent / "layers" / "two.py").write_text("class Two:\n    pass\n")
    (models.parent / "single.py").write_text("")
    (models.parent / "main.py").write_text("1 / 0\n")
    to = tmp_path / "mine"
    for flags in ((), ("--force",)):
        answer = call("import-mmrec", tmp_path / "MMRec", "--to", to, "--data-path", tmp_path / "data", *flags)
        assert answer.code == 0, answer.err
        assert "expected" not in answer.out
    assert sorted(path.name for path in to.rglob("*.py")) == ["mine.py", "one.py", "single.py", "two.py"]
    assert isinstance(bridged(to / "models" / "mine.py").model.one, object)


def test_numbers_of_a_file_are_those_that_numpy_dropped(tmp_path: Path) -> None:
    lines = "import numpy as np\nself.kinds = (np.float, np.int0, np.bool8, np.cfloat)"
    assert bridged(write(tmp_path, model_text(lines)), {}).model.kinds == (float, np.intp, np.bool_, np.complex128)

"""The registry: real entry points in a temporary folder, real modules, and each way in which a plugin can be wrong."""

import json
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mmrec_lmm.errors import ConfigError, PluginError
from mmrec_lmm.plugin.registry import PluginInfo, Registry, load_registry

EXAMPLE = Path(__file__).parent / "plugin_example"
HEAD = "from mmrec_lmm.api import DatasetSpec, MetricSpec, ModelSpec, hookimpl\n"
MODELS = "@hookimpl\ndef mmrec_register_models():\n    return [{}]\n"


def registers(*names: str) -> str:
    """The source of a plugin that registers models of these names."""
    return HEAD + MODELS.format(", ".join(f"ModelSpec({name!r}, cls='nowhere:Model', config=dict)" for name in names))


@pytest.fixture(autouse=True)
def _no_outside_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MMREC_LMM_BLOCK", raising=False)
    monkeypatch.delenv("MMREC_LMM_TRACE", raising=False)


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., str]]:
    """Installs a distribution of one module as pip would leave it, and returns its plugin's full name."""
    site, before = tmp_path / "site", set(sys.modules)
    site.mkdir()

    def install(distribution: str, source: str, entry: str = "plug", target: str = "") -> str:
        module = distribution.replace("-", "_")
        (site / f"{module}.py").write_text(source)
        info = site / f"{module}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[mmrec_lmm]\n{entry} = {module}{target}\n")
        monkeypatch.syspath_prepend(site)
        return f"{distribution}:{entry}"

    yield install
    for name in set(sys.modules) - before:
        if str(site) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def info(registry: Registry, name: str) -> PluginInfo:
    return next(plugin for plugin in registry.plugins if plugin.name == name)


@pytest.mark.parametrize("is_edited", [True, False])
def test_the_code_of_an_encoder_names_features_where_it_is_installed_to_be_edited(
    install: Callable[..., str], tmp_path: Path, is_edited: bool
) -> None:
    source = (
        "from mmrec_lmm.api import EncoderSpec, hookimpl\n@hookimpl\ndef mmrec_register_encoders():\n"
        "    return [EncoderSpec('Seen', cls='nowhere:Encoder', config=dict, modalities=('text',), weights_id=str)]\n"
    )
    install("test-edited", source)
    about = {"url": "file:///somewhere", "dir_info": {"editable": True} if is_edited else {}}
    (tmp_path / "site/test_edited-1.0.dist-info/direct_url.json").write_text(json.dumps(about))
    codes = []
    for text in (source, source + "# changed\n", source):
        (tmp_path / "site/test_edited.py").write_text(text)
        codes.append(load_registry().encoders.get("Seen").code)
    assert codes[0] == codes[2]
    assert (codes[0] != codes[1]) is is_edited
    assert all(codes) is is_edited
    assert not load_registry().encoders.get("basic").code


def test_an_installed_plugins_model_is_found_whatever_its_names_case(install: Callable[..., str]) -> None:
    name = install("test-found", registers("FoundModel"))
    registry = load_registry()
    assert registry.models.get("foundmodel").name == "FoundModel"
    assert registry.models.provider("FOUNDMODEL") == name
    assert "foundModel" in registry.models
    assert info(registry, name) == PluginInfo(
        name, "ok", "", "test-found", "1.0", {"mmrec_register_models": ("FoundModel",)}
    )


def test_names_come_in_alphabetical_order_whatever_their_case(install: Callable[..., str]) -> None:
    install("test-order", registers("zeta", "Alpha", "beta"), entry="order")
    names = [name for name in load_registry().models.names() if name in ("zeta", "Alpha", "beta")]
    assert names == ["Alpha", "beta", "zeta"]


def test_a_hook_may_be_a_generator(install: Callable[..., str]) -> None:
    source = "@hookimpl\ndef mmrec_register_datasets():\n    yield DatasetSpec('one')\n    yield DatasetSpec('two')\n"
    install("test-generator", HEAD + source)
    assert {"one", "two"} <= set(load_registry().datasets.names())


def test_two_distributions_may_use_one_entry_point_name(install: Callable[..., str]) -> None:
    install("test-same-a", registers("SameA"), entry="same")
    install("test-same-b", registers("SameB"), entry="same")
    assert {"SameA", "SameB"} <= set(load_registry().models.names())


def test_the_hosts_own_metrics_come_from_a_plugin_that_can_be_blocked() -> None:
    registry = load_registry()
    of_hits, of_lists = (
        {"Hit", "MAP", "MRR", "NDCG", "Precision", "Recall"},
        {"AUC", "Coverage", "Gini", "ILD", "Novelty"},
    )
    assert {*registry.metrics.names()} == of_hits | of_lists
    assert registry.metrics.provider("recall") == "mmrec-lmm:metrics"
    gives = info(registry, "mmrec-lmm:metrics").gives
    assert sorted(gives["mmrec_register_metrics"]) == sorted(registry.metrics.names())
    assert "recall" not in load_registry(["no:metrics"]).metrics


def test_the_hosts_own_paradigms_come_by_mmrec_register_paradigms_as_a_plugins_do() -> None:
    registry = load_registry()
    assert registry.paradigms.names() == ("ete", "ft", "pt")
    assert info(registry, "mmrec-lmm:paradigms").gives == {"mmrec_register_paradigms": ("pt", "ft", "ete")}


def test_listing_models_imports_no_torch_and_takes_under_a_second() -> None:
    code = (
        "import sys, time; from mmrec_lmm.plugin.registry import load_registry; r = load_registry(); "
        "[list(c) for c in (r.models, r.encoders, r.paradigms, r.datasets, r.metrics)]; "
        "print(time.process_time()); sys.exit('torch' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert float(found.stdout) < 1  # of the processor: other work on this machine must not fail the test


def test_an_unknown_name_is_answered_with_the_closest_and_all_known(install: Callable[..., str]) -> None:
    install("test-unknown", registers("FoundModel", "Other"))
    with pytest.raises(
        ConfigError, match=r"^unknown model FoudnModel; did you mean FoundModel\? known: .*Other"
    ) as error:
        load_registry().models.get("FoudnModel")
    assert error.value.exit_code == 2


def test_an_unknown_name_unlike_any_other_is_answered_with_all_known() -> None:
    with pytest.raises(ConfigError, match=r"^unknown metric xxxxxxxx; known: AUC, Coverage, Gini, Hit, "):
        load_registry().metrics.get("xxxxxxxx")


def test_two_plugins_with_one_name_are_an_error_naming_both_when_that_name_is_asked_for(
    install: Callable[..., str],
) -> None:
    a = install("test-twin-a", registers("Twin", "Single"), entry="a")
    b = install("test-twin-b", registers("TWIN"), entry="b")
    registry = load_registry()
    with pytest.raises(PluginError, match=rf"model Twin is registered by {a} and by {b}; .*MMREC_LMM_BLOCK={b}"):
        registry.models.get("twin")
    assert registry.conflicts == registry.models.conflicts
    assert a in registry.conflicts[0]
    assert b in registry.conflicts[0]
    assert registry.models.get("Single").name == "Single"
    assert "Twin" not in registry.models.names()
    assert load_registry([f"no:{b}"]).models.provider("Twin") == a


WRONG = {
    "import": ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
    "crash": ("raise RuntimeError('no torchvision::nms')", "RuntimeError: no torchvision::nms"),
    "syntax": ("def", "SyntaxError"),
    "hook": (HEAD + "@hookimpl\ndef mmrec_register_model(): pass", "did you mean mmrec_register_models?"),
    "argument": (HEAD + "@hookimpl\ndef mmrec_register_models(config): pass", "config"),
    "default": (HEAD + "@hookimpl\ndef mmrec_run_finished(run, result=None): pass", "defaults, got ('result',)"),
    "wrapper": (HEAD + "@hookimpl(wrapper=True)\ndef mmrec_register_models():\n    return (yield)", "hook wrapper"),
    "unmarked": (HEAD + "def mmrec_register_models(): return []", "mmrec_register_models lacks the decorator"),
    "empty": (HEAD, "implements no hook"),
    "raises": (HEAD + MODELS.format("1 / 0"), "mmrec_register_models raised ZeroDivisionError: division by zero"),
    "none": (HEAD + "@hookimpl\ndef mmrec_register_models(): pass", "expected a list of ModelSpec, got None"),
    "spec": (HEAD + MODELS.format("MetricSpec('m', print)"), "list of ModelSpec, got one with MetricSpec("),
    "bare": (HEAD + MODELS.replace("[{}]", "ModelSpec('M', dict, dict)"), "list of ModelSpec, got ModelSpec("),
    "name": (registers("../up"), "and _ . : + -, got '../up'"),
    "negatives": (
        HEAD + MODELS.format("ModelSpec('M', 'nowhere:Model', negatives='many')"),
        "model M: negatives: expected one, several or none, got 'many'",
    ),
    "future": ("MMREC_LMM_API = 99\n" + registers("Future"), "MMREC_LMM_API: expected version 1 of the plugin API"),
}  # fmt: skip


@pytest.mark.parametrize("fault", WRONG)
def test_a_wrong_plugin_is_quarantined_with_its_reason_and_the_rest_works(
    fault: str, install: Callable[..., str], caplog: pytest.LogCaptureFixture
) -> None:
    source, reason = WRONG[fault]
    name = install(f"test-wrong-{fault}", source)
    sound = install("test-sound", registers("Sound"), entry="sound")
    registry = load_registry()
    plugin = info(registry, name)
    assert plugin.status == "quarantined"
    assert reason in plugin.reason
    assert f"plugin {name} is left out: {plugin.reason}" in caplog.messages
    assert registry.models.provider("Sound") == sound
    with pytest.raises(ConfigError, match="unknown model Gone") as error:
        registry.models.get("Gone")
    assert "plugins in quarantine: " in str(error.value)
    assert f"{name} ({plugin.reason})" in str(error.value)


def test_an_entry_point_that_names_a_class_is_quarantined(install: Callable[..., str]) -> None:
    name = install("test-class", "class Plugin: pass", target=":Plugin")
    assert "expected a module or an instance, got the class Plugin; try" in info(load_registry(), name).reason


def test_all_of_a_plugin_is_left_out_if_one_of_its_hooks_fails(install: Callable[..., str]) -> None:
    observer = "@hookimpl\ndef mmrec_run_finished(run):\n    run.append('called')\n"
    metrics = "@hookimpl\ndef mmrec_register_metrics():\n    raise OSError('gone')\n"
    install("test-half", registers("Half") + observer + metrics)
    run: Any = []
    result: Any = None
    registry = load_registry()
    registry.notify_run(run, result)
    assert "Half" not in registry.models
    assert run == []


def test_a_class_that_cannot_be_imported_is_reported_with_its_plugin_when_it_is_needed(
    install: Callable[..., str],
) -> None:
    name = install("test-lazy", registers("Lazy"))
    with pytest.raises(
        PluginError, match=rf"plugin {name}: cls of model Lazy, nowhere:Model, .*No module named 'nowhere'"
    ):
        load_registry().models.load("lazy", "cls")


@pytest.mark.parametrize("block", ["test-blocked:plug", "test-blocked", "Test_Blocked", "plug"])
def test_a_plugin_is_blocked_by_full_name_distribution_or_entry_point(
    block: str, install: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = install("test-blocked", "raise SystemExit('a blocked plugin must not even be imported')")
    monkeypatch.setenv("MMREC_LMM_BLOCK", f" {block} ,")
    registry = load_registry()
    assert info(registry, name).status == "blocked"
    with pytest.raises(ConfigError, match=f"blocked plugins: {name}"):
        registry.models.get("Gone")


def test_blocking_what_is_not_there_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    load_registry(["no:metrcs"])
    assert "no plugin is called metrcs, so blocking it does nothing; did you mean metrics?" in caplog.messages


def test_tracing_writes_each_hook_call_with_its_plugin_to_stderr(
    install: Callable[..., str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = install("test-trace", registers("Traced"))
    load_registry()
    assert "trace" not in capsys.readouterr().err
    monkeypatch.setenv("MMREC_LMM_TRACE", "1")
    load_registry()
    captured = capsys.readouterr()
    assert f"trace: {name}: mmrec_register_models() gave [[ModelSpec(" in captured.err
    assert captured.out == ""


def test_a_file_given_by_p_is_a_plugin_and_its_own_classes_resolve(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(HEAD + "class M: pass\n" + MODELS.format("ModelSpec('Mine', f'{__name__}:M', dict)"))
    registry = load_registry(["no:mmrec-lmm", str(file), str(file)])
    assert registry.models.names() == ("Mine",)
    assert registry.models.provider("Mine") == str(file)
    assert registry.models.load("Mine", "cls") is load_registry([str(file)]).models.load("Mine", "cls")


def test_a_module_given_by_p_is_a_plugin_and_installed_ones_are_taken_once(install: Callable[..., str]) -> None:
    name = install("test-module", registers("Once"))
    registry = load_registry(["test_module"])
    assert registry.models.provider("Once") == name
    assert info(registry, "test_module").reason == f"is {name}"
    assert load_registry(["test_module", f"no:{name}"]).models.provider("Once") == "test_module"


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("no_such_plugin", "ModuleNotFoundError: No module named 'no_such_plugin'"),
        ("./no_such_plugin.py", "expected a Python file, got /"),
        (str(EXAMPLE / "pyproject.toml"), "pyproject.toml: expected a Python file, got /"),
    ],
)
def test_a_plugin_given_by_p_that_cannot_be_loaded_is_an_error(value: str, reason: str) -> None:
    with pytest.raises(PluginError) as error:
        load_registry([value])
    assert str(error.value).startswith(f"-p {value}: ")
    assert reason in str(error.value)


def test_a_file_given_by_p_that_fails_is_an_error_each_time(tmp_path: Path) -> None:
    file = tmp_path / "broken.py"
    file.write_text("1 / 0")
    for _ in range(2):
        with pytest.raises(PluginError, match=r"-p .*broken.py: ZeroDivisionError: division by zero"):
            load_registry([str(file)])


def test_observers_hear_of_epochs_and_runs_and_one_that_raises_stops_nobody(
    install: Callable[..., str], caplog: pytest.LogCaptureFixture
) -> None:
    hears = "@hookimpl\ndef mmrec_epoch_finished(run, epoch):\n    run.heard.append(epoch)\n"
    hears += "@hookimpl\ndef mmrec_run_finished(run, result):\n    run.heard.append(result)\n"
    hears = "@hookimpl\ndef mmrec_run_started(run, folder):\n    run.heard.append(folder)\n" + hears
    first = install("test-a-raises", HEAD + hears + "    raise ValueError('disk full')\n", entry="first")
    install("test-b-hears", HEAD + hears, entry="second")
    run: Any = SimpleNamespace(heard=[])
    report: Any = "epoch 1"
    result: Any = "result"
    registry = load_registry()
    with caplog.at_level(logging.ERROR):
        registry.notify_start(run, Path("runs/a"))
        registry.notify_epoch(run, report)
        registry.notify_run(run, result)
    assert run.heard == [Path("runs/a")] * 2 + ["epoch 1", "epoch 1", "result", "result"]
    assert f"plugin {first}: mmrec_run_finished raised ValueError: disk full; the run goes on" in caplog.messages


@pytest.mark.slow
def test_a_plugin_that_pip_installs_shows_and_with_its_folder_it_goes(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    for file in EXAMPLE.iterdir():
        if file.is_file():
            (source / file.name).write_bytes(file.read_bytes())
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-index"]
    subprocess.run([*pip, "--no-deps", "--no-build-isolation", "--target", str(target), str(source)], check=True)
    code = (
        "from mmrec_lmm.plugin.registry import load_registry; models = load_registry(['no:mmrec-lmm']).models; "
        "print([(name, models.provider(name), models.load(name, 'cls').__name__) for name in models.names()])"
    )

    def models(**environment: str) -> str:
        return subprocess.run(
            [sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True, cwd=tmp_path
        ).stdout.strip()

    assert models(PYTHONPATH=str(target)) == "[('Popular', 'mmrec-lmm-popular:popular', 'Popular')]"
    assert models() == "[]"

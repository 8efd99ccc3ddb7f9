"""The rules of the architecture that a reader would have to trust otherwise: who may import whom, and what must exist.

Every import statement counts, also one inside a function; only `if TYPE_CHECKING:` doesn't.
"""

import ast
import configparser
import importlib.util
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from mmrec_lmm.plugin.registry import HOOKS, load_registry

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = {"mmrec_lmm": "mmrec_lmm", "mmrec_lmm_plugins": "plugins", "mmrec_lmm_data_tools": "data_tools"}

#: The host's rooms, from the bottom up. A module imports from its own room and from those on lines above its own here.
LAYERS = """
    errors
    typed_json formatting user_paths
    types
    plugin graph distributed logs
    cache losses
    disk
    downloads
    weights config
    machine
    api data
    features evaluation bridge
    checking
    training
    running
    studies
    report
    board
    library
    testing
    cli
    __main__
"""
LEVEL = {name: level for level, line in enumerate(LAYERS.split("\n")) for name in line.split()}

MODULES = {
    ".".join((package, *path.relative_to(ROOT / folder).with_suffix("").parts)).removesuffix(".__init__"): path
    for package, folder in FOLDERS.items()
    for path in sorted((ROOT / folder).rglob("*.py"))
}
HOST = sorted(name for name in MODULES if name.startswith("mmrec_lmm."))
PLUGINS = sorted(name for name in MODULES if name.startswith("mmrec_lmm_plugins"))
DATA_TOOLS = sorted(name for name in MODULES if name.startswith("mmrec_lmm_data_tools"))


def imports(module: str) -> set[str]:
    """The modules of this repository that a module imports, by full name."""
    return {known for name in _imported_names(module) if (known := _longest_known(name))}


def _imported_names(module: str) -> Iterator[str]:
    path = MODULES[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for_types = [
        node for node in ast.walk(tree) if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    ]
    skipped = {inner for block in for_types for statement in block.body for inner in ast.walk(statement)}
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            base = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            yield from (f"{base}.{alias.name}" for alias in node.names)


def _longest_known(name: str) -> str:
    while name and name not in MODULES:
        name = name.rpartition(".")[0]
    return name


def host_part(module: str) -> str:
    """`data` for mmrec_lmm.data.loading; empty for what isn't the host's."""
    return module.split(".")[1] if module.startswith("mmrec_lmm.") else ""


def test_the_reader_of_imports_sees_relative_absolute_and_nested_ones() -> None:
    assert "mmrec_lmm.plugin.hookspecs" in imports("mmrec_lmm.plugin.registry")
    assert "mmrec_lmm.api" in imports("mmrec_lmm_plugins.encoders.basic")
    assert "mmrec_lmm_plugins.encoders.basic" in imports("mmrec_lmm_plugins.encoders")
    assert "mmrec_lmm.disk.hashing" in imports("mmrec_lmm.data.loading")
    assert "mmrec_lmm.plugin.contracts" not in imports("mmrec_lmm.plugin.specs")


@pytest.mark.parametrize("module", HOST)
def test_imports_of_the_host_only_go_down(module: str) -> None:
    part = host_part(module)
    assert part in LEVEL, f"give {module} its place in LAYERS"
    upward = [
        name for name in imports(module) if (other := host_part(name)) != part and LEVEL.get(other, -1) >= LEVEL[part]
    ]
    assert not upward, f"{module} may import only from layers below its own, not {upward}"


def test_the_root_of_the_host_has_at_most_a_dozen_modules() -> None:
    at_root = {path.stem for path in (ROOT / "mmrec_lmm").glob("*.py")} - {"__init__", "__main__"}
    assert len(at_root) <= 12, sorted(at_root)


def test_every_package_folder_is_in_setup_cfg() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    folders = {name for name, path in MODULES.items() if path.name == "__init__.py"}
    assert set(config["options"]["packages"].split()) == folders | {
        "mmrec_lmm_plugins.configs",
        "mmrec_lmm_plugins.templates",
    }


@pytest.mark.parametrize("module", HOST)
def test_the_host_imports_no_plugin_and_only_the_command_line_imports_the_data_tools(module: str) -> None:
    barred = (
        ("mmrec_lmm_plugins",) if module.startswith("mmrec_lmm.cli") else ("mmrec_lmm_plugins", "mmrec_lmm_data_tools")
    )
    assert not [name for name in imports(module) if name.startswith(barred)]
    assert "mmrec_lmm_plugins." not in MODULES[module].read_text(encoding="utf-8"), "nor by a dotted name in a string"


@pytest.mark.parametrize("module", PLUGINS)
def test_plugins_know_the_public_api_and_themselves_alone(module: str) -> None:
    allowed = {"mmrec_lmm", "mmrec_lmm.api", "mmrec_lmm.graph", "mmrec_lmm.losses"}
    assert not [name for name in imports(module) - allowed if not name.startswith("mmrec_lmm_plugins")]


@pytest.mark.parametrize("module", DATA_TOOLS)
def test_the_data_tools_know_types_data_and_nothing_of_models(module: str) -> None:
    parts = ("types", "data", "api", "cache", "disk", "downloads", "errors", "formatting", "logs")
    allowed = [f"mmrec_lmm.{part}" for part in (*parts, "config.choices", "features.files", "plugin.names")]
    assert not [name for name in imports(module) if not name.startswith((*allowed, "mmrec_lmm_data_tools"))]


def test_every_path_in_the_page_on_architecture_exists() -> None:
    """Paths are within the repository, the host, one of its rooms, or the shipped configuration."""
    places = [ROOT, ROOT / "configs", ROOT / "mmrec_lmm", *(ROOT / "mmrec_lmm").glob("*/")]
    named = re.findall(r"`([\w./]+(?:\.\w+|/))`", (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8"))
    assert len(named) > 60
    assert not [path for path in named if not any((place / path).exists() for place in places)]


def test_every_shipped_model_has_its_yaml() -> None:
    written = {path.stem.lower() for path in (ROOT / "configs" / "model").glob("*.yaml")}
    models = load_registry().models
    shipped = [name for name in models.names() if models.provider(name).startswith("mmrec-lmm:")]
    assert shipped
    assert not [name for name in shipped if name.lower() not in written]


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_is_documented_and_tested(hook: str) -> None:
    assert hook in (ROOT / "docs" / "plugins.md").read_text(encoding="utf-8")
    tests = [path for path in (ROOT / "tests").glob("test_*.py") if path.name != "test_architecture.py"]
    assert any(hook in path.read_text(encoding="utf-8") for path in tests)


def test_a_run_imports_nothing_of_reports_studies_and_torchs_compiler(data_path: Path, tmp_path: Path) -> None:
    """But for the names of layouts and formats, which are choices of flags."""
    script = """
        import gc, sys
        from mmrec_lmm.cli import main
        code = main(sys.argv[1:])
        unwanted = ("mmrec_lmm.report", "mmrec_lmm.studies", "matplotlib", "torch._dynamo")
        print(sorted(name for name in sys.modules if name.startswith(unwanted)))
        sys.exit(code or not gc.isenabled())
    """
    flags = ["-m", "VBPR", "-d", "toy", "--data-path", data_path, "--out", tmp_path / "runs", "--epochs=1", "--json"]
    command = [sys.executable, "-c", textwrap.dedent(script), "run", *map(str, flags)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "['mmrec_lmm.report', 'mmrec_lmm.report.layouts']"

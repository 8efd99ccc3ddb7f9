"""What a stranger installs: our wheel and sdist, generated plugins and the docs' listing, in a fresh environment."""

import re
import shutil
import subprocess
import sys
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import call

from mmrec_lmm.plugin.templates import KINDS

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.slow

LISTINGS = dict(
    re.findall(
        r"^```\w+ (\S+)\n(.*?)^```$",
        (ROOT / "docs" / "plugins.md").read_text(encoding="utf-8"),
        re.MULTILINE | re.DOTALL,
    )
)


def build(to: Path, *sources: Path) -> list[Path]:
    """The wheels of folders or an sdist, built without a network."""
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(to)]
    subprocess.run([*pip, *sources], check=True)
    return sorted(to.glob("*.whl"))


@pytest.fixture(scope="session")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Our wheel, built from an sdist: so both are whole."""
    to, source = tmp_path_factory.mktemp("dist"), tmp_path_factory.mktemp("source")
    for name in ("mmrec_lmm", "plugins", "configs", "data_tools", "templates"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, source)
    code = f"import setuptools.build_meta as backend; print(backend.build_sdist({str(to)!r}))"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=source, stdout=subprocess.DEVNULL)
    [sdist] = to.glob("*.tar.gz")
    build(to, sdist)
    return to


@pytest.fixture(scope="session")
def environment(ours: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment with our wheel, which borrows the libraries of this one, but not this checkout."""
    folder = tmp_path_factory.mktemp("env")
    venv.create(folder, with_pip=False)
    [site] = folder.glob("lib/python*/site-packages")
    libraries = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    (site / "borrowed.pth").write_text("\n".join(libraries) + "\n")
    [wheel] = ours.glob("*.whl")
    install(folder, wheel)
    return folder


def install(environment: Path, *wheels: Path) -> None:
    python = environment / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--force-reinstall", *wheels], check=True)


@pytest.fixture
def command(environment: Path, tmp_path: Path) -> Callable[..., str]:
    """`mmrec-lmm ARGUMENTS` of that environment, in an empty folder; its output."""

    def command(*arguments: object, code: int = 0) -> str:
        found = subprocess.run(
            [str(environment / "bin" / "mmrec-lmm"), *map(str, arguments)], cwd=tmp_path, capture_output=True, text=True
        )
        assert found.returncode == code, found.stderr
        return found.stdout

    return command


def test_from_our_wheel_alone_a_run_on_the_demo_data_works_in_an_empty_folder(
    command: Callable[..., str], environment: Path, tmp_path: Path
) -> None:
    code = "import mmrec_lmm; print(mmrec_lmm.__file__)"
    at = subprocess.run(
        [environment / "bin" / "python", "-c", code], cwd=tmp_path, check=True, capture_output=True, text=True
    )
    assert at.stdout.startswith(str(environment))
    assert "next: mmrec-lmm recommend VBPR-demo-" in command("run", "-m", "VBPR", "-d", "demo", "--epochs=2")


def test_the_sdist_and_the_wheel_have_the_templates_and_keep_twines_rules(ours: Path) -> None:
    [wheel] = ours.glob("*.whl")
    names = {name.partition("/")[2] for name in zipfile.ZipFile(wheel).namelist()}
    for kind in KINDS:
        for file in ("plugin_name.py", "pyproject.toml", "README.md", "tests/test_plugin_name.py"):
            assert f"templates/{kind}/{file}" in names
    pytest.importorskip("twine")
    found = subprocess.run(
        [sys.executable, "-m", "twine", "check", "--strict", *ours.iterdir()], capture_output=True, text=True
    )
    assert found.returncode == 0, found.stdout


def test_generated_plugins_of_each_kind_are_installed_listed_checked_run_tested_and_removed(
    command: Callable[..., str], environment: Path, tmp_path: Path
) -> None:
    modules = [f"own{kind}" for kind in KINDS]
    for kind in KINDS:
        command("plugin", "new", kind, f"Own{kind}")
    install(environment, *build(tmp_path / "dist", *(tmp_path / module for module in modules)))
    try:
        listed = command("list", "plugins")
        assert [module for module in modules if f"{module}:{module}" not in listed] == []
        for module in modules:
            assert "0 failed" in command("plugin", "check", module)
            readme = (tmp_path / module / "README.md").read_text()
            for line in re.findall(r"^mmrec-lmm (run .*)$", readme, re.MULTILINE):
                words = [word.strip("'") for word in line.split()]
                command(*words, "--epochs=2", "--min_steps=0")
        python, tests = environment / "bin" / "python", [tmp_path / module / "tests" for module in modules]
        pytest_of_all = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--import-mode=importlib", *tests]
        found = subprocess.run(pytest_of_all, cwd=tmp_path, capture_output=True, text=True)
        assert found.returncode == 0, found.stdout
    finally:
        remove(environment, *modules)
    listed = command("list", "plugins")
    assert [module for module in modules if f"{module}:{module}" in listed] == []


def remove(environment: Path, *names: str) -> None:
    pip = [sys.executable, "-m", "pip", "--python", str(environment / "bin" / "python"), "uninstall", "--quiet", "-y"]
    subprocess.run([*pip, *names], check=True)


#: Each module that the docs print, with the commands that use it.
USES = {
    "mmrec_lmm_popular.py": ["run -m Popular -d demo"],
    "mean_color.py": ["run -m VBPR -d demo --encoder mean_color"],
    "free_features.py": ["run -m VBPR -d demo --encoder basic --paradigm free --free.learning_rate=0.1"],
    "parity.py": ["run -m BPR -d parity"],
    "whole_catalog.py": ["run -m BPR -d demo --sampler=whole_catalog"],
    "random_rows.py": ["run -m BPR -d demo --split=random_rows"],
    "arp.py": ["run -m BPR -d demo --metrics=[Recall,ARP]"],
    "f1.py": ["run -m BPR -d demo --metrics=[Recall,F1] --valid_metric=F1@10"],
    "diary.py": ["run -m BPR -d demo"],
}


def test_each_listing_of_a_plugin_has_its_use() -> None:
    assert set(USES) == set(LISTINGS) - {"pyproject.toml", "test_my_plugins.py"}


def test_the_listing_of_a_package_is_installed_as_printed_listed_checked_run_and_removed(
    command: Callable[..., str], environment: Path, tmp_path: Path
) -> None:
    module, package = "mmrec_lmm_popular", tmp_path / "package"
    package.mkdir()
    (package / f"{module}.py").write_text(LISTINGS[f"{module}.py"])
    (package / "pyproject.toml").write_text(LISTINGS["pyproject.toml"])
    [distribution] = re.findall('^name = "(.*)"', LISTINGS["pyproject.toml"], re.MULTILINE)
    install(environment, *build(tmp_path / "dist", package))
    try:
        assert f"{distribution}:popular" in command("list", "plugins")
        assert "0 failed" in command("plugin", "check", distribution)
        for use in USES[f"{module}.py"]:
            command(*use.split(), "--epochs=2", "--min_steps=0")
    finally:
        remove(environment, distribution)
    assert f"{distribution}:popular" not in command("list", "plugins")


@pytest.mark.parametrize("listing", sorted({*USES} - {"mmrec_lmm_popular.py"}))
def test_each_other_listing_is_checked_and_run_as_a_file(
    listing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(listing).write_text(LISTINGS[listing])
    checked = call("plugin", "check", listing)
    assert (checked.code, "0 failed" in checked.out) == (0, True), checked.err
    for use in USES[listing]:
        answer = call(*use.split(), "-p", listing, "--epochs=2", "--min_steps=0")
        assert answer.code == 0, answer.err

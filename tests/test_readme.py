"""The README tells the truth: its plugin runs and its links lead somewhere."""

import re
from pathlib import Path

import pytest

from mmrec_lmm.cli import main
from mmrec_lmm.plugin.registry import load_registry
from mmrec_lmm.plugin.specs import NoConfig
from mmrec_lmm.testing import check_model, check_model_learns

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    listing = re.search(r"```python\n(.*?)```", README, re.DOTALL)
    assert listing is not None
    path = tmp_path / "my_bpr.py"
    path.write_text(listing[1])
    return path


def test_the_plugin_has_twelve_lines_and_keeps_the_contract_and_learns(plugin: Path) -> None:
    assert len([line for line in plugin.read_text().splitlines() if line.strip()]) == 12
    model = load_registry([str(plugin)]).models.load("MyBPR", "cls")
    check_model(model, NoConfig())
    check_model_learns(model, NoConfig())


def test_the_plugin_runs_as_the_readme_says(plugin: Path, data_path: Path, tmp_path: Path) -> None:
    where = ["--data-path", str(data_path), "--out", str(tmp_path / "runs")]
    assert main(["run", "-p", str(plugin), "-m", "MyBPR", "-d", "toy", "--epochs=2", "--topk=[5,20]", *where]) == 0


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(((?!http)[^)#]+)", README))))
def test_each_link_leads_to_a_file(link: str) -> None:
    assert (ROOT / link).is_file()

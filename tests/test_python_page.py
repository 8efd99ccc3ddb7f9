"""docs/python.md, the README's ten lines and the notebook are run as a reader would, on a small data set named demo."""

import json
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")
NOTEBOOK = ROOT / "docs" / "quickstart.ipynb"


def listings(text: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


@pytest.fixture
def demo(data_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder whose data/demo is the toy, with users U0000 to U0011."""
    monkeypatch.chdir(data_path.parent)
    (data_path / "toy").rename(data_path / "demo")
    (data_path / "demo" / "toy.inter").rename(data_path / "demo" / "demo.inter")
    mapping = pd.DataFrame({"user_id": [f"U{user:04d}" for user in range(12)], "userID": range(12)})
    mapping.to_csv(data_path / "demo" / "u_id_mapping.csv", sep="\t", index=False)
    return data_path.parent


def test_every_listing_of_the_page_runs_and_says_what_its_comments_say(
    demo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names: dict[str, Any] = {}
    for listing in listings(PAGE):
        exec(compile(listing, "docs/python.md", "exec"), names)
    said = capsys.readouterr().out
    assert re.search(r"^<Run VBPR-demo-\w{8}: recall@20 [01]\.\d{4} on test, best epoch \d>$", said, re.MULTILINE)
    assert said.endswith("command line: unknown key epoch; did you mean epochs?\n")
    assert names["items"].shape == (16, 128)
    assert names["small"].record.seed == 1
    assert len(names["found"].runs) == 2
    assert {"vectors.safetensors", "lists.jsonl", "leaderboard.html"} < {path.name for path in demo.iterdir()}
    assert PAGE.count("```") == 2 * len(listings(PAGE))


def test_the_readmes_lines_are_ten_and_run(demo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (listing,) = (text for text in listings(README) if "from mmrec_lmm import" in text)
    assert len(listing.splitlines()) == 10
    exec(compile(listing, "README.md", "exec"), {})
    assert (demo / "epochs.csv").read_text().startswith("epoch,")
    assert (demo / "items.npy").is_file()
    assert "U0002" in capsys.readouterr().out


def test_the_notebook_is_kept_without_outputs_and_uses_the_doors_names() -> None:
    nbformat = pytest.importorskip("nbformat")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len(cells) > 5
    assert all(cell.outputs == [] and cell.execution_count is None for cell in cells)
    assert json.loads(NOTEBOOK.read_text(encoding="utf-8"))["metadata"].keys() == {"kernelspec", "language_info"}


def execute(folder: Path, cells: slice, *more: str) -> list[Any]:
    """Run some code cells of the notebook, and `more`, with a kernel in `folder`; returns the cells with outputs."""
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    notebook.cells = [cell for cell in notebook.cells if cell.cell_type == "code"][cells]
    notebook.cells += map(nbformat.v4.new_code_cell, more)
    client = nbclient.NotebookClient(notebook, timeout=540, resources={"metadata": {"path": str(folder)}})
    return client.execute().cells


def outputs(cell: Any) -> str:
    """All that a cell shows, as text."""
    return json.dumps(cell.outputs)


WITHOUT_WIDGETS = "import sys; sys.modules['ipywidgets'] = None; run('BPR', 'demo', epochs=3)"


def test_the_notebook_runs_with_a_bar_and_a_table(demo: Path) -> None:
    pytest.importorskip("ipywidgets")
    _, first, history, text, hidden = execute(
        demo, slice(0, 3), WITHOUT_WIDGETS, "run('BPR', 'demo', epochs=4, progress=False)"
    )
    assert "<table" in outputs(first)
    assert "VBPR-demo-" in outputs(first)
    assert "application/vnd.jupyter.widget-view+json" in outputs(first)
    assert "epoch/s" in outputs(first)
    assert "3/3" in outputs(text)
    assert "widget-view" not in outputs(text)
    assert "epoch/s" not in outputs(hidden)
    for cell in (first, text, hidden):
        assert "mmrec_lmm.running" not in outputs(cell), "the log stays in its file"
        assert "epoch 1 training" not in outputs(cell)
    assert "loss/bpr" in outputs(history)


@pytest.mark.slow
def test_the_whole_notebook_runs_with_a_study_of_two_processes(demo: Path) -> None:
    *_, status, table = execute(demo, slice(None))
    assert outputs(status).count("finished") >= 2
    assert "recall@20" in outputs(table)
    assert len(list((demo / "runs" / "log").glob("small-[12]-*.log"))) == 2


@pytest.mark.slow
def test_the_whole_notebook_runs_on_the_demo_data(tmp_path: Path) -> None:
    *_, table = execute(tmp_path, slice(None))
    assert "VBPR" in outputs(table)

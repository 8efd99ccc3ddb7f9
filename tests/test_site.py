"""The documentation site: it builds without a warning, has every page, and none of its links is broken."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"


@pytest.fixture(scope="module")
def links() -> ModuleType:
    """docs/site/links.py, a script."""
    spec = importlib.util.spec_from_file_location("links", DOCS / "site" / "links.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_page_is_in_the_sites_contents_once() -> None:
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    lists = re.findall(r"```\{toctree\}\n(.*?)```", index, re.DOTALL)
    listed = [line for one in lists for line in one.splitlines() if line and not line.startswith(":")]
    pages = {path.relative_to(DOCS).with_suffix("").as_posix() for path in DOCS.rglob("*.md")} - {"index"}
    pages |= {path.stem for path in DOCS.glob("*.ipynb")}
    found = [page for entry in listed for page in pages if Path(page).match(entry)]
    assert len(found) == len(set(found))
    assert set(found) == pages


def test_a_link_or_anchor_that_leads_nowhere_is_found(links: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "one.html").write_text(
        '<a id="here" href="sub/two.html#there">x</a><a href="#here">x</a><a href="https://example.org/">x</a>'
    )
    (tmp_path / "sub").mkdir()
    two = tmp_path / "sub" / "two.html"
    two.write_text('<a href="../one.html#here"></a><p id="there"></p><img src="../none.png">')
    assert links.broken(tmp_path) == (["sub/two.html: ../none.png: no such file"], 1)
    two.write_text('<a href="../one.html#her"></a>')
    assert sorted(links.broken(tmp_path)[0]) == [
        "one.html: sub/two.html#there: no such anchor",
        "sub/two.html: ../one.html#her: no such anchor",
    ]


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_has_the_reference_and_the_notebook(
    links: ModuleType, tmp_path: Path
) -> None:
    for module in ("sphinx", "furo", "myst_parser"):
        pytest.importorskip(module, reason="the extra [docs] isn't installed")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-c", DOCS / "site", DOCS, tmp_path]
    built = subprocess.run([*map(str, command)], capture_output=True, text=True, cwd=ROOT)
    assert built.returncode == 0, built.stderr
    assert links.broken(tmp_path)[0] == []
    reference = (tmp_path / "site" / "reference.html").read_text(encoding="utf-8")
    stored = (ROOT / "tests" / "public_surface.txt").read_text(encoding="utf-8")
    for name in ("mmrec_lmm.run", "mmrec_lmm.Study", "mmrec_lmm.api.ModelSpec", "mmrec_lmm.testing.check_model"):
        assert f'id="{name}"' in reference
        assert name.rpartition(".")[2] in stored or "testing" in name
    assert "from mmrec_lmm import datasets" in re.sub("<[^>]+>", "", (tmp_path / "quickstart.html").read_text())

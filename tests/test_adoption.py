"""What others adopt the project by: the citation, the container and the workflow fit what is in the repository."""

import re
from pathlib import Path

import yaml

from mmrec_lmm import __version__

ROOT = Path(__file__).resolve().parents[1]


def test_the_citation_has_the_version_and_the_paper_of_the_readme() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == __version__
    assert {"cff-version", "message", "title", "authors", "license", "type", "abstract", "keywords"} <= citation.keys()
    [paper] = citation["references"]
    assert paper["url"] in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_workflow_calls_targets_that_exist_and_all_that_contributing_asks_for() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
    steps = workflow["jobs"]["checks"]["steps"]
    called = {step["run"].removeprefix("make ") for step in steps if "run" in step}
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert called <= targets
    assert called >= {"lint", "types", "test", "test-slow", "docs"}


def test_the_container_installs_extras_that_exist_on_a_python_that_is_supported() -> None:
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    config = (ROOT / "setup.cfg").read_text(encoding="utf-8")
    [extra] = re.findall(r"^ARG EXTRAS=(\w+)$", text, re.MULTILINE)
    assert re.search(rf"^{extra} =", config, re.MULTILINE)
    [minor] = re.findall(r"^FROM python:3\.(\d+)-slim$", text, re.MULTILINE)
    [least] = re.findall(r"^python_requires = >=3\.(\d+)$", config, re.MULTILINE)
    assert int(minor) >= int(least)


def test_what_could_not_be_run_says_so() -> None:
    for name in ("Dockerfile", ".github/workflows/ci.yml"):
        assert "UNTESTED" in (ROOT / name).read_text(encoding="utf-8").partition("\n\n")[0]

"""The conformance kit on all that this plugin registers, and what is its own."""

import json

import pytest
from plugin_name import mmrec_run_finished

from mmrec_lmm.api import NotApplicable, RunResult
from mmrec_lmm.testing.conformance import Check, checks_of


@pytest.mark.parametrize("check", checks_of(["plugin_name"]), ids=str)
def test_it_keeps_the_contract(check: Check, monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("MMREC_LMM_HOME", str(tmp_path))
    try:
        check()
    except NotApplicable as reason:
        pytest.skip(str(reason))


def test_a_finished_run_is_a_line(tmp_path) -> None:
    result = RunResult("BPR-demo-1", tmp_path / "BPR-demo-1", {}, {}, {"recall@20": 0.5}, 3, 5, "patience")
    mmrec_run_finished(None, result)
    assert json.loads((tmp_path / "plugin_name.jsonl").read_text()) == {"run": "BPR-demo-1", "test": {"recall@20": 0.5}}

"""The conformance kit on all that this plugin registers, and what is its own."""

from types import SimpleNamespace

import pytest
from plugin_name import PluginName, PluginNameConfig

from mmrec_lmm.api import NotApplicable
from mmrec_lmm.plugin.registry import load_registry
from mmrec_lmm.testing.conformance import Check, checks_of


@pytest.mark.parametrize("check", checks_of(["plugin_name"]), ids=str)
def test_it_keeps_the_contract(check: Check, monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("MMREC_LMM_HOME", str(tmp_path))
    try:
        check()
    except NotApplicable as reason:
        pytest.skip(str(reason))


def test_the_model_of_a_run_needs_features() -> None:
    run = SimpleNamespace(model="BPR")
    with pytest.raises(NotApplicable, match="expected a model with item features, got BPR"):
        PluginName(PluginNameConfig()).check(run, load_registry())

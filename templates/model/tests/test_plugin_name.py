"""The conformance kit on all that this plugin registers, and what is its own."""

import pytest
from plugin_name import PluginName, PluginNameConfig

from mmrec_lmm.api import NotApplicable
from mmrec_lmm.testing import check_config, check_model_learns
from mmrec_lmm.testing.conformance import Check, checks_of


@pytest.mark.parametrize("check", checks_of(["plugin_name"]), ids=str)
def test_it_keeps_the_contract(check: Check, monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("MMREC_LMM_HOME", str(tmp_path))
    try:
        check()
    except NotApplicable as reason:
        pytest.skip(str(reason))


def test_it_finds_the_one_right_item_of_each_user() -> None:
    check_model_learns(PluginName, PluginNameConfig())


def test_each_number_of_its_configuration_has_a_limit() -> None:
    check_config(PluginNameConfig)

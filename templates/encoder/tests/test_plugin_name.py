"""The conformance kit on all that this plugin registers, and what is its own."""

import pytest
from PIL import Image
from plugin_name import PluginName, PluginNameConfig

from mmrec_lmm.api import NotApplicable, RawItem
from mmrec_lmm.testing import check_config
from mmrec_lmm.testing.conformance import Check, checks_of


@pytest.mark.parametrize("check", checks_of(["plugin_name"]), ids=str)
def test_it_keeps_the_contract(check: Check, monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("MMREC_LMM_HOME", str(tmp_path))
    try:
        check()
    except NotApplicable as reason:
        pytest.skip(str(reason))


def test_a_red_image_is_red_in_every_tile() -> None:
    encoder = PluginName(PluginNameConfig(tiles=2), ("image",))
    prepared = encoder.prepare(RawItem(0, Image.new("RGB", (8, 8), "red"), ""))
    assert prepared["image"].tolist() == [1, 0, 0] * 4


def test_each_number_of_its_configuration_has_a_limit() -> None:
    check_config(PluginNameConfig)

"""The conformance kit on all that this plugin registers, and what is its own."""

import numpy as np
import pytest
import torch
from plugin_name import PluginName, PluginNameConfig

from mmrec_lmm.api import Interactions, NotApplicable, TrainingData
from mmrec_lmm.testing import check_config
from mmrec_lmm.testing.conformance import Check, checks_of


@pytest.mark.parametrize("check", checks_of(["plugin_name"]), ids=str)
def test_it_keeps_the_contract(check: Check, monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("MMREC_LMM_HOME", str(tmp_path))
    try:
        check()
    except NotApplicable as reason:
        pytest.skip(str(reason))


def test_each_number_of_its_configuration_has_a_limit() -> None:
    check_config(PluginNameConfig)


@pytest.mark.parametrize(("share", "shares"), [(1.0, [3 / 4, 1 / 4, 0]), (0.0, [1 / 3, 1 / 3, 1 / 3])])
def test_it_draws_by_popularity_and_from_all_items(share: float, shares: list[float]) -> None:
    data = TrainingData(4, 3, Interactions(np.array([0, 1, 2, 3]), np.array([0, 0, 0, 1])))
    users = torch.zeros(20_000, dtype=torch.int64)
    items = PluginName(data, PluginNameConfig(share)).draw(users, torch.Generator().manual_seed(0))
    np.testing.assert_allclose(np.bincount(items, minlength=3) / len(items), shares, atol=0.02)

"""The conformance kit on all that this plugin registers, and what is its own."""

import numpy as np
import pytest
from plugin_name import plugin_name

from mmrec_lmm.api import NotApplicable
from mmrec_lmm.testing.conformance import Check, checks_of


@pytest.mark.parametrize("check", checks_of(["plugin_name"]), ids=str)
def test_it_keeps_the_contract(check: Check, monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("MMREC_LMM_HOME", str(tmp_path))
    try:
        check()
    except NotApplicable as reason:
        pytest.skip(str(reason))


def test_it_is_the_harmonic_mean_of_precision_and_recall() -> None:
    precision, recall = 1 / 2, 1 / 3  # one hit among the first two, of three held-out items
    found = plugin_name(np.array([[True, False, True]]), np.array([3]), 2)
    assert found == pytest.approx([2 * precision * recall / (precision + recall)])

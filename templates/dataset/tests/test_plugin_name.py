"""The conformance kit on all that this plugin registers, and what is its own."""

import pytest
from plugin_name import make

from mmrec_lmm.api import NotApplicable
from mmrec_lmm.testing.conformance import Check, checks_of


@pytest.mark.parametrize("check", checks_of(["plugin_name"]), ids=str)
def test_it_keeps_the_contract(check: Check, monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("MMREC_LMM_HOME", str(tmp_path))
    try:
        check()
    except NotApplicable as reason:
        pytest.skip(str(reason))


def test_every_user_has_ten_rows(tmp_path) -> None:
    make(tmp_path / "plugin_name")
    lines = (tmp_path / "plugin_name" / "plugin_name.inter").read_text().splitlines()
    assert len(lines) == 1 + 20 * 10

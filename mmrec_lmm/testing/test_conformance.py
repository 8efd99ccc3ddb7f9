"""The conformance kit as tests; options.py says how to run them."""

import pytest

from ..errors import NotApplicable
from .conformance import Check, own_home


def test_conformance(check: Check) -> None:
    try:
        with own_home():
            check()
    except NotApplicable as reason:
        pytest.skip(str(reason))

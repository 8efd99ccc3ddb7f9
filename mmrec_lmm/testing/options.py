"""The conformance kit as pytest's tests, `pytest -p mmrec_lmm.testing.options --pyargs mmrec_lmm.testing --model NAME`:
its options, which say whose checks are the tests."""

import pytest

from .conformance import KINDS, checks_of


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("mmrec-lmm", "the conformance kit of mmrec-lmm")
    group.addoption("--plugin", action="append", default=[], metavar="FILE", help="check all that a plugin registers")
    for kind in KINDS:
        group.addoption(f"--{kind}", action="append", default=[], metavar="NAME", help=f"check the {kind} of that name")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if metafunc.function.__module__ != f"{__package__}.test_conformance":
        return
    options = metafunc.config.option
    chosen = {kind: getattr(options, kind) for kind in KINDS if getattr(options, kind)}
    if not options.plugin and not chosen:
        raise pytest.UsageError("expected --plugin FILE, --model NAME or another kind's name, got none of these")
    metafunc.parametrize("check", checks_of(options.plugin, only=chosen), ids=str)

"""The crash harness on a sample of its points; `python -m tests.crash` tries all of them."""

import os
import subprocess
import sys

import pytest
from conftest import ROOT


@pytest.mark.slow
def test_a_command_killed_at_any_call_and_given_again_ends_as_an_undisturbed_one() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "tests.crash", "--sample=6", "--signals=1", f"--seed={os.environ.get('CRASH_SEED', 0)}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr

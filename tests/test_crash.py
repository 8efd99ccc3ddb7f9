"""The crash harness: that it sees what it looks for, and a sample of its points; `python -m tests.crash` tries all."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from tests.crash.comparing import FOLDER, snapshot

# A process that makes two files; argv: the moment to end at, and the number of the rename.
WRITER = """
import sys
from pathlib import Path
from mmrec_lmm.cache import write_bytes
from tests.crash.watching import Point, Watch
folder = Path(sys.argv[1])
write = lambda: [write_bytes(folder / f"{name}.txt", b"content") for name in "ab"]
seen = Watch(folder)
seen.start()
write()
point = next(point for point in seen.points() if (point.call.event, point.when) == ("os.rename", sys.argv[2]))
for path in folder.iterdir():
    path.unlink()
Watch(folder, point).start()
write()
"""


@pytest.mark.parametrize(("when", "left"), [("before", [b"content"]), ("half", [b"con"]), ("after", [b"content"])])
def test_a_process_ends_before_a_rename_after_it_or_with_half_a_file(tmp_path: Path, when: str, left: list) -> None:
    ended = subprocess.run([sys.executable, "-c", WRITER, tmp_path, when], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert [path.read_bytes() for path in tmp_path.iterdir()] == left
    assert (tmp_path / "a.txt").exists() == (when == "after")


def test_a_snapshot_sees_each_change_but_those_of_seconds(tmp_path: Path) -> None:
    result = tmp_path / "result.json"
    result.write_text('{"seconds": {"load": 1.5}, "finished": "2024", "best_epoch": 3}')
    (tmp_path / "empty").mkdir()
    before = snapshot(tmp_path)
    assert before.keys() == {"result.json", "empty"}
    assert before["empty"] == FOLDER
    result.write_text('{"seconds": {"load": 0.25}, "finished": "2025", "best_epoch": 3}')
    assert snapshot(tmp_path) == before
    result.write_text('{"seconds": {"load": 0.25}, "finished": "2025", "best_epoch": 4}')
    assert snapshot(tmp_path) != before


@pytest.mark.slow
def test_a_command_killed_at_some_calls_and_given_again_ends_as_an_undisturbed_one() -> None:
    command = [sys.executable, "-m", "tests.crash", "--sample=3", "--signals=1"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr

"""Where results are written to: files, links, pipes, devices, streams; and what can't be written to."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from helpers import call

from mmrec_lmm.disk.writing import write_output
from mmrec_lmm.errors import RunError

PAPER = ("paper", "--table", "3", "--format", "csv")
MAIN = "import sys; from mmrec_lmm.cli import main; sys.exit(main(sys.argv[1:]))"


def test_a_link_is_followed_and_stays(tmp_path: Path) -> None:
    target, link = tmp_path / "target.csv", tmp_path / "link.csv"
    for made in (True, False):
        if made:
            target.touch()
        else:
            target.unlink()  # the link leads nowhere
        link.unlink(missing_ok=True)
        link.symlink_to(target.name)
        write_output(link, b"content")
        assert link.is_symlink()
        assert target.read_bytes() == b"content"
        assert len(list(tmp_path.iterdir())) == 2


def test_a_pipe_is_written_into_and_stays(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()), daemon=True)
    reader.start()
    assert call(*PAPER, "-o", pipe).code == 0
    reader.join(30)
    assert pipe.is_fifo()
    assert read[0].decode() == call(*PAPER).out


def test_a_device_is_written_into_and_stays(tmp_path: Path) -> None:
    link = tmp_path / "full"
    link.symlink_to("/dev/full")
    told = call(*PAPER, "-o", link)
    assert told.code == 1
    assert "No space left on device" in told.err
    assert "Traceback" not in told.err
    assert link.is_symlink()
    assert Path("/dev/full").is_char_device()


def test_what_is_no_place_for_a_file_is_called_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder.csv").mkdir()
    Path("file").touch()
    for place, said in (
        ("folder.csv", "folder.csv: expected the name of a file to write, got a folder; try another"),
        ("", ".: expected the name of a file to write, got a folder; try another"),
        ("file/x.csv", "file: expected a folder, got a file there; try another name"),
        (300 * "a", f"{300 * 'a'}: File name too long"),
    ):
        told = call(*PAPER, "-o", place)
        assert told.code == 1, place
        assert said in told.err
        assert ".tmp" not in told.err
    with pytest.raises(RunError, match="got a folder"):
        write_output(tmp_path, b"")


@pytest.mark.parametrize("command", [("list", "models"), PAPER])
@pytest.mark.parametrize("stream", ["/dev/full", "closed"])
def test_a_stream_that_takes_nothing_ends_in_one_line(command: tuple[str, ...], stream: str) -> None:
    call_it = [sys.executable, "-c", MAIN, *command]
    if stream == "closed":
        done = subprocess.run(["sh", "-c", 'exec "$@" >&-', "sh", *call_it], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
    else:
        with open(stream, "w") as full:
            done = subprocess.run(call_it, stdout=full, stderr=subprocess.PIPE, text=True)
        assert done.returncode == 1
        assert done.stderr == "error: the output can't be written: No space left on device\n"

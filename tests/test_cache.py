"""The content-addressed store: names that follow content, files that appear whole or not at all."""

import errno
import os
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmrec_lmm import cache
from mmrec_lmm.disk import faults, hashing, locks, reading, writing
from mmrec_lmm.errors import DataError, NoAccess, RunError


@dataclass(frozen=True)
class Config:
    width: int = 64
    rate: float = 0.1


def test_home_is_the_folder_that_the_environment_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MMREC_LMM_HOME", str(tmp_path))
    assert cache.home() == tmp_path
    monkeypatch.delenv("MMREC_LMM_HOME")
    assert cache.home().name == "mmrec-lmm"


# Fingerprints


@given(st.dictionaries(st.text(), st.integers() | st.text() | st.lists(st.floats(allow_nan=False)), max_size=4))
def test_a_fingerprint_does_not_depend_on_the_order_of_keys(content: dict[str, object]) -> None:
    assert cache.fingerprint(content) == cache.fingerprint(dict(reversed(content.items())))


def test_a_fingerprint_does_not_depend_on_the_container() -> None:
    assert cache.fingerprint((1, 2)) == cache.fingerprint([1, 2])
    assert cache.fingerprint({"b", "a"}) == cache.fingerprint({"a", "b"})
    assert cache.fingerprint(Config()) == cache.fingerprint({"width": 64, "rate": 0.1})
    assert cache.fingerprint(np.float64(0.5)) == cache.fingerprint(0.5)
    assert cache.fingerprint(Path("a/b")) == cache.fingerprint("a/b")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Config(), Config(rate=0.2)),
        ([1, 2], [2, 1]),
        (1, 1.0),
        (1, True),
        (None, ""),
        (np.arange(3), np.arange(3.0)),
        (np.arange(4), np.arange(4).reshape(2, 2)),
        (np.arange(4).reshape(2, 2), np.arange(4).reshape(2, 2).T),
        (np.array([0.0]), np.array([1e-300])),
    ],
)
def test_a_fingerprint_tells_values_types_order_and_arrays_apart(one: object, other: object) -> None:
    assert cache.fingerprint(one) != cache.fingerprint(other)


def test_an_arrays_layout_in_memory_is_no_content() -> None:
    rows = np.arange(6).reshape(2, 3)
    assert cache.fingerprint(rows) == cache.fingerprint(np.asfortranarray(rows))


def test_a_fingerprint_is_the_same_in_every_process() -> None:
    assert cache.fingerprint({"a": [1, None, "é"]}) == "0c9a0c0f5073bac54b0409dead1f054c"


# Hashes of files


def test_a_files_hash_is_its_sha256_and_follows_its_content(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    assert hashing.hash_file(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    path.write_bytes(b"abcd")
    assert hashing.hash_file(path) == hashing.hash_bytes(b"abcd")


def test_a_file_that_did_not_change_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    monkeypatch.setattr(hashing, "SETTLED", 0)
    first = hashing.hash_file(path)
    monkeypatch.setattr(hashing, "read_hash", lambda path: pytest.fail(f"{path} was read again"))
    assert hashing.hash_file(path) == first


@pytest.mark.parametrize("way", ["in place", "by another file"])
def test_a_file_of_equal_size_and_time_is_another_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    monkeypatch.setattr(hashing, "SETTLED", 0, raising=False)
    path, new = tmp_path / "file", tmp_path / "new"
    path.write_bytes(b"abc")
    time.sleep(0.02)  # more than a tick of the file system's clock
    before = path.stat()
    assert hashing.hash_file(path) == hashing.hash_file(path) == hashing.hash_bytes(b"abc")
    (path if way == "in place" else new).write_bytes(b"xyz")
    if way == "by another file":
        new.replace(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    assert hashing.hash_file(path) == hashing.hash_files([path]) == hashing.hash_bytes(b"xyz")
    assert hashing.hash_readable([path]) == [hashing.hash_bytes(b"xyz")]


def test_a_file_that_changed_a_moment_ago_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    hashing.hash_file(path)
    assert not (cache.home() / "file-hashes").exists()


@pytest.mark.parametrize("content", [b"", b"abc", b"\xff\xfe", 63 * b"0", 64 * b"G", 64 * b"0" + b"\n" + 64 * b"0"])
def test_a_damaged_memory_of_hashes_is_not_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    monkeypatch.setattr(hashing, "SETTLED", 0, raising=False)
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    time.sleep(0.02)
    hashing.hash_file(path)
    [memo] = (cache.home() / "file-hashes").iterdir()
    memo.write_bytes(content)
    assert hashing.hash_file(path) == hashing.hash_bytes(b"abc")
    assert memo.read_text() == hashing.hash_bytes(b"abc")


def test_what_is_loaded_must_be_what_was_hashed(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"abc")
    hashing.hash_file(path)
    with hashing.hashed_anew():
        assert hashing.hash_file(path) == hashing.hash_bytes(b"abc")
    path.write_bytes(b"xyz")
    with pytest.raises(DataError, match=r"weights: expected .* it changed after it was hashed"), hashing.hashed_anew():
        hashing.hash_file(path)
    hashing.hash_file(path)
    with pytest.raises(DataError, match=r"it changed while it was loaded; start again"), hashing.hashed_anew():
        path.write_bytes(bytes.fromhex(hashing.hash_file(path)))
    with pytest.raises(DataError, match=r"it changed while it was read; start again"), hashing.unchanged(path):
        path.write_bytes(b"abcd")


@pytest.mark.parametrize("number", [errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE])
def test_an_error_of_the_machine_is_not_taken_for_a_missing_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    path = tmp_path / "image"
    path.write_bytes(b"abc")

    def fail(path: Path) -> str:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(hashing, "read_hash", fail)
    with pytest.raises(RunError, match=f"image: can't be read by this machine: {os.strerror(number)}"):
        hashing.hash_readable([path])


def test_a_hash_of_several_files_follows_their_order(tmp_path: Path) -> None:
    one, two = tmp_path / "1", tmp_path / "2"
    one.write_bytes(b"1")
    two.write_bytes(b"2")
    assert hashing.hash_files([one, two]) != hashing.hash_files([two, one])
    assert hashing.hash_files([one]) == hashing.hash_file(one)


def test_what_cannot_be_read_has_no_hash_and_the_others_have_theirs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, broken, folder = tmp_path / "good", tmp_path / "broken", tmp_path / "folder"
    good.write_bytes(b"1")
    broken.write_bytes(b"2")
    folder.mkdir()
    paths = [None, folder, broken, tmp_path / "gone", good, tmp_path / ("x" * 300), good]
    one, two = hashing.hash_bytes(b"1"), hashing.hash_bytes(b"2")

    def read_hash(path: Path) -> str:
        if path == broken:
            raise PermissionError(errno.EACCES, "no permission")
        return hashing.hash_bytes(path.read_bytes())

    with monkeypatch.context() as patch:
        patch.setattr(hashing, "read_hash", read_hash)
        assert hashing.hash_readable(paths) == [None, None, None, None, one, None, one]
    assert hashing.hash_readable(paths) == [None, None, two, None, one, None, one], "no lack of permission is kept"


def test_files_that_are_known_are_not_opened_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashing, "SETTLED", 0)
    paths = [tmp_path / str(number) for number in range(3)]
    for path in paths:
        path.write_bytes(path.name.encode())
    hashes = hashing.hash_readable(paths)
    monkeypatch.setattr(hashing, "read_hash", lambda path: pytest.fail(f"{path} was read again"))
    assert hashing.hash_readable(paths) == hashes == [hashing.hash_bytes(path.name.encode()) for path in paths]
    assert hashing.hash_files(paths) == hashing.hash_bytes("".join(map(str, hashes)).encode())


def test_a_cache_that_cannot_be_written_costs_no_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashing, "SETTLED", 0)
    (tmp_path / "home").write_text("a file where a folder should be")
    monkeypatch.setenv("MMREC_LMM_HOME", str(tmp_path / "home"))
    (tmp_path / "file").write_bytes(b"abc")
    assert hashing.hash_file(tmp_path / "file") == hashing.hash_bytes(b"abc")


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.ENOSPC])
def test_a_system_that_refuses_to_keep_a_hash_costs_no_hash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(hashing, "SETTLED", 0)
    (tmp_path / "file").write_bytes(b"abc")
    refused: list[object] = []

    def refuse(*paths: object) -> None:
        refused.append(paths)
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "replace", refuse)
    assert hashing.hash_file(tmp_path / "file") == hashing.hash_bytes(b"abc")
    assert refused


# Writing


def test_a_file_is_written_whole_in_a_folder_made_for_it(tmp_path: Path) -> None:
    path = writing.write_bytes(tmp_path / "deep" / "file", b"new")
    assert path.read_bytes() == b"new"
    assert os.listdir(path.parent) == ["file"]


def half_written(error: BaseException) -> Callable[[Path], None]:
    def write(temporary: Path) -> None:
        temporary.write_bytes(b"half")
        raise error

    return write


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), OSError(errno.EIO, "broken")])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path, error: BaseException) -> None:
    path = writing.write_bytes(tmp_path / "file", b"old")
    with pytest.raises(type(error)):
        writing.write_atomic(path, half_written(error))
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)),
        RuntimeError('I/O error: Os { code: 28, message: "No space left on device" }'),  # as safetensors says it
    ],
)
def test_a_full_disk_is_a_run_error_that_names_the_file_and_loses_nothing(tmp_path: Path, error: Exception) -> None:
    path = writing.write_bytes(tmp_path / "file", b"old")
    with pytest.raises(RunError) as caught:
        writing.write_atomic(path, half_written(error))
    assert str(caught.value) == f"{path}: no space left on the disk; nothing was lost: free some and start again"
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_disk_that_is_really_full_is_recognized() -> None:
    with pytest.raises(OSError, match="No space left") as caught, Path("/dev/full").open("wb", buffering=0) as file:
        file.write(b"x")
    assert faults.is_disk_full(caught.value)
    assert not faults.is_disk_full(OSError(errno.EACCES, "denied"))


def test_json_comes_back_as_it_was_written(tmp_path: Path) -> None:
    path = writing.write_json(tmp_path / "file.json", {"config": Config(), "path": Path("a"), "n": np.int64(3)})
    assert reading.read_json(path) == {"config": {"width": 64, "rate": 0.1}, "path": "a", "n": 3}


def test_damaged_json_is_named_with_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    path.write_text('{"a": ')
    with pytest.raises(DataError) as caught:
        reading.read_json(path)
    assert str(caught.value).startswith(f"{path}: expected JSON, got a damaged file (")
    assert str(caught.value).endswith("); delete it to make it again")


MAKE_ONCE = """
import sys, time
from pathlib import Path
from mmrec_lmm.disk.locks import locked
from mmrec_lmm.disk.writing import write_bytes
path, log = Path(sys.argv[1]), Path(sys.argv[2])
with locked(path):
    if not path.exists():
        with log.open("a") as file:
            file.write("made\\n")
        time.sleep(0.3)  # long enough for the other to arrive
        write_bytes(path, b"artifact")
"""


def test_two_processes_that_want_one_artifact_make_it_once(tmp_path: Path) -> None:
    path, log = tmp_path / "artifact", tmp_path / "log"
    makers = [subprocess.Popen([sys.executable, "-c", MAKE_ONCE, str(path), str(log)]) for _ in range(2)]
    assert [maker.wait(60) for maker in makers] == [0, 0]
    assert path.read_bytes() == b"artifact"
    assert log.read_text() == "made\n"


# Locks


def test_a_lock_that_another_holds_is_refused_without_waiting_and_leaves_no_file(tmp_path: Path) -> None:
    lock = tmp_path / "folder" / ".lock"
    with locks.holding(lock):
        with pytest.raises(BlockingIOError), locks.holding(lock, wait=False):
            pass
        assert lock.exists()
    assert not lock.exists()
    with locks.holding(lock, wait=False):
        pass


def test_many_that_wait_for_a_lock_hold_it_one_after_the_other_though_each_deletes_its_file(tmp_path: Path) -> None:
    inside: list[int] = []

    def enter(number: int) -> int:
        with locks.locked(tmp_path / "made"):
            inside.append(number)
            time.sleep(0.002)
            alone = inside == [number]
            inside.remove(number)
            return alone

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(enter, range(64)))
    assert not list(tmp_path.iterdir())


def test_a_lock_file_that_can_only_be_read_serves_and_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock, opened = tmp_path / ".lock", os.open

    def refuse(path: Path, flags: int, *mode: int) -> int:
        if flags & os.O_RDWR:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return opened(path, flags, *mode)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(NoAccess, match=r"\.lock: permission denied; ask its owner"), locks.holding(lock):
        pass
    lock.touch()
    with locks.holding(lock), pytest.raises(BlockingIOError), locks.holding(lock, wait=False):
        pass


@pytest.mark.parametrize("mask", [0o022, 0o002, 0o077], ids=oct)
def test_a_file_has_the_permissions_of_any_new_one_whatever_wrote_it(mask: int, tmp_path: Path) -> None:
    def private(path: Path) -> None:
        path.unlink(missing_ok=True)
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))

    before = os.umask(mask)
    try:
        made = writing.write_atomic(tmp_path / "new" / "file", private)
    finally:
        os.umask(before)
    assert stat.S_IMODE(made.stat().st_mode) == 0o666 & ~mask
    assert stat.S_IMODE(made.parent.stat().st_mode) == 0o777 & ~mask


def test_a_pipe_has_no_hash_and_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="pipe: expected a file, got a pipe"):
        hashing.hash_file(tmp_path / "pipe")

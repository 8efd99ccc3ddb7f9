"""Where pretrained files are found, and how they are brought from a server that does what servers do."""

import hashlib
import logging
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from mmrec_lmm.cache import home
from mmrec_lmm.downloads import fetching
from mmrec_lmm.downloads.fetching import offline
from mmrec_lmm.errors import DataError, WeightsMissing
from mmrec_lmm.plugin.specs import WeightFile
from mmrec_lmm.weights.download import find_weights, present

CONTENT = save({"weight": np.arange(25_600, dtype=np.float32)})  # some 102,400 bytes
OTHER = save({"weight": np.arange(25_600, dtype=np.float32)[::-1].copy()})
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@dataclass
class Server:
    """A server of one file on this machine, and what was asked of it."""

    port: int = 0
    content: bytes = CONTENT
    kind: str = "application/octet-stream"
    resumes: bool = True
    tag: str = '"one"'
    cuts: list[int] = field(default_factory=list)  # the bytes after which the first answers end
    statuses: list[int] = field(default_factory=list)  # of the next answers, which are errors
    ranges: list[str | None] = field(default_factory=list)  # asked for, one per request
    served: int = 0  # bytes

    def file(self, sha256: str | None = None, name: str = "model.pt") -> WeightFile:
        return WeightFile(name, f"http://127.0.0.1:{self.port}/{name}", sha256)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    world = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = self.headers.get("Range")
            world.ranges.append(asked)
            if world.statuses and not world.cuts:
                self.send_error(world.statuses.pop(0))
                return
            same = self.headers.get("If-Range", world.tag) == world.tag
            start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and world.resumes and same else 0
            if start and start >= len(world.content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(world.content)}")
                self.end_headers()
                return
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(world.content) - 1}/{len(world.content)}")
            self.send_header("Content-Type", world.kind)
            self.send_header("Content-Length", str(len(world.content) - start))
            self.send_header("ETag", world.tag)
            self.end_headers()
            body = world.content[start:]
            if world.cuts:
                body = body[: world.cuts.pop(0)]
            world.served += len(body)
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    world.port = httpd.server_port
    threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    monkeypatch.setattr(fetching, "PAUSES", (0.0, 0.0))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    for name in ("MMREC_LMM_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    yield world
    httpd.shutdown()
    httpd.server_close()


def folder() -> Path:
    return home() / "weights" / "toy"


def names() -> set[str]:
    """What stands in the encoder's folder, without the lock."""
    return {path.name for path in folder().iterdir()} - {"model.pt.lock"}


def test_a_file_is_downloaded_once_to_the_encoders_folder(server: Server) -> None:
    path = find_weights(server.file(SHA256), encoder="toy")
    assert path == folder() / "model.pt"
    assert path.read_bytes() == CONTENT
    assert names() == {"model.pt"}
    assert find_weights(server.file(SHA256), encoder="toy") == path
    assert server.ranges == [None]


def test_a_given_file_or_folder_comes_before_the_cache_and_the_network(server: Server, tmp_path: Path) -> None:
    mine = tmp_path / "mine.bin"
    mine.write_bytes(b"mine")
    (tmp_path / "model.pt").write_bytes(b"also mine")
    find_weights(server.file(), encoder="toy")
    assert find_weights(server.file(), encoder="toy", given=mine) == mine
    assert find_weights(server.file(), encoder="toy", given=str(tmp_path)) == tmp_path / "model.pt"
    assert len(server.ranges) == 1


def test_what_a_given_folder_lacks_is_taken_from_the_cache(server: Server, tmp_path: Path) -> None:
    path = find_weights(server.file(), encoder="toy", given=tmp_path)
    assert path == find_weights(server.file(), encoder="toy", given=tmp_path) == folder() / "model.pt"


def test_a_given_path_that_does_not_exist_is_missing_and_nothing_is_downloaded(server: Server, tmp_path: Path) -> None:
    with pytest.raises(WeightsMissing, match=r"no/such\.pt: no such file or folder; download http"):
        find_weights(server.file(), encoder="toy", given=tmp_path / "no" / "such.pt")
    assert not server.ranges


def test_present_says_where_a_file_is_and_asks_no_server(server: Server, tmp_path: Path) -> None:
    assert present(server.file(), encoder="toy") is None
    assert present(server.file(), encoder="toy", given=tmp_path) is None
    (tmp_path / "model.pt").write_bytes(b"")
    assert present(server.file(), encoder="toy", given=tmp_path) == tmp_path / "model.pt"
    folder().mkdir(parents=True)
    (folder() / "model.pt").write_bytes(b"")
    assert present(server.file(), encoder="toy") == folder() / "model.pt"
    assert not server.ranges


def test_a_cut_connection_is_continued_where_it_ended(server: Server) -> None:
    server.cuts = [10_000, 20_000]
    assert find_weights(server.file(SHA256), encoder="toy").read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=10000-", "bytes=30000-"]
    assert server.served == len(CONTENT)  # no byte twice


def test_a_later_start_continues_what_an_earlier_one_left(server: Server) -> None:
    server.cuts, server.statuses = [10_000], [404]
    with pytest.raises(WeightsMissing):
        find_weights(server.file(SHA256), encoder="toy")
    assert find_weights(server.file(SHA256), encoder="toy").read_bytes() == CONTENT
    assert server.served == len(CONTENT)


def test_two_versions_of_a_file_are_never_mixed(server: Server) -> None:
    server.cuts, server.statuses = [10_000], [404]
    with pytest.raises(WeightsMissing):
        find_weights(server.file(), encoder="toy")
    server.content, server.tag = OTHER, '"two"'
    assert find_weights(server.file(), encoder="toy").read_bytes() == OTHER


def test_a_part_that_is_complete_already_is_used(server: Server) -> None:
    folder().mkdir(parents=True)
    (folder() / "model.pt.part").write_bytes(CONTENT)
    assert find_weights(server.file(SHA256), encoder="toy").read_bytes() == CONTENT
    assert server.served == 0


def test_a_part_longer_than_the_servers_file_is_dropped(server: Server) -> None:
    folder().mkdir(parents=True)
    (folder() / "model.pt.part").write_bytes(CONTENT + b"more")
    assert find_weights(server.file(SHA256), encoder="toy").read_bytes() == CONTENT


def test_a_server_that_cannot_continue_sends_all_of_it_again(server: Server) -> None:
    server.resumes, server.cuts = False, [10_000]
    assert find_weights(server.file(SHA256), encoder="toy").read_bytes() == CONTENT
    assert server.served == len(CONTENT) + 10_000


def test_a_server_in_trouble_is_asked_again_but_not_for_ever(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    server.statuses = [503, 429]
    assert find_weights(server.file(SHA256), encoder="toy").read_bytes() == CONTENT
    assert "Service Unavailable; trying again" in caplog.text
    (folder() / "model.pt").unlink()
    server.statuses = [503] * 9
    with pytest.raises(WeightsMissing, match="503"):
        find_weights(server.file(SHA256), encoder="toy")
    assert len(server.statuses) == 6


def test_a_file_that_is_not_there_is_asked_for_once_and_the_message_says_what_to_do(server: Server) -> None:
    server.statuses = [404]
    with pytest.raises(WeightsMissing) as missing:
        find_weights(server.file(), encoder="toy")
    text = str(missing.value)
    assert "toy: model.pt isn't here" in text
    assert "404" in text
    assert f"download http://127.0.0.1:{server.port}/model.pt to {folder() / 'model.pt'}" in text
    assert "--weights PATH" in text
    assert len(server.ranges) == 1


def test_without_a_network_the_answer_is_the_same_and_comes_at_once(server: Server) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        nowhere = WeightFile("model.pt", f"http://127.0.0.1:{closed.getsockname()[1]}/model.pt")
    with pytest.raises(WeightsMissing, match=r"couldn't be downloaded \(.*refused\); download http"):
        find_weights(nowhere, encoder="toy")
    with pytest.raises(WeightsMissing, match="unknown url type"):
        find_weights(WeightFile("model.pt", ""), encoder="toy")


@pytest.mark.parametrize("name", ["MMREC_LMM_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline_nothing_is_asked_of_a_server(server: Server, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "1")
    with pytest.raises(WeightsMissing, match=f"model.pt isn't here and {name} is set; download http"):
        find_weights(server.file(), encoder="toy")
    assert not server.ranges
    monkeypatch.setenv(name, "0")
    assert find_weights(server.file(), encoder="toy")


@pytest.mark.parametrize(
    ("value", "forbids"),
    [("1", True), ("true", True), ("Yes", True), ("ON", True), ("0", False), ("false", False), ("no", False),
     ("off", False), ("", False)],
)  # fmt: skip
def test_offline_is_what_says_yes(value: str, forbids: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("MMREC_LMM_OFFLINE", value)
    assert offline() == ("MMREC_LMM_OFFLINE" if forbids else None)


def test_a_web_page_in_place_of_the_file_is_refused_and_not_kept(server: Server) -> None:
    server.kind, server.content = "text/html; charset=utf-8", b"<html>log in</html>"
    with pytest.raises(WeightsMissing, match="web page instead"):
        find_weights(server.file(), encoder="toy")
    assert not names()


def test_a_download_with_another_hash_than_published_is_not_kept(server: Server) -> None:
    server.content = b"tampered"
    with pytest.raises(DataError) as refused:
        find_weights(server.file(SHA256), encoder="toy")
    assert hashlib.sha256(b"tampered").hexdigest() in str(refused.value)
    assert f"expected sha256 {SHA256} (as published), got " in str(refused.value)
    assert not names()


def test_the_published_hash_is_enforced_for_cached_and_for_given_files(server: Server, tmp_path: Path) -> None:
    cached = find_weights(server.file(SHA256), encoder="toy")
    for path, given, remedy in ((cached, None, "delete it"), (tmp_path / "own.pt", tmp_path / "own.pt", "get http")):
        path.write_bytes(b"other")
        with pytest.raises(DataError, match=rf"{path}: expected sha256 {SHA256} \(as published\), got .*; {remedy}"):
            find_weights(server.file(SHA256), encoder="toy", given=given)
    cached.write_bytes(CONTENT)
    assert find_weights(server.file(SHA256.upper()), encoder="toy") == cached


def test_an_unpublished_hash_is_shown_and_recorded_and_enforced(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    path = find_weights(server.file(), encoder="toy")
    assert f"sha256 {SHA256}, trusted at this first use" in caplog.text
    assert (folder() / "model.pt.sha256").read_text() == f"{SHA256}  model.pt\n"
    assert find_weights(server.file(), encoder="toy") == path
    path.write_bytes(b"other")
    with pytest.raises(DataError, match=rf"{SHA256} \(as at its first use\), got .*; delete it .* model.pt.sha256"):
        find_weights(server.file(), encoder="toy")
    path.unlink()
    server.content = b"replaced"
    with pytest.raises(DataError, match=rf"expected sha256 {SHA256} \(as .*model.pt.sha256 says\)"):
        find_weights(server.file(), encoder="toy")


def test_a_file_put_into_the_cache_by_hand_is_recorded_at_its_first_use(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    folder().mkdir(parents=True)
    (folder() / "model.pt").write_bytes(CONTENT)
    with caplog.at_level(logging.WARNING):
        assert find_weights(server.file(), encoder="toy") == folder() / "model.pt"
        assert find_weights(server.file(), encoder="toy") == folder() / "model.pt"
    assert caplog.text.count(SHA256) == 1
    assert names() == {"model.pt", "model.pt.sha256"}
    assert not server.ranges


def test_junk_is_refused_before_its_hash_is_trusted(server: Server) -> None:
    server.content = b"junk" * 100
    with pytest.raises(DataError, match=r"model.pt: expected a checkpoint, got neither .*the download was deleted"):
        find_weights(server.file(), encoder="toy")
    assert names() == set()
    folder().mkdir(parents=True, exist_ok=True)
    for content in (b"junk", b"", CONTENT[:-1]):
        (folder() / "model.pt").write_bytes(content)
        with pytest.raises(DataError, match=r"model.pt: expected .*, got "):
            find_weights(server.file(), encoder="toy")
        assert names() == {"model.pt"}
    (folder() / "model.pt").write_bytes(CONTENT)
    assert find_weights(server.file(), encoder="toy") == folder() / "model.pt"
    assert names() == {"model.pt", "model.pt.sha256"}
    assert find_weights(server.file(name="words.txt"), encoder="toy").read_bytes() == b"junk" * 100  # no checkpoint


def test_two_that_want_a_file_at_once_download_it_once(server: Server) -> None:
    server.content = save({"weight": np.zeros(500_000, np.float32)})
    found: list[Path] = []
    twins = [
        threading.Thread(target=lambda: found.append(find_weights(server.file(), encoder="toy"))) for _ in range(4)
    ]
    for twin in twins:
        twin.start()
    for twin in twins:
        twin.join()
    assert found == [folder() / "model.pt"] * 4
    assert server.served == len(server.content)


def test_looking_for_weights_imports_no_torch() -> None:
    code = "import sys, mmrec_lmm.weights.download; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

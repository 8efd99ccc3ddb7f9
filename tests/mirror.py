"""A server on this machine with a small mirror of public data, in the layout of its publishers, that can misbehave."""

import gzip
import io
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np

Fault = Callable[["Handler", bytes], None]  # answers in place of the server; gets the file that was asked for

USERS, ITEMS = 12, 10
TITLES = [f"Baby bottle {item}" for item in range(ITEMS)]


def asin(item: int) -> str:
    return f"{31852 + item:010d}"


def ratings() -> str:
    """user,item,rating,timestamp without a header: a 5-core of 12 users and 10 items, and two rows outside it."""
    rows = [
        f"A{user:013d},{asin(item)},{1 + (user + item) % 5}.0,{1_300_000_000 + 100 * user + item}"
        for user in range(USERS)
        for item in range(ITEMS)
        if (user + item) % 4
    ]
    return "\n".join([*rows, f"ALONE,{asin(0)},5.0,1300000000", "A0000000000000,RARE000001,5.0,1300000000"]) + "\n"


def metadata(image: str = "http://ecx.images-amazon.com/images/I/{}._SX300_.jpg") -> bytes:
    """A Python literal a line, gzip; the last item has neither title nor image."""
    lines = [
        repr({
            "asin": asin(item), "title": TITLES[item], "price": 9.99, "brand": "Ann's",
            "imUrl": image.format(item),
            "categories": [["Baby", "Feeding"]], "description": "Holds milk &amp; tea.",
        })
        for item in range(ITEMS - 1)
    ]  # fmt: skip
    return gzip.compress("\n".join([*lines, repr({"asin": asin(ITEMS - 1)})]).encode() + b"\n", mtime=0)


def image_features() -> bytes:
    """Records of an asin and 4,096 numbers, for all items but one."""
    record = np.dtype([("asin", "S10"), ("vector", "<f4", (4096,))])
    records = np.zeros(ITEMS - 1, record)
    records["asin"] = [asin(item).encode() for item in range(ITEMS - 1)]
    records["vector"] = np.arange(1, ITEMS)[:, None]
    return records.tobytes()


def movielens() -> bytes:
    """ml-latest-small.zip with a folder inside, as GroupLens packs it."""
    rows = [
        f"{user},{film},{1 + (user + film) % 5}.0,{964982703 + film}" for user in range(1, 9) for film in range(1, 7)
    ]
    films = [f'{film},"Film {film}, The (1995)",Comedy|Drama' for film in range(1, 7)]
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, text in {
            "ratings.csv": "userId,movieId,rating,timestamp\n" + "\n".join(rows) + "\n",
            "movies.csv": "movieId,title,genres\n" + "\n".join(films) + "\n",
            "links.csv": "movieId,imdbId,tmdbId\n" + "".join(f"{film},011{film},8{film}\n" for film in range(1, 7)),
            "README.txt": "Summary\n=======\n",
        }.items():
            archive.writestr(zipfile.ZipInfo(f"ml-latest-small/{name}"), text)
    return packed.getvalue()


RATINGS, META = "/categoryFiles/ratings_Baby.csv", "/categoryFiles/meta_Baby.json.gz"
FEATURES = "/image_features/categoryFiles/image_features_Baby.b"
FILMS = "/ml-latest-small.zip"


@dataclass
class Mirror:
    """The server's files, the faults of its next answers by path, and what was asked of it."""

    port: int = 0
    files: dict[str, bytes] = field(default_factory=dict)
    faults: dict[str, list[Fault]] = field(default_factory=dict)
    asked: list[tuple[str, str | None]] = field(default_factory=list)  # path and Range of each request
    sent: dict[str, int] = field(default_factory=dict)  # bytes by path
    versions: bool = True  # answers have an ETag
    pause: float = 0.0  # seconds before each of its blocks
    block: int = 1 << 16  # bytes

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def tag(self, path: str) -> str:
        return f'"{hash(self.files[path])}"'


class Handler(BaseHTTPRequestHandler):
    mirror: Mirror

    def do_GET(self) -> None:
        mirror, path, asked = self.mirror, self.path, self.headers.get("Range")
        mirror.asked.append((path, asked))
        if mirror.faults.get(path):
            mirror.faults[path].pop(0)(self, mirror.files.get(path, b""))
        elif path in mirror.files:
            self.give(mirror.files[path])
        else:
            self.send_error(404)

    def give(self, content: bytes, *, most: int | None = None, length: int | None = None, kind: str = "") -> None:
        """Answer with a file, from where it was asked for; only `most` bytes, under a wrong `length`."""
        mirror, asked, tag = self.mirror, self.headers.get("Range"), self.mirror.tag(self.path)
        same = mirror.versions and self.headers.get("If-Range", tag) == tag
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and same else 0
        if start >= len(content) > 0:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Type", kind or "application/octet-stream")
        self.send_header("Content-Length", str(len(content) - start if length is None else length))
        if mirror.versions:
            self.send_header("ETag", tag)
        self.end_headers()
        self.write(content[start:][:most])

    def write(self, body: bytes) -> None:
        for place in range(0, len(body), self.mirror.block):
            piece = body[place : place + self.mirror.block]
            time.sleep(self.mirror.pause)
            self.wfile.write(piece)
            self.mirror.sent[self.path] = self.mirror.sent.get(self.path, 0) + len(piece)

    def log_message(self, *_: object) -> None:
        pass


# Faults


def status(code: int, **headers: str) -> Fault:
    def answer(handler: Handler, _: bytes) -> None:
        handler.send_response(code)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return answer


def cut(after: int) -> Fault:
    return lambda handler, content: handler.give(content, most=after)


def stall(after: int, seconds: float) -> Fault:
    """Some bytes, and then silence."""

    def answer(handler: Handler, content: bytes) -> None:
        handler.give(content, most=after)
        time.sleep(seconds)

    return answer


def wrong_length(length: int) -> Fault:
    return lambda handler, content: handler.give(content, length=length)


def page(kind: str = "text/html") -> Fault:
    return lambda handler, _: handler.give(b"\n<!DOCTYPE html><html>We have moved</html>", kind=kind)


def without_length(after: int | None = None) -> Fault:
    """As HTTP/1.0 does: the end is where the connection ends, and a cut looks like it."""

    def answer(handler: Handler, content: bytes) -> None:
        handler.send_response(200)
        handler.end_headers()
        handler.write(content[:after])

    return answer


def chunked(after: int | None = None) -> Fault:
    """In chunks of 100 bytes, as servers send what they make on the way; or the connection ends within."""

    def answer(handler: Handler, content: bytes) -> None:
        handler.protocol_version, handler.close_connection = "HTTP/1.1", True
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        for place in range(0, len(content[:after]), 100):
            piece = content[:after][place : place + 100]
            handler.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        if after is None:
            handler.write(b"0\r\n\r\n")

    return answer


def redirect(to: str) -> Fault:
    return status(302, Location=to)


@contextmanager
def serving(files: dict[str, bytes]) -> Iterator[Mirror]:
    mirror = Mirror(files=files)
    handler = type("Bound", (Handler,), {"mirror": mirror})
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    httpd.daemon_threads = True
    mirror.port = httpd.server_port
    threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield mirror
    finally:
        httpd.shutdown()
        httpd.server_close()


def amazon() -> dict[str, bytes]:
    return {RATINGS: ratings().encode(), META: metadata(), FEATURES: image_features()}

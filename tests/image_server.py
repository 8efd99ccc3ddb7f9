"""A server of images on this machine that does what servers do, and what was asked of it."""

import email.utils
import io
import threading
import time
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import pytest
from PIL import Image

GIF = (  # 1 x 1, transparent: what shops send where they have no picture
    b"GIF89a\x01\x00\x01\x00\x80\x00\x00\xff\xff\xff\x00\x00\x00!\xf9\x04\x01\x00\x00\x00\x00,\x00\x00\x00\x00\x01\x00"
    b"\x01\x00\x00\x02\x02D\x01\x00;"
)
HUGE = 2 * 10**9  # bytes


@cache
def picture(name: str, form: str = "JPEG", width: int = 40, height: int = 60) -> bytes:
    """An image of its own for each name."""
    color = (hash_of(name) % 256, hash_of(name) // 256 % 256, len(name) % 256)
    file = io.BytesIO()
    Image.new("RGB", (width, height), color).save(file, form)
    return file.getvalue()


def hash_of(name: str) -> int:
    return int.from_bytes(name.encode(), "big") * 2654435761 % 2**32


@dataclass
class Server:
    """What it does follows from a path's first part: `/slow/7.jpg` is the picture `7.jpg`, slowly."""

    port: int = 0
    given: Mapping[str, bytes] = field(default_factory=dict)  # pictures by name, instead of made ones
    asked: Counter[str] = field(default_factory=Counter)  # by path
    agents: set[str] = field(default_factory=set)
    times: dict[str, list[float]] = field(default_factory=dict)  # of requests, by path
    sent: Counter[str] = field(default_factory=Counter)  # bytes, by path
    most: int = 0  # slow requests at once
    now: int = 0
    dates: bool = False  # Retry-After as a date
    wait: float = 1.0  # seconds of Retry-After
    elsewhere: str = ""  # where /away leads
    lock: threading.Lock = field(default_factory=threading.Lock)

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}/{path}"


class _Handler(BaseHTTPRequestHandler):
    world: Server

    def do_GET(self) -> None:
        world, path = self.world, self.path
        with world.lock:
            world.asked[path] += 1
            world.agents.add(self.headers["User-Agent"])
            world.times.setdefault(path, []).append(time.monotonic())
        with suppress(BrokenPipeError, ConnectionResetError):
            self._answer(*unquote(urlsplit(path).path).strip("/").split("/", 1), nth=world.asked[path])

    def _answer(self, kind: str, name: str = "", *, nth: int) -> None:
        world = self.world
        body = world.given.get(name) or picture(name)
        match kind:
            case "slow":
                with world.lock:
                    world.now += 1
                    world.most = max(world.most, world.now)
                time.sleep(0.3)
                with world.lock:  # before the answer, after which the client asks again
                    world.now -= 1
            case "drip":  # a byte now and then
                self._head(200, {"Content-Length": str(len(body))})
                for byte in body:
                    self._send(bytes([byte]))
                    time.sleep(0.02)
                return
            case "hang":
                time.sleep(3)
            case "missing":
                return self._head(404, {"Content-Length": "0"})
            case "broken":
                return self._head(500, {"Content-Length": "0"})
            case "flaky" if nth < 3:
                return self._head(503 if nth == 1 else 500, {"Content-Length": "0"})
            case "busy" if nth == 1:
                when = email.utils.formatdate(time.time() + world.wait, usegmt=True) if world.dates else world.wait
                return self._head(429, {"Content-Length": "0", "Retry-After": str(when)})
            case "always-busy":
                return self._head(429, {"Content-Length": "0", "Retry-After": "86400"})
            case "cut" if nth == 1:
                self._head(200, {"Content-Length": str(len(body))})
                return self._send(body[:300])
            case "wrong-length" if nth == 1:  # a shorter one than it should say: the image is cut, and nobody knows
                body = body[: len(body) // 2]
            case "reset" if nth == 1:
                self.connection.close()
                return None
            case "html":
                body = b"\xef\xbb\xbf\n<!DOCTYPE html><title>Sorry</title>"
            case "text":
                body = b"no such picture"
            case "empty":
                body = b""
            case "placeholder":
                body = GIF
            case "loop":
                return self._head(302, {"Location": self.path + "x", "Content-Length": "0"})
            case "circle":
                return self._head(302, {"Location": self.path, "Content-Length": "0"})
            case "moved":
                return self._head(301, {"Location": f"/good/{name}", "Content-Length": "0"})
            case "away":
                return self._head(302, {"Location": world.elsewhere, "Content-Length": "0"})
            case "file":
                return self._head(302, {"Location": "file:///etc/passwd", "Content-Length": "0"})
            case "huge":  # says how large it is
                self._head(200, {"Content-Length": str(HUGE)})
                return self._endless()
            case "endless":  # doesn't
                self._head(200, {})
                return self._endless()
            case "bomb":  # 30,000 x 30,000 pixels in a few bytes
                body = picture("bomb", "PNG", 30, 30)
                header = body[12:16] + (30_000).to_bytes(4, "big") * 2 + body[24:29]
                body = body[:12] + header + zlib.crc32(header).to_bytes(4, "big") + body[33:]
        self._head(200, {"Content-Length": str(len(body)), "Content-Type": "image/jpeg"})
        return self._send(body)

    def _endless(self) -> None:
        for _ in range(HUGE // 2**16):
            self._send(bytes(2**16))

    def _head(self, status: int, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def _send(self, content: bytes) -> None:
        self.wfile.write(content)
        self.world.sent[self.path] += len(content)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serve(address: str = "127.0.0.1") -> Iterator[Server]:
    world = Server()
    try:
        httpd = ThreadingHTTPServer((address, 0), type("Handler", (_Handler,), {"world": world}))
    except OSError:  # macOS has no loopback address but 127.0.0.1
        pytest.skip(f"{address} is no address of this machine")
    httpd.daemon_threads = True
    httpd.block_on_close = False
    world.port = httpd.server_port
    threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield world
    finally:
        httpd.shutdown()
        httpd.server_close()

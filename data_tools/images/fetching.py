"""Downloads many images at once, and is a guest at each host: few connections, and waits as long as it is asked to.

aiohttp, since its connector asks before each connection which socket to make, and tells the address that was resolved:
there, and not by the text of an address, private networks are kept out.

A host that answers 429, or 503 with Retry-After, or can't be connected to, is left alone for a while by all its
downloads, and has fewer connections then. After `tries` such pauses without an answer in between, or `FRUITLESS`
requests in a row that may succeed later, it is given up for this run.
"""

import asyncio
import contextlib
import email.utils
import random
import re
import signal
import socket
import threading
import time
import urllib.request
from collections import deque
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmrec_lmm.cache import is_disk_full
from mmrec_lmm.errors import ConfigError, RunError

from .addresses import is_public, literal_address
from .manifest import Row
from .verifying import Unusable

if TYPE_CHECKING:
    import aiohttp
    from yarl import URL

_TRANSIENT = (408, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524)  # HTTP statuses that may pass
_REDIRECTS = (301, 302, 303, 307, 308)
FRUITLESS = 40
_BLOCK = 2**16  # bytes
_CONNECT = 10.0  # seconds to connect
_HEADERS = {"Accept": "image/jpeg, image/png, image/webp, image/*;q=0.5", "Accept-Encoding": "identity"}

#: Reasons that may pass: the next run tries such items again.
RETRIED = ("no connection", "timeout", "cut short", "server error", "too many requests", "damaged", "host given up")
PRIVATE = "private address"


@dataclass(frozen=True)
class Limits:
    """What downloads may take, of this machine and of hosts."""

    connections: int = 32  # at once
    per_host: int = 8  # at once
    tries: int = 4  # requests per address, while failures may pass
    timeout: float = 30.0  # seconds without a byte; ten times as long for a whole image
    max_bytes: int = 20_000_000  # per image
    redirects: int = 5
    max_wait: float = 300.0  # seconds; a host that asks for more is given up
    pause: float = 1.0  # seconds before the first retry, doubled for each next, with jitter
    allow_private: bool = False  # connect to addresses that aren't of the public internet


@dataclass(frozen=True)
class Answer:
    """A body, whole, and how it came."""

    part: Path
    status: int
    final_url: str


def fetch_all(
    wanted: Mapping[str, Sequence[str]],
    keep: Callable[[str, Path], Row],
    done: Callable[[Row], None],
    *,
    parts: Path,
    limits: Limits,
) -> None:
    """Download one image for each item (its raw id -> its addresses, the best first).

    `keep` (item, file) verifies a body and puts it into its place; it is called in one other thread, and raises
    Unusable to have the next address tried. `done` gets each item's row once, as soon as it is known. `parts` is a
    folder for bodies that aren't whole yet.
    """
    try:
        import aiohttp  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"data images: downloads need aiohttp, got {error}; try pip install 'mmrec-lmm[images]'"
        ) from None
    with ThreadPoolExecutor(1, "decode") as decoder:  # one: Pillow's warnings are set per process
        try:
            asyncio.run(_until_terminated(_Fetcher(keep, done, parts, limits, decoder).run(wanted)))
        except asyncio.CancelledError:
            raise KeyboardInterrupt from None


async def _until_terminated(work: Coroutine[Any, Any, None]) -> None:
    """Await `work`. asyncio ends tasks in order at SIGINT; where SIGTERM is to do the same, it does here too."""
    before = signal.getsignal(signal.SIGTERM)
    task = asyncio.ensure_future(work)
    if before is not signal.default_int_handler or threading.current_thread() is not threading.main_thread():
        return await task
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, task.cancel)
    try:
        await task
    finally:
        loop.remove_signal_handler(signal.SIGTERM)
        signal.signal(signal.SIGTERM, before)


class _Failure(Exception):
    """Why a request brought no body. `again`: the same request may succeed later. `pause`: its host is to be left
    alone, for `wait` seconds if it said so."""

    def __init__(
        self, reason: str, detail: str = "", *, status: int = 0, url: str = "", pause: bool = False,
        wait: float | None = None,
    ) -> None:  # fmt: skip
        super().__init__(reason, detail)
        self.reason, self.detail, self.status, self.url, self.pause, self.wait = (
            reason,
            detail,
            status,
            url,
            pause,
            wait,
        )
        self.again = reason in RETRIED


class _Private(OSError):
    """An address that isn't of the public internet."""


@dataclass
class _Job:
    item: str
    urls: Sequence[str]
    place: int = 0  # of the address that is tried
    tries: int = 0  # requests for this address, but those that its host answered by asking for patience
    requests: int = 0  # over all addresses
    failed: Row | None = None  # the failure to report if no address succeeds: the last one that may pass, or the last


@dataclass
class _Host:
    width: float  # connections at once
    waiting: deque[_Job] = field(default_factory=deque)
    workers: int = 0
    resume_at: float = 0.0  # on the event loop's clock
    pauses: int = 0  # since its last answer
    fruitless: int = 0  # requests since its last answer that settled something
    given_up: str = ""  # why


class _Fetcher:
    def __init__(
        self, keep: Callable[[str, Path], Row], done: Callable[[Row], None], parts: Path, limits: Limits,
        decoder: ThreadPoolExecutor,
    ) -> None:  # fmt: skip
        self.keep, self.done, self.parts, self.limits, self.decoder = keep, done, parts, limits, decoder
        self.hosts: dict[str, _Host] = {}
        self.proxies = urllib.request.getproxies()

    async def run(self, wanted: Mapping[str, Sequence[str]]) -> None:
        self.slots = asyncio.Semaphore(self.limits.connections)
        self.now = asyncio.get_running_loop().time
        async with self._session(self._guarded_socket) as self.direct, self._session(None) as self.proxied:
            try:
                async with asyncio.TaskGroup() as self.tasks:
                    for item, urls in wanted.items():
                        self._put(_Job(item, urls))
            except BaseExceptionGroup as group:
                error = group.exceptions[0]
                if is_disk_full(error):
                    raise RunError(
                        f"{self.parts.parent}: no space left on the disk; free some and start again, what came is kept"
                    ) from None
                raise error from None

    def _session(self, socket_factory: Any) -> "aiohttp.ClientSession":
        import aiohttp

        connector = aiohttp.TCPConnector(limit=0, ttl_dns_cache=300, socket_factory=socket_factory)
        return aiohttp.ClientSession(
            connector=connector,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT, sock_read=self.limits.timeout),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,  # a small body could unpack to a large one
            headers=_HEADERS | {"User-Agent": "mmrec-lmm"},
        )

    def _guarded_socket(self, address: tuple[Any, ...]) -> socket.socket:
        """The socket for an address that was resolved, before anything is sent there."""
        family, kind, protocol, _, to = address
        self._refuse_private(str(to[0]))
        return socket.socket(family=family, type=kind, proto=protocol)

    def _refuse_private(self, address: str) -> None:
        if not self.limits.allow_private and not is_public(address):
            raise _Private(address)

    # The queues

    def _put(self, job: _Job) -> None:
        """Line up a job at the host of its address."""
        name = job.urls[job.place].partition("://")[2].partition("/")[0].lower()
        host = self.hosts.setdefault(name, _Host(self.limits.per_host))
        host.waiting.append(job)
        self._hire(host)

    def _hire(self, host: _Host) -> None:
        if host.waiting and host.workers < int(host.width):
            host.workers += 1
            self.tasks.create_task(self._work(host))

    async def _work(self, host: _Host) -> None:
        """Take jobs of a host one after the other, until none waits or the host is to have fewer connections."""
        try:
            while host.waiting and host.workers <= int(host.width):
                if (pause := host.resume_at - self.now()) > 0 and not host.given_up:
                    await asyncio.sleep(pause)
                else:
                    await self._try(host, host.waiting.popleft())
        finally:
            host.workers -= 1

    async def _later(self, seconds: float, job: _Job) -> None:
        await asyncio.sleep(seconds)
        self._put(job)

    async def _try(self, host: _Host, job: _Job) -> None:
        """One request for a job, and what follows from its outcome."""
        url = job.urls[job.place]
        if host.given_up:
            return self._next(job, _Failure("host given up", host.given_up))
        began = self.now()
        job.requests += 1
        part = self.parts / f"{id(job)}.part"
        try:
            try:
                async with self.slots:
                    answer = await self._get(url, part)
                row = await asyncio.get_running_loop().run_in_executor(self.decoder, self._kept, job.item, answer)
            finally:
                part.unlink(missing_ok=True)
        except _Failure as failure:
            self._count(host, failure, began)
            if failure.pause and not host.given_up:
                host.waiting.appendleft(job)
                return None
            job.tries += 1
            if failure.again and job.tries < self.limits.tries and not host.given_up:
                self.tasks.create_task(self._later(self._backoff(job.tries), job))
                return None
            return self._next(job, failure)
        host.pauses = host.fruitless = 0
        host.width = min(self.limits.per_host, host.width + 0.1)
        self._hire(host)
        self.done(replace(row, url=url, status=answer.status, final_url=answer.final_url, tries=job.requests))

    def _kept(self, item: str, answer: Answer) -> Row:
        try:
            return self.keep(item, answer.part)
        except Unusable as error:
            raise _Failure(error.reason, error.detail, status=answer.status, url=answer.final_url) from None

    def _count(self, host: _Host, failure: _Failure, began: float) -> None:
        """Judge a host by a failure of a request: leave it alone for a while, or give it up."""
        if not failure.again:
            host.pauses = host.fruitless = 0
            return
        host.fruitless += 1
        if host.fruitless >= FRUITLESS:
            host.given_up = f"{failure.reason}, {host.fruitless} times in a row: {failure.detail}"
        if not failure.pause:
            return
        if began >= host.resume_at:  # else sent before a pause that it has already been given
            host.pauses += 1
            host.width = max(1, host.width // 2)
            host.resume_at = self.now() + self._backoff(host.pauses)
        if failure.wait is not None:
            host.resume_at = self.now() + failure.wait
        if (wait := host.resume_at - self.now()) > self.limits.max_wait:
            host.given_up = f"{failure.reason}: it asks to wait for {wait:,.0f} s"
        elif host.pauses >= self.limits.tries:
            host.given_up = f"{failure.reason}, {host.pauses} times: {failure.detail}"

    def _backoff(self, nth: int) -> float:
        return self.limits.pause * 2 ** (nth - 1) * random.uniform(0.5, 1.5)

    def _next(self, job: _Job, failure: _Failure) -> None:
        """Go on to a job's next address, or report that none is left."""
        if failure.again or job.failed is None or job.failed.reason not in RETRIED:
            job.failed = Row(
                job.item, url=job.urls[job.place], final_url=failure.url, status=failure.status, reason=failure.reason,
                detail=failure.detail[:200],
            )  # fmt: skip
        job.place, job.tries = job.place + 1, 0
        if job.place < len(job.urls):
            self._put(job)
        else:
            self.done(replace(job.failed, tries=job.requests))

    # One request

    async def _get(self, url: str, part: Path) -> Answer:
        """The body at an address, written to `part`, after at most so many redirects. Raises _Failure."""
        first = target = _parse(url)
        for _ in range(self.limits.redirects + 1):
            with self._translated(first, target):
                async with asyncio.timeout(10 * self.limits.timeout), self._request(target) as response:
                    location = response.headers.get("Location")
                    if response.status not in _REDIRECTS or location is None:
                        await self._read(response, part)
                        return Answer(part, response.status, str(target))
                    target = _parse(location, base=target)
        raise _Failure("redirect loop", f"more than {self.limits.redirects} redirects", url=str(target))

    def _request(self, target: "URL") -> Any:
        literal = literal_address(target.host or "")
        if literal is not None:
            self._refuse_private(literal)
        proxy = self.proxies.get(target.scheme)
        if proxy is None or urllib.request.proxy_bypass(target.host or ""):
            return self.direct.get(target, allow_redirects=False)
        return self.proxied.get(target, allow_redirects=False, proxy=proxy)  # which resolves names by itself

    async def _read(self, response: "aiohttp.ClientResponse", part: Path) -> None:
        """Write the body to `part`, as far as its status and size allow."""
        status, url = response.status, str(response.url)
        if status != 200:
            wait = _retry_after(response.headers.get("Retry-After", ""))
            reason = {404: "not found", 410: "not found", 401: "refused", 403: "refused", 429: "too many requests"}.get(
                status, "server error" if status in _TRANSIENT else f"HTTP {status}"
            )
            pause = status == 429 or (status == 503 and wait is not None)
            raise _Failure(reason, response.reason or "", status=status, url=url, pause=pause, wait=wait)
        size, most = response.content_length or 0, self.limits.max_bytes
        too_large = _Failure("too large", f"more than {most:,} bytes", status=status, url=url)
        if size > most:
            raise too_large
        size = 0
        with part.open("wb") as file:
            async for block in response.content.iter_chunked(_BLOCK):
                size += len(block)
                if size > most:
                    raise too_large
                file.write(block)

    @contextlib.contextmanager
    def _translated(self, first: "URL", target: "URL") -> Iterator[None]:
        """Turn what aiohttp raises into failures. Only the host that was asked first is to be left alone."""
        import aiohttp

        url, own = str(target), first.host == target.host
        try:
            yield
        except _Private as error:
            raise _Failure(PRIVATE, f"{error}; see --allow-private", url=url) from None
        except aiohttp.ClientConnectorError as error:
            if isinstance(cause := getattr(error, "os_error", None), _Private):
                raise _Failure(PRIVATE, f"{cause}; see --allow-private", url=url) from None
            raise _Failure("no connection", str(error), url=url, pause=own) from None
        except aiohttp.ConnectionTimeoutError as error:
            raise _Failure("no connection", str(error), url=url, pause=own) from None
        except (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError) as error:
            raise _Failure("bad address", str(error), url=url) from None
        except TimeoutError as error:
            raise _Failure("timeout", str(error) or "too slow", url=url) from None
        except (aiohttp.ClientHttpProxyError, aiohttp.ClientProxyConnectionError) as error:
            raise _Failure("no connection", f"proxy: {error}", url=url, pause=own) from None
        except aiohttp.ClientError as error:
            raise _Failure("cut short", f"{type(error).__name__}: {error}", url=url) from None


def _parse(text: str, base: "URL | None" = None) -> "URL":
    from yarl import URL

    try:
        # What is ASCII stays as it is: yarl would decode %2B, which some servers tell from +
        url = URL(text, encoded=text.isascii() and text.isprintable() and " " not in text)
        url = base.join(url) if base is not None else url
        if url.scheme in ("http", "https") and url.host and url.port:
            return url
    except ValueError:
        pass
    raise _Failure("bad address", f"expected http:// or https://, got {text[:100]!r}")


def _retry_after(value: str) -> float | None:
    """The seconds that a Retry-After header asks for, by number or date; None if it doesn't."""
    if re.fullmatch(r"\s*\d{1,9}(\.\d*)?\s*", value):
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None

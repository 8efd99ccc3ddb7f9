"""One request for an image: its redirects, its limits, and what its failures mean.

aiohttp, since its connector asks before each connection which socket to make, and tells the address that was resolved:
there, and not by the text of an address, private networks are kept out.
"""

import asyncio
import contextlib
import socket
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmrec_lmm.downloads.fetching import retry_after

from .addresses import is_public, literal_address

if TYPE_CHECKING:
    import aiohttp
    from yarl import URL

_TRANSIENT = (408, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524)  # HTTP statuses that may pass
_REDIRECTS = (301, 302, 303, 307, 308)
_BLOCK = 2**16  # bytes
_CONNECT = 10.0  # seconds to connect
_HEADERS = {
    "User-Agent": "mmrec-lmm",
    "Accept": "image/jpeg, image/png, image/webp, image/*;q=0.5",
    "Accept-Encoding": "identity",
}

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


@dataclass(eq=False)
class Failure(Exception):
    """Why a request brought no body."""

    reason: str  # in words that summaries share
    detail: str = ""
    status: int = 0  # of HTTP; 0 without an answer
    url: str = ""  # where redirects ended
    pause: bool = False  # its host is to be left alone
    wait: float | None = None  # for so many seconds, if the host said so

    @property
    def again(self) -> bool:
        """Whether the same request may succeed later."""
        return self.reason in RETRIED


class _Private(OSError):
    """An address that isn't of the public internet."""


class Client:
    """Gets bodies, within limits. As a context: its connections are closed at the end."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.proxies = urllib.request.getproxies()

    async def __aenter__(self) -> "Client":
        self.direct, self.proxied = self._session(self._guarded_socket), self._session(None)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.direct.close()
        await self.proxied.close()

    async def get(self, url: str, part: Path) -> Answer:
        """The body at an address, written to `part`, after at most so many redirects. Raises Failure."""
        first = target = _parse(url)
        for _ in range(self.limits.redirects + 1):
            with self._translated(first, target):
                async with asyncio.timeout(10 * self.limits.timeout), self._request(target) as response:
                    location = response.headers.get("Location")
                    if response.status not in _REDIRECTS or location is None:
                        await self._read(response, part)
                        return Answer(part, response.status, str(target))
                    target = _parse(location, base=target)
        raise Failure("redirect loop", f"more than {self.limits.redirects} redirects", url=str(target))

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
            wait = retry_after(response.headers.get("Retry-After", ""))
            reason = {404: "not found", 410: "not found", 401: "refused", 403: "refused", 429: "too many requests"}.get(
                status, "server error" if status in _TRANSIENT else f"HTTP {status}"
            )
            pause = status == 429 or (status == 503 and wait is not None)
            raise Failure(reason, response.reason or "", status=status, url=url, pause=pause, wait=wait)
        size, most = response.content_length or 0, self.limits.max_bytes
        too_large = Failure("too large", f"more than {most:,} bytes", status=status, url=url)
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
            raise Failure(PRIVATE, f"{error}; see --allow-private", url=url) from None
        except aiohttp.ClientConnectorError as error:
            if isinstance(cause := getattr(error, "os_error", None), _Private):
                raise Failure(PRIVATE, f"{cause}; see --allow-private", url=url) from None
            raise Failure("no connection", str(error), url=url, pause=own) from None
        except aiohttp.ConnectionTimeoutError as error:
            raise Failure("no connection", str(error), url=url, pause=own) from None
        except (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError) as error:
            raise Failure("bad address", str(error), url=url) from None
        except TimeoutError as error:
            raise Failure("timeout", str(error) or "too slow", url=url) from None
        except (aiohttp.ClientHttpProxyError, aiohttp.ClientProxyConnectionError) as error:
            raise Failure("no connection", f"proxy: {error}", url=url, pause=own) from None
        except aiohttp.ClientError as error:
            raise Failure("cut short", f"{type(error).__name__}: {error}", url=url) from None

    def _session(self, socket_factory: Any) -> "aiohttp.ClientSession":
        import aiohttp

        connector = aiohttp.TCPConnector(limit=0, ttl_dns_cache=300, socket_factory=socket_factory)
        return aiohttp.ClientSession(
            connector=connector,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT, sock_read=self.limits.timeout),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,  # a small body could unpack to a large one
            headers=_HEADERS,
        )

    def _guarded_socket(self, address: tuple[Any, ...]) -> socket.socket:
        """The socket for an address that was resolved, before anything is sent there."""
        family, kind, protocol, _, to = address
        self._refuse_private(str(to[0]))
        return socket.socket(family=family, type=kind, proto=protocol)

    def _refuse_private(self, address: str) -> None:
        if not self.limits.allow_private and not is_public(address):
            raise _Private(address)


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
    raise Failure("bad address", f"expected http:// or https://, got {text[:100]!r}")

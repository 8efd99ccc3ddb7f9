"""Downloads many images at once, and is a guest at each host: few connections, and waits as long as it is asked to.

One event loop has a queue per host; one other thread decodes what came (Pillow's warnings are set per process).

A host that answers 429, or 503 with Retry-After, or can't be connected to, is left alone for a while by all its
downloads, and has fewer connections then. After `tries` such pauses without an answer in between, or `FRUITLESS`
other requests in a row that may succeed later, it is given up for this run.
"""

import asyncio
import random
import signal
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mmrec_lmm.cache import is_disk_full
from mmrec_lmm.downloads.fetching import shown
from mmrec_lmm.errors import ConfigError, RunError

from .manifest import Row
from .requesting import RETRIED, Answer, Client, Failure, Limits
from .verifying import Unusable

FRUITLESS = 40


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
    with ThreadPoolExecutor(1, "decode") as decoder:
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

    async def run(self, wanted: Mapping[str, Sequence[str]]) -> None:
        self.slots = asyncio.Semaphore(self.limits.connections)
        self.now = asyncio.get_running_loop().time
        async with Client(self.limits) as self.client:
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
            return self._next(job, Failure("host given up", host.given_up))
        began = self.now()
        job.requests += 1
        part = self.parts / f"{id(job)}.part"
        try:
            try:
                async with self.slots:
                    answer = await self.client.get(url, part)
                row = await asyncio.get_running_loop().run_in_executor(self.decoder, self._kept, job.item, answer)
            finally:
                part.unlink(missing_ok=True)
        except Failure as failure:
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
        self.done(replace(row, url=url, status=answer.status, final_url=shown(answer.final_url), tries=job.requests))

    def _kept(self, item: str, answer: Answer) -> Row:
        try:
            return self.keep(item, answer.part)
        except Unusable as error:
            raise Failure(error.reason, error.detail, status=answer.status, url=answer.final_url) from None

    def _count(self, host: _Host, failure: Failure, began: float) -> None:
        """Judge a host by a failure of a request: leave it alone for a while, or give it up."""
        if not failure.again:
            host.pauses = host.fruitless = 0
            return
        if not failure.pause:
            host.fruitless += 1
            if host.fruitless >= FRUITLESS:
                host.given_up = f"{failure.reason}, {host.fruitless} times in a row: {failure.detail}"
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

    def _next(self, job: _Job, failure: Failure) -> None:
        """Go on to a job's next address, or report that none is left."""
        if failure.again or job.failed is None or job.failed.reason not in RETRIED:
            job.failed = Row(
                job.item, url=job.urls[job.place], final_url=shown(failure.url), status=failure.status,
                reason=failure.reason, detail=failure.detail[:200],
            )  # fmt: skip
        job.place, job.tries = job.place + 1, 0
        if job.place < len(job.urls):
            self._put(job)
        else:
            self.done(replace(job.failed, tries=job.requests))

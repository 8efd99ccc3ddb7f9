"""A server that imports everything once and forks a process for each command: a kill costs what its command costs.

The server itself computes nothing: a process with threads can't be forked safely.
"""

import contextlib
import gc
import importlib
import io
import logging
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence, Set
from dataclasses import dataclass, field, replace
from pathlib import Path

from .commands import EARLIER, READERS, Command, write_shop
from .comparing import snapshot
from .watching import Point, Watch, audit_safetensors

SHARD = 8  # items between two saves of `encode`: several shards of the shop
SIGNALS = (signal.SIGTERM, signal.SIGINT)
INTERRUPTED = 130  # docs/cli.md


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code, or the negative number of the signal; what it printed; what it called."""

    code: int
    out: str
    err: str
    watch: Watch | None = None


@dataclass
class Damage:
    """What a kill left wrong: paths, and the commands that failed with the end of their messages."""

    differing: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    leftovers: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.differing or self.lost or self.leftovers or self.failed)

    def __str__(self) -> str:
        return "; ".join(f"{kind}: {', '.join(found)}" for kind, found in vars(self).items() if found)


class Workspace:
    """A folder in which one command is run again and again, each time from the same beginning.

    Workspaces of the same `scratch` share the shop, which the first one makes.
    """

    def __init__(self, scratch: Path, command: Command) -> None:
        self.command = command
        shop, own = scratch / "shop", scratch / command.name.replace(" ", "-")
        self.prepared, self.work, self._log = own / "prepared", own / "work", own / "log"
        self._log.mkdir(parents=True)
        self._seen: dict[tuple[tuple[str, str], ...], Damage] = {}
        if shop.exists():
            shutil.copytree(shop, self.work)
        else:
            self.work.mkdir()
            write_shop(self.work)
            for words in EARLIER:
                self._must(words)
            shutil.copytree(self.work, shop)
        for words in command.before:
            self._must(words)
        self._must(*READERS)
        shutil.copytree(self.work, self.prepared)
        self.before = snapshot(self.prepared)
        self._undisturbed()
        self.whole = snapshot(self.work)
        self.points = self._undisturbed().points()  # of the second time, when nothing is left to import
        if changed := _compare(self.whole, snapshot(self.work)):
            raise AssertionError(f"{command.name}: two undisturbed runs differ: {changed}")

    def kill(self, point: Point) -> Damage:
        """End the command at a point, and compare what becomes of it. Equal states of the disk are tried once."""
        self._reset()
        ended = self.start(self.command.words, watch=Watch(self.work, point))
        if point.signal == signal.SIGKILL and ended.code != -signal.SIGKILL:
            return Damage(failed=[f"wasn't killed, but ended with {ended.code}: {ended.err[-300:]}"])
        state = tuple(snapshot(self.work).items())
        if point.signal != signal.SIGKILL:
            damage = self.repeat()
            if ended.code not in (0, INTERRUPTED) or "Traceback" in ended.err:
                damage.failed.append(f"interrupted: exit code {ended.code}: {ended.err[-300:]}")
            return damage
        if state not in self._seen:
            self._seen[state] = self.repeat()
        return self._seen[state]

    def kill_together(self, seconds: float) -> Damage:
        """Start the command as a process group, kill all of it after some seconds, and compare."""
        self._reset()
        with self.spawn() as process:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(seconds)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        return self.repeat()

    def spawn(self) -> "subprocess.Popen[bytes]":
        """The command as a process group of its own."""
        return subprocess.Popen(
            [sys.executable, "-m", "mmrec_lmm", *self.command.words],
            cwd=self.work,
            env=os.environ | self._environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def span(self) -> tuple[float, float]:
        """The seconds at which an undisturbed command makes its first new run, and at which it ends."""
        self._reset()
        began, runs = time.monotonic(), set(self.work.glob("runs/*"))
        with self.spawn() as process:
            while process.poll() is None and set(self.work.glob("runs/VBPR*")) <= runs:
                time.sleep(0.01)
            first = time.monotonic() - began
            assert process.wait() == 0
        return first, time.monotonic() - began

    def repeat(self) -> Damage:
        """Read, give the command again, and compare with the undisturbed one."""
        failed = [self._failure(*READERS)]
        now = snapshot(self.work)
        lost = _outermost(self.before.keys() - now.keys())
        failed += [self._failure(words) for words in (self.command.again or self.command.words, READERS[-1])]
        damage = _compare(self.whole, snapshot(self.work))
        damage.lost = sorted({*lost, *damage.lost})
        damage.failed = [reason for reason in failed if reason]
        return damage

    def start(self, *commands: Sequence[str], watch: Watch | None = None) -> Ended:
        """Run commands, until one fails, in a forked process."""
        out, err, seen = (self._log / name for name in ("out", "err", "seen"))
        sys.stdout.flush()
        sys.stderr.flush()
        child = os.fork()
        if child == 0:
            code = 1
            try:
                for path, descriptor in ((out, 1), (err, 2)):
                    os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
                code = self._in_child(commands, watch or Watch(self.work), seen)
            except BaseException:
                traceback.print_exc()
            finally:
                with contextlib.suppress(BaseException):
                    sys.stdout.flush()
                    sys.stderr.flush()
                os._exit(code)
        _, status = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(status)
        if code == 0 and watch is not None:
            watch, modules = pickle.loads(seen.read_bytes())
            _import(modules)
        return Ended(code, out.read_text(), err.read_text(), watch)

    def _in_child(self, commands: Sequence[Sequence[str]], watch: Watch, seen: Path) -> int:
        from mmrec_lmm.cli import main

        os.chdir(self.work)
        os.environ.update(self._environment())
        tempfile.tempdir = None
        # The descriptors are files now, whatever a test runner has made of the streams
        sys.stdout, sys.stderr = (io.TextIOWrapper(io.FileIO(descriptor, "w")) for descriptor in (1, 2))
        logging.getLogger("mmrec_lmm").handlers.clear()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        watch.start()
        code = 0
        for words in commands:
            try:
                code = code or main(list(words))
            except SystemExit as stop:
                code = stop.code if isinstance(stop.code, int) else 1
        seen.write_bytes(pickle.dumps((watch, list(sys.modules))))
        return code

    def _environment(self) -> dict[str, str]:
        temporary = self.work / "tmp"
        temporary.mkdir(exist_ok=True)
        return {"MMREC_LMM_HOME": str(self.work / "home"), "TMPDIR": str(temporary), "MMREC_LMM_OFFLINE": "1"}

    def _undisturbed(self) -> Watch:
        self._reset()
        ended = self._must(self.command.words)
        self._must(READERS[-1])
        assert ended.watch is not None
        return ended.watch

    def _must(self, *commands: Sequence[str]) -> Ended:
        ended = self.start(*commands, watch=Watch(self.work))
        if ended.code:
            raise AssertionError(_message(commands, ended))
        return ended

    def _failure(self, *commands: Sequence[str]) -> str | None:
        """A message if a command fails."""
        ended = self.start(*commands)
        return _message(commands, ended) if ended.code else None

    def _reset(self) -> None:
        shutil.rmtree(self.work, ignore_errors=True)
        shutil.copytree(self.prepared, self.work)


def prepare() -> None:
    """Import what all commands need, in this process, which is forked for each."""
    import torch

    import mmrec_lmm.cli
    from mmrec_lmm.features import encoding

    torch.set_num_threads(1)
    encoding.SHARD = SHARD
    audit_safetensors()
    assert mmrec_lmm.cli


def sample(points: Sequence[Point], count: int, seed: int) -> list[Point]:
    """Some of the points, by a seed."""
    chosen = random.Random(seed).sample(range(len(points)), min(count, len(points)))
    return [points[at] for at in sorted(chosen)]


def interruptions(points: Sequence[Point], count: int, seed: int) -> list[Point]:
    """For SIGTERM and SIGINT each, so many points before a call."""
    before = [point for point in points if point.when == "before"]
    return [replace(point, signal=number) for number in SIGNALS for point in sample(before, count, seed + int(number))]


def _message(commands: Sequence[Sequence[str]], ended: Ended) -> str:
    return f"{', '.join(' '.join(words) for words in commands)}: exit code {ended.code}: {ended.err[-500:]}"


def _compare(whole: dict[str, str], now: dict[str, str]) -> Damage:
    return Damage(
        differing=[path for path, content in whole.items() if now.get(path, content) != content],
        lost=_outermost(whole.keys() - now.keys()),
        leftovers=_outermost(now.keys() - whole.keys()),
    )


def _outermost(paths: Set[str]) -> list[str]:
    """The paths but those within a folder that is among them."""
    return sorted(path for path in paths if os.path.dirname(path) not in paths)


def _import(modules: Sequence[str]) -> None:
    """Import what a forked process had to import, for those after it."""
    for name in modules:
        if name not in sys.modules and not name.startswith("__"):
            with contextlib.suppress(Exception):
                importlib.import_module(name)
    gc.freeze()

"""Several users of one machine: commands as other uids, in a folder that all of them reach.

Only root can be several users. Where the interpreter lies in a folder that others can't enter, and for file systems
that are mounted read-only, the commands see the machine through mounts of their own, which end with them.
"""

import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from helpers import Answer, call

GROUP = 60100  # which all users here share
ANN, BOB = 60101, 60102


@dataclass(frozen=True)
class Lab:
    """A folder with `home` (MMREC_LMM_HOME), `runs` and `data`, and room for each user's own files."""

    folder: Path
    hides: Path | None  # the folder on the way to the interpreter that others can't enter

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @property
    def runs(self) -> Path:
        return self.folder / "runs"

    def own(self, user: int) -> Path:
        """A folder that only this user writes to, in which their commands run."""
        folder = self.folder / str(user)
        if not folder.exists():
            folder.mkdir()
            os.chown(folder, user, GROUP)
        return folder

    def share(self, mode: int, owner: int = ANN) -> None:
        """Make home, runs and data, with these permissions."""
        for folder in (self.home, self.runs, self.folder / "data"):
            folder.mkdir(exist_ok=True)
            os.chown(folder, owner, GROUP)
            folder.chmod(mode)

    def calls(
        self, user: int, *commands: Sequence[object], umask: int = 0o022, read_only: Sequence[Path] = ()
    ) -> list[Answer]:
        """What the commands say to a user, one after the other in one process. `read_only` folders can't be written
        to by anyone meanwhile: they lie on read-only file systems. While a command runs that begins with
        `deny:PATTERN`, these paths of the user's folder are closed."""
        script = [*self._mounts(read_only), f"umask {umask:o}", 'exec "$@"']
        todo = {"user": user, "folder": str(self.own(user)), "commands": [list(map(str, one)) for one in commands]}
        python = [sys.executable, "-B", "-X", "faulthandler", __file__, json.dumps(todo)]
        apart = ["unshare", "--mount"] if len(script) > 2 else []
        done = subprocess.run(
            [*apart, "sh", "-ec", "\n".join(script), "sh", *python],
            capture_output=True,
            text=True,
            cwd=self.folder,
            env=os.environ | {"MMREC_LMM_HOME": str(self.home), "HOME": str(self.own(user))},
        )
        assert done.returncode == 0, done.stderr
        return [Answer(*one) for one in json.loads(done.stdout)]

    def _mounts(self, read_only: Sequence[Path]) -> Iterator[str]:
        """Lines of a shell: mounts that only its own processes see."""
        if self.hides is not None:
            spot, base = shlex.quote(str(self.folder / "interpreter")), shlex.quote(sys.base_prefix)
            yield f"mkdir -p {spot}; mount --bind {base} {spot}"
            yield f"mount -t tmpfs -o mode=755 none {shlex.quote(str(self.hides))}"
            yield f"mkdir -p {base}; mount --move {spot} {base}"
        for folder in map(shlex.quote, map(str, read_only)):
            yield f"mount --bind {folder} {folder}; mount -o remount,bind,ro {folder}"


@pytest.fixture
def lab() -> Iterator[Lab]:
    """A lab's folder below the system's temporary one, as those of pytest can be entered by their owner alone."""
    if os.geteuid() != 0:
        pytest.skip("only root can be several users")
    folder = Path(tempfile.mkdtemp(prefix="lab-"))
    folder.chmod(0o755)
    try:
        closed = [one for one in reversed(Path(sys.executable).resolve().parents) if not one.stat().st_mode & 0o001]
        lab = Lab(folder, closed[0] if closed else None)
        others = [one for one in Path(__file__).resolve().parents if not one.stat().st_mode & 0o001]
        if others:
            pytest.skip(f"other users can't reach the tests: {others[-1]} is closed to them")
        place = Path(sys.prefix)
        shut = [one for one in (place, *place.parents) if not one.stat().st_mode & 0o001]
        if shut and sys.prefix != sys.base_prefix:  # a virtual environment, which no mount shows elsewhere
            pytest.skip(f"other users can't reach the environment: {shut[-1]} is closed to them")
        if closed and not can_mount(lab):
            pytest.skip(f"other users can't reach the interpreter: {closed[0]} is closed to them")
        yield lab
    finally:
        shutil.rmtree(folder)


def can_mount(lab: Lab) -> bool:
    """True if a process here may have mounts of its own."""
    place = shlex.quote(str(lab.folder))
    script = f"mount --bind {place} {place} && mount -o remount,bind,ro {place}"
    return (
        bool(shutil.which("unshare"))
        and not subprocess.run(["unshare", "--mount", "sh", "-c", script], capture_output=True).returncode
    )


@contextmanager
def denied(pattern: str | None) -> Iterator[None]:
    """Within this context the user's own paths that match a pattern are closed to them."""
    paths = {path: path.stat().st_mode for path in Path().glob(pattern)} if pattern else {}
    assert paths or not pattern, pattern
    for path in paths:
        path.chmod(0)
    try:
        yield
    finally:
        for path, mode in paths.items():
            path.chmod(mode)


def _become(user: int) -> None:
    os.setgroups([GROUP])
    os.setgid(user)
    os.setuid(user)


if __name__ == "__main__":
    todo = json.loads(sys.argv[1])
    _become(todo["user"])
    os.chdir(todo["folder"])
    answers = []
    for command in todo["commands"]:
        with denied(command.pop(0).removeprefix("deny:") if command[0].startswith("deny:") else None):
            answers.append(call(*command))
    print(json.dumps([(answer.code, answer.out, answer.err) for answer in answers]))

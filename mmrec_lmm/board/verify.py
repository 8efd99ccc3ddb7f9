"""Verification of a bundle: the tiers, the first of them that stops it, and the record that a board keeps.

    reported     well-formed; its files have the hashes that it says; its rows, runs and data agree
    recomputed   its lists give its numbers, on the public data set and split (recompute.py)
    replayed     trained again here, each of its runs gives the same numbers (again.py)
    fresh        trained on a split and under numbers that were drawn after it was submitted, it keeps its lead

A tier includes those before it.
"""

import dataclasses
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from ..config.settings import Settings
from ..disk.folders import scratch_folder
from ..disk.hashing import read_hash
from ..errors import DataError, MMRecError, RunError
from ..machine import choose_device
from ..plugin.registry import Registry
from ..running.provenance import versions
from ..running.runner import Interrupted
from ..typed_json import OPTIONAL
from .again import BASELINE, Fresh, Replayed, Trainer, failed_here
from .bundle import Bundle, Refusal, opened
from .recompute import Data, recompute
from .tiers import NOTHING, TIERS


@dataclass(frozen=True)
class Stop:
    """The first check that a bundle failed: its tier, its name, and the reason."""

    tier: str
    check: str
    reason: str


@dataclass(frozen=True)
class Baseline:
    """What a fresh run is compared with: a model, and the configuration keys that it gets beside the defaults."""

    model: str = BASELINE
    keys: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Verification:
    """The record of a verification."""

    bundle: str  # SHA-256 of the file
    name: str
    tier: str  # reached: one of TIERS, or NOTHING
    asked: str
    stopped: Stop | None = None
    rows: int = 0
    runs: int = 0
    replayed: Mapping[str, Replayed] = field(default_factory=dict)  # by run
    fresh: Mapping[str, Fresh] = field(default_factory=dict)  # by row
    seed: int | None = field(default=None, metadata=OPTIONAL)  # of the fresh world
    baseline: str | None = field(default=None, metadata=OPTIONAL)
    notes: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)  # the verifier's
    verified: str = ""  # ISO 8601, UTC

    @property
    def passed(self) -> bool:
        """True if it reached the tier that was asked for."""
        return self.tier in TIERS and TIERS.index(self.tier) >= TIERS.index(self.asked)


def verify(
    path: Path,
    registry: Registry,
    *,
    tier: str = "recomputed",
    data_path: str | None = None,
    device: str | None = None,
    baseline: Baseline | None = None,
    seed: int | None = None,
    progress: bool = False,
    accept: Callable[[Bundle], None] = lambda bundle: None,
) -> Verification:
    """Verify a bundle up to a tier. `seed` repeats an earlier verification; by default it is drawn now.

    `accept` may refuse a bundle that is well-formed. DataError where the file is missing, or the data set isn't here.
    """
    found = Verification(
        bundle=read_hash(path) if path.is_file() else "", name=path.name, tier=NOTHING, asked=tier,
        versions=versions(), verified=datetime.now(UTC).isoformat(timespec="seconds"),
    )  # fmt: skip
    wanted = TIERS[: TIERS.index(tier) + 1]
    if device is not None:
        choose_device(Settings(device=device))  # ConfigError: the verifier's own fault isn't the bundle's
    at = wanted[0]
    try:
        with opened(path) as bundle, scratch_folder() as scratch:
            accept(bundle)
            manifest = bundle.manifest
            found = dataclasses.replace(
                found, name=manifest.name, tier=at, rows=len(manifest.rows), runs=len(manifest.run_ids)
            )
            data = Data(registry, data_path)
            trainer = Trainer(bundle, data, registry, scratch, device=device, progress=progress)
            for at in wanted[1:]:
                if at == "recomputed":
                    recompute(bundle, data, registry)
                elif at == "replayed":
                    replayed = {}
                    for run in manifest.run_ids:
                        with _failing(run):
                            replayed[run] = trainer.replay(run)
                    found = dataclasses.replace(found, replayed=replayed)
                else:
                    beside = baseline or Baseline()
                    drawn = secrets.randbits(62) if seed is None else seed
                    found = dataclasses.replace(found, seed=drawn, baseline=beside.model)
                    for row in manifest.rows:
                        with _failing(row.runs[0]):
                            one, reason = trainer.fresh(row.runs[0], beside.model, beside.keys, drawn)
                        found = dataclasses.replace(found, fresh={**found.fresh, row.key: one})
                        if reason:
                            raise Refusal("fresh", reason)
                found = dataclasses.replace(found, tier=at, notes=tuple(trainer.notes))
    except Refusal as refusal:
        return dataclasses.replace(found, stopped=Stop(at, refusal.check, str(refusal)))
    return found


@contextmanager
def _failing(run: str) -> Iterator[None]:
    """A run that can't be trained here stops its bundle; missing data or weights are the verifier's."""
    try:
        yield
    except (Refusal, DataError, Interrupted):
        raise
    except (RunError, RuntimeError, MMRecError) as error:
        failure = error if isinstance(error, MMRecError) else RunError(str(error))
        raise failed_here(failure, run) from None

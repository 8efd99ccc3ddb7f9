"""The conformance checks of samplers. Each takes the registry, the sampler's name, and how messages call it.

Shapes: U users, I items, R drawn items.
"""

import contextlib
import random
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data.sampling import Checked
from ..errors import DataError, NotApplicable, PluginError
from ..plugin.contracts import Sampler, check_sampler_class
from ..plugin.registry import Registry
from ..types import Interactions, TrainingData
from . import checkerboard
from .checks_of_models import folder_of, largest_array
from .conformance import Fault

_DRAWS = 30  # of each user
_PATIENCE = 5.0  # seconds of this process' own time for one draw
_LARGE = 2048  # users, and items, of the data on which memory is watched


def whole(registry: Registry, name: str, owner: str) -> None:
    """The class has all that the host calls, and its configuration has a default for each key."""
    _build(registry, name, owner, checkerboard()[0])


def draws(registry: Registry, name: str, owner: str) -> None:
    """One item of the catalog for each user, in whatever order users come, and as often as they come."""
    data, _ = checkerboard()
    sampler = _checked(registry, name, owner, data)
    ascending = torch.arange(data.n_users).repeat_interleave(_DRAWS)
    for users in (ascending, ascending.flip(0), ascending[:1]):
        try:
            sampler.draw(users, torch.Generator().manual_seed(0))
        except PluginError as error:
            raise Fault(str(error)) from None


def positives(registry: Registry, name: str, owner: str) -> None:
    """None of the items is one that the user has in training; or the sampler doesn't promise that."""
    data, _ = checkerboard()
    sampler = _build(registry, name, owner, data)
    users = torch.arange(data.n_users).repeat_interleave(_DRAWS)
    items = Checked(sampler, data, name=owner).draw(users, torch.Generator().manual_seed(0))
    own = data.train.users * data.n_items + data.train.items
    drawn = np.isin((users * data.n_items + items).numpy(), own)
    if drawn.any():  # never where it redraws: the host sees to it
        raise NotApplicable(
            f"it promises nothing: {drawn.sum():,} of {len(drawn):,} items are some that the user has in training; "
            "with redraws = True the host draws these again"
        )


def ends(registry: Registry, name: str, owner: str) -> None:
    """It finds the one item that a user lacks, and doesn't search on for a user who has all."""
    has = np.ones((3, 8), dtype=bool)  # (U, I) user 0 lacks an item, user 1 has that alone, user 2 has all
    has[0, -1], has[1, :-1] = False, False
    bound = "set redraws = True, and the host draws again with a bound, or find it by arithmetic, as `uniform` does"
    lacking_one, lacking_none = (TrainingData(n, 8, Interactions(*has[:n].nonzero())) for n in (2, 3))
    with _patience(f"{owner}: it searches without end for the one item that a user lacks: {bound}"):
        try:
            _checked(registry, name, owner, lacking_one).draw(torch.tensor([0, 0]), torch.Generator().manual_seed(0))
        except PluginError as error:
            raise Fault(f"{error}; this user lacks one of 8 items") from None
    with (
        _patience(f"{owner}: it searches without end for an item where a user has all: {bound}"),
        contextlib.suppress(DataError, PluginError),  # either says so
    ):
        _checked(registry, name, owner, lacking_none).draw(torch.tensor([2, 2]), torch.Generator().manual_seed(0))


def seed(registry: Registry, name: str, owner: str) -> None:
    """The generator decides all that is drawn, and nothing is kept from call to call."""
    data, _ = checkerboard()
    users = torch.arange(data.n_users).repeat_interleave(_DRAWS)

    def drawn(elsewhere: int) -> tuple[Tensor, Tensor, Tensor]:
        """Two draws, where other sources of random numbers have the seed `elsewhere`; the generator's state between."""
        torch.manual_seed(elsewhere)
        np.random.seed(elsewhere)
        random.seed(elsewhere)
        sampler, generator = _checked(registry, name, owner, data), torch.Generator().manual_seed(0)
        first, between = sampler.draw(users, generator), generator.get_state()
        return first, sampler.draw(users, generator), between

    with torch.random.fork_rng(devices=[]):
        one, other = drawn(0), drawn(1)
    if not all(map(torch.equal, one, other)):
        raise Fault(
            f"{owner}: it draws other items from the same generator: draw from `generator` alone, not from numpy, "
            "random, torch's default generator or one of its own"
        )
    resumed = torch.Generator()
    resumed.set_state(one[2])
    if not torch.equal(_checked(registry, name, owner, data).draw(users, resumed), one[1]):
        raise Fault(
            f"{owner}: its second draw isn't that of a run that resumes after the first: it keeps something from call "
            "to call; make what it needs in __init__, from self.data"
        )


def training_rows(registry: Registry, name: str, owner: str) -> None:
    """What it draws follows from training rows alone: other held-out rows, or none at all, change nothing."""
    data, held_out = checkerboard()
    others = Interactions(held_out.users, (held_out.items + 2) % data.n_items)
    users = torch.arange(data.n_users).repeat_interleave(_DRAWS)
    cure = "build it from self.data.train, and read no file of the data set"
    drawn = []
    for rows, what in ((held_out, ""), (others, "with the rows of validation and test"), (None, "without the files")):
        with folder_of(data, rows):
            try:
                sampler = _checked(registry, name, owner, data)
                drawn.append(sampler.draw(users, torch.Generator().manual_seed(0)))
            except OSError as error:
                raise Fault(f"{owner}: it reads {error.filename}, which isn't there: {cure}") from None
        if not torch.equal(drawn[0], drawn[-1]):
            raise Fault(f"{owner}: what it draws changes {what}: {cure}")


def memory(registry: Registry, name: str, owner: str) -> None:
    """Nothing has as many numbers as there are pairs of user and item."""
    rng = np.random.default_rng(0)
    users = np.repeat(np.arange(_LARGE), 4)
    data = TrainingData(_LARGE, _LARGE, Interactions(users, rng.integers(0, _LARGE, len(users))))
    _class(registry, name, owner)  # imported before memory is watched

    def use() -> None:
        _checked(registry, name, owner, data).draw(torch.from_numpy(users), torch.Generator().manual_seed(0))

    if found := largest_array(use, _LARGE**2):
        raise Fault(
            f"{owner}: {found}, for {_LARGE:,} users and items: keep the training pairs, sorted, and search them "
            "(torch.searchsorted), or set redraws = True"
        )


def run_of_host(registry: Registry, name: str, owner: str) -> None:
    """The host trains BPR with two of its negatives for each positive."""
    from .checks_of_others import finished_run

    _class(registry, name, owner)
    finished_run(registry, model="BPR", with_features=False, keys={"sampler": name, "n_negatives": "2"})


CHECKS: Mapping[str, Callable[[Registry, str, str], None]] = {
    "whole": whole,
    "draws": draws,
    "positives": positives,
    "ends": ends,
    "seed": seed,
    "training rows": training_rows,
    "memory": memory,
    "run": run_of_host,
}


def _class(registry: Registry, name: str, owner: str) -> type[Sampler]:
    cls: type[Sampler] | None = registry.samplers.load(name, "cls")
    if cls is None:
        raise NotApplicable("it draws nothing")
    check_sampler_class(cls, owner=owner)
    return cls


def _build(registry: Registry, name: str, owner: str, data: TrainingData) -> Sampler:
    cls, config = _class(registry, name, owner), None
    if registry.samplers.get(name).config is not None:
        try:
            config = registry.samplers.load(name, "config")()
        except TypeError as error:
            raise Fault(f"{owner}: expected a configuration with a default for each key, got {error}") from None
    return cls(data, config)


def _checked(registry: Registry, name: str, owner: str, data: TrainingData) -> Sampler:
    """The sampler as the host uses it: redrawn, where it redraws, and checked."""
    return Checked(_build(registry, name, owner, data), data, name=owner)


@contextlib.contextmanager
def _patience(fault: str) -> Iterator[None]:
    """A context that raises Fault when this process has computed for _PATIENCE seconds within it; only in the main
    thread of a system with such timers."""
    if not hasattr(signal, "SIGVTALRM") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: Any) -> None:
        raise Fault(fault)

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, _PATIENCE)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)

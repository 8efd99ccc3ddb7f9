"""While a model file's code runs: its random numbers, its `.cuda()`, and names that SciPy dropped.

All of it is put back when the code returns, so the rest of the program sees nothing of it.
"""

import hashlib
import os
import random
import sys
import warnings
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_ABSENT = object()


class Streams:
    """The states of Python's and NumPy's global generators that one model's code sees. torch's is the host's."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self.python, self.numpy = _states(seed)

    def start_epoch(self, epoch: int) -> None:
        """Begin the stream of an epoch: a run that is resumed draws what one without a pause does."""
        digest = hashlib.sha256(f"{self._seed} {epoch}".encode()).digest()
        self.python, self.numpy = _states(int.from_bytes(digest[:4], "big"))


def _states(seed: int) -> tuple[Any, Any]:
    return random.Random(seed).getstate(), np.random.RandomState(seed).get_state()


#: What a file's text has if its code needs a part of `running`; each part costs time in every step.
NEEDS = {
    "random": r"random|LightGCN_Encoder|sklearn",
    "cuda": r"\bcuda\b",
    "device": r"\bis_available\b",
    "scipy": r"\b_update\(|\.[AH]\b",
    "sparse": r"sparse",
}


@contextmanager
def running(device: torch.device, streams: Streams | None = None, needs: Collection[str] = NEEDS) -> Iterator[None]:
    """A context for a model file's code on `device`: `.cuda()` moves there, whatever the machine has."""
    with ExitStack() as stack:
        if streams is not None and "random" in needs:
            stack.enter_context(_drawing(streams))
        if "cuda" in needs and (device.type != "cuda" or (device.index or 0) != torch.cuda.current_device()):
            for owner in (Tensor, nn.Module):
                stack.enter_context(having(owner, "cuda", lambda self, *_, **__: self.to(device)))
        if "device" in needs and device.type != "cuda" and torch.cuda.is_available():
            stack.enter_context(having(torch.cuda, "is_available", lambda: False))  # to a file that asks for a device
        if "scipy" in needs and (sparse := sys.modules.get("scipy.sparse")) is not None:
            stack.enter_context(having(sparse.dok_matrix, "_update", _update))  # removed in SciPy 1.13
            stack.enter_context(having(sparse.spmatrix, "A", property(lambda self: self.toarray())))  # in 1.14
            stack.enter_context(having(sparse.spmatrix, "H", property(lambda self: self.conj().T)))
        if "sparse" in needs:  # said outright, as torch else warns of its default
            stack.enter_context(torch.sparse.check_sparse_tensor_invariants(enable=False))
        yield


@contextmanager
def process_kept() -> Iterator[None]:
    """A context that puts back what a module may set for the whole process: paths, the environment, warnings, and
    torch's switches."""
    path, environment = list(sys.path), dict(os.environ)
    anomaly, dtype, threads = torch.is_anomaly_enabled(), torch.get_default_dtype(), torch.get_num_threads()
    cudnn, flags = torch.backends.cudnn, ("deterministic", "benchmark", "enabled")
    before = {flag: getattr(cudnn, flag) for flag in flags}
    with warnings.catch_warnings(), np.errstate():
        warnings.filterwarnings("ignore", r"torch\.sparse\.SparseTensor\(.* is deprecated", UserWarning)  # said once
        try:
            yield
        finally:
            sys.path[:] = path
            if os.environ != environment:
                os.environ.clear()
                os.environ.update(environment)
            torch.autograd.set_detect_anomaly(anomaly)
            torch.set_default_dtype(dtype)
            torch.set_num_threads(threads)
            for flag, value in before.items():
                setattr(cudnn, flag, value)


@contextmanager
def _drawing(streams: Streams) -> Iterator[None]:
    outside = random.getstate(), np.random.get_state()
    random.setstate(streams.python)
    np.random.set_state(streams.numpy)
    try:
        yield
    finally:
        streams.python, streams.numpy = random.getstate(), np.random.get_state()
        random.setstate(outside[0])
        np.random.set_state(outside[1])


@contextmanager
def having(owner: Any, name: str, value: Any) -> Iterator[None]:
    """A context in which a class has an attribute; inherited ones show again afterwards."""
    before = vars(owner).get(name, _ABSENT)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if before is _ABSENT:
            delattr(owner, name)
        else:
            setattr(owner, name, before)


def _update(matrix: Any, entries: Any) -> None:
    """Set entries {(row, column): value} of a dok_matrix, without its checks of each."""
    matrix._dict.update(entries)

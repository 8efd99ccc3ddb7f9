"""Training states and weights on disk: safetensors, with the plain numbers as JSON in the header. No pickle.

A checkpoint is two files: `state.safetensors`, and the best weights, whose file name has their epoch. The best weights
are written first, as the state refers to them, and both atomically: a kill at any moment leaves the newest complete
pair. A state whose weights are the best ones doesn't repeat them.
"""

import dataclasses
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Generic, Self

import torch
from torch import Tensor

from ..disk.reading import is_there
from ..disk.sealed import STORED, read_metadata, read_tensors, save_file
from ..disk.temporaries import sweep
from ..disk.writing import write_atomic
from ..errors import DataError, PluginError
from ..formatting import first_line
from ..typed_json import decode, plain
from .loop import N, Numbers, TrainingState

STATE = "state.safetensors"


def save_weights(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors of any device atomically."""
    ready = {name: value.detach().cpu() for name, value in tensors.items()}
    write_atomic(path, lambda temporary: save_file(ready, temporary, metadata=metadata))


def check_storable(tensors: Mapping[str, Tensor], *, owner: str) -> None:
    """Raise PluginError, which begins with `owner`, for a tensor that a file of weights can't hold."""
    for name, tensor in tensors.items():
        kind = str(tensor.dtype).removeprefix("torch.")
        if tensor.layout != torch.strided or tensor.is_quantized or kind not in STORED:
            kind = kind if tensor.layout == torch.strided else str(tensor.layout).removeprefix("torch.")
            last = name.rpartition(".")[2]
            raise PluginError(
                f"{owner}: {name}: expected a dense tensor of numbers, as checkpoints hold no other, got {kind}; try "
                f"register_buffer({last!r}, ..., persistent=False), and build it in __init__ from the training data"
            )


def load_weights(path: Path) -> dict[str, Tensor]:
    """Read tensors into memory; DataError names the file if it is missing or damaged."""
    return read_tensors(path, framework="torch", cure="try deleting it, and --force")


def save_checkpoint(folder: Path, state: TrainingState[N]) -> None:
    """Write `state` as the checkpoint in `folder`."""
    best = _best_file(folder, state.numbers)
    if not best.exists():
        save_weights(best, state.best)
    save_weights(folder / STATE, state.tensors, {"numbers": json.dumps(plain(state.numbers))})
    _remove_others(folder, best)


def load_checkpoint(folder: Path, kind: type[N]) -> TrainingState[N] | None:
    """The checkpoint in `folder` with its numbers as `kind`, or None if there is none.

    Best weights without a state, which a kill between the two files leaves, are deleted: on a GPU the same epoch, made
    again, may end with others. Raises DataError if the numbers don't fit `kind`: other code wrote them.
    """
    if not is_there(folder / STATE, _start_over(folder)):
        remove_checkpoint(folder)
        return None
    tensors, numbers = (
        read_tensors(folder / STATE, framework="torch", cure=_start_over(folder)),
        load_numbers(folder, kind),
    )
    best = _best_file(folder, numbers)
    _remove_others(folder, best)
    return TrainingState(tensors, numbers, load_weights(best))


def load_numbers(folder: Path, kind: type[N]) -> N:
    """The numbers of the checkpoint in `folder`; errors as of `load_checkpoint`."""
    path, cure = folder / STATE, _start_over(folder)
    return decode(kind, read_metadata(path, "numbers", cure=cure), where=str(path), cure=cure)


def _start_over(folder: Path) -> str:
    return f"try deleting {folder}, to start over"


@contextmanager
def restoring(folder: Path) -> Iterator[None]:
    """Restore a state from `folder` within this context: what doesn't fit, as other code wrote it, is a DataError."""
    try:
        yield
    except (DataError, KeyError, TypeError, ValueError, RuntimeError) as error:  # the last is load_state_dict's
        raise DataError(
            f"{folder}: expected a checkpoint of this code, got one of other code or another version of it "
            f"({type(error).__name__}: {first_line(error)}); try deleting the folder to start over"
        ) from None


def remove_checkpoint(folder: Path) -> None:
    """Delete the checkpoint in `folder`, if any: the state first, so no state ever lacks its best weights."""
    (folder / STATE).unlink(missing_ok=True)
    for path in folder.glob("best-*.safetensors"):
        path.unlink(missing_ok=True)
    sweep(folder)
    with suppress(OSError):  # it isn't there, or has files that aren't a checkpoint's
        folder.rmdir()


class Checkpoints(Generic[N]):
    """Decides when the states of a training are written to `folder`: at most every `seconds`, and when it ends.

        with Checkpoints(folder, seconds) as checkpoints:
            trainer.fit(on_checkpoint=checkpoints.offer)

    A state that isn't due is copied in memory. If training is interrupted, or fails, leaving the context writes the
    state that was offered last. A second interruption while it is written leaves the older checkpoint.
    """

    def __init__(self, folder: Path, seconds: float) -> None:
        self._folder, self._seconds = folder, seconds
        self._written = time.monotonic()  # or the start
        self._unwritten: TrainingState[N] | None = None  # the state to write if training is interrupted now
        self._copies: dict[str, Tensor] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._unwritten is not None:
            self._write(self._unwritten)

    def offer(self, state: TrainingState[N]) -> None:
        """Write `state` if one is due or training has ended, else copy it. No step is taken meanwhile."""
        self._unwritten = state  # live, until it is copied
        if state.numbers.stopped is not None or time.monotonic() - self._written >= self._seconds:
            self._write(state)
            return
        try:
            self._unwritten = dataclasses.replace(state, tensors=self._copied(state.tensors))
        except torch.OutOfMemoryError:  # a GPU that training nearly fills
            self._copies.clear()
            self._write(state)

    def _write(self, state: TrainingState[N]) -> None:
        save_checkpoint(self._folder, state)
        self._unwritten, self._written = None, time.monotonic()

    @torch.no_grad()
    def _copied(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Copies on the tensors' devices, in the memory of the copies before: new memory costs more than copying."""
        for name, value in tensors.items():
            copy = self._copies.get(name)
            if copy is None or copy.shape != value.shape:
                copy = self._copies[name] = torch.empty_like(value)
            copy.copy_(value)
        return {name: self._copies[name] for name in tensors}


def _best_file(folder: Path, numbers: Numbers) -> Path:
    return folder / f"best-{numbers.best_epoch}.safetensors"


def _remove_others(folder: Path, best: Path) -> None:
    for other in folder.glob("best-*.safetensors"):
        if other != best:
            other.unlink()

"""Training states and weights on disk: safetensors, with the plain numbers as JSON in the header. No pickle.

A checkpoint is two files: `state.safetensors`, and the best weights under a name that carries their epoch, written
before the state that refers to them. Both appear whole or not at all, so a kill at any moment leaves the newest
complete pair.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..cache import plain, write_atomic
from ..errors import DataError
from ..formatting import first_line
from ..typed_json import decode
from .trainer import N, TrainingState

STATE = "state.safetensors"


def save_weights(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors atomically, whatever device they are on."""
    ready = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    write_atomic(path, lambda temporary: save_file(ready, temporary, metadata=dict(metadata) if metadata else None))


def load_weights(path: Path) -> dict[str, Tensor]:
    """Read tensors onto the CPU; DataError names the file where it is missing or damaged."""
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path}: can't be read as safetensors ({error})") from None


def save_checkpoint(folder: Path, state: TrainingState[N]) -> None:
    """Make `state` the checkpoint in `folder`."""
    best = folder / f"best-{state.numbers.best_epoch}.safetensors"
    if not best.exists():
        save_weights(best, state.best)
    save_weights(folder / STATE, state.tensors, {"numbers": json.dumps(plain(state.numbers))})
    for other in folder.glob("best-*.safetensors"):
        if other != best:
            other.unlink()


def load_checkpoint(folder: Path, kind: type[N]) -> TrainingState[N] | None:
    """The checkpoint in `folder` with its numbers as `kind`, or None if there is none. DataError where they don't fit:
    other code wrote them."""
    path = folder / STATE
    if not path.is_file():
        return None
    tensors = load_weights(path)
    with safe_open(path, framework="pt") as file:
        content = json.loads(file.metadata()["numbers"])
    numbers = decode(kind, content, where=str(path), cure=f"try deleting {folder}, to start over")
    return TrainingState(tensors, numbers, load_weights(folder / f"best-{numbers.best_epoch}.safetensors"))


@contextmanager
def restoring(folder: Path) -> Iterator[None]:
    """While a state from `folder` is taken over: DataError where other code wrote it, so that something doesn't fit."""
    try:
        yield
    except (DataError, KeyError, TypeError, ValueError, RuntimeError) as error:  # the last is load_state_dict's
        raise DataError(
            f"{folder}: the checkpoint there was written by other code or another version of it "
            f"({type(error).__name__}: {first_line(error)}); delete the folder to start over"
        ) from None


def remove_checkpoint(folder: Path) -> None:
    """Delete the checkpoint in `folder`, if any: the state first, so that no state ever lacks its best weights."""
    (folder / STATE).unlink(missing_ok=True)
    for path in folder.glob("best-*.safetensors"):
        path.unlink()

"""Training states and weights on disk: safetensors, with the plain numbers as JSON in the header. No pickle.

A checkpoint is two files: `state.safetensors`, and the best weights, whose file name has their epoch. The best weights
are written first, as the state refers to them, and both atomically: a kill at any moment leaves the newest complete
pair.
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
    """Write tensors of any device atomically."""
    ready = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    write_atomic(path, lambda temporary: save_file(ready, temporary, metadata=dict(metadata) if metadata else None))


def load_weights(path: Path) -> dict[str, Tensor]:
    """Read tensors onto the CPU; DataError names the file if it is missing or damaged."""
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise DataError(
            f"{path}: expected a file of safetensors, got an unreadable one ({error}); try deleting it, and --force"
        ) from None


def save_checkpoint(folder: Path, state: TrainingState[N]) -> None:
    """Write `state` as the checkpoint in `folder`."""
    best = folder / f"best-{state.numbers.best_epoch}.safetensors"
    if not best.exists():
        save_weights(best, state.best)
    save_weights(folder / STATE, state.tensors, {"numbers": json.dumps(plain(state.numbers))})
    for other in folder.glob("best-*.safetensors"):
        if other != best:
            other.unlink()


def load_checkpoint(folder: Path, kind: type[N]) -> TrainingState[N] | None:
    """The checkpoint in `folder` with its numbers as `kind`, or None if there is none.

    Raises DataError if the numbers don't fit `kind`: other code wrote them.
    """
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
        path.unlink()

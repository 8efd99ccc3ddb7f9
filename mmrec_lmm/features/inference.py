"""Run an encoder: prepared batches to rows of features, on any device, in full or half precision.

A batch that doesn't fit into memory is computed in halves, and so are all that follow: rows don't depend on it.

Shapes: B batch, D feature width.
"""

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import PluginError, RunError
from ..formatting import first_line
from ..machine import precision
from ..plugin.contracts import ItemEncoder

logger = logging.getLogger(__name__)

#: Parts of the messages of torch and its libraries for a failed allocation, on a GPU and on the CPU.
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "ALLOC_FAILED")


class Inference:
    """One modality of an encoder, on a device; `dtype` is torch.autocast's; float32: no autocast."""

    def __init__(
        self,
        encoder: ItemEncoder,
        modality: str,
        *,
        name: str,
        device: torch.device | str,
        dtype: str,
        compile: bool,
        batch_size: int,
    ) -> None:
        self.modality, self.name = modality, name
        self.device, self.dtype = torch.device(device), dtype
        self.encoder = encoder.eval().to(self.device)
        self._forward: Any = torch.compile(self.encoder) if compile else self.encoder
        self._limit = batch_size

    @torch.inference_mode()
    def __call__(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Features (B, D) float32 of a prepared batch, on the device, which may still be computing them.

        Raises PluginError where their shape is wrong, RunError where there isn't memory for a single item.
        """
        n_items = len(next(iter(batch.values())))
        while True:
            # Leaving the except clause frees the memory of the failed attempt, hence the loop
            try:
                parts = [self._rows(batch, slice(at, at + self._limit)) for at in range(0, n_items, self._limit)]
                break
            except (RuntimeError, MemoryError) as error:
                if not self._can_go_on(error, n_items):
                    raise
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
        rows = torch.cat(parts)
        expected = (n_items, self.encoder.dims[self.modality])
        if rows.shape != expected:
            raise self._broken(f"of shape {expected}", f"shape {tuple(rows.shape)}")
        return rows

    def fetched(self, rows: Tensor) -> np.ndarray:
        """The rows (B, D) in main memory, once they are computed; PluginError where they aren't finite."""
        array: np.ndarray = rows.cpu().numpy()
        if not np.isfinite(array).all():
            hint = "; float16 ends at 65,504, so try bfloat16" if self.dtype == "float16" else ""
            raise self._broken("that are finite", f"NaN or infinity{hint}")
        return array

    def _rows(self, batch: Mapping[str, Tensor], part: slice) -> Tensor:
        on_device = {key: tensor[part].to(self.device, non_blocking=True) for key, tensor in batch.items()}
        with precision(self.device, self.dtype):
            rows: Tensor = self._forward(on_device)[self.modality]
        return rows.float()

    def _can_go_on(self, error: RuntimeError | MemoryError, n_items: int) -> bool:
        """True if the batch may be tried again: in smaller parts, or without compilation."""
        reason = first_line(error)
        if isinstance(error, MemoryError) or any(sign in str(error) for sign in OUT_OF_MEMORY):
            size = min(self._limit, n_items)
            if size == 1:
                raise RunError(
                    f"encoder {self.name}: {self.device} has no memory left for a single item ({reason}); free some, "
                    "or choose another device with --device"
                ) from None
            self._limit = size // 2
            logger.warning(
                "encoder %s: no memory for %d items at once; going on with %d (encode_batch_size)",
                self.name, size, self._limit,
            )  # fmt: skip
            return True
        if self._forward is not self.encoder and _is_of_the_compiler(error):
            self._forward = self.encoder
            logger.warning("encoder %s can't be compiled, so it goes on as it is: %s", self.name, reason)
            return True
        return False

    def _broken(self, expected: str, got: str) -> PluginError:
        return PluginError(f"encoder {self.name}: expected {self.modality} features {expected}, got {got}")


def _is_of_the_compiler(error: BaseException) -> bool:
    from torch._dynamo.exc import TorchDynamoException  # seconds of import, which compiling has already cost

    return isinstance(error, TorchDynamoException)

"""The files of an encoder released as a checkpoint and a vocabulary, without published hashes.

The variant `tiny` needs neither: its weights are random or from the user's file, and it hashes words.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from mmrec_lmm.api import WeightFile, find_weights, given_weights, hash_file


class Config(Protocol):
    """The part of an encoder's configuration that chooses its weights."""

    @property
    def variant(self) -> str: ...

    @property
    def weights(self) -> str: ...


def is_random(config: Config) -> bool:
    """True for a tiny model without a file of weights."""
    return config.variant == "tiny" and not config.weights


@dataclass(frozen=True)
class Release:
    """The published `checkpoint` of a configuration, and the `vocabulary`, which an installed package may hold too."""

    name: str
    checkpoint: Callable[[Any], WeightFile]
    vocabulary: WeightFile
    packaged: Callable[[], Path | None] = lambda: None

    def files(self, config: Config, modality: str) -> list[WeightFile]:
        """The files to find or download: the checkpoint and, for texts, the vocabulary unless a package has it."""
        if config.variant == "tiny":
            return []
        return [self.checkpoint(config)] + ([] if modality == "image" or self.packaged() else [self.vocabulary])

    def weights_id(self, config: Config, modality: str) -> str:
        """The SHA-256 of the checkpoint and, for texts, of the vocabulary; raises WeightsMissing."""
        if is_random(config):
            return "tiny, random"
        checkpoint = f"checkpoint {hash_file(self.checkpoint_path(config))}"
        if modality == "image":
            return checkpoint
        words = "hashed" if config.variant == "tiny" else hash_file(self.vocabulary_path(config))
        return f"{checkpoint} vocabulary {words}"

    def checkpoint_path(self, config: Config) -> Path:
        """The checkpoint, downloaded if necessary; raises WeightsMissing and DataError as `find_weights` does."""
        if config.variant == "tiny":
            return given_weights(config.weights, encoder=f"{self.name}:tiny")
        return find_weights(self.checkpoint(config), encoder=self.name, given=config.weights or None)

    def vocabulary_path(self, config: Config) -> Path:
        """The vocabulary: beside the checkpoint, else in a package, else found or downloaded by `find_weights`."""
        folder, packaged = self.checkpoint_path(config).parent, self.packaged()
        if packaged is None or (folder / self.vocabulary.name).is_file():
            return find_weights(self.vocabulary, encoder=self.name, given=folder)
        return packaged

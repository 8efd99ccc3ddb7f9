"""A tokenizer without a vocabulary, for the tiny variants: each lower-case word is hashed to an id."""

import re
import zlib
from dataclasses import dataclass

SIZE = 4096  # ids of the tiny variants' embedding tables


@dataclass(frozen=True)
class HashedWords:
    """text -> [start, a word's id, ..., end]; words get ids from `first` to `last`, both included."""

    start: int
    end: int
    first: int
    last: int
    max_tokens: int  # start and end among them

    def __call__(self, text: str) -> list[int]:
        words = re.findall(r"\w+|[^\w\s]", text.lower())[: self.max_tokens - 2]
        ids = [self.first + zlib.crc32(word.encode()) % (self.last - self.first + 1) for word in words]
        return [self.start, *ids, self.end]

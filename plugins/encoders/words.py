"""What the encoders' tokenizers share, and one without a vocabulary, for the tiny variants: each lower-case word is
hashed to an id."""

import re
import zlib
from collections.abc import Iterable
from dataclasses import dataclass

SIZE = 4096  # ids of the tiny variants' embedding tables
CHARACTERS = 100  # of a text for each token that an encoder reads: many more than an ordinary text needs


def as_words(text: str, special: Iterable[str]) -> str:
    """The text with a space within each `special` token, such as [SEP]: a tokenizer then takes it for words and signs.

    A tokenizer that splits words at signs, as most do, gives the ids that it would give without special tokens.
    """
    for token in special:
        text = text.replace(token, f"{token[0]} {token[1:]}")
    return text


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

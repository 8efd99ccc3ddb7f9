"""Items as encoders get them: what a catalog holds of a modality, read one by one, prepared, and put into batches.

An image that can't be read never stops a run: its item continues without it, and the reason is kept. Which files can't
be read is decided here, and only here, whatever is wrong with them. But an error of the machine ends the run, and so
does a file that isn't the one that was hashed.

Shapes: I items, B batch.
"""

import logging
import re
import signal
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from ..cache import fingerprint
from ..disk.faults import is_machines, machine_failed
from ..disk.hashing import changed, hash_bytes, hash_readable, join_hashes
from ..errors import ConfigError, DataError, MMRecError, PluginError
from ..plugin.contracts import ItemEncoder
from ..types import Background, ItemCatalog, RawItem
from .images import READING, UnreadableImage, decode_image, read_content

logger = logging.getLogger(__name__)

LONGEST_WORD = 1000  # letters, or signs, in a row: the time of some tokenizers grows with the square of it
_WORD = re.compile(rf"(\w{{1,{LONGEST_WORD}}})\w*|([^\w\s]{{1,{LONGEST_WORD}}})[^\w\s]*")
#: What programs write for a missing text. A real text may be one of these words, but few are.
CODE_WORDS = frozenset({"nan", "none", "null", "<na>", "nat", "n/a", "#n/a", "undefined"})
JOINT = "joint"  # the modality of image and text together, for items that have both


def item_texts(catalog: ItemCatalog, fields: Sequence[str]) -> list[str]:
    """I texts: the named columns joined by a space, each run of white space one space; unknown columns are skipped."""
    columns = [catalog.fields[field] for field in fields if field in catalog.fields]
    if not columns:
        return [""] * len(catalog)
    return [" ".join(" ".join(parts).split()) for parts in zip(*columns, strict=True)]


def cut_text(text: str, most: int) -> str:
    """The text's first `most` characters, and of a word, or of signs in a row, the first LONGEST_WORD."""
    return text if len(text) <= min(most, LONGEST_WORD) else _WORD.sub(r"\1\2", text[:most])


def bounded(encoder: ItemEncoder) -> Callable[[RawItem], dict[str, Tensor]]:
    """The encoder's `prepare`, which gets no text that is longer than it asks for. All of its texts come this way."""
    return partial(_prepare_cut, encoder.prepare, encoder.max_characters)


def _prepare_cut(prepare: Callable[[RawItem], dict[str, Tensor]], most: int, item: RawItem) -> dict[str, Tensor]:
    return prepare(replace(item, text=cut_text(item.text, most)))


def log_cut_texts(texts: Iterable[str], encoder: ItemEncoder, name: str) -> None:
    """Log how many texts the encoder gets cut, if any."""
    cut = sum(cut_text(text, encoder.max_characters) != text for text in texts)
    if cut:
        logger.info(
            "text: %s texts are cut for %s: to %s characters, and words to %s",
            f"{cut:,}", name, f"{encoder.max_characters:,}", f"{LONGEST_WORD:,}",
        )  # fmt: skip


def is_placeholder(text: str) -> bool:
    """True for a word that a program wrote for a missing text."""
    return text.strip().casefold() in CODE_WORDS


def is_invisible(text: str) -> bool:
    """True for a text of control characters and those of no width, such as U+200B; False for white space alone."""
    return bool(text.strip()) and not any(each.isprintable() and not each.isspace() for each in text)


def read_hashed(path: Path, sha256: str | None, background: Background) -> Image.Image:
    """The image in a file that had this hash when the catalog was hashed; None: it couldn't be read then.

    Raises DataError if it isn't that file any more, RunError where the machine fails, and for anything else that is
    wrong with the file what `read_image` raises.
    """
    try:
        content = read_content(path)
    except OSError as error:
        if is_machines(error):
            raise machine_failed(path, error) from None
        if sha256 is None:
            raise
        raise changed(path, "before it was read") from None
    if hash_bytes(content) != sha256:
        raise changed(path, "before it was read")
    try:
        return decode_image(content, background)
    except (OSError, MemoryError) as error:
        if is_machines(error):
            raise machine_failed(path, error) from None
        raise


def reason_of(error: Exception, path: Path | None) -> str:
    """Why an image can't be read, as it is stored: without the path, which is another tomorrow."""
    if isinstance(error, UnreadableImage):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        text = error.strerror
    else:
        text = str(error).replace(repr(str(path)), "").replace(str(path), "").strip()
    return f"{type(error).__name__}: {text}"


def nothing_readable(catalog: ItemCatalog, modality: str, item: int, reason: str, n_images: int) -> DataError:
    """The error where none of `n_images` can be read, with the first, `item`, and its reason."""
    return DataError(
        f"{modality} features can't be encoded: none of {n_images} images can be read, the first is "
        f"{catalog.images[item]}, of item {catalog.raw_ids[item]}: {reason}; try `data check`, which names causes, "
        f"another modality with --modalities, or --features {modality}=FILE.npy"
    )


@dataclass(frozen=True)
class Source:
    """A catalog's content in one modality. `items` are the ids that have it, in the order of encoding; `fingerprint` is
    a hash of their content; `hashes` are those of the images' files."""

    modality: str
    items: np.ndarray
    fingerprint: str
    texts: Sequence[str] = field(repr=False)
    images: Sequence[Path | None] = field(repr=False)
    hashes: Sequence[str | None] = field(repr=False)
    background: Background = "white"

    def read(self, item: int) -> RawItem:
        """The item with just this modality, or with both of `joint`. Raises what `read_hashed` raises."""
        image = None if self.modality == "text" else self.images[item]
        text = "" if self.modality == "image" else self.texts[item]
        return RawItem(item, read_hashed(image, self.hashes[item], self.background) if image else None, text)


def source_of(catalog: ItemCatalog, modality: str, text_fields: Sequence[str]) -> Source:
    """The items that have `modality`, "image", "text" or "joint"; DataError where none has."""
    texts = item_texts(catalog, text_fields)
    with_text = np.array([bool(text) for text in texts])
    with_image = np.array([image is not None for image in catalog.images])
    hashes = [None] * len(catalog) if modality == "text" else hash_readable(catalog.images)
    no_text = f"no item has text in the fields {', '.join(text_fields)}; there are {', '.join(catalog.fields)}"
    if modality == "text":
        having, content, nothing = with_text, fingerprint([texts, READING]), no_text
    elif modality == "image":
        having, content, nothing = with_image, _content(hashes, catalog.background), "no item has an image"
    elif modality == JOINT:
        content = fingerprint([fingerprint(texts), _content(hashes, catalog.background)])
        having, nothing = with_image & with_text, no_text if with_image.any() else "no item has an image"
        nothing = "no item has both image and text" if with_image.any() and with_text.any() else nothing
    else:
        raise ConfigError(f"modalities: expected image, text or {JOINT}, got {modality}, which no catalog has")
    if not having.any():
        others = "choose another modality with --modalities, or give a feature file"
        raise DataError(f"{modality} features can't be encoded: {nothing}; {others}: --features {modality}=FILE.npy")
    # Longest first: texts of like length share a batch, so little is padded, and memory runs out early if at all
    lengths = [0 if modality == "image" else -len(text) for text in texts]
    order = np.argsort(lengths, kind="stable")
    return Source(modality, order[having[order]], content, texts, catalog.images, hashes, catalog.background)


def _content(hashes: Sequence[str | None], background: Background) -> str:
    """A hash of which items have an image that can be read, of these files' content, and of how it becomes pixels."""
    known = [one for one in hashes if one is not None]
    files = [[one is not None for one in hashes], join_hashes(known)]
    return fingerprint([*files, READING, background])


@dataclass(frozen=True)
class Prepared:
    """A batch that an encoder prepared of some items, and by item the reason if it couldn't be read."""

    items: Sequence[int]
    tensors: Mapping[str, Tensor]
    unreadable: Mapping[int, str]

    def pin_memory(self) -> "Prepared":
        """The batch in page-locked memory, for copies to a GPU; the loader calls this."""
        tensors = {key: tensor.pin_memory() for key, tensor in self.tensors.items()}
        return Prepared(self.items, tensors, self.unreadable)


def loader(
    source: Source, encoder: ItemEncoder, name: str, batches: Iterable[list[int]], *, workers: int, pin: bool
) -> DataLoader[Prepared | MMRecError]:
    """The `batches` of item ids, read and prepared by `workers` processes, or in this one by none, in their order.

    A breach of the encoder's contract, a file that changed and a failing machine are yielded as errors, not raised: a
    worker's exception would arrive here with a traceback in its message. `batches` is read as far ahead as is
    prepared, two batches for each worker.
    """
    if source.modality != "image":
        log_cut_texts((source.texts[item] for item in source.items), encoder, name)
    return DataLoader(
        _Items(source, bounded(encoder)),  # type: ignore[arg-type]  # a batch is what `collate_fn` makes of its items
        batch_sampler=batches,
        collate_fn=partial(_collate, padding=encoder.padding, name=name),
        num_workers=workers,
        worker_init_fn=_start_worker,
        # Forked workers share the items and the encoder, which would otherwise be copied into each
        multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
        pin_memory=pin,
        generator=torch.Generator(),  # its own, as the loader would otherwise draw from the caller's random state
    )


def _start_worker(number: int) -> None:
    """Leave Ctrl-C to the main process. (torch has set one thread already.)"""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


_Item = tuple[int, dict[str, Tensor], str | None] | MMRecError


class _Items(TorchDataset[_Item]):
    """Item id -> the id, its tensors as the encoder prepares them, and why it couldn't be read, if so; or an error that
    ends the run."""

    def __init__(self, source: Source, prepare: Callable[[RawItem], dict[str, Tensor]]) -> None:
        self.source, self.prepare = source, prepare

    def __getitem__(self, item: int) -> _Item:
        try:
            raw, reason = self.source.read(item), None
        except MMRecError as error:
            return error
        except Exception as error:  # decoders raise anything; whatever it is, one bad image must not end the run
            raw, reason = RawItem(item, None, ""), reason_of(error, self.source.images[item])
        try:
            return item, self.prepare(raw), reason
        except MMRecError as error:
            return error


def _collate(samples: Sequence[_Item], *, padding: Mapping[str, int], name: str) -> Prepared | MMRecError:
    for sample in samples:
        if isinstance(sample, MMRecError):
            return sample
    items, prepared, reasons = zip(*samples, strict=True)
    unreadable = {item: reason for item, reason in zip(items, reasons, strict=True) if reason is not None}
    try:
        return Prepared(items, pad_and_stack(prepared, padding=padding, encoder=name), unreadable)
    except MMRecError as error:
        return error


def pad_and_stack(
    prepared: Sequence[Mapping[str, Tensor]], *, padding: Mapping[str, int], encoder: str
) -> dict[str, Tensor]:
    """One batch of B items' `prepare`: each key's tensors as (B, ...), 1-D integers padded to the longest.

    Raises PluginError, naming the encoder, where keys or shapes differ otherwise.
    """
    batch = {}
    for key in prepared[0]:
        tensors = [item[key] for item in prepared if key in item]
        shapes = {tuple(tensor.shape) for tensor in tensors}
        ragged = len(shapes) > 1 and (tensors[0].ndim != 1 or tensors[0].is_floating_point())
        if ragged or len(tensors) != len(prepared):
            raise PluginError(
                f"encoder {encoder}: prepare: expected {key} for each item, of one shape unless it is 1-D and integer, "
                f"got it for {len(tensors)} of {len(prepared)} items, with shapes {sorted(shapes)}"
            )
        batch[key] = pad_sequence(tensors, True, padding.get(key, 0)) if len(shapes) > 1 else torch.stack(tensors)
    return batch

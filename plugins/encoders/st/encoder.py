"""Features of any model of sentence-transformers (Reimers & Gurevych, EMNLP 2019, arXiv:1908.10084).

item's text or image -> the model's own preprocessing -> its modules in turn -> "sentence_embedding"

Fidelity: the library's own steps, in float32; equal to `SentenceTransformer.encode` of the same text or image. Where an
item's tensors don't depend on its batch, loader processes make them; where they do (padding on the left, tokens of all
items in a row, images in pieces), the batch is preprocessed when it is computed.
Shapes: B batch, T tokens, D features.
"""

import logging
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mmrec_lmm.api import ConfigError, ItemEncoder, RawItem

from ..hub import NO_LIMIT, TINY, cannot_tokenize, check_token_ids, library, token_limit
from ..pixels import shortened
from ..tiny_clip import save_tiny_clip
from ..towers import Pooling, blocks, find_pooling, pooled_states, probes
from ..words import CHARACTERS, as_words
from . import NAME, StConfig
from .model import BLANK, PROBES, folder_of, load

logger = logging.getLogger(f"mmrec_lmm.encoders.{NAME}")

SIZE_BYTES = 4  # of an image's width, and of its height, before its pixels


class St(ItemEncoder):
    """The model's vector of an image, of a text, or of both by themselves."""

    def __init__(self, config: StConfig, modalities: tuple[str, ...]) -> None:
        super().__init__()
        self.config = config
        if "image" in modalities:
            library("torchvision", encoder=NAME, extra=NAME)  # images are resized otherwise without, and differently
        if config.variant == TINY:
            with tempfile.TemporaryDirectory() as folder:
                save_tiny_clip(Path(folder))
                self.folder = Path(folder)
                self.model = load(self.folder)
        else:
            self.folder = folder_of(config)
            self.model = load(self.folder)
            logger.info("%s by %s", " and ".join(modalities), self.folder)
        self.special: tuple[str, ...] = ()
        self.prompt: str | None = None
        self.max_tokens = NO_LIMIT
        if "text" in modalities:
            self._read_texts()
        self._noted = False
        self._poolings: dict[str, Pooling] = {}  # of the towers, once it is known
        self.constants: dict[str, dict[str, Any]] = {}  # of modalities whose items are preprocessed one by one
        for modality in modalities:
            first, second = (self._preprocessed(modality, [probe]) for probe in PROBES[modality])
            if self._is_separable(modality, first, second):
                self.constants[modality] = {
                    name: value for name, value in first.items() if not isinstance(value, Tensor)
                }
        self.dims = {modality: self._width(modality) for modality in modalities}

    def prepare(self, item: RawItem) -> dict[str, Tensor]:
        prepared: dict[str, Tensor] = {}
        for modality in self.dims:
            content: Any = as_words(item.text, self.special)
            if modality == "image":
                content = shortened(item.image) if item.image else BLANK
            prepared |= self._prepared(modality, content)
        return prepared

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {modality: self._features(modality, batch).float() for modality in self.dims}  # (B, D)

    def hidden_states(self, batch: dict[str, Tensor]) -> Mapping[str, Sequence[Tensor]]:
        """Of each block, and of what enters the first, pooled as the model pools its last: first token, end of text,
        or the mean over the places on which its features depend."""
        return {modality: self._states(modality, batch) for modality in self.dims}

    def _states(self, modality: str, batch: dict[str, Tensor]) -> list[Tensor]:
        parts, inputs = [*blocks(self.model)], self._inputs(modality, batch)
        if modality not in self._poolings:
            device = next(rows.device for name, rows in batch.items() if name.startswith(f"{modality}."))
            with torch.inference_mode(False):
                some = self._inputs(modality, probes(self, device))
            self._poolings[modality] = find_pooling(
                lambda: self._output({**some}), parts, some.get("attention_mask"), modality=modality
            )
        pooling, mask = self._poolings[modality], inputs.get("attention_mask")
        return pooled_states(lambda: self._output(inputs), parts, lambda states: pooling(states, mask))

    def _prepared(self, modality: str, content: Any) -> dict[str, Tensor]:
        """An item's tensors by name, or its bytes where the whole batch must be there first."""
        if modality not in self.constants:
            packed = _packed(content) if modality == "image" else content.encode()
            return {f"{modality}.bytes": torch.tensor(list(packed), dtype=torch.uint8)}
        features = self._preprocessed(modality, [content])
        return {f"{modality}.{name}": value[0] for name, value in features.items() if isinstance(value, Tensor)}

    def _features(self, modality: str, batch: dict[str, Tensor]) -> Tensor:
        """(B, D)."""
        return self._output(self._inputs(modality, batch))

    def _inputs(self, modality: str, batch: dict[str, Tensor]) -> dict[str, Any]:
        """What the model is given of a batch."""
        if modality in self.constants:
            prefix = f"{modality}."
            features = {name.removeprefix(prefix): rows for name, rows in batch.items() if name.startswith(prefix)}
            features |= self.constants[modality]
        else:
            rows = batch[f"{modality}.bytes"]
            contents = [bytes(row) for row in rows.cpu().numpy()]
            unpacked = map(_unpacked, contents) if modality == "image" else (_text(each) for each in contents)
            features = self._preprocessed(modality, [*unpacked])
            features = {
                name: value.to(rows.device) if isinstance(value, Tensor) else value for name, value in features.items()
            }
        if modality == "text":
            self._note_cut(features)
        return features

    def _output(self, inputs: dict[str, Any]) -> Tensor:
        """(B, D)."""
        embedded: Tensor = self.model(inputs)["sentence_embedding"]
        return embedded

    def _is_separable(self, modality: str, first: dict[str, Any], second: dict[str, Any]) -> bool:
        """True if the tensors of two items differ in no shape but the number of tokens, so batches can be stacked."""
        if modality == "text":
            tokenizer = self.model.tokenizer
            if getattr(tokenizer, "padding_side", "left") == "left":
                return False
            self.padding = {"text.input_ids": getattr(tokenizer, "pad_token_id", None) or 0}
        tensors = [(value, second[name]) for name, value in first.items() if isinstance(value, Tensor)]
        if modality == "text":
            return all(one.ndim == 2 and len(one) == 1 and not one.is_floating_point() for one, _ in tensors)
        return all(one.shape == other.shape and len(one) == 1 for one, other in tensors)

    def _read_texts(self) -> None:
        """Set what is done with texts: their limit, the prompt, and special tokens."""
        model, given = self.model, self.config.max_tokens
        self.special = tuple(getattr(getattr(model, "tokenizer", None), "all_special_tokens", ()))
        own = token_limit(model.config, model.max_seq_length)
        if given is not None and given > own:
            raise ConfigError(
                f"encoder {NAME}: max_tokens: expected at most the {own} tokens that {self.config.variant} reads, got "
                f"{given}"
            )
        self.max_tokens = given or own
        if self.max_tokens < NO_LIMIT and self.max_tokens != model.max_seq_length:
            try:
                model.max_seq_length = self.max_tokens
            except AttributeError:
                raise ConfigError(
                    f"encoder {NAME}: max_tokens: {self.config.variant} reads texts whole; leave the key out"
                ) from None
        self.max_characters = min(self.max_characters, CHARACTERS * self.max_tokens)
        wanted = model.default_prompt_name if self.config.prompt is None else self.config.prompt
        self.prompt = model.prompts.get(wanted, wanted) or None
        if self.prompt:
            tokens = model.preprocess([self.prompt], prompt=None).get("input_ids")
            if tokens is not None and tokens.ndim == 2 and tokens.shape[1] >= self.max_tokens:
                raise ConfigError(
                    f"encoder {NAME}: prompt: expected fewer tokens than the {self.max_tokens} that are read of a "
                    "text, got as many: nothing of an item's text would be left; shorten it"
                )

    def _preprocessed(self, modality: str, contents: list[Any]) -> dict[str, Any]:
        """What the model makes of texts or images. Raises DataError where its tokenizer fails, or isn't its own."""
        if modality == "image":
            images: dict[str, Any] = self.model.preprocess(contents, prompt=None)
            return images
        try:
            texts: dict[str, Any] = self.model.preprocess(contents, prompt=self.prompt)
        except Exception as error:  # tokenizers raise plain Exceptions
            raise cannot_tokenize(self.folder, error) from None
        if isinstance(ids := texts.get("input_ids"), Tensor) and self.model.config is not None:
            check_token_ids(self.folder, ids.flatten(), self.model.config)
        return texts

    def _note_cut(self, features: dict[str, Any]) -> None:
        ids = features.get("input_ids")
        full = isinstance(ids, Tensor) and ids.ndim == 2 and ids.shape[1] >= self.max_tokens
        if full and not self._noted and not torch.compiler.is_compiling():
            self._noted = True
            logger.info("text: longer texts are cut to the %d tokens that the model reads", self.max_tokens)

    @torch.no_grad()
    def _width(self, modality: str) -> int:
        item = self._prepared(modality, PROBES[modality][0])
        return int(self._features(modality, {name: tensor[None] for name, tensor in item.items()}).shape[1])


def _packed(image: Image.Image) -> bytes:
    """The image as bytes: width, height, and pixels in RGB."""
    return b"".join(edge.to_bytes(SIZE_BYTES, "little") for edge in image.size) + image.convert("RGB").tobytes()


def _unpacked(content: bytes) -> Image.Image:
    """The image of `_packed`; what follows it is padding."""
    width, height = (int.from_bytes(content[at : at + SIZE_BYTES], "little") for at in (0, SIZE_BYTES))
    start = 2 * SIZE_BYTES
    pixels = np.frombuffer(content[start : start + 3 * width * height], np.uint8)
    return Image.fromarray(pixels.reshape(height, width, 3).copy())


def _text(content: bytes) -> str:
    """The text of its bytes and padding."""
    return content.rstrip(b"\0").decode()

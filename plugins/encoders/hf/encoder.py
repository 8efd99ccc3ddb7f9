"""Image and text features of any model of transformers that has them (CLIP, SigLIP, SigLIP 2, ALIGN and others).

image -> the model's processor -> get_image_features        text -> its tokenizer -> get_text_features
itc: by the model's own scale; SigLIP's loss where the model has a bias, CLIP's otherwise

Fidelity: the library's classes and processors, in float32; equal to its own output for the same image and text. Texts
are padded to the model's full length where it was trained so (SigLIP, SigLIP 2: they have no mask).
Shapes: B batch, T tokens, N the most tokens that are read, D features.
"""

import logging
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from mmrec_lmm.api import ConfigError, ItemEncoder, RawItem, WeightsMissing, first_line
from mmrec_lmm.losses import FIRST_LOG_SCALE, contrastive_scale, sigmoid_loss, symmetric_info_nce

from ..hub import TINY, cannot_tokenize, check_token_ids, token_limit
from ..pixels import shortened
from ..tiny_clip import save_tiny_clip
from ..towers import Pooling, blocks, find_pooling, pooled_states, probes
from ..words import CHARACTERS, as_words
from . import NAME, HfConfig
from .model import METHODS, Found, described, found, load, load_processor

logger = logging.getLogger(f"mmrec_lmm.encoders.{NAME}")

BLANK = Image.new("RGB", (64, 64))  # of an item without an image


class Hf(ItemEncoder):
    """The vectors of an image, of a text, or of both by themselves."""

    def __init__(self, config: HfConfig, modalities: tuple[str, ...]) -> None:
        super().__init__()
        self.config = config
        self._poolings: dict[str, Pooling] = {}  # of the towers, once it is known
        if config.variant == TINY:
            with tempfile.TemporaryDirectory() as folder:
                save_tiny_clip(Path(folder))
                self._load(described(Path(folder)), modalities)
        else:
            self._load(found(config), modalities)

    def _load(self, model: Found, modalities: tuple[str, ...]) -> None:
        self.model, self.folder = load(model), model.folder
        if not hasattr(self.model, "logit_scale") and not hasattr(self.model, "temperature"):
            self.logit_scale = nn.Parameter(torch.tensor(FIRST_LOG_SCALE))
        self.images: Any = None
        if "image" in modalities:
            self.images, _ = load_processor(model.folder, "image")
        self.tokenizer: Any = None
        if "text" in modalities:
            self.tokenizer, settings = load_processor(model.folder, "text")
            self.special: tuple[str, ...] = tuple(self.tokenizer.all_special_tokens)
            self.max_tokens = self._limit(settings.get("max_length"))
            self.max_characters = CHARACTERS * self.max_tokens
            masked = "attention_mask" in self.tokenizer.model_input_names
            self.padded = not masked or settings.get("padding") == "max_length"
            self.pads_first = self.tokenizer.padding_side == "left"  # batches are padded at the end
            pad = self.tokenizer.pad_token_id or 0
            self.padding = {"text.input_ids": pad, "text.token_type_ids": self.tokenizer.pad_token_type_id}
            self._noted = False
            self._check_prompt()
        self.dims = {modality: self._width(modality) for modality in modalities}

    def prepare(self, item: RawItem) -> dict[str, Tensor]:
        prepared: dict[str, Tensor] = {}
        if self.images is not None:
            image = shortened(item.image) if item.image else BLANK
            pixels = self.images(images=[image], return_tensors="pt")
            prepared |= {f"image.{name}": tensor[0] for name, tensor in pixels.items()}
        if self.tokenizer is not None:
            prepared |= self._tokens(item.text)  # (T,) each
        return prepared

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        rows = {modality: self._features(modality, batch).float() for modality in self.dims}  # (B, D) each
        return {name: F.normalize(values, dim=1) for name, values in rows.items()} if self.config.normalise else rows

    def hidden_states(self, batch: dict[str, Tensor]) -> Mapping[str, Sequence[Tensor]]:
        """Of each block, and of what enters the first, pooled as the model pools its last: first token, end of text,
        or the mean over the places on which its features depend."""
        return {modality: self._states(modality, batch) for modality in self.dims}

    def _states(self, modality: str, batch: dict[str, Tensor]) -> list[Tensor]:
        parts, inputs = [*blocks(self.model)], self._inputs(modality, batch)
        if modality not in self._poolings:
            with torch.inference_mode(False):  # as gradients are asked for
                some = self._inputs(modality, probes(self, next(iter(inputs.values())).device))
            self._poolings[modality] = find_pooling(
                lambda: self._output(modality, some), parts, some.get("attention_mask"), modality=modality
            )
        pooling, mask = self._poolings[modality], inputs.get("attention_mask")
        return pooled_states(lambda: self._output(modality, inputs), parts, lambda states: pooling(states, mask))

    @classmethod
    def is_tunable(cls, config: HfConfig) -> bool:
        """True if the model has image and text features in one space; also for one that isn't here, as most have."""
        if config.variant == TINY:
            return True
        try:
            model = found(config)
        except WeightsMissing:  # whoever loads it hears of that
            return True
        return len(model.modalities) == 2 and all(hasattr(model.kind, method) for method in METHODS.values())

    def tuning_losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The contrastive loss of the model's family."""
        images, texts = (F.normalize(self._features(name, batch).float(), dim=1) for name in ("image", "text"))
        bias: Tensor | None = getattr(self.model, "logit_bias", None)
        if bias is not None:
            return {"itc": sigmoid_loss(images, texts, scale=self.model.logit_scale.exp(), bias=bias)}
        if hasattr(self.model, "temperature"):  # ALIGN's
            return {"itc": symmetric_info_nce(images, texts, scale=1 / self.model.temperature)}
        scale = getattr(self.model, "logit_scale", None)
        return {
            "itc": symmetric_info_nce(
                images, texts, scale=contrastive_scale(self.logit_scale if scale is None else scale)
            )
        }

    def _features(self, modality: str, batch: dict[str, Tensor]) -> Tensor:
        """(B, D)."""
        return self._output(modality, self._inputs(modality, batch))

    def _inputs(self, modality: str, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """What the model is given of a batch."""
        prefix = f"{modality}."
        inputs = {name.removeprefix(prefix): rows for name, rows in batch.items() if name.startswith(prefix)}
        return self._filled(inputs) if modality == "text" else inputs

    def _output(self, modality: str, inputs: dict[str, Tensor]) -> Tensor:
        """(B, D)."""
        return pooled(getattr(self.model, METHODS[modality], self.model)(**inputs))

    def _filled(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """The tokens (B, T) with their masks, (B, N) where the model wants it so."""
        length = inputs["input_ids"].shape[1]
        full = length == self.max_tokens and not self.pads_first
        if full and not self._noted and not torch.compiler.is_compiling():
            self._noted = True
            logger.info("text: longer texts are cut to the %d tokens that the model reads", self.max_tokens)
        if self.padded:
            missing = self.max_tokens - length
            fill = {name: self.padding.get(f"text.{name}", 0) for name in inputs}
            inputs = {name: F.pad(rows, (0, missing), value=fill[name]) for name, rows in inputs.items()}
        return inputs

    def _tokens(self, text: str) -> dict[str, Tensor]:
        text = self.config.prompt + as_words(text, self.special)
        padding = "max_length" if self.pads_first else False
        try:
            tokens = self.tokenizer(text, truncation=True, max_length=self.max_tokens, padding=padding)
        except Exception as error:  # tokenizers raise plain Exceptions
            raise cannot_tokenize(self.folder, error) from None
        check_token_ids(self.folder, tokens["input_ids"], self.model.config)
        return {f"text.{name}": torch.tensor(tokens[name]) for name in self.tokenizer.model_input_names}

    def _limit(self, of_processor: int | None) -> int:
        """The most tokens of a text that are read: of the configuration, or all that the model can."""
        most = token_limit(self.model.config, of_processor, self.tokenizer.model_max_length)
        if self.config.max_tokens is None:
            return most
        if self.config.max_tokens > most:
            raise ConfigError(
                f"encoder {NAME}: max_tokens: expected at most the {most} tokens that {self.config.variant} reads, got "
                f"{self.config.max_tokens}"
            )
        return self.config.max_tokens

    def _check_prompt(self) -> None:
        if not self.config.prompt:
            return
        tokens = len(self.tokenizer(self.config.prompt).input_ids)
        if tokens >= self.max_tokens:
            raise ConfigError(
                f"encoder {NAME}: prompt: expected fewer tokens than the {self.max_tokens} that are read of a text, "
                f"got {tokens}: nothing of an item's text would be left; shorten it"
            )

    @torch.no_grad()
    def _width(self, modality: str) -> int:
        """The width of a modality's features; ConfigError where the model gives no single vector."""
        item = self.prepare(RawItem(0, None, "a"))
        try:
            rows = self._features(modality, {name: tensor[None] for name, tensor in item.items()})
        except Exception as error:  # what a class raises that takes other inputs depends on the class
            got = f"{type(error).__name__}: {first_line(error)}"
        else:
            if rows.ndim == 2:
                return rows.shape[1]
            got = f"shape {tuple(rows.shape)}"
        raise ConfigError(
            f"encoder {NAME}:{self.config.variant}: expected one vector for each {modality} of "
            f"{type(self.model).__name__}, got {got}; choose a model with pooled features"
        )


def pooled(output: Any) -> Tensor:
    """The vectors in what a model returns: a tensor, or an object that has them."""
    if isinstance(output, Tensor):
        return output
    for name in ("image_embeds", "text_embeds", "pooler_output"):
        if getattr(output, name, None) is not None:
            rows: Tensor = getattr(output, name)
            return rows
    raise ValueError(f"no pooled vector among {', '.join(output.keys())}")

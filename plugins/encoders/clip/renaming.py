"""CLIP's weights under the names of transformers, or of the encoder here, renamed to open_clip's.

transformers keeps query, key and value apart, which are one matrix here, and has the projections as linear layers,
whose matrices are transposed. Shapes: W width of a tower, D of the features.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from mmrec_lmm.api import DataError, first_few

_TOWERS = {"text_model.": "", "vision_model.": "visual."}
_PARTS = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "embeddings.class_embedding": "class_embedding",
    "embeddings.patch_embedding.weight": "conv1.weight",
    "final_layer_norm.": "ln_final.",
    "pre_layrnorm.": "ln_pre.",  # so it is spelled there
    "post_layernorm.": "ln_post.",
}
_LAYER = re.compile(r"encoder\.layers\.(\d+)\.(.+)")
_LAYER_PARTS = {
    "self_attn.out_proj.": "attn.out_proj.",
    "layer_norm1.": "ln_1.",
    "layer_norm2.": "ln_2.",
    "mlp.fc1.": "mlp.c_fc.",
    "mlp.fc2.": "mlp.c_proj.",
}
_PROJECTIONS = {"text_projection.weight": "text_projection", "visual_projection.weight": "visual.proj"}
_QUERY_KEY_VALUE = re.compile(r"self_attn\.([qkv])_proj\.(weight|bias)")


def is_of_transformers(state: Mapping[str, Tensor]) -> bool:
    """True if the names are those of transformers."""
    return any(name.startswith(tuple(_TOWERS)) for name in state)


def from_transformers(state: Mapping[str, Tensor], file: Path) -> dict[str, Tensor]:
    """The weights under open_clip's names. DataError for other networks than CLIP, such as SigLIP."""
    renamed: dict[str, Tensor] = {}
    separate: dict[str, dict[str, Tensor]] = {}  # in_proj's name -> q, k, v
    unknown = []
    for name, tensor in state.items():
        if name.endswith("position_ids"):
            continue
        if name in ("logit_scale", "logit_bias"):
            renamed[name] = tensor
        elif name in _PROJECTIONS:
            renamed[_PROJECTIONS[name]] = tensor.T  # (W, D)
        elif (new := _renamed(name)) is None:
            unknown.append(name)
        elif isinstance(new, str):
            renamed[new] = tensor
        else:
            separate.setdefault(new[0], {})[new[1]] = tensor
    lacking = [name for name, parts in separate.items() if set(parts) != set("qkv")]
    if unknown or lacking:
        raise DataError(
            f"{file}: expected CLIP under the names of transformers, got {first_few(unknown or lacking)} too: another "
            "network, such as SigLIP; name the file that is published for open_clip (open_clip_model.safetensors)"
        )
    for name, parts in separate.items():
        renamed[name] = torch.cat([parts[one] for one in "qkv"])  # (3 W, W), or (3 W,)
    return renamed


def is_of_encoder(state: Mapping[str, Tensor]) -> bool:
    """True if the names are those of ClipEncoder, which keeps the projections beside the model: of a file that ft, ete
    or `weights merge` wrote."""
    return any(name.startswith("model.visual.") for name in state)


def from_encoder(state: Mapping[str, Tensor], *, custom_text: bool) -> dict[str, Tensor]:
    """The weights under open_clip's names; `custom_text` is true of a model whose text tower is a module of its own."""
    text = "text.text_projection" if custom_text else "text_projection"
    renamed = {}
    for name, tensor in state.items():
        new = name.removeprefix("model.")
        new = re.sub(r"^image_projection(?=$|\.)", "visual.proj", new)
        renamed[re.sub(r"^text_projection(?=$|\.)", text, new)] = tensor
    return renamed


def hidden_act(file: Path) -> str | None:
    """The activation that the config.json beside a file names; None without such a file."""
    path = file.with_name("config.json")
    try:
        config = json.loads(path.read_text(encoding="utf-8")) if path.stat().st_size < 2**20 else None
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(config, dict):
        return None
    towers = [tower for name in ("text_config", "vision_config") if isinstance(tower := config.get(name), dict)]
    named = {str(tower.get("hidden_act", "quick_gelu")) for tower in towers}  # its default
    return named.pop() if len(named) == 1 else None


def _renamed(name: str) -> str | tuple[str, str] | None:
    """A name in open_clip; for a query, key or value the name of their common matrix, and which it is."""
    tower = next((prefix for prefix in _TOWERS if name.startswith(prefix)), None)
    if tower is None:
        return None
    rest, new = name.removeprefix(tower), _TOWERS[tower]
    if layer := _LAYER.fullmatch(rest):
        block = f"{new}transformer.resblocks.{layer[1]}."
        if one := _QUERY_KEY_VALUE.fullmatch(layer[2]):
            return f"{block}attn.in_proj_{one[2]}", one[1]
        rest, new, parts = layer[2], block, _LAYER_PARTS
    else:
        parts = _PARTS
    old = next((old for old in parts if rest == old or (old.endswith(".") and rest.startswith(old))), None)
    return None if old is None else f"{new}{parts[old]}{rest.removeprefix(old)}"

"""EfficientNet-Lite0 under the names of efficientnet-lite-pytorch, which saved it, to those of timm."""

from collections.abc import Mapping
from itertools import accumulate

from torch import Tensor

BLOCKS = (1, 2, 2, 3, 3, 4, 1)  # of each stage; the original counts blocks through, timm within their stage
NETWORK = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
FIRST = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}  # it doesn't expand
OTHERS = {
    "_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2", "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}  # fmt: skip


def under_timms_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors; names that aren't efficientnet-lite-pytorch's stay as they are."""
    return {_timms_name(name): tensor for name, tensor in state.items()}


def _timms_name(name: str) -> str:
    parts = name.split(".")
    if parts[0] != "_blocks":
        return ".".join([NETWORK.get(parts[0], parts[0]), *parts[1:]])
    _, number, part, *rest = parts
    block, part = int(number), (OTHERS if int(number) else FIRST).get(part, part)
    firsts = [0, *accumulate(BLOCKS)]
    stage = max(stage for stage in range(len(BLOCKS)) if firsts[stage] <= block)
    return ".".join(["blocks", str(stage), str(block - firsts[stage]), part, *rest])

"""plugin_name: some negatives by popularity, the others from the whole catalog. Replace it by your sampler."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from mmrec_lmm.api import Limit, Sampler, SamplerSpec, TrainingData, between, hookimpl


@dataclass(frozen=True)
class PluginNameConfig:
    LIMITS: ClassVar[Mapping[str, Limit]] = {"share": between(0, 1)}

    share: float = 0.5  # of the negatives that are drawn by popularity


class PluginName(Sampler):
    redraws = True  # the host draws again where the user has the item in training

    def __init__(self, data: TrainingData, config: PluginNameConfig) -> None:
        super().__init__(data, config)
        self.chosen = torch.from_numpy(data.train.items)  # (N,) an item as often as it was chosen

    def draw(self, users: Tensor, generator: torch.Generator) -> Tensor:
        """One item for each of `users` (R,)."""
        popular = self.chosen[torch.randint(len(self.chosen), users.shape, generator=generator)]  # (R,)
        others = torch.randint(self.data.n_items, users.shape, generator=generator)  # (R,)
        return torch.where(torch.rand(users.shape, generator=generator) < self.config.share, popular, others)


@hookimpl
def mmrec_register_samplers() -> list[SamplerSpec]:
    return [SamplerSpec("plugin_name", PluginName, PluginNameConfig, summary="by popularity and from all items")]

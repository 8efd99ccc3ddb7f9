"""plugin_name: item features as free parameters of the model, which begin as what the encoder made."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mmrec_lmm.api import (
    Batch,
    Inputs,
    ItemFeatures,
    NotApplicable,
    Paradigm,
    ParadigmSpec,
    RunSpec,
    TrainerCallback,
    hookimpl,
)  # fmt: skip


@dataclass(frozen=True)
class PluginNameConfig:
    learning_rate: float = 0.01


class Descent(TrainerCallback):
    """After each of the model's steps one of SGD on its features."""

    def __init__(self, features: ItemFeatures, rate: float) -> None:
        self.features, self.rate = features, rate

    def after_batch(self, batch: Batch) -> None:
        for modality, table in self.features().items():
            if table.grad is not None:
                self.write(modality, table.detach() - self.rate * table.grad, partial=True)
                table.grad = None

    def weights(self) -> dict[str, Tensor]:
        return {modality: table.detach() for modality, table in self.features().items()}

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        for modality, values in weights.items():
            self.write(modality, values, partial=False)

    def write(self, modality: str, values: Tensor, *, partial: bool) -> None:
        self.features.refresh(modality, torch.arange(len(values), device=values.device), values, partial=partial)


class PluginName(Paradigm):
    def check(self, run: RunSpec, registry) -> None:
        if not registry.models.get(run.model).uses_features:
            raise NotApplicable(f"--paradigm plugin_name: expected a model with item features, got {run.model}")

    def callback(self, run: RunSpec, inputs: Inputs, features: ItemFeatures, registry) -> TrainerCallback:
        return Descent(features, self.config.learning_rate)


@hookimpl
def mmrec_register_paradigms() -> list[ParadigmSpec]:
    return [
        ParadigmSpec(
            "plugin_name", PluginName, PluginNameConfig, joint=True, summary="features are trained, no encoder is"
        )
    ]

"""The hooks of mmrec-lmm: nothing else. A plugin is a module (or object) with functions of these names, marked with
`hookimpl`, behind an entry point of the group `mmrec_lmm`.

Register hooks return specs; they never receive a registry. Observer hooks receive frozen reports and return nothing.
Arguments are only ever added.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import pluggy

from .specs import DatasetSpec, EncoderSpec, MetricSpec, ModelSpec, ParadigmSpec, SamplerSpec, SplitSpec

if TYPE_CHECKING:
    from ..types import EpochReport, RunResult, RunSpec

NAMESPACE = "mmrec_lmm"
API_VERSION = 1

hookspec = pluggy.HookspecMarker(NAMESPACE)
hookimpl = pluggy.HookimplMarker(NAMESPACE)


@hookspec
def mmrec_register_encoders() -> Iterable[EncoderSpec]:  # type: ignore[empty-body]
    """The item encoders that this plugin brings."""


@hookspec
def mmrec_register_models() -> Iterable[ModelSpec]:  # type: ignore[empty-body]
    """The recommenders that this plugin brings."""


@hookspec
def mmrec_register_samplers() -> Iterable[SamplerSpec]:  # type: ignore[empty-body]
    """The samplers of negative items that this plugin brings."""


@hookspec
def mmrec_register_paradigms() -> Iterable[ParadigmSpec]:  # type: ignore[empty-body]
    """The ways of training an encoder for a recommender that this plugin brings."""


@hookspec
def mmrec_register_datasets() -> Iterable[DatasetSpec]:  # type: ignore[empty-body]
    """The data sets that this plugin can make or read."""


@hookspec
def mmrec_register_splits() -> Iterable[SplitSpec]:  # type: ignore[empty-body]
    """The rules by which this plugin can draw a split."""


@hookspec
def mmrec_register_metrics() -> Iterable[MetricSpec]:  # type: ignore[empty-body]
    """The ranking metrics that this plugin can compute."""


@hookspec
def mmrec_run_started(run: RunSpec, folder: Path) -> None:
    """Called before a run trains, or continues, with the folder that will hold its result; not for a stored result."""


@hookspec
def mmrec_epoch_finished(run: RunSpec, epoch: EpochReport) -> None:
    """Called after each training epoch (and its evaluation, if it had one)."""


@hookspec
def mmrec_run_finished(run: RunSpec, result: RunResult) -> None:
    """Called once the result of a run is on disk."""

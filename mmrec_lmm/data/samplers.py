"""Registers the samplers of negatives that ship: uniform, popularity, none. Their code is in `sampling`."""

from collections.abc import Iterable

from ..plugin.hookspecs import hookimpl
from ..plugin.specs import SamplerSpec

_CODE = f"{__package__}.sampling"


@hookimpl
def mmrec_register_samplers() -> Iterable[SamplerSpec]:
    return (
        SamplerSpec("uniform", f"{_CODE}:Uniform", summary="training items that the user lacks, all equally likely"),
        SamplerSpec(
            "popularity",
            f"{_CODE}:Popularity",
            f"{_CODE}:PopularityConfig",
            summary="training items that the user lacks, by a power of their counts",
            paper="Mikolov et al., NeurIPS 2013, arXiv:1310.4546",
        ),
        SamplerSpec("none", None, summary="none: for a model that reads no negatives"),
    )

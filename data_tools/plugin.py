"""The entry point of the data tools: registers the demo data set, made on first use, and those that can be got."""

from collections.abc import Iterable

from mmrec_lmm.api import DatasetSpec, hookimpl

from .published import DATASETS


@hookimpl
def mmrec_register_datasets() -> Iterable[DatasetSpec]:
    yield DatasetSpec(
        name="demo",
        summary="synthetic catalog of rendered images and texts whose content decides who likes what",
        make="mmrec_lmm_data_tools.demo:make",
        default_encoder="basic",
        license="Apache-2.0",
    )
    for dataset in DATASETS.values():
        yield DatasetSpec(
            name=dataset.name,
            summary=dataset.summary + (f": {dataset.counts}" if dataset.counts else ""),
            get=f"mmrec-lmm data get {dataset.name}",
            license=dataset.terms,
            paper=dataset.citation,
        )

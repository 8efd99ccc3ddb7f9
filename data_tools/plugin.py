"""The entry point of the data tools: registers the demo data set, made on first use."""

from collections.abc import Iterable

from mmrec_lmm.api import DatasetSpec, hookimpl


@hookimpl
def mmrec_register_datasets() -> Iterable[DatasetSpec]:
    return [
        DatasetSpec(
            name="demo",
            summary="synthetic catalog of rendered images and texts whose content decides who likes what",
            make="mmrec_lmm_data_tools.demo:make",
            default_encoder="basic",
            license="Apache-2.0",
        )
    ]

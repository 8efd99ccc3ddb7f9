"""The entry point of the data tools: registers the demo data set, made on first use, those that can be got, and the
rules of splits."""

from collections.abc import Iterable

from mmrec_lmm.api import DatasetSpec, SplitSpec, hookimpl

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


@hookimpl
def mmrec_register_splits() -> Iterable[SplitSpec]:
    at_random = {
        "ratio": ("by_ratio", "MMRec's rule: of each user's at random"),
        "cold-item": ("by_cold_items", "a fifth of the items has no training row"),
    }
    by_time = {
        "leave-one-out": ("leave_one_out", "each user's last is test, the one before validation"),
        "user-time": ("by_user_time", "each user's last tenth is test, the one before validation"),
        "global-time": ("by_global_time", "cut at two times, the same for all users"),
    }
    for name, (draw, summary) in {**at_random, **by_time}.items():
        yield SplitSpec(name, f"mmrec_lmm.data.splitting:{draw}", summary, needs_times=name in by_time)

"""plugin_name: a line on each finished run in plugin_name.jsonl, beside the runs. Replace it by what you watch."""

import json
import logging

from mmrec_lmm.api import EpochReport, RunResult, RunSpec, hookimpl


@hookimpl
def mmrec_epoch_finished(run: RunSpec, epoch: EpochReport) -> None:
    logging.getLogger(__name__).info("%s on %s, epoch %d: %s", run.model, run.dataset, epoch.epoch, epoch.losses)


@hookimpl
def mmrec_run_finished(run: RunSpec, result: RunResult) -> None:
    with (result.path.parent / "plugin_name.jsonl").open("a") as lines:
        lines.write(json.dumps({"run": result.run_id, "test": dict(result.test)}) + "\n")

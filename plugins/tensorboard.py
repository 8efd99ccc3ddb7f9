"""TensorBoard: a run's losses and metrics on validation, epoch by epoch while it trains, then its metrics on test.

    mmrec-lmm run -m VBPR -d demo -p mmrec_lmm_plugins.tensorboard
    tensorboard --logdir runs/tensorboard

A run is one run there, in the folder `tensorboard` beside its own, under its id. One that resumes continues; one that
is made again takes the place of its earlier events. Needs the package tensorboard: the extra [tensorboard].
"""

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from mmrec_lmm.api import EpochReport, PluginError, RunResult, RunSpec, hookimpl

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

if importlib.util.find_spec("tensorboard") is None:
    raise PluginError("expected the package tensorboard, got none; try pip install 'mmrec-lmm[tensorboard]'")


class Tracker:
    """The events of the run that this process makes now."""

    def __init__(self) -> None:
        self._folder: Path | None = None
        self._writer: SummaryWriter | None = None

    def start(self, folder: Path) -> None:
        """Track the run of that folder from now on."""
        self.close()
        self._folder = folder.parent / "tensorboard" / folder.name

    def writer(self, epoch: int) -> "SummaryWriter | None":
        """The writer of events from that epoch on; earlier ones of this and later epochs don't count any more. None if
        no run has started."""
        if self._writer is None and self._folder is not None:
            from torch.utils.tensorboard import SummaryWriter

            for events in self._folder.glob("events.out.tfevents.*") if epoch == 0 else ():
                events.unlink()
            self._writer = SummaryWriter(str(self._folder), purge_step=epoch)
        return self._writer

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._folder, self._writer = None, None


_tracker = Tracker()


@hookimpl
def mmrec_run_started(run: RunSpec, folder: Path) -> None:
    _tracker.start(folder)


@hookimpl
def mmrec_epoch_finished(run: RunSpec, epoch: EpochReport) -> None:
    writer = _tracker.writer(epoch.epoch)
    if writer is None:
        return
    scalars = {f"loss/{name}": value for name, value in epoch.losses.items()}
    scalars |= {f"valid/{name}": value for name, value in (epoch.valid or {}).items()}
    scalars["seconds/train"] = epoch.train_seconds
    if epoch.valid is not None:
        scalars["seconds/valid"] = epoch.valid_seconds
    for name, value in scalars.items():
        writer.add_scalar(name, value, epoch.epoch)
    writer.flush()


@hookimpl
def mmrec_run_finished(run: RunSpec, result: RunResult) -> None:
    writer = _tracker.writer(result.epochs)  # of a run that had no epoch in this process, or none at all
    if writer is not None:
        axes = {"run": result.run_id, "cell": run.axes.key, **result.parameters}
        rows = [f"| {name} | {value} |" for name, value in axes.items()]
        writer.add_text("run", "\n".join(["| | |", "|---|---|", *rows]), result.best_epoch)
        for name, value in result.test.items():
            writer.add_scalar(f"test/{name}", value, result.best_epoch)
    _tracker.close()

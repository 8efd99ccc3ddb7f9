"""The best verified setting of a model on a board, as a study's file that runs.

The file has the row's axes and seeds, and each key whose value differs from what configuration gives here. So its runs
are those that the board verified: they have the same names.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ..config.resolve import Request, resolve_request
from ..config.settings import OF_FILES, OF_NO_NUMBER
from ..errors import ConfigError, did_you_mean
from ..plugin.registry import Registry
from ..running.differences import differing
from ..typed_json import plain
from ..types import PRE_TRAINED, RunResult
from .bundle import SubmittedRow, opened
from .folder import BOARD, Board, Entered, check_whole, open_board

_AXES = ("model", "dataset", "encoder", "paradigm", "modalities", "features", "control", "point", "seed", "split")
_LEFT_OUT = OF_NO_NUMBER - OF_FILES  # keys that say where and how, and change no number


def board_of(dataset: str, folder: Path | None, registry: Registry) -> Board:
    """The board in `folder` or, without one, that in a folder below `boards` which is of the data set.

    ConfigError if there is none, or several.
    """
    if folder is not None:
        found = [open_board(folder, registry)]
    else:
        found = [open_board(path.parent, registry) for path in sorted(Path("boards").glob(f"*/{BOARD}"))]
    own = [board for board in found if board.keys.dataset.lower() == dataset.lower()]
    if len(own) == 1:
        return own[0]
    if own:
        names = ", ".join(str(board.folder) for board in own)
        raise ConfigError(f"--board: expected one board of {dataset}, got {names}; try --board {own[0].folder}")
    known = sorted({board.keys.dataset for board in found})
    hint = did_you_mean(dataset, known) or f"; there are boards of {', '.join(known) or 'nothing'}"
    raise ConfigError(f"--board: expected a board of {dataset}, got none{hint}; try --board FOLDER")


def best(board: Board, model: str, registry: Registry) -> str:
    """The text of the study of the row of `model` with the highest `valid_metric` on test among those whose
    verification nothing stopped. ConfigError if there is none, or if it has features of files that no study names."""
    metric = board.keys.valid_metric.lower()
    name = registry.models.get(model).name
    found: list[tuple[float, Entered, SubmittedRow, RunResult]] = []
    for one in board.current():
        check_whole(one)
        if one.verification.stopped is not None:
            continue
        with opened(one.bundle) as bundle:
            for row in bundle.manifest.rows:
                if row.axes.model.lower() == name.lower() and row.axes.control is None:
                    results = bundle.results(row)
                    score = sum(result.test[metric] for result in results) / len(results)
                    found.append((score, one, row, results[0]))
    if not found:
        raise ConfigError(f"{board.folder}: expected a verified row of {name}, got none; try another model, or board")
    score, one, row, result = max(found, key=lambda each: each[0])
    if files := (result.record.resolved or {}).get("features"):
        flags = " ".join(f"--features {modality}={name}" for modality, name in files.items())
        raise ConfigError(
            f"{board.folder}: {one.submission.id}: expected a row that a study can make, got one with {flags}, which "
            f"no study has; try `mmrec-lmm run` with the values in runs/{result.run_id}/config.json of {one.bundle}"
        )
    seeds = sorted({attempt.seed for attempt in row.attempts if attempt.run in row.runs})
    return study_text(
        row,
        result,
        seeds,
        registry,
        head=f"# {name} on {row.axes.tested_on}: {metric} {score:.4f} on test, the best of its rows on the board "
        f"{board.keys.name},\n# version {board.keys.version}. Submission {one.submission.id}, verified: "
        f"{one.verification.tier}.\n# mmrec-lmm study run FILE\n",
    )


def study_text(row: SubmittedRow, result: RunResult, seeds: list[int], registry: Registry, *, head: str) -> str:
    """A study's file whose runs are those of a row."""
    axes = row.axes
    uses_features = registry.models.get(axes.model).uses_features
    modalities = ["+".join(axes.modalities)] if uses_features and axes.modalities else None
    content: dict[str, Any] = {
        "models": [axes.model],
        "datasets": [axes.dataset],
        **({"splits": [axes.split]} if axes.split else {}),
        **({"encoders": [str(axes.encoder)]} if axes.encoder else {}),
        **({"paradigms": [axes.paradigm]} if axes.paradigm != PRE_TRAINED else {}),
        **({"modalities": modalities} if modalities else {}),
        "seeds": seeds,
        "settings": dict(_keys(row, result, registry)),
    }
    return head + yaml.safe_dump(content, sort_keys=False, allow_unicode=True, default_flow_style=None, width=110)


def _keys(row: SubmittedRow, result: RunResult, registry: Registry) -> Mapping[str, Any]:
    """The keys whose values differ from those that configuration gives here."""
    axes = row.axes
    request = Request(
        axes.model, axes.dataset, encoder=axes.encoder, paradigm=axes.paradigm, modalities=axes.modalities or None
    )
    here = plain(resolve_request(request, registry).runs[0])
    assert result.record.resolved is not None
    found = differing(here, result.record.resolved)
    return {name: value for name, (_, value) in found.items() if name not in {*_AXES, *_LEFT_OUT}}

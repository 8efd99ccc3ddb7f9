"""The check of a data set: read as a run reads it, with a look at what a run doesn't look at.

It has an error exactly where a run would fail: what loading, sampling and the features' reader refuse is taken from
them. Whatever else can be read is still checked.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..config.settings import Settings
from ..data.ids import MAPPINGS, read_ids
from ..data.loading import read_catalog
from ..data.opening import open_dataset, split_rule
from ..data.splitting import Rule
from ..disk.reading import check_readable
from ..errors import DataError
from ..features.files import normalized, read_feature_file
from ..plugin.registry import Registry
from ..types import Dataset, FeatureTable, ItemCatalog
from . import content, features, interactions
from .findings import Content, Features, Finding, Place, Report, Times, by_severity, refusal


@dataclass(frozen=True)
class Checked:
    """A report, and what it is about, as far as it can be read: `unreadable` are the reasons by item."""

    report: Report
    dataset: Dataset | None
    catalog: ItemCatalog | None
    rows: interactions.Rows | None
    unreadable: dict[int, str]


def check(
    name: str, settings: Settings, registry: Registry, *, decode: bool = True, sample: int | None = None
) -> Checked:
    """Check the data set of that name under `data_path`, which a plugin may make first.

    `decode`: decode all images, or a `sample` of so many. Raises DataError only where there is no such data set.
    """
    folder = Path(settings.data_path) / name
    check_readable(folder)
    found: list[Finding] = []
    dataset = None
    try:
        dataset = open_dataset(name, settings, registry)
    except DataError as error:
        if not folder.is_dir():
            raise
        found.append(refusal("refused", error))
    if dataset is not None:
        found += _ids(dataset)
    catalog = _catalog(folder, dataset, found)
    rows, times = _interactions(folder, name, settings, split_rule(settings, registry), catalog, found, dataset)
    counts = interactions.count(rows) if rows is not None else None

    contents: dict[str, Content] = {}
    unreadable: dict[int, str] = {}
    if catalog is None:
        where = Place(content.TABLE)
        cure = "`data import` makes one from a table of items"
        found.append(Finding("no-catalog", "note", "there is no catalog, which encoders read", where=where, cure=cure))
    else:
        contents["image"], said, unreadable = content.images(catalog, folder, decode=decode, sample=sample)
        found += said
        of_texts, said = content.texts(catalog, settings.text_fields)
        contents |= of_texts
        found += said
    n_items = dataset.n_items if dataset else len(catalog) if catalog else None
    read = _features(folder, settings, dataset, n_items, found, catalog.raw_ids if catalog else None)
    report = Report(
        name=dataset.name if dataset else name,
        folder=str(folder),
        split=str(dataset.split) if dataset and dataset.split else None,
        fingerprint=dataset.fingerprint if dataset else None,
        counts=counts,
        times=times,
        content=contents,
        features=read,
        findings=by_severity(found),
    )
    return Checked(report, dataset, catalog, rows, unreadable)


def _ids(dataset: Dataset) -> Iterator[Finding]:
    """What is wrong with the mappings of own ids, which no run reads, but `recommend` does."""
    for kind in MAPPINGS:
        try:
            read_ids(dataset, kind)
        except DataError as error:
            yield refusal("ids-refused", error, severity="warning")


def _catalog(folder: Path, dataset: Dataset | None, found: list[Finding]) -> ItemCatalog | None:
    """The catalog, also of a data set that can't be loaded."""
    if dataset is not None or not (folder / content.TABLE).is_file():
        return dataset.catalog if dataset is not None else None
    try:
        return read_catalog(folder)
    except DataError as error:
        said = refusal("refused", error)
        if said not in found:  # loading may have stopped before
            found.append(said)
        return None


def _interactions(
    folder: Path,
    name: str,
    settings: Settings,
    rule: Rule | None,
    catalog: ItemCatalog | None,
    found: list[Finding],
    dataset: Dataset | None,
) -> tuple[interactions.Rows | None, Times | None]:
    """The rows and times of the interactions, from their file or from a plugin; None where they can't be read."""
    inter = folder / (settings.inter_file_name or f"{name}.inter")
    times = None
    if inter.is_file():
        try:
            rows = interactions.read_rows(inter, settings, rule, n_items=len(catalog) if catalog else 0)
            times, of_times = interactions.times(inter, settings, time.time())
        except DataError:  # as loading has said
            return None, None
        found += of_times
    elif dataset is not None:
        rows = interactions.rows_of(dataset)
        found += [Finding("loading", "note", note) for note in dataset.notes]
    else:
        return None, None
    drawn = dataset.split if dataset is not None else None
    found += interactions.findings(rows, catalog.raw_ids if catalog and len(catalog) == rows.n_items else None, drawn)
    return rows, times


def _features(
    folder: Path,
    settings: Settings,
    dataset: Dataset | None,
    n_items: int | None,
    found: list[Finding],
    raw_ids: Sequence[str] | None,
) -> dict[str, Features]:
    """The feature files, each read as a run would read it."""
    files = {"image": folder / settings.vision_feature_file, "text": folder / settings.text_feature_file}
    if dataset is not None:
        files = dict(dataset.feature_files)
    read: dict[str, Features] = {}
    for modality, path in files.items():
        if n_items is None or not path.is_file():
            continue
        try:
            table: FeatureTable = read_feature_file(path, modality=modality, n_items=n_items)
        except DataError as error:
            found.append(refusal("features-refused", error))
            continue
        read[modality] = Features(path.name, int(table.present.sum()), table.dim)
        if settings.missing == "mean" and not table.present.any():
            cure = f"try --missing=zero, or leave {modality} out of --modalities"
            what = f"no item has {modality} features, whose mean --missing=mean would fill in"
            found.append(Finding("features-refused", "error", what, where=Place(path.name), cure=cure))
        found += features.findings(normalized(table, settings.normalize), path, raw_ids)
    return read

"""`data`: get, make, check and import data sets."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ...config.choices import SPLIT_RULES
from ...errors import ConfigError, DataError, MMRecError
from ..parser import (
    add_group,
    add_verb,
    configs_folder,
    count,
    count_or_zero,
    data_folder,
    feature_file,
    folder_name,
    folder_names,
    how_to_print,
    names,
    number,
    which_data,
    which_split,
)
from ..shared import flag_for, once, runs_of, write
from ..text import check_text
from .images import add_images

if TYPE_CHECKING:
    from mmrec_lmm_data_tools.building import Report
    from mmrec_lmm_data_tools.published import PublishedDataset

    from ..parser import Verbs


def add(verbs: Verbs) -> None:
    data = add_group(verbs, "data", "Get, make, check and import data sets.")
    demo = add_verb(data, "demo", _demo, "Make the demo data set.")
    data_folder(demo)
    demo.add_argument("--seed", type=count_or_zero, help="another random catalog")
    demo.add_argument("--force", action="store_true", help="replace an existing data set")
    check = add_verb(data, "check", _check, "Say what a data set holds, and what is wrong with it.", keys=True)
    which_data(check)
    which_split(check)
    check.add_argument("--format", choices=("text", "json", "html"), default="text", help="default: text")
    check.add_argument("-o", "--output", type=Path, metavar="FILE", help="write to FILE (default: stdout)")
    check.add_argument("--no-decode", dest="decode", action="store_false", help="don't open images; quicker")
    check.add_argument("--sample", type=count, metavar="N", help="decode N images only, spread over the items")
    known = add_verb(
        data, "audit", _audit, "Test whether files of features, graphs or profiles know validation or test.", keys=True
    )
    which_data(known)
    which_split(known)
    known.add_argument(
        "--features",
        type=feature_file,
        action="append",
        default=[],
        metavar="MODALITY=FILE.npy",
        help="item features (default: the data set's own files)",
    )
    for flag, what in (("--graph", "a graph of items, users or both, FILE.npz"), ("--profiles", "users' FILE.npy")):
        known.add_argument(flag, type=Path, action="append", default=[], metavar="FILE", help=what)
    known.add_argument("--permutations", type=count, metavar="N", help="draws of the labels (default: 1999)")
    known.add_argument("--format", choices=("text", "json"), default="text", help="default: text")
    known.add_argument("-o", "--output", type=Path, metavar="FILE", help="write to FILE (default: stdout)")
    table = add_verb(data, "table", _table, "Print the paper's table 2 of your data sets and encoders.", keys=True)
    table.add_argument(
        "-d",
        "--dataset",
        dest="datasets",
        required=True,
        type=folder_names,
        metavar="NAME,NAME",
        help="folders in the folder of data sets",
    )
    table.add_argument("--data-path", metavar="DIR", help="folder of data sets (default: data)")
    configs_folder(table)
    table.add_argument(
        "--encoders", type=names, metavar="NAME,NAME", help="`list encoders` shows them (default: all that encode)"
    )
    how_to_print(table)
    made = add_verb(data, "build", _build, "Make a data set from the files of a public one, such as Amazon reviews.")
    made.add_argument("name", type=folder_name, help="the new data set's name")
    made.add_argument(
        "--from", dest="source", type=Path, required=True, metavar="DIR", help="the folder of the files, as downloaded"
    )
    made.add_argument(
        "--layout",
        metavar="NAME",
        help="amazon-2014, amazon-2018, amazon-2023, movielens, recbole or mmrec (default: what the files look like)",
    )
    made.add_argument("--category", metavar="TEXT", help="take only files whose name has TEXT")
    made.add_argument("--strict", action="store_true", help="stop at the first line that can't be used")
    _how_to_build(made)
    data_folder(made)
    got = add_verb(data, "get", _get, "Download a public data set, and make it ready for runs.")
    got.add_argument(
        "name", help="baby, sports, clothing or elec (Amazon, 2014), ml-100k, ml-1m or ml-latest-small (MovieLens)"
    )
    got.add_argument(
        "--accept-terms", action="store_true", help="accept the terms of use, which are shown (default: ask)"
    )
    got.add_argument(
        "--from", dest="source", type=Path, metavar="DIR", help="take files from here; download only what it lacks"
    )
    got.add_argument("--mirror", metavar="URL", help="download from here, in the layout of the publisher's server")
    got.add_argument("--image-features", action="store_true", help="get the published image features too, a large file")
    got.add_argument(
        "--images",
        action=argparse.BooleanOptionalAction,
        help="download the items' images, as `data images` does (default: where there are addresses)",
    )
    got.add_argument("--strict", action="store_true", help="stop at the first line that can't be used")
    _how_to_build(got, core=None, usual="5 for Amazon's data sets, as in MMRec, and 0 for MovieLens")
    data_folder(got)
    load = add_verb(data, "import", _import, "Make a data set from an interactions table, an items table and images.")
    load.add_argument("name", type=folder_name, help="the new data set's name")
    load.add_argument(
        "--interactions",
        type=Path,
        required=True,
        metavar="FILE",
        help="a table of users and items, one interaction a row, with or without a header",
    )
    load.add_argument(
        "--items",
        type=Path,
        metavar="FILE",
        help="a table of items with a header: their id, title, brand, categories, description, image",
    )
    load.add_argument(
        "--images",
        type=Path,
        metavar="PATH",
        help="a folder or archive of images: those that the column image names; without it, of item X the file X.jpg "
        "or the like",
    )
    load.add_argument("--user-column", metavar="NAME", help="the users' column, if it isn't called user_id or the like")
    load.add_argument("--item-column", metavar="NAME", help="the items' column, if it isn't called item_id or the like")
    load.add_argument("--time-column", metavar="NAME", help="the times' column, if it isn't called timestamp or time")
    load.add_argument(
        "--rating-column", metavar="NAME", help="the ratings' column, if it isn't called rating, overall or stars"
    )
    load.add_argument(
        "--columns",
        type=names,
        metavar="user,item,...",
        help="names for an interactions table without a header (default: user,item,rating,timestamp)",
    )
    load.add_argument(
        "--items-id-column",
        metavar="NAME",
        help="the ids' column of the items table, if it isn't called item_id or the like, nor the first",
    )
    load.add_argument(
        "--split-column",
        metavar="NAME",
        help="a column that says train, valid, test or 0, 1, 2, to keep (default: x_label, if there is one)",
    )
    load.add_argument(
        "--header",
        action=argparse.BooleanOptionalAction,
        help="the interactions have a header, or none (default: as the first lines look)",
    )
    load.add_argument(
        "--separator", metavar="TEXT", help="of both tables (default: tab, comma, semicolon or bar, as the lines have)"
    )
    load.add_argument(
        "--quotes",
        choices=("line", "multiline", "none"),
        default="line",
        help="quoted cells end on their line (default), may hold line breaks, or quotes are ordinary characters",
    )
    load.add_argument("--encoding", default="utf-8", metavar="NAME", help="of both tables (default: utf-8)")
    load.add_argument("--decimal", choices=(".", ","), default=".", help="of ratings and timestamps (default: a point)")
    data_folder(load)
    load.add_argument(
        "--drop-unknown", action="store_true", help="drop interactions with items that the items table lacks"
    )
    _how_to_build(load, "--seed")
    add_images(data)


def _how_to_build(parser: argparse.ArgumentParser, *seed: str, core: int | None = 0, usual: str = "all") -> None:
    """Add the flags of filters, split and text; `seed` are other names of the split's seed."""
    parser.add_argument(
        "--min-rating", type=number, metavar="X", help="keep only interactions with a rating of X or more"
    )
    parser.add_argument(
        "--core",
        type=count_or_zero,
        default=core,
        metavar="K",
        help=f"keep only users and items with K interactions or more (default: {usual})",
    )
    parser.add_argument(
        "--split",
        choices=SPLIT_RULES,
        help="draw the split by this rule (default: the split that the files bring, else ratio)",
    )
    parser.add_argument(
        "--split-seed",
        *seed,
        dest="split_seed",
        type=count_or_zero,
        default=0,
        metavar="N",
        help="of the split (default: 0)",
    )
    parser.add_argument(
        "--raw-text", action="store_true", help="keep tags, entities and broken encodings in texts as they are"
    )
    parser.add_argument("--force", action="store_true", help="replace an existing data set")


def _demo(options: argparse.Namespace) -> int:
    from mmrec_lmm_data_tools.demo import SEED, make

    folder = options.data_path / "demo"
    make(folder, seed=SEED if options.seed is None else options.seed, force=options.force)
    print(f"{folder} is ready; try: mmrec-lmm run -m VBPR -d demo{flag_for('--data-path', options.data_path, 'data')}")
    return 0


def _check(options: argparse.Namespace) -> int:
    from ...checking.check import check
    from ...running.inputs import check_text_fields

    options.model = options.encoder = None
    registry, resolved = runs_of(options)
    run = resolved.runs[0]
    checked = check(run.dataset, run.settings, registry, decode=options.decode, sample=options.sample)
    if checked.dataset is not None:
        check_text_fields(run, checked.dataset)
    report = checked.report
    if options.format == "html":
        from ...report.data_page import data_page

        text = data_page(checked)
    elif options.format == "json":
        text = json.dumps(report.document(), indent=2) + "\n"
    else:
        text = check_text(report) + "\n"
    write(text, options.output)
    if options.output is not None:
        print(f"{options.output}: {report.name}: {report.verdict}")
    for finding in report.of("error"):
        raise DataError(f"data set {report.name}: a run would fail: {finding.text}")
    return 0


def _audit(options: argparse.Namespace) -> int:
    from ...checking.audit import LEAST, PERMUTATIONS, audit, document, pair_times
    from ...checking.given import given_files
    from ...data.opening import open_dataset
    from ..text import audit_text

    permutations = options.permutations or PERMUTATIONS
    if permutations < LEAST:
        raise ConfigError(
            f"--permutations: expected {LEAST} or more, with fewer nothing can be flagged, got {permutations}"
        )
    options.model = options.encoder = None
    registry, resolved = runs_of(options)
    run = resolved.runs[0]
    dataset = open_dataset(run.dataset, run.settings, registry)
    given = once("--features", options.features)
    features = given if given or options.graph or options.profiles else dict(dataset.feature_files)
    files = dict(given_files(dataset, features=features, graphs=options.graph, profiles=options.profiles))
    if not files:
        raise ConfigError(
            f"data audit: expected files, got none, and {dataset.name} has no feature files; try --features, --graph "
            "or --profiles"
        )
    times = pair_times(dataset, run.settings)
    found = audit(dataset, files, times=times, permutations=permutations)
    if options.format == "json":
        write(json.dumps(document(found), indent=2) + "\n", options.output)
    else:
        write(audit_text(found) + "\n", options.output)
    for file in found.files:
        if file.leak:
            raise DataError(
                f"{file.name}: expected a file that knows training rows alone, got one that knows {file.leak} (p = "
                f"{file.p:.2g}); make it again without those rows"
            )
    if found.unfair:
        raise DataError(f"data audit: expected a split drawn at random within users: {found.unfair}; try --split ratio")
    return 0


def _table(options: argparse.Namespace) -> int:
    from ...data.opening import open_dataset
    from ...features.files import read_feature_file
    from ...report.data_table import about, data_table

    options.model = options.encoder = None
    found = []
    for name in options.datasets:
        options.dataset = name
        registry, resolved = runs_of(options)
        dataset = open_dataset(resolved.runs[0].dataset, resolved.runs[0].settings, registry)
        tables = {
            modality: read_feature_file(path, modality=modality, n_items=dataset.n_items)
            for modality, path in dataset.feature_files.items()
        }
        found.append(about(dataset, {modality: table.dim for modality, table in tables.items()}))
    chosen = options.encoders or [spec.name for spec in registry.encoders if spec.dims]
    encoders = [registry.encoders.get(name) for name in chosen]
    write(data_table(found, encoders, options.format), options.output)
    return 0


def _build(options: argparse.Namespace) -> int:
    from mmrec_lmm_data_tools.building import build_folder

    report = build_folder(
        options.source,
        options.data_path / options.name,
        layout=options.layout,
        category=options.category,
        strict=options.strict,
        core=options.core,
        min_rating=options.min_rating,
        split=options.split,
        split_seed=options.split_seed,
        raw_text=options.raw_text,
        force=options.force,
    )
    print(f"{report}\n{_next_step(report, options.data_path)}")
    return 0


def _get(options: argparse.Namespace) -> int:
    from mmrec_lmm_data_tools.getting import get_dataset
    from mmrec_lmm_data_tools.published import IMAGE_FEATURES, published

    from ...downloads.fetching import offline

    dataset = published(options.name)
    folder = options.data_path / dataset.name
    if options.mirror and not options.mirror.startswith(("http://", "https://")):
        raise ConfigError(f"--mirror: expected an address that begins with http, got {options.mirror}; try --from DIR")
    if options.images and not dataset.has_images:
        raise ConfigError(f"--images: expected a data set with addresses of images, got {dataset.name}; leave it out")
    if options.image_features and not any(file.part == IMAGE_FEATURES for file in dataset.files):
        raise ConfigError(f"--image-features: expected a data set that has some, got {dataset.name}; leave it out")
    _accept_terms(dataset, accepted=options.accept_terms)
    report = get_dataset(
        dataset,
        folder,
        given=options.source,
        mirror=options.mirror,
        image_features=options.image_features,
        strict=options.strict,
        core=options.core,
        min_rating=options.min_rating,
        split=options.split,
        split_seed=options.split_seed,
        raw_text=options.raw_text,
        force=options.force,
    )
    print(report or f"{folder} is here already, made by this command; --force makes it again")
    images = 0
    if options.images or (options.images is None and dataset.has_images and not offline()):
        images = _download_images(folder, options.data_path)
    if report:
        print(_next_step(dataclasses.replace(report, images=images), options.data_path))
    return 0


def _accept_terms(dataset: PublishedDataset, *, accepted: bool) -> None:
    """Show the terms of use. Raises ConfigError unless they are accepted, by the flag or in answer to a question."""
    print(
        f"{dataset.summary}\nfrom {dataset.page}\nterms of use: {dataset.terms}\ncite: {dataset.citation}",
        file=sys.stderr,
    )
    if accepted:
        return
    again = f"data get {dataset.name}: expected these terms to be accepted"
    if not sys.stdin.isatty():
        raise ConfigError(f"{again}; try --accept-terms")
    print("Accept them? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise ConfigError(f"{again}; nothing was downloaded")


def _download_images(folder: Path, data_path: Path) -> int:
    """Download a new data set's images; how many items have one. A failure says that the rest is ready."""
    from mmrec_lmm_data_tools.images.adding import download_images

    try:
        report = download_images(folder)
    except MMRecError as error:
        raise type(error)(
            f"{folder}: the data set is ready but for its images: {error}. Later: mmrec-lmm data images {folder.name}"
            f"{flag_for('--data-path', data_path, 'data')}; without them: data get --no-images"
        ) from None
    print(report)
    return report.new + report.kept


def _import(options: argparse.Namespace) -> int:
    from mmrec_lmm_data_tools.importing import import_dataset

    report = import_dataset(
        options.interactions,
        options.data_path / options.name,
        items=options.items,
        images=options.images,
        user_column=options.user_column,
        item_column=options.item_column,
        columns=options.columns,
        items_id_column=options.items_id_column,
        split_column=options.split_column,
        time_column=options.time_column,
        rating_column=options.rating_column,
        separator=options.separator,
        header=options.header,
        quotes=options.quotes,
        encoding=options.encoding,
        decimal=options.decimal,
        drop_unknown=options.drop_unknown,
        seed=options.split_seed,
        core=options.core,
        min_rating=options.min_rating,
        split=options.split,
        raw_text=options.raw_text,
        force=options.force,
    )
    print(f"{report}\n{_next_step(report, options.data_path)}")
    return 0


def _next_step(report: Report, data_path: Path) -> str:
    """The commands to type once a data set is made: to get its images where it has only addresses, else a run."""
    where = f"{report.name}{flag_for('--data-path', data_path, 'data')}"
    if report.image_urls and not report.images:
        return f"next: mmrec-lmm data images {where}  (fetches the images of {report.image_urls:,} items)"
    model, content = "VBPR", {"image": report.images, "text": any(report.texts.values())}
    modalities = [modality for modality, is_there in content.items() if is_there]
    if not report.features and modalities:
        model += " --encoder basic" + (f" --modalities {modalities[0]}" if len(modalities) == 1 else "")
    elif not report.features:
        model = "LightGCN"
    check = f"next: mmrec-lmm data check -d {where}"
    return f"{check}\n      mmrec-lmm run -d {where} -m {model}" if all(report.splits.values()) else check

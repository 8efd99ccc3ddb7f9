"""`data`: make, check and import data sets."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import DataError
from ..parser import (
    add_group,
    add_verb,
    configs_folder,
    count,
    data_folder,
    folder_name,
    folder_names,
    how_to_print,
    names,
    which_data,
    which_split,
)
from ..shared import runs_of, write
from ..text import check_text

if TYPE_CHECKING:
    from ..parser import Verbs


def add(verbs: Verbs) -> None:
    data = add_group(verbs, "data", "Make, check and import data sets.")
    demo = add_verb(data, "demo", _demo, "Make the demo data set.")
    data_folder(demo)
    demo.add_argument("--seed", type=int, help="another random catalog")
    demo.add_argument("--force", action="store_true", help="replace an existing data set")
    check = add_verb(data, "check", _check, "Say what a data set holds, and what is wrong with it.", keys=True)
    which_data(check)
    which_split(check)
    check.add_argument("--format", choices=("text", "json", "html"), default="text", help="default: text")
    check.add_argument("-o", "--output", type=Path, metavar="FILE", help="write to FILE (default: stdout)")
    check.add_argument("--no-decode", dest="decode", action="store_false", help="don't open images; quicker")
    check.add_argument("--sample", type=count, metavar="N", help="decode N images only, spread over the items")
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
    load = add_verb(data, "import", _import, "Make a data set from an interactions table, an items table and images.")
    load.add_argument("name", type=folder_name, help="the new data set's name")
    load.add_argument(
        "--interactions",
        type=Path,
        required=True,
        metavar="FILE",
        help="a table of users and items, with or without a header",
    )
    load.add_argument(
        "--items", type=Path, metavar="FILE", help="a table of items: id, title, brand, categories, description, image"
    )
    load.add_argument("--images", type=Path, metavar="DIR", help="the folder of the items table's images")
    load.add_argument("--user-column", metavar="NAME", help="the users' column, where its name isn't a usual one")
    load.add_argument("--item-column", metavar="NAME", help="the items' column, where its name isn't a usual one")
    load.add_argument(
        "--columns",
        type=names,
        metavar="user,item,...",
        help="names for an interactions table without a header (default: user,item,rating,timestamp)",
    )
    load.add_argument("--items-id-column", metavar="NAME", help="the id's column of the items table")
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
    load.add_argument("--seed", type=int, default=0, help="of the split (default: 0)")
    load.add_argument(
        "--core", type=int, default=0, metavar="K", help="keep only users and items with K interactions or more"
    )
    load.add_argument(
        "--drop-unknown", action="store_true", help="drop interactions with items that the items table lacks"
    )
    load.add_argument("--force", action="store_true", help="replace an existing data set")


def _demo(options: argparse.Namespace) -> int:
    from mmrec_lmm_data_tools.demo import SEED, make

    folder = options.data_path / "demo"
    make(folder, seed=SEED if options.seed is None else options.seed, force=options.force)
    print(f"{folder} is ready; try: mmrec-lmm run -m VBPR -d demo --data-path {options.data_path}")
    return 0


def _check(options: argparse.Namespace) -> int:
    from ...checking.check import check

    options.model = options.encoder = None
    registry, resolved = runs_of(options)
    run = resolved.runs[0]
    checked = check(run.dataset, run.settings, registry, decode=options.decode, sample=options.sample)
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


def _import(options: argparse.Namespace) -> int:
    from mmrec_lmm_data_tools.importing import import_dataset

    report = import_dataset(
        options.interactions,
        options.data_path / options.name,
        items=options.items,
        images=options.images,
        seed=options.seed,
        core=options.core,
        user_column=options.user_column,
        item_column=options.item_column,
        columns=options.columns,
        items_id_column=options.items_id_column,
        split_column=options.split_column,
        separator=options.separator,
        header=options.header,
        quotes=options.quotes,
        encoding=options.encoding,
        decimal=options.decimal,
        drop_unknown=options.drop_unknown,
        force=options.force,
    )
    print(report)
    return 0

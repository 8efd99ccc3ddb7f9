"""`data`: make, check and import data sets."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from ..parser import add_group, add_verb, data_folder, folder_name, names, which_data, which_split
from ..shared import runs_of

if TYPE_CHECKING:
    from ..parser import Verbs


def add(verbs: Verbs) -> None:
    data = add_group(verbs, "data", "Make, check and import data sets.")
    demo = add_verb(data, "demo", _demo, "Make the demo data set.")
    data_folder(demo)
    demo.add_argument("--seed", type=int, help="another random catalog")
    demo.add_argument("--force", action="store_true", help="replace an existing data set")
    check = add_verb(data, "check", _check, "Read a data set and report its counts and gaps.", keys=True)
    which_data(check)
    which_split(check)
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
        metavar="DIR",
        help="a folder of images: those that the column image names; without it, of item X the file X.jpg or the like",
    )
    load.add_argument("--user-column", metavar="NAME", help="the users' column, if it isn't called user_id or the like")
    load.add_argument("--item-column", metavar="NAME", help="the items' column, if it isn't called item_id or the like")
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
    from ...data.opening import open_dataset
    from ...features.files import normalized, read_feature_file
    from ..text import dataset_text

    options.model = options.encoder = None
    registry, resolved = runs_of(options)
    run = resolved.runs[0]
    dataset = open_dataset(run.dataset, run.settings, registry)
    tables = {
        modality: normalized(
            read_feature_file(path, modality=modality, n_items=dataset.n_items), run.settings.normalize
        )
        for modality, path in dataset.feature_files.items()
    }
    print(dataset_text(dataset, tables))
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
    where = "" if options.data_path == Path("data") else f" --data-path {shlex.quote(str(options.data_path))}"
    model = "VBPR --encoder clip" if report.images or any(report.texts.values()) else "LightGCN"
    print(f"next: mmrec-lmm data check -d {options.name}{where}")
    print(f"      mmrec-lmm run -d {options.name}{where} -m {model}")
    return 0

"""`data`: make, check and import data sets."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ...config.choices import SPLIT_RULES
from ..parser import add_group, add_verb, data_folder, folder_name, names, which_data, which_split
from ..shared import runs_of

if TYPE_CHECKING:
    from mmrec_lmm_data_tools.building import Report

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
    load.add_argument(
        "--drop-unknown", action="store_true", help="drop interactions with items that the items table lacks"
    )
    _how_to_build(load, "--seed")


def _how_to_build(parser: argparse.ArgumentParser, *seed: str) -> None:
    """Add the flags of filters, split and text; `seed` are other names of the split's seed."""
    parser.add_argument(
        "--min-rating", type=float, metavar="X", help="keep only interactions with a rating of X or more"
    )
    parser.add_argument(
        "--core",
        type=int,
        default=0,
        metavar="K",
        help="keep only users and items with K interactions or more (default: all)",
    )
    parser.add_argument(
        "--split",
        choices=SPLIT_RULES,
        help="draw the split by this rule (default: the split that the files bring, else ratio)",
    )
    parser.add_argument(
        "--split-seed", *seed, dest="split_seed", type=int, default=0, metavar="N", help="of the split (default: 0)"
    )
    parser.add_argument(
        "--raw-text", action="store_true", help="keep tags, entities and broken encodings in texts as they are"
    )
    parser.add_argument("--force", action="store_true", help="replace an existing data set")


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
    """The command to type once a data set is made: one that gets its images where it has only addresses, else a run."""
    where = f"-d {report.name}" + ("" if data_path == Path("data") else f" --data-path {data_path}")
    if report.image_urls and not report.images:
        images = f"mmrec-lmm data images {where.removeprefix('-d ')}"
        return f"next: {images}  (fetches the images of {report.image_urls:,} items)"
    if report.features:
        return f"next: mmrec-lmm run -m VBPR {where}"
    if report.images or any(report.texts.values()):
        modalities = [name for name, has in (("image", report.images), ("text", any(report.texts.values()))) if has]
        only = "" if len(modalities) == 2 else f" --modalities {modalities[0]}"
        return f"next: mmrec-lmm run -m VBPR {where} --encoder basic{only}"
    return f"next: mmrec-lmm run -m LightGCN {where}"

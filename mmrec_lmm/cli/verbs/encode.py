"""`encode`: makes features without a run, and judges them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ...typed_json import plain
from ..parser import add_verb, as_json, feature_file, how_to_encode, which_data
from ..shared import print_json, runs_of

if TYPE_CHECKING:
    from ..parser import Verbs


def add(verbs: Verbs) -> None:
    encode = add_verb(
        verbs, "encode", _encode, "Encode a data set's items; the features are kept and reused.", keys=True
    )
    which_data(encode)
    encode.add_argument("--encoder", required=True, metavar="NAME", help="the encoder, or NAME:VARIANT")
    how_to_encode(encode)
    encode.add_argument(
        "--paradigm",
        metavar="NAME",
        help="how the encoder is trained first; `list paradigms` shows them (default: pt)",
    )
    encode.add_argument(
        "--features",
        type=feature_file,
        action="append",
        default=[],
        metavar="MODALITY=FILE.npy",
        help="features of a modality from a file, which isn't encoded",
    )
    encode.add_argument("--device", metavar="NAME", help="auto, cpu, cuda or mps")
    encode.add_argument("--force", action="store_true", help="encode again what is in the cache")
    encode.add_argument("--export", type=Path, metavar="DIR", help="also write MMRec's files, <modality>_feat.npy")
    encode.add_argument(
        "--probe", action="store_true", help="also measure the features against train and against each other"
    )
    as_json(encode)


def _encode(options: argparse.Namespace) -> int:
    from ...distributed import is_first_process
    from ...features.files import export_table
    from ...library.features import probed
    from ...library.request import only_encoding
    from ...logs import start_log
    from ...running.inputs import encode_dataset
    from ..text import encoded_rows, encoded_text, probed_text

    options.model = None
    registry, resolved = runs_of(options)
    spec = only_encoding(resolved)
    start_log(None, "encode", level="INFO" if is_first_process() else "ERROR", verbose=True)
    tables = encode_dataset(spec, registry, progress=True, force=options.force)
    if not is_first_process():
        return 0
    if options.export:
        for table in tables.values():
            export_table(options.export / f"{table.modality}_feat.npy", table)
    found = probed(spec, tables, registry) if options.probe else None
    if options.json:
        print_json({"features": encoded_rows(tables)} | ({"probes": plain(found)} if found else {}))
        return 0
    print(encoded_text(tables))
    if found is not None:
        print(f"\n{probed_text(found)}")
    return 0

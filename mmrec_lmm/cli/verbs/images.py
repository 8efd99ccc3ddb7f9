"""`data images`: download images of a data set's items, or take them from a folder or archive."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import ConfigError
from ..parser import add_verb, count, data_folder, folder_name, processes
from ..shared import flag_for

if TYPE_CHECKING:
    from ..parser import Verbs


def add_images(data: Verbs) -> None:
    verb = add_verb(data, "images", _images, "Download the images of a data set's items, or take them from a folder.")
    verb.add_argument("name", type=folder_name, help="a data set with items.tsv")
    data_folder(verb)
    verb.add_argument(
        "--urls", type=Path, metavar="FILE", help="a table of item and url (default: the column image_url of items.tsv)"
    )
    verb.add_argument("--separator", metavar="TEXT", help="of that table (default: as its lines have)")
    verb.add_argument(
        "--from",
        dest="source",
        type=Path,
        metavar="PATH",
        help="a folder or archive of images named by item id, or img2dataset's output; nothing is downloaded",
    )
    verb.add_argument(
        "--urls-as-given", action="store_true", help="don't try larger versions and other hosts of Amazon's images"
    )
    verb.add_argument("--max-side", type=count, metavar="N", help="shrink images with a side of more pixels")
    verb.add_argument("--retry-failed", action="store_true", help="try again also what is unlikely to have changed")
    verb.add_argument("--again", action="store_true", help="fetch again also images that are there")
    verb.add_argument("--connections", type=processes, default=32, metavar="N", help="at once (default: 32)")
    verb.add_argument("--per-host", type=processes, default=8, metavar="N", help="at once to one host (default: 8)")
    verb.add_argument("--tries", type=count, default=4, metavar="N", help="requests per address (default: 4)")
    verb.add_argument("--timeout", type=count, default=30, metavar="S", help="seconds without a byte (default: 30)")
    verb.add_argument(
        "--max-bytes", type=count, default=20_000_000, metavar="N", help="of an image (default: 20000000)"
    )
    verb.add_argument(
        "--allow-private", action="store_true", help="connect to addresses of private networks and of this machine too"
    )


def _images(options: argparse.Namespace) -> int:
    from mmrec_lmm_data_tools.images.adding import collect_images, download_images
    from mmrec_lmm_data_tools.images.requesting import Limits

    folder = options.data_path / options.name
    common = {
        "urls": options.urls,
        "separator": options.separator,
        "max_side": options.max_side,
        "again": options.again,
    }
    if options.source is not None:
        only_downloads = ("--urls-as-given", options.urls_as_given), ("--retry-failed", options.retry_failed)
        if clash := next((flag for flag, given in only_downloads if given), None):
            raise ConfigError(f"{clash}: expected without --from, which downloads nothing; leave one of them out")
        report = collect_images(folder, options.source, max_bytes=options.max_bytes, **common)
    else:
        limits = Limits(
            connections=options.connections,
            per_host=options.per_host,
            tries=options.tries,
            timeout=float(options.timeout),
            max_bytes=options.max_bytes,
            allow_private=options.allow_private,
        )
        report = download_images(
            folder, as_given=options.urls_as_given, retry_failed=options.retry_failed, limits=limits, **common
        )
    print(report)
    if report.missing:
        print(f"warning: {sum(report.missing.values()):,} items have no image; runs continue without", file=sys.stderr)
    print(f"next: mmrec-lmm data check -d {options.name}{flag_for('--data-path', options.data_path, 'data')}")
    return 0

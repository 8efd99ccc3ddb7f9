"""What is to be said of a catalog's images and texts, read as encoders read them.

Shapes: I items.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from ..cache import hash_readable, is_readable
from ..data.images import UnreadableImage, read_image
from ..data.items import CODE_WORDS, is_invisible, item_texts
from ..formatting import first_line
from ..types import ItemCatalog
from .findings import NAMED, SHARE, Content, Finding, Place, of_placeholder

TABLE = "items.tsv"
IMAGES = "images"
THREADS = 8  # that decode images: Pillow decodes outside of Python's lock
NOT_NAMED = "none named"
NO_FILE = "no such file"
#: What people write for one, and what may also be a name: there is a film called "unknown".
WORDS = frozenset({"unknown", "na", "-", "--", ".", "?", "no description", "not available", "no title", "untitled"})


def images(
    catalog: ItemCatalog, folder: Path, *, decode: bool, sample: int | None
) -> tuple[Content, list[Finding], dict[int, str]]:
    """The catalog's images, what is to be said of them, and why which items' images can't be read.

    With `decode`, all are decoded, or `sample` of them, spread over the catalog; otherwise a file counts as an image.
    """
    paths = {item: path for item, path in enumerate(catalog.images) if path is not None}
    unreadable = {item: NO_FILE for item, path in paths.items() if not path.is_file()}
    files = {item: path for item, path in paths.items() if item not in unreadable}
    chosen = list(files) if decode else []
    if sample is not None and len(chosen) > sample:
        chosen = [chosen[place] for place in np.linspace(0, len(chosen) - 1, sample).astype(int)]
    with ThreadPoolExecutor(THREADS) as pool:
        reasons = zip(chosen, pool.map(_why_unreadable, (files[item] for item in chosen)), strict=True)
        unreadable |= {item: reason for item, reason in reasons if reason is not None}
    missing = Counter(unreadable.values())
    absent = len(catalog) - len(paths)
    content = Content(
        len(paths) - len(unreadable),
        ({NOT_NAMED: absent} if absent else {}) | dict(missing.most_common()),
        len(chosen) if decode else None,
    )
    found = [
        Finding(
            "missing-images" if reason == NO_FILE else "unreadable-images",
            "warning",
            f"images that {TABLE} names can't be read: {reason}; runs mask these items",
            count,
            len(paths),
            Place(TABLE, column="image", items=_named(catalog, [i for i, why in unreadable.items() if why == reason])),
            _cure(reason, [paths[item] for item, why in unreadable.items() if why == reason], folder),
        )
        for reason, count in missing.most_common()
    ]
    if paths and len(unreadable) == len(paths):
        what = "no image can be read; a run with an encoder of images would fail"
        cure = "mend them, or choose --modalities text"
        found.append(Finding("no-image", "error", what, len(paths), len(catalog), Place(IMAGES), cure))
    found += _unused(catalog, folder)
    found += _shared(
        catalog,
        hash_readable(catalog.images),
        "shared-images",
        "items have an image file that another has too",
        "an image that says that there is none is no content: empty these cells of the column image",
    )
    return content, found, unreadable


def _why_unreadable(path: Path) -> str | None:
    """Why an encoder can't read an image, without what differs between files; None if it can."""
    try:
        read_image(path)
    except UnreadableImage as error:
        return re.split("[:;]", error.reason)[0]
    except (OSError, MemoryError) as error:
        return first_line(error).replace(str(path), "the file") if is_readable(path) else "no permission to read it"
    return None


def _cure(reason: str, paths: Sequence[Path], folder: Path) -> str:
    if reason != NO_FILE:
        return "get them again, or empty these cells of the column image"
    names = [path.relative_to(folder / IMAGES) for path in paths[:NAMED]]
    if any((folder / name).is_file() for name in names):
        return f"cells are paths under {IMAGES}/: leave {names[0].parts[0]}/ out of them"
    return f"put them into {IMAGES}/, or empty these cells of the column image"


def _unused(catalog: ItemCatalog, folder: Path) -> Iterator[Finding]:
    """Files among the images that no item names."""
    if not (folder / IMAGES).is_dir():
        return
    named = {path for path in catalog.images if path is not None}
    files = [path for path in (folder / IMAGES).rglob("*") if path.is_file() and not path.name.startswith(".")]
    unused = sorted(path for path in files if path not in named)
    if unused:
        where = Place(f"{IMAGES}/{unused[0].relative_to(folder / IMAGES)}")
        yield Finding(
            "unused-images",
            "note" if catalog.has_images else "warning",
            f"files in {IMAGES}/ that {TABLE} doesn't name" + ("" if catalog.has_images else "; it names no image"),
            len(unused),
            len(files),
            where,
            f"name them in the column image of {TABLE}",
        )


def texts(catalog: ItemCatalog, fields: Sequence[str]) -> tuple[dict[str, Content], list[Finding]]:
    """The catalog's text columns, and what is to be said of them; `fields` are those that encoders read."""
    contents: dict[str, Content] = {}
    found: list[Finding] = []
    for field, column in catalog.fields.items():
        empty = sum(not text.strip() for text in column)
        contents[field] = Content(len(column) - empty, {"empty": empty} if empty else {})
        found += _placeholders(catalog, field, column)
    if catalog.has_text and not any(item_texts(catalog, fields)):
        found.append(
            Finding(
                "no-text-field",
                "error",
                f"encoders read the fields {', '.join(fields)}, and {TABLE} has text in {', '.join(contents)} alone; "
                "a run with an encoder of texts would fail",
                len(catalog),
                len(catalog),
                Place(TABLE),
                f"--text_fields=[{','.join(name for name, content in contents.items() if content.items)}]",
            )
        )
    joined: list[str | None] = [text or None for text in item_texts(catalog, fields)]
    found += _shared(
        catalog,
        joined,
        "shared-texts",
        "items have the text of another",
        "a text that says that there is none is no content: empty these cells",
    )
    return contents, found


def _placeholders(catalog: ItemCatalog, field: str, column: Sequence[str]) -> Iterator[Finding]:
    """Cells that stand for a missing text, and cells in which nothing is to be seen."""
    words = [text.strip().casefold() for text in column]
    given = sum(map(bool, words))
    for known, least in ((CODE_WORDS, 1.0), (WORDS, max(3.0, SHARE * given))):
        items = [item for item, word in enumerate(words) if word in known]
        if items:
            common = Counter(column[item].strip() for item in items).most_common(1)[0][0]
            yield Finding(
                "placeholder-texts",
                "warning" if len(items) >= least else "note",
                f"texts are a word for a missing one, such as {common!r}, and count as text",
                len(items),
                given,
                Place(TABLE, column=field, items=_named(catalog, items)),
                "empty these cells",
            )
    items = [item for item, text in enumerate(column) if is_invisible(text)]
    if items:
        yield Finding(
            "invisible-texts",
            "warning",
            "texts have no visible character, and count as text",
            len(items),
            given,
            Place(TABLE, column=field, items=_named(catalog, items)),
            "empty these cells",
        )


def _shared(catalog: ItemCatalog, contents: Sequence[str | None], name: str, what: str, cure: str) -> Iterator[Finding]:
    """Items whose content (None: they have none) is that of another."""
    sizes: Mapping[str, int] = Counter(content for content in contents if content is not None)
    items = [item for item, content in enumerate(contents) if content is not None and sizes[content] > 1]
    if items:
        largest, total = max(sizes.values()), sum(sizes.values())
        suspicious = of_placeholder(largest, len(items), total)
        first = [item for item in items if sizes[contents[item] or ""] == largest]
        yield Finding(
            name,
            "warning" if suspicious else "note",
            f"{what}; {largest:,} have the same",
            len(items),
            total,
            Place(TABLE, items=_named(catalog, first)),
            cure if suspicious else "",
        )


def _named(catalog: ItemCatalog, items: Sequence[int]) -> tuple[str, ...]:
    return tuple(catalog.raw_ids[item] for item in items[:NAMED])

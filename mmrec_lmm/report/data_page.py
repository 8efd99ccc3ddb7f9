"""The page on a data set: what a check found, plots of degrees, and sample items, as one HTML file without a script.

Texts come from files of strangers and must never become markup: each is escaped where it enters the page.
"""

import base64
import html
import io
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.resources import files

import numpy as np

from ..checking.check import Checked
from ..checking.findings import SEVERITIES, Bin, Degrees, Finding, Report, in_splits
from ..checking.interactions import Rows
from ..data.images import UnreadableImage, read_image
from ..types import SPLITS, ItemCatalog

THUMBNAIL = (192, 288)  # pixels at most: twice what is shown, for fine screens
OF_EACH = 4  # sample items of each kind
USERS = 6  # that a sample item names
LONGEST = 280  # characters of a text


def data_page(checked: Checked) -> str:
    """The whole page as text; write it as UTF-8."""
    own = files(__package__)
    template, style, more = (
        (own / name).read_text(encoding="utf-8") for name in ("data_page.html", "page.css", "data_page.css")
    )
    report = checked.report
    worst = next((severity for severity in SEVERITIES if report.of(severity)), "note")
    parts = {
        "title": html.escape(f"Data set {report.name}"),
        "style": style + more,
        "state": worst,
        "verdict": html.escape(report.verdict.capitalize() + "."),
        "content": "\n".join(_sections(checked)),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], template)  # in one pass: values aren't searched


def _sections(checked: Checked) -> Iterator[str]:
    report = checked.report
    yield _section("Counts", _counts(report))
    if report.findings:
        yield _section("Findings", _list("findings", map(_finding, report.findings)))
    if report.counts is not None:
        drawn = "".join(_degrees(one, who) for who, one in report.counts.degrees.items())
        yield _section("Training rows", f'<div class="beside">{drawn}</div>')
    samples = list(_samples(checked))
    if samples:
        yield _section("Some items", _list("items", samples))


def _section(title: str, content: str) -> str:
    return f"<section>\n<h2>{html.escape(title)}</h2>\n{content}\n</section>"


def _list(name: str, entries: Iterable[str]) -> str:
    return f'<ul class="{name}">\n' + "\n".join(f"<li>{entry}</li>" for entry in entries) + "\n</ul>"


def _table(header: Sequence[str], rows: Iterable[Sequence[object]], *, words: int = 0) -> str:
    """A table whose first column and, where `words` is set, that one, hold text."""
    of_words = ' class="words"'

    def cell(place: int, value: object) -> str:
        kind = of_words if words and place == words else ""
        return f"<td{kind}>{html.escape(f'{value:,}' if isinstance(value, int) else str(value))}</td>"

    head = "".join(
        f'<th scope="col"{of_words if words and place == words else ""}>{html.escape(name)}</th>'
        for place, name in enumerate(header)
    )
    body = "".join(f"<tr>{''.join(cell(place, value) for place, value in enumerate(row))}</tr>\n" for row in rows)
    return f'<div class="wide"><table class="plain"><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>'


def _counts(report: Report) -> str:
    """The sizes of the data set, of its splits, and of its content."""
    counts, facts = report.counts, {}
    if counts is not None:
        facts = {
            "users": f"{counts.users:,}",
            "items": f"{counts.items:,}",
            "interactions": f"{counts.interactions:,}",
            "density": f"{counts.density:.3g}",
            "items without training": f"{counts.cold_items:,}",
            "users without training": f"{counts.cold_users:,}",
        }
    if report.times is not None:
        facts["times"] = f"{report.times.first} to {report.times.last}"
    if report.split is not None:
        facts["split"] = report.split
    told = "".join(f"<div><dt>{name}</dt><dd>{html.escape(value)}</dd></div>\n" for name, value in facts.items())
    tables = []
    if counts is not None:
        rows = [(split, one.rows, one.users, one.items) for split, one in in_splits(counts)]
        tables.append(_table(["split", "rows", "users", "items"], rows))
    if report.content:
        rows_of_content = [
            (
                "images" if column == "image" else column,
                content.items,
                "; ".join(f"{reason}: {count:,}" for reason, count in content.missing.items()),
            )
            for column, content in report.content.items()
        ]
        tables.append(_table(["content", "items", "missing"], rows_of_content, words=2))
    if report.features:
        features = [(modality, one.items, one.width, one.file) for modality, one in report.features.items()]
        tables.append(_table(["features", "items", "width", "file"], features, words=3))
    return f'<dl class="facts">\n{told}</dl>\n<div class="beside">{"".join(tables)}</div>'


def _finding(finding: Finding) -> str:
    kind = {"error": " bad worst", "warning": " bad", "note": ""}[finding.severity]
    lines = [f'<span class="tag{kind}">{finding.severity}</span>', f"<p>{html.escape(finding.counted)}</p>"]
    where = html.escape(str(finding.where))
    cure = re.sub(r"`(.+?)`", r"<code>\1</code>", html.escape(finding.cure))
    lines.append(f'<p class="soft"><code>{finding.name}</code>{f" in {where}" if where else ""}</p>')
    if cure:
        lines.append(f'<p class="soft">What to do: {cure}</p>')
    return "\n".join(lines)


def _degrees(degrees: Degrees, who: str) -> str:
    """A histogram of degrees and their quantiles."""
    quantiles = _table(list(degrees.quantiles), [[int(value) for value in degrees.quantiles.values()]])
    reading = f"Number of {who} by their training rows: a bar goes from its number to below the next one's."
    bars = _bars(degrees.bins, who)
    return f'<div><h3>{who.capitalize()}</h3>\n{bars}\n<p class="soft">{reading}</p>\n{quantiles}</div>\n'


def _bars(bins: Sequence[Bin], who: str) -> str:
    """A bar chart as SVG, from the first bin that isn't empty: each bar's count above it, its least degree below."""
    bins = list(itertools.dropwhile(lambda one: not one.count, bins))
    width, height, top, bottom = 420, 190, 18, 20
    step = width / max(1, len(bins))
    most = max((one.count for one in bins), default=1)
    parts = []
    for place, one in enumerate(bins):
        tall = (height - top - bottom) * one.count / most
        middle, y = step * (place + 0.5), height - bottom - tall
        span = f"{one.low:,}" if one.low == one.high else f"{one.low:,} to {one.high:,}"
        parts.append(
            f"<g><title>{one.count:,} {who} with {span}</title>"
            f'<rect x="{middle - step * 0.4:.1f}" y="{y:.1f}" width="{step * 0.8:.1f}" height="{tall:.1f}"/>'
            f'<text class="value" x="{middle:.1f}" y="{y - 4:.1f}">{one.count:,}</text>'
            f'<text class="label" x="{middle:.1f}" y="{height - 5}">{one.low:,}</text></g>'
        )
    axis = f'<line class="grid" x1="0" x2="{width}" y1="{height - bottom}" y2="{height - bottom}"/>'
    about = f'role="img" aria-label="{who} by their number of training rows"'
    return f'<svg class="bars" viewBox="0 0 {width} {height}" {about}>{axis}{"".join(parts)}</svg>'


def _samples(checked: Checked) -> Iterator[str]:
    """Cards of some items: popular ones, some at random, some without training row, some without image."""
    rows, catalog = checked.rows, checked.catalog
    if rows is None or (catalog is not None and len(catalog) != rows.n_items):
        return
    degree = np.bincount(rows.items[rows.of("train")], minlength=rows.n_items)
    shuffled = np.random.default_rng(0).permutation(rows.n_items)
    kinds = {
        "most popular": np.argsort(-degree, kind="stable"),
        "at random": shuffled,
        "no training row": shuffled[degree[shuffled] == 0],
    }
    if catalog is not None and catalog.has_images:
        bare = np.array([path is None for path in catalog.images])
        kinds["no image"] = shuffled[bare[shuffled]]
        unreadable = np.array(sorted(checked.unreadable), dtype=np.int64)
        kinds["image unreadable"] = unreadable
    shown: set[int] = set()
    for kind, items in kinds.items():
        chosen = [int(item) for item in items[: OF_EACH + len(shown)] if int(item) not in shown][:OF_EACH]
        shown |= set(chosen)
        yield from (_item(item, kind, rows, catalog, checked.unreadable) for item in chosen)


def _item(item: int, kind: str, rows: Rows, catalog: ItemCatalog | None, unreadable: Mapping[int, str]) -> str:
    """The card of an item: image, texts, interactions, users."""
    texts = {name: column[item] for name, column in catalog.fields.items() if column[item].strip()} if catalog else {}
    title = texts.pop("title", "") or f"item {item}"
    own = rows.items == item
    counts = ", ".join(f"{split} {int((own & rows.of(split)).sum()):,}" for split in SPLITS)
    users = np.unique(rows.users[own])
    named = ", ".join(map(str, users[:USERS])) + (f" and {len(users) - USERS:,} more" if len(users) > USERS else "")
    facts = {**texts, "interactions": counts, "users": named or "none"}
    told = "".join(
        f"<dt>{html.escape(name)}</dt><dd>{html.escape(_shortened(value))}</dd>" for name, value in facts.items()
    )
    raw = catalog.raw_ids[item] if catalog else str(item)
    about = (
        f'<span class="tag">{kind}</span>\n<h3>{html.escape(_shortened(title))}</h3>\n<small>{html.escape(raw)}</small>'
    )
    return f"{_thumbnail(item, catalog, unreadable)}\n<div>{about}\n<dl>{told}</dl></div>"


def _shortened(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST].rstrip()} ..."


def _thumbnail(item: int, catalog: ItemCatalog | None, unreadable: Mapping[int, str]) -> str:
    """The item's image, small and within the page; the reason where there is none."""
    path = catalog.images[item] if catalog else None
    if catalog is None or path is None:
        return '<div class="none">no image</div>'
    try:
        image = read_image(path, catalog.background)
    except (OSError, MemoryError, UnreadableImage) as error:
        why = error.reason if isinstance(error, UnreadableImage) else type(error).__name__
        reason = unreadable.get(item) or why
        return f'<div class="none">{html.escape(reason)}</div>'
    image.thumbnail(THUMBNAIL)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}">'

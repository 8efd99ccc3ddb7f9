"""Check the links of a built site without a network: `python docs/site/links.py DIR`.

Each link to a file of the site needs that file, and each anchor an element of that id. Links to other servers are
counted, and not followed.
"""

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """The ids and the links of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        for name, value in attributes:
            if name == "id" and value:
                self.ids.add(value)
            if name in ("href", "src") and value:
                self.links.append(value)


def broken(folder: Path) -> tuple[list[str], int]:
    """The links that lead nowhere, with their pages, and how many links leave the site."""
    pages = {path.resolve(): Page(path.read_text(encoding="utf-8")) for path in folder.rglob("*.html")}
    found, outside = [], 0
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                outside += 1
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            known = pages.get(target)
            if not target.is_file():
                found.append(f"{path.relative_to(folder.resolve())}: {link}: no such file")
            elif known and parts.fragment and unquote(parts.fragment) not in known.ids:
                found.append(f"{path.relative_to(folder.resolve())}: {link}: no such anchor")
    return found, outside


def main() -> int:
    folder = Path(sys.argv[1])
    found, outside = broken(folder)
    print("\n".join(found), file=sys.stderr, end="\n" if found else "")
    print(f"{len(found)} broken links; {outside} links to other servers weren't followed")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())

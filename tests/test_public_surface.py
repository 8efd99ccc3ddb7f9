"""The public surface changes on purpose alone: it is stored in tests/public_surface.txt."""

import ast
import difflib
from pathlib import Path

import pytest
import surface

import mmrec_lmm
from mmrec_lmm import api


def test_the_public_surface_is_the_stored_one() -> None:
    stored, found = surface.FILE.read_text(encoding="utf-8"), surface.surface()
    changed = "".join(difflib.unified_diff(stored.splitlines(True), found.splitlines(True), "stored", "found", n=0))
    assert not changed, f"public names changed; if that is on purpose, run `python -m tests.surface`:\n{changed}"


@pytest.mark.parametrize("package", [mmrec_lmm, api], ids=lambda package: package.__name__)
def test_every_public_name_can_be_imported_and_is_listed(package: object) -> None:
    listed = surface.FILE.read_text(encoding="utf-8")
    for name in package.__all__:  # type: ignore[attr-defined]
        assert getattr(package, name) is not None
        assert f"    {name}" in listed or f"class {name}" in listed
    typed = ast.parse(Path(str(package.__file__)).read_text(encoding="utf-8"))  # type: ignore[attr-defined]
    imported = {alias.asname for node in ast.walk(typed) if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert imported - {None} == set(package.__all__), "TYPE_CHECKING imports and names differ"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("def run(model, *, epochs: int = 1) -> int: ...", "def run(model, *, epochs: int = 2) -> int: ..."),
        ("class Spec:\n    name: str\n", "class Spec:\n    name: str = ''\n"),
        ("class Spec:\n    def load(self) -> int: ...\n", "class Spec:\n    def load(self, k: int) -> int: ...\n"),
        ("class Spec:\n    a: int\n    b: int\n", "class Spec:\n    b: int\n    a: int\n"),
        ("class Spec:\n    @property\n    def k(self): ...\n", "class Spec:\n    def k(self): ...\n"),
    ],
)
def test_a_changed_signature_field_or_default_changes_the_listing(
    before: str, after: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(surface, "ROOT", tmp_path)
    (tmp_path / "mmrec_lmm").mkdir()
    listings = []
    for text in (before, after, f'"""A docstring."""\n# and a comment\n{after}'):
        (tmp_path / "mmrec_lmm" / "part.py").write_text(text)
        name = "run" if "run" in text else "Spec"
        listings.append(list(surface.described(name, "part")))
    assert listings[0] != listings[1]
    assert listings[1] == listings[2]

"""The public names of `mmrec_lmm` and `mmrec_lmm.api` with their signatures, as their source has them.

`python -m tests.surface` writes them to tests/public_surface.txt, which a test compares.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import mmrec_lmm
from mmrec_lmm import api

ROOT = Path(__file__).resolve().parents[1]
FILE = ROOT / "tests" / "public_surface.txt"
HEAD = """\
# What programs and plugins may rely on. After a change on purpose: python -m tests.surface, and a line in CHANGELOG.md
"""

Definition = ast.FunctionDef | ast.ClassDef | ast.Assign | ast.AnnAssign


def surface() -> str:
    """The whole listing."""
    lines = [HEAD]
    for package, name in ((mmrec_lmm, "mmrec_lmm"), (api, "mmrec_lmm.api")):
        lines.append(f"\n{name}\n")
        for public in package.__all__:
            lines += [f"    {line}\n" for line in described(public, package._MODULE[public])]
        for old, new in getattr(package, "_RENAMED", {}).items():
            lines.append(f"    {old}: the old name of {new}\n")
    return "".join(lines)


def described(name: str, module: str) -> Iterator[str]:
    """The lines on one name: its signature, and of a class the fields and public methods, in order."""
    path = ROOT / "mmrec_lmm" / f"{module.replace('.', '/')}.py"
    found = definitions(ast.parse(path.read_text(encoding="utf-8")).body).get(name)
    assert found, f"{path}: expected a definition of {name}, got none"
    if not isinstance(found[-1], ast.ClassDef):
        yield from (one_line(each) for each in found)
        return
    (of_class,) = found
    bases = ", ".join(ast.unparse(base) for base in of_class.bases)
    marks = "".join(f"@{ast.unparse(one)} " for one in of_class.decorator_list)
    yield f"{marks}class {name}({bases})" if bases else f"{marks}class {name}"
    for inner, of_name in definitions(of_class.body).items():
        if not inner.startswith("_") or inner in ("__init__", "__post_init__"):
            yield from (f"    {one_line(each)}" for each in of_name)


def definitions(body: list[ast.stmt]) -> dict[str, list[Definition]]:
    """The definitions of a module or class by name; an overloaded function has several."""
    found: dict[str, list[Definition]] = {}
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.setdefault(node.name, []).append(node)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                if isinstance(target, ast.Name):
                    found[target.id] = [node]
    return found


def one_line(node: Definition) -> str:
    """A definition's first line: decorators that callers notice, name, arguments, types and defaults."""
    if isinstance(node, ast.FunctionDef):
        seen = [ast.unparse(one) for one in node.decorator_list]
        marks = "".join(f"@{one} " for one in seen if "property" in one or one in ("classmethod", "abstractmethod"))
        returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
        return f"{marks}{node.name}({ast.unparse(node.args)}){returns}"
    return f"class {node.name}" if isinstance(node, ast.ClassDef) else ast.unparse(node)


if __name__ == "__main__":
    FILE.write_text(surface(), encoding="utf-8")

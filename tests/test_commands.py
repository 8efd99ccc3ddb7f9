"""Every command that README, documentation and configuration show is one that mmrec-lmm understands.

A command with configuration keys goes the way of a real one until its runs are resolved, so that a misspelled key is
found as it would be for a user: by the schemas of the model, encoder and paradigm that the command names.
"""

import configparser
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import call

from mmrec_lmm.cli import build_parser
from mmrec_lmm.config import resolve
from mmrec_lmm.studies.file import find_study, load_study

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FILES = sorted((ROOT / "configs").rglob("*.yaml"))
STARTS = r"(?:mmrec-lmm|python run\.py|torchrun [^`\n]*-m mmrec_lmm) "
PLACEHOLDERS = {
    "VERB ...": "list models",
    "...": "-d demo --encoder basic",
    "--encoder NAME": "--encoder basic",
    "--seed N": "--seed 1",
    "path/to/": f"{ROOT}/tests/mmrec_checkout/src/models/",
}


def commands() -> Iterator[tuple[str, str]]:
    """(file, arguments) of each: on lines of their own, within a sentence, and at the head of a YAML file."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for line in re.findall(rf"^ *{STARTS}((?:.*\\\n)*.*)$", text, re.MULTILINE):
            yield page.name, re.sub(r"\\\n|  #.*", " ", line)
        for phrase in re.findall(rf"`{STARTS}([^`]+)`", text):
            yield page.name, phrase
    for file in FILES:
        for line in re.findall(rf"^#.*?{STARTS}(.*)$", file.read_text(encoding="utf-8"), re.MULTILINE):
            yield str(file.relative_to(ROOT)), line
    for cell in re.findall(r"^\| [^|]+ \| (.*) \|$", PAGES[0].read_text(encoding="utf-8"), re.MULTILINE):
        for phrase in re.findall(r"`([^`]+)`", cell):  # the second may leave out what the first has said
            if phrase.startswith("--"):
                yield "README.md", f"run -m VBPR -d demo --encoder vlmo:tiny {phrase}"
            elif phrase.partition(" ")[0] in VERBS:
                yield "README.md", phrase


def verbs(parser: Any) -> dict[str, Any]:
    """The verbs right below a parser, each with its own parser."""
    return {name: below for action in parser._subparsers._group_actions for name, below in action.choices.items()}


VERBS = verbs(build_parser())
COMMANDS = sorted({(file, " ".join(text.split())) for file, text in commands()})


class Resolved(Exception):
    """A command was understood down to each of its keys."""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with the plugins and the study that the documentation writes; no run goes on past its resolution."""
    monkeypatch.chdir(tmp_path)
    readme, plugins, studies = (
        path.read_text(encoding="utf-8")
        for path in (PAGES[0], ROOT / "docs" / "plugins.md", ROOT / "docs" / "studies.md")
    )
    files = {"my_bpr.py": re.findall(r"^```python\n(.*?)^```$", readme, re.MULTILINE | re.DOTALL)[0]}
    files |= dict(re.findall(r"^```python (\S+)\n(.*?)^```$", plugins, re.MULTILINE | re.DOTALL))
    files["twins.yaml"] = "models: [FREEDOM, freedom.py]\ndatasets: [baby]\n"
    files["mine.yaml"] = re.findall(r"^```yaml\n(.*?)^```$", studies, re.MULTILINE | re.DOTALL)[0]
    for name, text in files.items():
        Path(name).write_text(text)
    real = resolve.resolve

    def stop(*asked: Any, **more: Any) -> None:
        real(*asked, **more)
        raise Resolved

    monkeypatch.setattr(resolve, "resolve", stop)


def understand(command: str) -> None:
    """Fail unless the command line takes the command, with every key and the study that it names."""
    for placeholder, text in PLACEHOLDERS.items():
        command = command.replace(placeholder, text)
    arguments = shlex.split(command)
    if arguments[0].startswith("-") and arguments != ["--version"]:
        arguments.insert(0, "run")
    if not set(arguments) - {*VERBS, *(name for verb in VERBS.values() if verb._subparsers for name in verbs(verb))}:
        assert call(*arguments, "--help").code == 0  # the name of a verb
        return
    if arguments == ["--version"]:
        return
    try:
        options, rest = build_parser().parse_known_args(arguments)
    except SystemExit:
        pytest.fail(f"{command}: the parser refuses it")
    if hasattr(options, "dataset"):
        with pytest.raises(Resolved):
            pytest.fail(f"{command}: {call(*arguments).err}")
    else:
        assert not rest, f"{command}: unknown {rest}"
    if hasattr(options, "study"):
        assert load_study(find_study(options.study, options.configs)).models
    if arguments[0] == "info" and arguments[1] != "NAME":
        assert call(*arguments).code == 0


@pytest.mark.parametrize(("file", "command"), COMMANDS, ids=lambda text: text)
def test_a_documented_command_is_understood_down_to_its_keys(file: str, command: str) -> None:
    understand(command)


def test_commands_are_found_in_all_the_places_that_show_some() -> None:
    found = {file for file, _ in COMMANDS}
    assert found >= {"README.md", *(page.name for page in PAGES if "\nmmrec-lmm " in page.read_text(encoding="utf-8"))}
    assert found >= {f"configs/model/{path.name}" for path in (ROOT / "configs" / "model").glob("*.yaml")}
    assert ("README.md", "run -m VBPR -d baby --grid mmrec") in COMMANDS
    assert ("README.md", "run -m VBPR -d demo --encoder vlmo:tiny --paradigm ete") in COMMANDS
    assert ("README.md", "study run paper-table3 --dry-run") in COMMANDS


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("run -m VBPR -d baby --gridd mmrec", ", got --gridd; did you mean --grid"),
        ("run -m VBPR -d baby --gridd=mmrec", "unknown key gridd"),
        ("run -m VBPR -d demo --encodr=clip:tiny", "unknown key encodr"),
        ("run -m VBPR -d demo --paradigm ft --encoder clip:tiny --ft.epoks=3", "unknown key ft.epoks"),
        ("encode -d demo --encoder basic --encoder.txt_dim=3", "unknown key encoder.txt_dim"),
        ("run -m BPR -d demo --n_layers=2", "unknown key n_layers"),
        ("list models --jsno", "unknown"),
        ("run -m VBPR", "the parser refuses it"),
    ],
)
def test_a_misspelled_command_would_be_found(command: str, message: str) -> None:
    with pytest.raises((AssertionError, pytest.fail.Exception), match=message):
        understand(command)


def test_a_misspelled_study_would_be_found() -> None:
    with pytest.raises(Exception, match="paper-tabel3"):
        understand("study run paper-tabel3")


# Commands of other programs


def texts() -> str:
    return "\n".join(page.read_text(encoding="utf-8") for page in [*PAGES, ROOT / "CHANGELOG.md"])


@pytest.mark.parametrize(
    "target", sorted(set(re.findall(r"^(?:|.*[`(])make ([a-z-]+)(?=[`\n ,]|$)", texts(), re.MULTILINE)))
)
def test_each_documented_target_of_make_exists(target: str) -> None:
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize(
    ("module", "flags"), sorted(set(re.findall(r"python3? -m ((?:benchmarks|tests)\.[\w.]+)([^`\n;)#]*)", texts())))
)
def test_each_documented_module_exists_and_has_the_flags(module: str, flags: str) -> None:
    path = ROOT / module.replace(".", "/")
    file = path / "__main__.py" if path.is_dir() else path.with_suffix(".py")
    source = file.read_text(encoding="utf-8")
    assert path.is_dir() or "__main__" in source
    for flag in re.findall(r"--[a-z-]+", flags):
        assert f'"{flag}"' in source


@pytest.mark.parametrize("extra", sorted(set(re.findall(r"(?:mmrec-lmm|'\.)\[([a-z,]+)\]", texts()))))
def test_each_documented_extra_exists(extra: str) -> None:
    known = configparser.ConfigParser()
    known.read(ROOT / "setup.cfg")
    assert set(extra.split(",")) <= set(known["options.extras_require"])

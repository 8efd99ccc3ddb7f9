"""Shared by all verbs: functions to add verbs, flags that several verbs have, and types of arguments.

Choices are imported from where they are defined, in modules that import almost nothing: this keeps `--help` fast.
"""

from __future__ import annotations

import argparse
import math
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .. import __version__
from ..config.choices import CALLED_ELSEWHERE
from ..errors import ConfigError, did_you_mean
from ..features.controls import CONTROLS
from ..plugin.names import NAME_RULE, is_safe_name
from ..report.layouts import FORMATS, LAYOUTS

if TYPE_CHECKING:
    Verbs = argparse._SubParsersAction[argparse.ArgumentParser]
    Handler = Callable[[argparse.Namespace], int]  # returns an exit code

ABOUT = (
    "Train, evaluate and compare recommenders on what their items look like and say. "
    "Without a verb, flags mean `run`: mmrec-lmm -m VBPR -d demo. "
    "With your own data: `data import`, `run`, `recommend`."
)
EXIT_CODES = "exit codes: 0 ok, 1 a run failed, 2 usage or configuration, 4 data or weights, 130 interrupted"


def command() -> tuple[argparse.ArgumentParser, Verbs]:
    """The parser of the command itself, and the object to add its verbs to."""
    parser = argparse.ArgumentParser(prog="mmrec-lmm", description=ABOUT, epilog=EXIT_CODES, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"mmrec-lmm {__version__}")
    return parser, parser.add_subparsers(dest="verb", metavar="VERB")


def add_verb(verbs: Verbs, name: str, handler: Handler, summary: str, *, keys: bool = False) -> argparse.ArgumentParser:
    """Add a verb and return its parser. With `keys`, it also accepts any configuration key."""
    about = f"{summary} Any configuration key may follow as --key=value." if keys else summary
    parser = verbs.add_parser(name, help=summary, description=about, epilog=EXIT_CODES, allow_abbrev=False)
    parser.set_defaults(handler=handler, parser=parser, takes_keys=keys)
    parser.add_argument(
        "-p",
        dest="plugins",
        action="append",
        default=[],
        metavar="PLUGIN",
        help="also load a plugin that isn't installed: a module or a .py file; no:NAME leaves one out",
    )
    return parser


def add_group(verbs: Verbs, name: str, summary: str) -> Verbs:
    """Add a verb that has only verbs of its own; return the object to add those to."""
    parser = verbs.add_parser(name, help=summary, description=summary, epilog=EXIT_CODES, allow_abbrev=False)
    parser.set_defaults(handler=_usage, parser=parser, takes_keys=False)
    return parser.add_subparsers(metavar="VERB")


def _usage(options: argparse.Namespace) -> int:
    options.parser.print_help(sys.stderr)
    return ConfigError.exit_code


def configuration_keys(rest: Sequence[str], parser: argparse.ArgumentParser, *, allowed: bool) -> dict[str, str]:
    """The configuration keys in the arguments that match no flag. ConfigError for anything else."""
    overrides = {}
    for argument in rest:
        key, equals, value = argument.removeprefix("--").partition("=")
        if not allowed or not argument.startswith("--") or not equals or not key:
            flags = re.findall(r"--([a-z][\w-]+)", parser.format_help())  # no dashes: they make names alike
            meant = did_you_mean(key, flags).replace("mean ", "mean --")
            expected = f"a flag of {parser.prog}"
            if allowed:
                name = CALLED_ELSEWHERE.get(key, key) if argument.startswith("--") and key else "KEY"
                expected += f", or a configuration key as --{name}=VALUE"
            elif equals and parser.prog.split()[1:2] == ["study"] and _is_key(key):
                meant = f"; try settings: {{{key}: {value}}} in the study's file"
            raise ConfigError(f"unknown argument: expected {expected}, got {argument}{meant}")
        overrides[key] = value
    return overrides


def _is_key(name: str) -> bool:
    from ..config.schema import HOST

    return name in HOST.keys


def refuse_dashes(arguments: Sequence[str]) -> None:
    """ConfigError for `--flag=--`, whose value argparse makes an empty list before Python 3.13, whatever its type."""
    for argument in arguments:
        if argument.startswith("--") and argument.endswith("=--"):
            raise ConfigError(f"{argument.removesuffix('=--')}: expected a value, got --")


# Flags of several verbs


def what_to_run(parser: argparse.ArgumentParser) -> None:
    """Add the flags that define a run."""
    parser.add_argument(
        "-m", "--model", required=True, metavar="NAME", help="the model, or a model file of MMRec's; `list models`"
    )
    which_data(parser)
    which_split(parser)
    parser.add_argument(
        "--encoder",
        metavar="NAME",
        help="makes the item features, also as NAME:VARIANT; `list encoders` shows them (default: the data set's own "
        "feature files)",
    )
    how_to_encode(parser)
    parser.add_argument(
        "--paradigm",
        metavar="NAME",
        help="how the encoder is trained; `list paradigms` shows them (default: pt)",
    )
    parser.add_argument(
        "--features",
        type=feature_file,
        action="append",
        default=[],
        metavar="MODALITY=FILE.npy",
        help="features of a modality from a file",
    )
    parser.add_argument("--control", choices=CONTROLS, help="a control run, whose features carry no content")
    parser.add_argument(
        "--preset",
        metavar="NAME",
        help="a preset of configs; each shipped one follows one source where the sources differ",
    )
    parser.add_argument(
        "--sampler", metavar="NAME", help="draws negatives; `list samplers` shows them (default: uniform)"
    )
    parser.add_argument("--seed", metavar="N", help="seed of the weights, batches and negatives (default: 999)")
    parser.add_argument("--device", metavar="NAME", help="auto, cpu, cuda or mps")


def which_data(parser: argparse.ArgumentParser) -> None:
    """Add the flags that choose the data set and the configuration folder."""
    parser.add_argument(
        "-d", "--dataset", required=True, type=folder_name, metavar="NAME", help="a folder in the folder of data sets"
    )
    parser.add_argument("--data-path", metavar="DIR", help="folder of data sets (default: data)")
    configs_folder(parser)


def which_split(parser: argparse.ArgumentParser) -> None:
    """Add the flag that draws another split."""
    parser.add_argument(
        "--split",
        metavar="RULE",
        help="draw another split by a rule; `list splits` shows them (default: the labels of the data set's file)",
    )


def how_to_encode(parser: argparse.ArgumentParser) -> None:
    """Add the flags of an encoder and its input."""
    parser.add_argument("--weights", metavar="PATH", help="the encoder's checkpoint, or the folder of its files")
    parser.add_argument("--modalities", type=names, metavar="image,text", help="default: all except joint")


def which_layout(parser: argparse.ArgumentParser) -> None:
    """Add the flag for a table's layout."""
    parser.add_argument(
        "--layout",
        choices=tuple(LAYOUTS),
        default="plain",
        help="as a table of the paper, or metrics on parts of test (default: plain, all rows)",
    )


def how_to_print(parser: argparse.ArgumentParser) -> None:
    """Add the flags of a verb that prints a table."""
    parser.add_argument("--format", choices=FORMATS, default="markdown", help="default: markdown")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="write to FILE (default: stdout)")


def configs_folder(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--configs", type=Path, metavar="DIR", help="a folder of YAML in MMRec's layout")


def data_folder(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data-path", type=Path, default=Path("data"), metavar="DIR", help="folder of data sets (default: data)"
    )


def runs_folder(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, default=Path("runs"), metavar="DIR", help="folder of runs (default: runs)")


def as_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON document on stdout")


# Types of arguments


def folder_name(text: str) -> str:
    if not text or Path(text).name != text:
        raise argparse.ArgumentTypeError(f"expected a data set's name, got {text!r}; try --data-path for its folder")
    if not is_safe_name(text):
        raise argparse.ArgumentTypeError(f"expected a data set's name, got {text!r}; a name has {NAME_RULE}")
    return text


def folder_names(text: str) -> tuple[str, ...]:
    return tuple(map(folder_name, names(text)))


def names(text: str) -> tuple[str, ...]:
    listed = tuple(name.strip() for name in text.split(",") if name.strip())
    if not listed:
        raise argparse.ArgumentTypeError(f"expected names separated by commas, got {text!r}")
    return listed


LARGEST = 2**31 - 1  # of a count: more can't be meant, and arrays of so many items have other limits


def count(text: str) -> int:
    return _whole(text, 1, LARGEST)


def count_or_zero(text: str) -> int:
    return _whole(text, 0, LARGEST)


def world_seed(text: str) -> int:
    """The seed of a fresh world: `verify` draws one of up to 62 bits."""
    return _whole(text, 0, 2**62 - 1)


def processes(text: str) -> int:
    """Processes or connections that are open at once."""
    return _whole(text, 1, 1024)


def shard(text: str) -> tuple[int, int]:
    """I/N: the number of a part, from 1, and the number of parts."""
    parts = re.fullmatch("([0-9]{1,9})/([0-9]{1,9})", text)
    number, count = map(int, parts.groups()) if parts else (0, 0)
    if not 1 <= number <= count:
        raise argparse.ArgumentTypeError(f"expected I/N with I from 1 to N, got {text[:40]!r}; try 1/8")
    return number, count


def _whole(text: str, least: int, most: int) -> int:
    if not re.fullmatch("[0-9]{1,19}", text) or not least <= int(text) <= most:
        raise argparse.ArgumentTypeError(f"expected a whole number from {least} to {most:,}, got {text[:40]!r}")
    return int(text)


def number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"expected a number, got {text!r}")
    return value


def duration(text: str) -> float:
    """Seconds."""
    amount, unit = text[:-1], {"d": 86_400, "h": 3_600, "m": 60}.get(text[-1:])
    if unit is None or not amount.isdecimal():
        raise argparse.ArgumentTypeError(f"expected days, hours or minutes such as 30d, 12h or 45m, got {text!r}")
    return float(int(amount) * unit)


def users(text: str) -> dict[str, str] | None:
    """Each user's id and the place where it stands; None for all users."""
    if text == "all":
        return None
    if text.startswith("@"):
        return _listed_ids(Path(text[1:]))
    asked = [user.strip() for user in text.split(",")]
    if not all(asked):
        raise argparse.ArgumentTypeError(f"expected ids separated by commas, `all` or @FILE, got {text!r}")
    return dict.fromkeys(asked, "--users")


LARGEST_IDS = 2**28  # bytes


def _listed_ids(path: Path) -> dict[str, str]:
    """The ids in a file, one a line, each with the line where it first stands."""
    try:
        with path.open("rb") as file:  # perhaps a pipe
            content = file.read(LARGEST_IDS + 1)
        if len(content) > LARGEST_IDS:
            raise argparse.ArgumentTypeError(f"@{path}: expected at most {LARGEST_IDS:,} bytes of ids, got more")
        lines = content.decode("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise argparse.ArgumentTypeError(f"@{path}: expected a text file of ids, one a line: {why}") from None
    asked: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        if line.strip():
            asked.setdefault(line.strip(), f"{path}, line {number}")
    if not asked:
        raise argparse.ArgumentTypeError(f"@{path}: expected ids, one a line, got none")
    return asked


def feature_file(text: str) -> tuple[str, Path]:
    modality, equals, path = text.partition("=")
    if not equals or not modality:
        raise argparse.ArgumentTypeError(f"expected MODALITY=FILE.npy, got {text!r}")
    return modality, Path(path)


def condition(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise argparse.ArgumentTypeError(f"expected KEY=VALUE, got {text!r}")
    return key, value

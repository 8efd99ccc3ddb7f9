"""The command line: it parses arguments, calls the library and prints. Handlers import what is slow to import.

Exit codes: 0 ok; 1 a run failed; 2 usage or configuration; 4 data or weights missing, damaged, or not permitted to this
user; 130 interrupted, with the state saved. An error is one message on stderr; only results go to stdout.
"""

from __future__ import annotations

import argparse
import io
import os
import re
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TextIO

from ..errors import MMRecError
from ..formatting import printable
from ..user_paths import expand_home
from .parser import command, configuration_keys, refuse_dashes
from .verbs import GROUPS


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code. Without a verb, flags mean `run`, as in MMRec."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    for name in ("stdout", "stderr"):  # None if the shell closed it
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - for the life of the process
    if arguments and arguments[0].startswith("-") and arguments[0] not in ("-h", "--help", "--version"):
        arguments.insert(0, "run")
    parser = build_parser()
    if not arguments:
        parser.print_help()
        return 0
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a scheduler's SIGTERM saves the state, as Ctrl-C does
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # torch reads it on import; see docs/performance.md
    with _printing_safely():
        return _handle(parser, arguments)


def _handle(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> int:
    """Call the verb's handler; an error is printed, and becomes an exit code."""
    try:
        refuse_dashes(arguments)
        arguments = [_expanded(argument) for argument in arguments]
        options, rest = parser.parse_known_args(arguments)  # reads the file of --users, perhaps a pipe
        options.overrides = configuration_keys(rest, options.parser, allowed=options.takes_keys)
        exit_code: int = options.handler(options)
        sys.stdout.flush()
        return exit_code
    except MMRecError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(
            "interrupted; finished runs are kept, and the same command continues (run: with --resume)",
            file=sys.stderr,
        )
        return 130
    except BrokenPipeError:  # such as `| head`, which stops reading
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python's flush at exit fails again
        return 0
    except OSError as error:
        if error.strerror is None:
            raise
        if error.filename is None:  # of a stream: its disk is full, or its other end closed
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # else Python's flush at exit fails again
            print(f"error: the output can't be written: {error.strerror}", file=sys.stderr)
            return 1
        from ..disk.faults import of_path

        refused = of_path(error)
        print(f"error: {refused}", file=sys.stderr)
        return refused.exit_code


def _expanded(argument: str) -> str:
    """An argument with the `~` that a shell leaves there: of `--out=~/runs`, `image=~/image_feat.npy`, `@~/ids`."""
    return re.sub(r"(^|[=@])(~(?:/.*)?)\Z", lambda found: found[1] + expand_home(found[2]), argument, flags=re.DOTALL)


class _Safe:
    """A stream for people: what is written to it never commands a terminal, whatever names and titles it holds."""

    def __init__(self, stream: TextIO, keep: str) -> None:
        self._stream, self._keep = stream, keep

    def write(self, text: str) -> int:
        return self._stream.write(printable(text, self._keep))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def _printing_safely() -> Iterator[None]:
    """Within this context stdout and stderr are safe; progress bars may return to the start of a line of stderr."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files may be no text
    streams = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = _Safe(sys.stdout, "\n\t"), _Safe(sys.stderr, "\n\t\r")
    try:
        yield
    finally:
        sys.stdout, sys.stderr = streams


def build_parser() -> argparse.ArgumentParser:
    """The parser of all verbs with their flags."""
    parser, verbs = command()
    for add in GROUPS:
        add(verbs)
    return parser

"""A script by which a shell completes the command: its verbs, flags, choices, and the names that plugins bring.

All words are in the script, so nothing is started at the Tab key; after installing a plugin, make it again.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..plugin.registry import Registry

SHELLS = ("bash", "zsh")

_BASH = """\
_mmrec_lmm() {
    local word="${COMP_WORDS[COMP_CWORD]}" before="${COMP_WORDS[COMP_CWORD-1]}" verb="" words="" next i
    if [[ $word == "=" ]]; then word=""; elif [[ $before == "=" ]]; then before="${COMP_WORDS[COMP_CWORD-2]}"; fi
    for ((i = 1; i < COMP_CWORD; i++)); do
        next="${verb:+$verb }${COMP_WORDS[i]}"
        case "$next" in
            %(verbs)s) verb="$next" ;;
        esac
    done
    if [[ -z $verb && ${COMP_WORDS[1]} == -* ]]; then verb=run; fi
    case "$verb $before" in
%(values)s
        *) case "$verb" in
%(flags)s
        esac ;;
    esac
    COMPREPLY=($(compgen -W "$words" -- "$word"))
}
complete -o default -F _mmrec_lmm mmrec-lmm
"""
_ZSH = "autoload -U +X bashcompinit && bashcompinit\n"


def script(parser: argparse.ArgumentParser, registry: Registry, shell: str) -> str:
    """The script for one of SHELLS, to be sourced."""
    named = {
        "model": registry.models.names(),
        "encoder": registry.encoders.names(),
        "paradigm": registry.paradigms.names(),
        "sampler": registry.samplers.names(),
        "dataset": registry.datasets.names(),
        "split": registry.splits.names(),
    }
    of_info = [name for names in (*named.values(), registry.metrics.names()) for name in names]
    verbs = dict(_verbs(parser))
    flags, values = [], []
    for verb, own in verbs.items():
        words: list[str] = []
        for action in own._actions:
            choices = [*map(str, action.choices)] if action.choices else [*named.get(action.dest, ())]
            if not action.option_strings:
                words += choices or (of_info if (verb, action.dest) == ("info", "name") else [])
            elif choices:
                patterns = "|".join(f'"{verb} {flag}"' for flag in action.option_strings)
                values.append(f'        {patterns}) words="{_joined(choices)}" ;;')
            words += [flag for flag in action.option_strings if flag.startswith("--")]
        flags.append(f'            "{verb}") words="{_joined(words)}" ;;')
    patterns = "|".join(f'"{verb}"' for verb in verbs if verb)
    text = _BASH % {"verbs": patterns, "values": "\n".join(values), "flags": "\n".join(flags)}
    return _ZSH + text if shell == "zsh" else text


def _verbs(parser: argparse.ArgumentParser, name: str = "") -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Each verb, as "data import", with its parser; the command itself is ""."""
    yield name, parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for verb, below in action.choices.items():
                yield from _verbs(below, f"{name} {verb}".strip())


def _joined(words: Sequence[str]) -> str:
    """Words that a shell's double quotes hold as they are: letters, digits and a few signs."""
    return " ".join(word for word in dict.fromkeys(words) if not set(word) & set("\"'$`\\ \n"))

"""What a user may type: `--key=value` for every configuration key, and every flag of every verb, with odd values."""

import argparse
import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, get_args, get_origin

from .damage import TEXTS

#: Values of keys and flags. No NUL, which no command line can hold, and no text that is longer than one may be.
TYPED = (*(text for text in TEXTS if "\0" not in text and "\ud800" not in text), "\udcff", "1e9", "-1e9", "1024", "0.5",
         "[1,2]", "[,]", "{a: [1]}", "[-1, 0]", "[nan]", "1,2", "[" * 2000, "&a [*a]", "*a", "x.npy", "image=x.npy",
         "data",
         "data/toy", "/dev/null", "/dev/full", "nowhere/x", "image", "text,image", "image,image", "joint", "VBPR",
         "vbpr",
         "basic", "clip:tiny", "clip:", ":x", "cuda:9", "2024-01-01", "no:x", "U00", "@users.txt", "@", "all",
         "k=v")  # fmt: skip

#: A command for each verb, to which flags are added.
BASES = {
    "run": "run -m VBPR -d toy --epochs=1 --embedding_size=4 --seed=8",
    "demo": "demo --epochs=1",
    "config show": "config show -m VBPR -d toy",
    "list": "list runs",
    "info": "info VBPR",
    "completion": "completion bash",
    "encode": "encode -d toy --encoder basic",
    "table": "table runs/study/mine/leaderboard.json",
    "paper": "paper --table 3",
    "doctor": "doctor",
    "data demo": "data demo --data-path other",
    "data get": "data get baby --from raw/baby --core 0 --no-images --accept-terms --data-path other",
    "data check": "data check -d toy",
    "data table": "data table -d toy --encoders basic",
    "data build": "data build new --from raw/movielens_100k",
    "data import": "data import new --interactions raw/shop/clicks.csv --items raw/shop/items.csv",
    "data images": "data images shop --from raw/shop/photos",
    "leaderboard": "leaderboard runs/study/mine/leaderboard.json -o page.html",
    "study run": "study run mine.yaml --dry-run --no-probe",
    "study status": "study status mine.yaml",
    "study table": "study table mine.yaml",
    "study page": "study page mine.yaml -o page.html",
    "recommend": "recommend {run} --users U00",
    "replay": "replay {run}",
    "results index": "results index",
    "results export": "results export",
    "results query": "results query SELECT*FROM_runs",
    "slices": "slices {run}",
    "clean": "clean",
    "weights list": "weights list",
    "weights get": "weights get vlmo:tiny",
    "weights merge": "weights merge {run} -o merged.safetensors",
    "embeddings": "embeddings {run} -o vectors.npy",
    "plugin new": "plugin new model Mine",
    "plugin check": "plugin check BPR",
    "data audit": "data audit -d toy --features image=data/toy/image_feat.npy --permutations 20",
    "submit": "submit mine.yaml -o bundle.zip",
    "verify": "verify mine.zip",
    "board new": "board new other -d toy --name other",
    "board add": "board add board mine.zip",
    "board check": "board check board",
    "board build": "board build board",
    "best": "best -d toy -m VBPR --board board",
    "compare": "compare {run} BPR-toy",
    "import-mmrec": "import-mmrec checkout --to taken",
}
MAY_CHANGE = ("data/shop/*", "home/*", "runs/VBPR-toy-*", "runs/BPR-toy-*", "board/*")


@dataclass(frozen=True)
class KeyOf:
    """A configuration key, the type of its values, and a command that takes it."""

    name: str
    hint: Any
    command: str


@cache
def all_keys() -> tuple[KeyOf, ...]:
    """Every key of the host, and of each model, encoder and paradigm."""
    from mmrec_lmm.config.schema import schema_of
    from mmrec_lmm.config.settings import Settings
    from mmrec_lmm.plugin.registry import load_registry

    registry = load_registry()
    run = "run -m {} -d toy --epochs=1 --seed=8"
    owners: list[tuple[Any, str, str]] = [(Settings, "", run.format("VBPR"))]
    owners += [(spec.config, "", run.format(spec.name)) for spec in registry.models]
    for spec in registry.encoders:
        variant = "" if spec.name in ("basic", "precomputed") else ":tiny"
        owners.append((spec.config, "encoder.", f"{run.format('VBPR')} --encoder {spec.name}{variant}"))
    for paradigm in registry.paradigms:
        if paradigm.config:
            command = f"{run.format('VBPR')} --encoder vlmo:tiny --paradigm {paradigm.name}"
            owners.append((paradigm.config, f"{paradigm.name}.", command))
    return tuple(
        KeyOf(key.name, key.hint, command)
        for config, prefix, command in owners
        for key in schema_of(config, "fuzz", prefix=prefix).keys.values()
    )


def key_command(rng: random.Random) -> tuple[list[str], list[str]]:
    """A command with one key of an odd value, and the words by which a message may name them."""
    key = rng.choice(all_keys())
    value = rng.choice((rng.choice(TYPED), rng.choice(list(_near(key.hint)) or TYPED)))
    command = key.command.split()
    if not key.name.startswith("encoder.") and rng.random() < 0.3:
        command = ["config", "show", *command[1:]]
    elif key.name.startswith("encoder.") and rng.random() < 0.5:
        command = ["encode", "-d", "toy", "--encoder", command[command.index("--encoder") + 1]]
    return [*command, f"--{key.name}={value}"], [key.name.rpartition(".")[2], value]


def _near(hint: Any) -> Iterator[str]:
    """Values that are of the type, or almost."""
    if get_origin(hint) is Literal:
        for choice in get_args(hint):
            yield from (str(choice), str(choice).upper(), f"{choice} ", str(choice)[:-1], f"[{choice}]")
    elif hint is int or hint is float:
        yield from (
            "0",
            "-1",
            "1",
            "2",
            "7",
            "1e308",
            "1e-300",
            "nan",
            "inf",
            str(2**31),
            str(2**40),
            str(2**70),
            "3.0",
            "0.1",
        )
    elif hint is bool:
        yield from ("yes", "Off", "TRUE", "1", "0", "2", "t")
    elif hint is str:
        yield from ("", " ", "x", "[x]", "../x", "a" * 300)
    else:
        for part in get_args(hint):
            yield from (
                value for near in _near(part) for value in (near, f"[{near}]", f"[{near}, {near}]", f"{{a: {near}}}")
            )


def verbs(parser: argparse.ArgumentParser, prefix: str = "") -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Each verb's name and parser."""
    inner = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not inner:
        yield prefix.strip(), parser
    for action in inner:
        for name, one in action.choices.items():
            yield from verbs(one, f"{prefix} {name}")


@cache
def all_verbs() -> tuple[tuple[str, argparse.ArgumentParser], ...]:
    """The command line's verbs with their parsers."""
    from mmrec_lmm.cli import build_parser

    return tuple(verbs(build_parser()))


def flag_command(rng: random.Random) -> tuple[list[str], list[str]]:
    """A command with one flag, or a place of its own, of an odd value, and the words by which a message may name it."""
    name, parser = rng.choice(all_verbs())
    command = [word.replace("*FROM_", " * FROM ") for word in BASES[name].split()]
    action = rng.choice([action for action in parser._actions if action.dest not in ("help", "on", "mirror")])
    values = [*map(str, action.choices or ()), *TYPED] if rng.random() < 0.3 else list(TYPED)
    value = rng.choice(values)
    if not action.option_strings:
        place = len(name.split())
        command[place : place + 1] = [value]
        return command, [action.dest, value]
    flag, names = rng.choice(action.option_strings), [*action.option_strings, action.dest, value]
    if action.nargs == 0:
        return [*command, flag], names
    if flag.startswith("--") and rng.random() < 0.5:
        return [*command, f"{flag}={value}"], names
    return [*command, flag, *rng.choice(([], [value], [value], [value, rng.choice(values)]))], names

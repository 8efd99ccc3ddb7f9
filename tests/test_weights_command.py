"""`weights list` and `weights get`: what runs need is brought from a server on this machine, and then needs none."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from helpers import Answer, call, plugin
from mirror import Mirror, serving
from safetensors.numpy import save

from mmrec_lmm.cache import home
from mmrec_lmm.disk.hashing import hash_bytes
from mmrec_lmm.downloads import fetching

WORDS, COLORS = b"red\nblue\nthing\n" * 50, bytes(range(1, 100))
VLMO = save({"weight": np.zeros(3, np.float32)})

#: An encoder of two files, of which texts need one alone, and a third thing that only `fetch` brings.
ENCODER = """
import torch
BASE = "{base}"
COLORS, WORDS = WeightFile("colors.bin", BASE + "colors.bin", "{colors}"), WeightFile("words.txt", BASE + "words.txt")

@dataclass(frozen=True)
class Config:
    variant: str = ""
    weights: str = ""

def needed(config, modality):
    return [COLORS] if modality == "image" else [WORDS]

def weights_id(config, modality):
    return " ".join(hash_file(find_weights(file, encoder="pair")) for file in needed(config, modality))

def fetch(config, modality):
    Path("fetched-" + modality).touch()

class Pair(ItemEncoder):
    def __init__(self, config, modalities):
        super().__init__()
        self.dims = {{modality: 2 for modality in modalities}}
        for modality in modalities:
            weights_id(config, modality)

    def prepare(self, item):
        return {{"length": torch.tensor([len(item.text), 1.0])}}

    def forward(self, batch):
        return {{modality: batch["length"] for modality in self.dims}}

@hookimpl
def mmrec_register_encoders():
    return [EncoderSpec("pair", cls=Pair, config=Config, modalities=("image", "text"), weights_id=weights_id,
                        files=needed, fetch=fetch, license="MIT", variants={{"other": "the same"}})]
"""


@pytest.fixture
def mirror(monkeypatch: pytest.MonkeyPatch, data_path: Path) -> Iterator[Mirror]:
    """A server with the files of the encoders `pair` (a plugin in pair.py) and vlmo."""
    monkeypatch.chdir(data_path.parent)
    monkeypatch.setattr(fetching, "PAUSES", (0.0,))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    for name in ("MMREC_LMM_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    files = {"/colors.bin": COLORS, "/words.txt": WORDS, "/vlmo_base_patch16_224.pt": VLMO}
    with serving(files) as mirror:
        plugin(Path("pair.py"), ENCODER.format(base=mirror.url, colors=hash_bytes(COLORS)))
        monkeypatch.setattr("mmrec_lmm_plugins.encoders.vlmo.PUBLISHED", mirror.url)
        yield mirror


def get(*arguments: str) -> Answer:
    return call("weights", "get", "-p", "pair.py", *arguments)


def rows(answer: Answer) -> dict[str, dict]:
    return {row["file"]: row for row in json.loads(answer.out)}


def test_get_brings_the_files_of_all_modalities_once_and_then_a_run_needs_no_network(
    mirror: Mirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = get("pair", "--json")
    assert answer.code == 0, answer.err
    assert {file: row["state"] for file, row in rows(answer).items()} == {
        "colors.bin": "downloaded",
        "words.txt": "downloaded",
    }
    assert (home() / "weights" / "pair" / "words.txt").read_bytes() == WORDS
    assert Path("fetched-image").exists()
    assert Path("fetched-text").exists()
    asked = list(mirror.asked)
    again = rows(get("pair", "--json"))
    assert {row["state"] for row in again.values()} == {"here"}
    assert again["words.txt"]["sha256"] == hash_bytes(WORDS)
    assert again["words.txt"]["bytes"] == len(WORDS)
    monkeypatch.setenv("MMREC_LMM_OFFLINE", "1")
    done = call("encode", "-d", "toy", "--encoder", "pair:other", "-p", "pair.py")
    assert done.code == 0, done.err
    assert mirror.asked == asked


def test_get_takes_several_encoders_with_their_variants_and_keys(mirror: Mirror) -> None:
    answer = get("vlmo:base", "pair:other")
    assert answer.code == 0, answer.err
    assert (home() / "weights" / "vlmo" / "vlmo_base_patch16_224.pt").read_bytes() == VLMO
    assert answer.out.count("downloaded") == 3


def test_a_failed_download_is_named_and_the_others_go_on(mirror: Mirror) -> None:
    del mirror.files["/colors.bin"]
    answer = get("vlmo:large", "pair", "--json")
    assert answer.code == 4
    assert {file: row["state"] for file, row in rows(answer).items() if file != "vocab.txt"} == {
        "vlmo_large_patch16_224.pt": "missing",
        "colors.bin": "missing",
        "words.txt": "downloaded",
    }
    errors = [line for line in answer.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 2
    assert "colors.bin isn't here and couldn't be downloaded (HTTP Error 404: Not Found)" in errors[1]


def test_unknown_names_are_refused_before_anything_is_downloaded(mirror: Mirror) -> None:
    answer = get("pair", "vlmoo")
    assert answer.code == 2
    assert "unknown encoder vlmoo; did you mean vlmo?" in answer.err
    assert get().code == get("pair", "--all").code == 2
    assert not mirror.asked


def test_list_asks_no_server_and_says_where_files_belong(mirror: Mirror) -> None:
    found = rows(call("weights", "list", "-p", "pair.py", "pair", "--json"))
    assert found["colors.bin"]["path"] == str(home() / "weights" / "pair" / "colors.bin")
    assert found["colors.bin"]["sha256"] == hash_bytes(COLORS)
    assert (found["colors.bin"]["state"], found["colors.bin"]["license"]) == ("missing", "MIT")
    text = call("weights", "list").out
    assert "vlmo_base_plus_patch16_224.pt" in text
    assert "ViT-B-16.pt" in text
    assert not mirror.asked

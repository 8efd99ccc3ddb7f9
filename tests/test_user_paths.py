"""Paths in the user's folder that no shell has read: by flags, YAML and programs they lead to the same place."""

import shutil
from pathlib import Path

import pytest
from helpers import call, plugin

import mmrec_lmm
from mmrec_lmm.user_paths import user_path

RUN = ("run", "-m", "VBPR", "-d", "toy", "--epochs=1", "--embedding_size=4")
SMALL = {"epochs": 1, "embedding_size": 4}


@pytest.fixture(autouse=True)
def home(data_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder with data/toy and a plugin; the working folder is another, and empty."""
    home, here = data_path.parent, tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("HOME", str(home))
    return home


def test_flags_lead_to_the_users_folder(home: Path) -> None:
    plugin(home / "own.py", "@hookimpl\ndef mmrec_register_models():\n    return []\n")
    shutil.move(home / "data" / "toy" / "image_feat.npy", home / "own.npy")
    flags = ("--data-path=~/data", "--out=~/runs", "--features", "image=~/own.npy", "-p", "~/own.py")
    answer = call(*RUN, *flags)
    assert answer.code == 0, answer.err
    assert [path.name for path in home.glob("runs/VBPR-toy-*")]
    (home / "ids").write_text("1\n")
    assert call("recommend", "VBPR-toy", "--out=~/runs", "--users=@~/ids", "-o", "~/best.csv").code == 0
    assert (home / "best.csv").read_text()
    assert not [*Path.cwd().iterdir()]


def test_yaml_leads_to_the_users_folder(home: Path) -> None:
    settings = "settings: {epochs: 1, embedding_size: 4, data_path: ~/data}"
    (home / "first.yaml").write_text(f"models: [BPR, VBPR]\ndatasets: [toy]\nseeds: [1]\n{settings}\n")
    answer = call("study", "run", f"{home}/first.yaml", "--out=~/runs")
    assert answer.code == 0, answer.err
    assert len([*home.glob("runs/*-toy-*")]) == 2
    assert not [*Path.cwd().iterdir()]


def test_programs_lead_to_the_users_folder(home: Path) -> None:
    made = mmrec_lmm.run(
        "VBPR", "toy", data_path="~/data", out="~/runs", features={"image": "~/data/toy/image_feat.npy"}, **SMALL
    )
    assert made.folder.parent == home / "runs"
    assert mmrec_lmm.Run(f"~/runs/{made.id}") == made == mmrec_lmm.runs("~/runs")[0]
    assert len(mmrec_lmm.recommend("VBPR-toy", out="~/runs", data_path="~/data")) == 120
    assert not [*Path.cwd().iterdir()]


@pytest.mark.parametrize("path", ["~other/x", "x/~", "a~", ""])
def test_other_paths_are_as_they_are(path: str) -> None:
    assert user_path(path) == Path(path)

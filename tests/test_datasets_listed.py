"""`list datasets`, `info` and the message of a data set that isn't here: what there is, and how to get the rest."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import call

PLUGIN = """
from mmrec_lmm.api import DatasetSpec, hookimpl

@hookimpl
def mmrec_register_datasets():
    return [DatasetSpec("theirs", get="wget them"), DatasetSpec("own", load=lambda folder, name, settings: None)]
"""


def rows(data_path: Path, *flags: object) -> dict[str, dict[str, Any]]:
    answer = call("list", "datasets", "--data-path", data_path, "--json", *flags)
    assert answer.code == 0, answer.err
    return {row["name"]: row for row in json.loads(answer.out)}


def test_a_folder_of_data_is_listed_with_what_its_files_hold(data_path: Path) -> None:
    (data_path / "toy" / "images" / "0.png").unlink()
    row = rows(data_path)["toy"]
    counts = {"users": 12, "items": 16, "interactions": 96, "images": 14, "texts": 15}
    assert row == {
        "name": "toy", **counts, "features": "image 5, text 6", "timestamps": "no", "state": "here", "summary": "",
        "plugin": None,
    }  # fmt: skip
    shown = call("list", "datasets", "--data-path", data_path).out
    assert "toy" in shown
    assert "summary" not in shown.splitlines()[0]


def test_a_table_alone_is_listed_with_its_times_and_no_counts_of_content(tmp_path: Path) -> None:
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "bare.inter").write_text("userID\titemID\ttimestamp\tx_label\n0\t0\t5\t0\n1\t4\t6\t1\n")
    row = rows(tmp_path)["bare"]
    assert (row["users"], row["items"], row["interactions"], row["timestamps"]) == (2, 5, 2, "yes")
    assert [row[column] for column in ("images", "texts", "features")] == [None] * 3


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda toy: (toy / "toy.inter").unlink(), "can't be read: toy.inter: no such file"),
        (lambda toy: (toy / "toy.inter").write_text("userID,itemID,x_label\n0,0,0\n"), "can't be read: toy.inter"),
        (lambda toy: (toy / "toy.inter").write_text("userID\titemID\tx_label\n"), "expected rows, got only a header"),
        (
            lambda toy: (toy / "toy.inter").write_text("userID\titemID\tx_label\n0\t1\t7\n"),
            "toy.inter, line 2: x_label",
        ),
        (lambda toy: (toy / "items.tsv").write_bytes(b"itemID\ttitle\n0\t\xff\n"), "items.tsv, line 2"),
        (
            lambda toy: (toy / "text_feat.npy").write_text("<html>"),
            "text_feat.npy: expected a .npy file, got a web page",
        ),
        (lambda toy: np.save(toy / "image_feat.npy", np.zeros(3)), "image_feat.npy: expected rows of features"),
    ],
)
def test_a_broken_folder_is_listed_with_its_reason_and_hides_no_other(spoil: Any, reason: str, data_path: Path) -> None:
    (data_path / "good").mkdir()
    (data_path / "good" / "good.inter").write_bytes((data_path / "toy" / "toy.inter").read_bytes())
    spoil(data_path / "toy")
    listed = rows(data_path)
    assert reason in listed["toy"]["state"]
    assert listed["toy"]["users"] is None
    assert listed["good"]["state"] == "here"


def test_what_is_not_here_is_listed_with_the_way_to_it(data_path: Path, tmp_path: Path) -> None:
    plugin = tmp_path / "theirs.py"
    plugin.write_text(PLUGIN)
    listed = rows(data_path, "-p", plugin)
    states = {name: row["state"] for name, row in listed.items()}
    assert states["demo"] == "made on first use"
    assert states["ml-1m"] == f"mmrec-lmm data get ml-1m --data-path {data_path}"
    assert states["theirs"] == f"wget them --data-path {data_path}"
    assert states["own"] == "its plugin reads it"
    assert "mmrec-lmm data get elec\n" in call("list", "datasets").out  # the default folder needs no flag


def test_a_public_data_set_that_is_not_here_is_answered_with_the_command(tmp_path: Path) -> None:
    for arguments in (["run", "-m", "VBPR", "-d", "baby"], ["data", "check", "-d", "baby"], ["encode", "-d", "baby"]):
        encoder = ["--encoder", "basic"] if arguments[0] == "encode" else []
        answer = call(*arguments, *encoder, "--data-path", tmp_path)
        assert answer.code == 4
        assert f"try `mmrec-lmm data get baby --data-path {tmp_path}`" in answer.err
    assert not (tmp_path / "baby").exists()


def test_a_folder_of_the_users_own_keeps_the_case_of_its_name(data_path: Path) -> None:
    (data_path / "toy").rename(data_path / "Elec")
    (data_path / "Elec" / "toy.inter").rename(data_path / "Elec" / "Elec.inter")
    answer = call("data", "check", "-d", "Elec", "--data-path", data_path)
    assert answer.code == 0
    assert answer.out.startswith("Elec: nothing is wrong\n12 users")
    assert rows(data_path)["Elec"]["state"] == "here"


def test_info_of_a_public_data_set_has_its_terms_its_citation_its_size_and_the_command() -> None:
    text = call("info", "baby").out
    assert "19,445 users, 7,050 items, 160,792 interactions" in text
    assert "WWW 2016" in text
    assert "don't redistribute" in text
    assert "get it: mmrec-lmm data get baby\n" in text

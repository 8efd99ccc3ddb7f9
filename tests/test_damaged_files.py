"""One bad file is one bad file: each kind of damage to each file that we wrote is named, and stops nothing else."""

import json
import math
import os
import re
import shutil
import signal
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
import yaml
from conftest import write_toy
from helpers import call
from safetensors.numpy import save_file

from mmrec_lmm import machine
from mmrec_lmm.api import Limit, at_least, between
from mmrec_lmm.config import yaml_layers
from mmrec_lmm.config.resolve import MOST_RUNS
from mmrec_lmm.data.arrays import check_header, open_npy
from mmrec_lmm.disk import hashing, reading
from mmrec_lmm.disk.reading import read_file, read_json
from mmrec_lmm.errors import ConfigError, DataError
from mmrec_lmm.features import encoding
from mmrec_lmm.features.files import read_feature_file
from mmrec_lmm.plugin.registry import load_registry
from mmrec_lmm.running import index, run_folder
from mmrec_lmm.studies.leaderboard import read_leaderboard
from mmrec_lmm.testing import check_config
from mmrec_lmm.training.resume import load_checkpoint, load_numbers
from mmrec_lmm.training.trainer import TrainerNumbers
from mmrec_lmm.typed_json import parse, plain

ROOT = Path(__file__).resolve().parents[1]
RUN = ("run", "-m", "BPR", "-d", "toy", "--epochs=2", "--embedding_size=4")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data/toy, two runs and a study of one run with its leaderboard."""
    folder = tmp_path_factory.mktemp("made")
    write_toy(folder / "data" / "toy")
    before = Path.cwd()
    os.chdir(folder)
    try:
        assert call(*RUN, "--seed=1").code == call(*RUN, "--seed=2").code == 0
        Path("mine.yaml").write_text("{models: [BPR], datasets: [toy], settings: {epochs: 1, embedding_size: 4}}")
        assert call("study", "run", "mine.yaml").code == call("study", "table", "mine.yaml").code == 0
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def here(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder, to damage."""
    shutil.copytree(made, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def run_of(seed: int) -> Path:
    for folder in Path("runs").glob("BPR-*"):
        config = json.loads((folder / "config.json").read_text())
        if (config["settings"]["seed"], config["settings"]["epochs"]) == (seed, 2):
            return folder
    raise AssertionError


# Ways to damage a file

CONTENT: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "cut": lambda content: content[: len(content) * 2 // 3],
    "random": lambda content: np.random.default_rng(0).bytes(300),
    "a list": lambda content: b"[]",
    "an object": lambda content: b"{}",
    "null": lambda content: b"null",
    "deep": lambda content: b"[" * 100_000,
    "deep and closed": lambda content: b"[" * 3000 + b"]" * 3000,
    "a long number": lambda content: b"9" * 5000,
    "2**70": lambda content: re.sub(rb'(": )\d+\b', rb"\g<1>1180591620717411303424", content),
    "lists for numbers": lambda content: re.sub(rb'(": )[-\d.e]+\b', rb"\1[1]", content),
    "numbers for texts": lambda content: re.sub(rb'(": )"[^"]*"', rb"\g<1>5", content),
    "half a surrogate pair": lambda content: content.replace(b'": "', b'": "\\ud800'),
    "not UTF-8": lambda content: content[:20] + b"\xff\xfe" + content[20:],
    "a BOM": lambda content: b"\xef\xbb\xbf" + content,
    "a key twice": lambda content: content.replace(b"{", b'{"twice": 1, "twice": 2,', 1),
}


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def a_loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def to_nowhere(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


DAMAGE: dict[str, Callable[[Path], object]] = {
    **{
        name: lambda path, change=change: path.write_bytes(change(path.read_bytes()))
        for name, change in CONTENT.items()
    },
    **{damage.__name__: damage for damage in (a_folder, a_pipe, a_loop, to_nowhere)},
}
each_way = pytest.mark.parametrize("way", DAMAGE)


def damage(way: str, path: Path) -> None:
    """Damage a file; skip the test if it has nothing of the kind."""
    before = path.read_bytes()
    DAMAGE[way](path)
    if way in CONTENT and path.read_bytes() == before:
        pytest.skip(f"{path.name} has nothing to damage so")


# Runs


@each_way
def test_a_damaged_result_is_left_out_of_listings_and_named(way: str, here: Path) -> None:
    bad, good = run_of(1), run_of(2)
    damage(way, bad / "result.json")
    for command in (
        ("list", "runs"),
        ("results", "export"),
        ("results", "query", "SELECT run FROM runs"),
        ("results", "index"),
    ):
        answer = call(*command)
        assert answer.code == 0, answer.err
        assert f"{bad}/result.json: " in answer.err
        assert good.name in answer.out or command[-1] == "index"
        assert bad.name not in answer.out
    for command in (("recommend", bad.name, "--users", "all"), ("slices", bad.name), (*RUN, "--seed=1")):
        answer = call(*command)
        assert (answer.code, answer.out) == (4, ""), answer.err
        assert f"{bad}/result.json: " in answer.err
    assert call(*RUN, "--seed=2", "--force").code == 0


def test_a_damaged_result_is_replaced_by_force(here: Path) -> None:
    path = run_of(1) / "result.json"
    path.write_text("[]")
    assert call(*RUN, "--seed=1", "--force").code == 0
    assert json.loads(path.read_text())["run_id"] == path.parent.name


@pytest.mark.parametrize("value", ["NaN", "Infinity", "1e999"])
def test_a_metric_that_is_not_a_number_is_named(value: str, here: Path) -> None:
    path = run_of(1) / "result.json"
    path.write_text(re.sub(r'("recall@5": )[\d.e-]+', rf"\g<1>{value}", path.read_text()))
    with pytest.raises(DataError, match=r"result.json: valid.recall@5: expected a finite number"):
        run_folder.load_result(path.parent)


@pytest.mark.parametrize(("value", "said"), [("7", "7"), ("-0.25", "-0.25")])
def test_a_metric_beyond_its_range_is_a_damaged_result(value: str, said: str, here: Path) -> None:
    path = run_of(1) / "result.json"
    before = path.read_text()
    path.write_text(re.sub(r'("recall@5": )[\d.e-]+', rf"\g<1>{value}", before))
    with pytest.raises(DataError, match=rf"result.json: valid.recall@5: expected 0 to 1, got {said}; try --force"):
        run_folder.load_result(path.parent)
    listed = call("list", "runs")
    assert path.parent.name not in listed.out
    assert f"valid.recall@5: expected 0 to 1, got {said}" in listed.err
    path.write_text(re.sub(r'"recall@5": [\d.e-]+', '"of_a_plugin@5": -7.0', before))
    result = run_folder.load_result(path.parent)
    assert result is not None
    assert result.valid["of_a_plugin@5"] == -7


@each_way
def test_a_damaged_configuration_is_named_and_leaves_the_leaderboard(way: str, here: Path) -> None:
    bad = run_of(1)
    damage(way, bad / "config.json")
    answer = call("recommend", bad.name, "--users", "all")
    assert (answer.code, answer.out) == (4, ""), answer.err
    assert f"{bad}/config.json: " in answer.err


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("settings", "epochs", -1),
        ("settings", "topk", "many"),
        ("settings", "seed", 2**40),
        ("model_config", "embedding_size", 0),
        ("model_config", "embedding_size", [4]),
        ("model_config", "reg_weight", -1),
    ],
)
def test_a_configuration_with_an_impossible_value_names_the_key(section, key, value, here) -> None:
    path = run_of(1) / "config.json"
    config = json.loads(path.read_text())
    config[section][key] = value
    path.write_text(json.dumps(config))
    answer = call("slices", path.parent.name)
    assert answer.code == 4
    assert f"config.json: {section}.{key}: must be" in answer.err


@each_way
def test_a_damaged_history_is_named(way: str, here: Path) -> None:
    path = run_of(1) / "history.jsonl"
    damage(way, path)
    if way == "empty":
        assert run_folder.load_history(path.parent) == []
        return
    with pytest.raises(DataError, match=r"history\.jsonl"):
        run_folder.load_history(path.parent)


@pytest.mark.parametrize(
    "way", ["empty", "cut", "random", "a list", "deep", "a_folder", "a_pipe", "a_loop", "to_nowhere"]
)
@pytest.mark.parametrize("name", ["per_user.safetensors", "best.safetensors", "topk.tsv"])
def test_damaged_arrays_and_lists_of_a_run_are_named(name: str, way: str, here: Path) -> None:
    folder = run_of(1)
    damage(way, folder / name)
    if name == "best.safetensors":
        answer = call("recommend", folder.name, "--users", "all")
    elif name == "topk.tsv":
        answer = call("slices", folder.name)
    else:
        with pytest.raises(DataError, match=re.escape(f"{folder / name}: ")):
            run_folder.load_per_user(folder)
        return
    assert (answer.code, answer.out) == (4, ""), answer.err
    assert str(folder / name) in answer.err


def test_weights_of_another_model_are_named(here: Path) -> None:
    folder = run_of(1)
    save_file({"other": np.zeros(3, np.float32)}, folder / "best.safetensors")
    answer = call("recommend", folder.name, "--users", "all")
    assert answer.code == 4
    assert "best.safetensors: expected the run's weights, got others" in answer.err


USERS = np.arange(3)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({}, "expected test/users, got nothing"),
        (
            {"test/users": USERS, "test/recall@5": np.zeros(2)},
            "test/recall@5: expected one number for each of test/users",
        ),
        ({"test/users": USERS, "test/recall@5": np.zeros((3, 2))}, "test/recall@5: expected one number for each"),
        ({"test/users": USERS * 1.0}, "test/users: expected one number"),
        ({"test/recall@5": np.zeros(3)}, "test/recall@5: expected one number for each of test/users"),
        ({"test/users": USERS, "test/recall@5": np.full(3, np.nan)}, "test/recall@5: expected finite numbers"),
    ],
)
def test_numbers_by_user_agree_with_their_users(arrays: dict[str, np.ndarray], message: str, tmp_path: Path) -> None:
    save_file(arrays, tmp_path / "per_user.safetensors")
    with pytest.raises(DataError, match=re.escape(message)):
        run_folder.load_per_user(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id\n0\n", "expected the columns id, top_0"),
        ("id\ttop_1\n0\t1\n", "expected the columns id, top_0"),
        ("id\ttop_0\n9\t1\n", "expected users from 0 to 4, got 9"),
        ("id\ttop_0\n-1\t1\n", "expected users from 0 to 4, got -1"),
        ("id\ttop_0\n0\t7\n", "expected items from 0 to 6, got 7"),
        ("id\ttop_0\n0\t-2\n", "expected items from 0 to 6, got -2"),
        ("id\ttop_0\n0\t1\n0\t2\n", "expected each user once"),
    ],
)
def test_lists_name_users_and_items_of_the_data_set(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "topk.tsv").write_text(text)
    with pytest.raises(DataError, match=re.escape(message)):
        run_folder.load_topk(tmp_path, n_users=5, n_items=7)


# Checkpoints


@pytest.mark.parametrize("way", ["empty", "cut", "random", "a_folder", "a_pipe", "a_loop", "to_nowhere"])
def test_a_damaged_checkpoint_is_named(way: str, tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    save_file({"x": np.zeros(3)}, path, {"numbers": "{}"})
    damage(way, path)
    with pytest.raises(DataError, match=r"state\.safetensors: (.*to start over|no such file)"):
        load_checkpoint(tmp_path, TrainerNumbers)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (None, "expected numbers in its header"),
        ({"other": "1"}, "expected numbers in its header"),
        ({"numbers": "[" * 100_000}, "lists nested more than 100 deep"),
        ({"numbers": "7"}, "expected an object, got 7"),
    ],
)
def test_a_checkpoint_without_its_numbers_is_named(metadata, message, tmp_path) -> None:
    save_file({"x": np.zeros(3)}, tmp_path / "state.safetensors", metadata)
    with pytest.raises(DataError, match=message):
        load_numbers(tmp_path, TrainerNumbers)


# Studies


@each_way
def test_a_damaged_record_of_a_study_is_made_again(way: str, here: Path) -> None:
    if way == "2**70":
        pytest.skip("a record has no whole number")
    (path,) = Path("runs/study/mine").glob("????????????????.json")
    damage(way, path)
    answer = call("study", "status", "mine.yaml")
    assert answer.code == 0
    assert "pending" in answer.out
    if way in ("a list", "a_pipe", "a_loop"):
        assert call("study", "run", "mine.yaml").code == 0
        assert json.loads(path.read_text())["state"] == "finished"


def test_a_damaged_result_fails_its_cell_alone(here: Path) -> None:
    Path("mine.yaml").write_text(
        "{models: [BPR], datasets: [toy], seeds: [1, 2], settings: {epochs: 2, embedding_size: 4}}"
    )
    assert call("study", "run", "mine.yaml").code == 0
    bad = run_of(1) / "result.json"
    bad.write_text("[]")
    answer = call("study", "status", "mine.yaml", "--json")
    (row,) = json.loads(answer.out)
    assert (row["state"], row["done"]) == ("partial", 1)
    assert str(bad) in row["reason"]
    assert call("study", "table", "mine.yaml").code == 0
    assert call("study", "page", "mine.yaml", "-o", "page.html").code == 0
    bad.unlink()
    assert call("study", "run", "mine.yaml").code == 0


def test_damaged_numbers_by_user_fail_their_row_alone(here: Path) -> None:
    Path("mine.yaml").write_text("{models: [BPR, LightGCN], datasets: [toy], settings: {epochs: 1, embedding_size: 4}}")
    assert call("study", "run", "mine.yaml").code == 0
    (bad,) = Path("runs").glob("LightGCN-*")
    (bad / "per_user.safetensors").write_bytes(b"")
    assert call("study", "table", "mine.yaml").code == 0
    rows = {row.axes.model: row for row in read_leaderboard(Path("runs/study/mine/leaderboard.json")).rows}
    assert rows["BPR"].scores
    assert not rows["LightGCN"].scores
    assert (rows["LightGCN"].state, str(bad) in rows["LightGCN"].reason) == ("failed", True)


@each_way
def test_a_damaged_leaderboard_is_named(way: str, here: Path) -> None:
    path = Path("runs/study/mine/leaderboard.json")
    damage(way, path)
    for command in (("table", path), ("leaderboard", path)):
        answer = call(*command)
        assert (answer.code, answer.out) == (4, ""), answer.err
        assert f"{path}: " in answer.err


def test_a_leaderboard_with_nan_is_named_and_one_of_an_unknown_paradigm_is_shown(here: Path) -> None:
    path = Path("runs/study/mine/leaderboard.json")
    text = path.read_text()
    path.write_text(re.sub(r'("mean": )[\d.e-]+', r"\1NaN", text))
    with pytest.raises(DataError, match=r"rows\.0\.scores\.\S+mean: expected a finite number, got nan"):
        read_leaderboard(path)
    path.write_text(text.replace('"paradigm": "pt"', '"paradigm": "unheard-of"'))
    for layout in ("plain", "table3", "table4", "table5", "slices"):
        answer = call("table", path, "--layout", layout)
        assert answer.code in (0, 2), answer.err
    assert call("leaderboard", path, "-o", "page.html").code == 0


# The index


@pytest.mark.parametrize("way", ["empty", "cut", "random", "a list", "a_folder", "a_pipe", "a_loop", "to_nowhere"])
def test_a_damaged_index_is_made_again(way: str, here: Path) -> None:
    assert call("results", "index").code == 0
    damage(way, Path("runs/index.sqlite"))
    assert call("results", "query", "SELECT count(*) AS n FROM runs", "--json").out.split() == [
        "[",
        "{",
        '"n":',
        "3",
        "}",
        "]",
    ]


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE runs SET config = '[[['",
        "UPDATE runs SET seconds = NULL",
        "DROP TABLE metrics",
        "ALTER TABLE runs DROP COLUMN device",
        "CREATE VIEW more AS SELECT * FROM runs",
        "UPDATE runs SET model = CAST(x'ff' AS TEXT)",
    ],
)
def test_an_index_whose_content_is_damaged_is_not_used(change: str, here: Path) -> None:
    assert call("results", "index").code == 0
    wanted = call("results", "export").out
    with sqlite3.connect("runs/index.sqlite") as connection:
        connection.execute(change)
    connection.close()
    answer = call("results", "export")
    assert (answer.code, answer.out) == (0, wanted), answer.err


ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT"


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        (f"{ENDLESS} count(*) FROM n", "it takes more than 0.2 s"),
        (f"{ENDLESS} max(a.i) FROM n a, n b, n c", "it takes more than 0.2 s"),
        ("SELECT zeroblob(2000000000)", "string or blob too big"),
        ("SELECT randomblob(2000000000)", "string or blob too big"),
        ("SELECT printf('%.*c', 2000000000, 'x')", "not authorized to use function: printf"),
        ("SELECT hex(zeroblob(900000))", "string or blob too big"),
        ("ATTACH 'x' AS y", "not authorized"),
        ("PRAGMA hard_heap_limit = 0", "not authorized"),
        ("SELECT 1; SELECT 2", "one statement"),
        ("SELECT '\0'", "null character"),
        ("(" * 5000, "query: expected one SELECT"),
    ],
)
def test_a_query_without_end_or_bound_is_refused(sql: str, message: str, here: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        index.query(Path("runs"), sql, seconds=0.2)


def test_an_answer_has_bounded_rows_and_memory(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "ROWS", 1000)
    assert len(index.query(Path("runs"), f"{ENDLESS} i FROM n LIMIT 1000")) == 1000
    with pytest.raises(ConfigError, match="it takes more than 1,000 rows"):
        index.query(Path("runs"), f"{ENDLESS} i FROM n LIMIT 1001")
    monkeypatch.setattr(index, "MEMORY", 2**22)
    with pytest.raises(ConfigError, match="it takes more than"):
        index.query(Path("runs"), f"{ENDLESS} hex(zeroblob(100000)) FROM n LIMIT 900")


def test_a_query_shows_blobs_as_hex_and_columns_of_one_name(here: Path) -> None:
    assert index.query(Path("runs"), "SELECT x'00ff' AS a, 1 AS a") == [{"a": "00ff", "a:1": 1}]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_query_at_once(number: signal.Signals, here: Path) -> None:
    timer = threading.Timer(0.3, os.kill, (os.getpid(), number))
    timer.start()
    answer = call("results", "query", f"{ENDLESS} count(*) FROM n")
    timer.join()
    assert answer.code == 130, answer.err


# JSON, one reader


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1, "a": 2}', "key 'a' twice"),
        ("[" * 101 + "]" * 101, "nested more than 100 deep"),
        ('["\\ud800"]', "half of a surrogate pair"),
        ("[9223372036854775808]", "beyond 64 bits"),
        ("", "the file is empty"),
    ],
)
def test_json_that_we_never_write_is_refused(text: str, message: str) -> None:
    with pytest.raises(DataError, match=f"x.json: expected JSON, got a damaged file .*{message}.*; delete it"):
        parse(text, where="x.json", cure="delete it")


def test_json_that_we_write_is_taken() -> None:
    value = {"deep": json.loads("[" * 90 + "]" * 90), "pair": "\U0001f600", "least": -(2**63), "inf": math.inf}
    assert parse(json.dumps(value), where="x", cure="y") == value


def test_names_of_files_that_are_not_utf8_are_written_escaped() -> None:
    assert plain([os.fsdecode(b"a\xff"), "ä", Path(os.fsdecode(b"\xff"))]) == ["a\\udcff", "ä", "\\udcff"]


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    with path.open("wb") as file:
        file.truncate(reading.LARGEST_JSON + 1)
    with pytest.raises(DataError, match=r"x.json: expected at most 268,435,456 bytes, got 268,435,457"):
        read_json(path)
    with pytest.raises(DataError, match=r"a\\x00b|null"):
        read_file(Path("a\0b"), largest=9)


#: Who may read JSON or safetensors otherwise: the readers themselves, and of what others wrote.
READERS = {
    "mmrec_lmm/typed_json.py",  # parse
    "mmrec_lmm/data/arrays.py",  # open_npy
    "mmrec_lmm/weights/formats.py",  # checkpoints of others
    "plugins/encoders/clip/renaming.py",  # transformers' configuration
    "plugins/encoders/hub.py",  # that of models of the hub
    "data_tools/images/collecting.py",
    "data_tools/sources/amazon.py",
    "data_tools/sources/lines.py",
}


def test_what_we_wrote_has_one_reader() -> None:
    reading = re.compile(r"json\.loads?\(|load_file\(|safe_open\(|np\.load\(|yaml\.(safe_)?load")
    found = {
        str(path.relative_to(ROOT))
        for folder in ("mmrec_lmm", "plugins", "data_tools")
        for path in (ROOT / folder).rglob("*.py")
        if reading.search(path.read_text(encoding="utf-8").replace("_load_file(", ""))
    }
    others = {"mmrec_lmm/report/paper/__init__.py", "mmrec_lmm/plugin/registry.py"}  # the paper; what pip wrote
    assert found <= READERS | others, found - READERS


# Arrays


def header(text: str, version: bytes = b"\x01\x00") -> bytes:
    body = text.encode("latin-1")
    return b"\x93NUMPY" + version + len(body).to_bytes(2 if version[0] == 1 else 4, "little") + body


@pytest.mark.parametrize(
    "content",
    [
        header("{'descr': '<f4', 'fortran_order': False, 'shape': (-3, 4)}\n"),
        header("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000, 4)}\n"),
        header("{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999999999999, 4)}\n"),
        header("{'descr': '<f4', 'fortran_order': False, 'shape': ('a', 4)}\n"),
        header("{'descr': '<f4', 'fortran_order': False}\n"),
        header("{'descr': '<q9', 'fortran_order': False, 'shape': (3, 4)}\n"),
        header("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (3, 4)}\n") + bytes(48),
        header("{'descr': '|O', 'fortran_order': False, 'shape': (3, 4)}\n") + bytes(96),
        header("{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4)}\n") + bytes(47),
        header("(" * 5000 + "\n"),
        header("[" * 9000 + "]" * 9000, b"\x02\x00"),
        header("'\xff" * 9),
        header("{}", b"\x09\x00"),
        b"\x93NUMPY",
        b"\x93NUMPY\x01\x00\xff\xff",
        b"",
        b"\xff" * 400,
    ],
)
def test_a_damaged_header_of_an_array_is_named_and_allocates_nothing(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "image_feat.npy"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"image_feat.npy: expected"):
        read_feature_file(path, modality="image", n_items=3)


@pytest.mark.parametrize("way", ["a_folder", "a_pipe", "a_loop", "to_nowhere"])
def test_what_is_not_a_file_is_not_an_array(way: str, tmp_path: Path) -> None:
    path = tmp_path / "image_feat.npy"
    np.save(path, np.zeros((3, 4), np.float32))
    damage(way, path)
    with pytest.raises(DataError, match=r"image_feat\.npy: "):
        open_npy(path)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("kind", ["<f4", ">f4", "<f8", ">f8", "<f2", "<i4"])
def test_arrays_of_any_order_are_read(order: str, kind: str, tmp_path: Path) -> None:
    values = np.arange(1, 13).reshape(3, 4)
    np.save(tmp_path / "x.npy", np.asarray(values, dtype=kind, order=order))
    table = read_feature_file(tmp_path / "x.npy", modality="text", n_items=3)
    assert check_header(tmp_path / "x.npy") == (3, 4)
    assert table.values.dtype == np.float32
    np.testing.assert_array_equal(table.values, values)


@pytest.mark.parametrize("way", ["a_folder", "a_pipe", "a_loop", "to_nowhere"])
@pytest.mark.parametrize("name", ["items.tsv", "image_feat.npy", "missed_img_itemIDs.csv", "i_id_mapping.csv"])
def test_what_is_not_a_file_is_not_passed_over_in_a_data_set(name: str, way: str, here: Path) -> None:
    path = Path("data/toy") / name
    path.touch()
    DAMAGE[way](path)
    answer = call("run", "-m", "VBPR", "-d", "toy", "--epochs=0")
    assert (answer.code, answer.out) == (4, ""), answer.err
    assert f"{path}: " in answer.err


@pytest.mark.parametrize(
    "content", [b"\xff\xfe1\x00", b"\x00\x81", b"1\nnan\n", b"1\ninf\n", b"1\n1e400\n", b"1.5\n", b"-1\n"]
)
def test_a_damaged_list_of_missed_images_is_named(content: bytes, tmp_path: Path) -> None:
    np.save(tmp_path / "image_feat.npy", np.ones((3, 4), np.float32))
    (tmp_path / "missed_img_itemIDs.csv").write_bytes(content)
    with pytest.raises(DataError, match=r"missed_img_itemIDs\.csv: expected item ids"):
        read_feature_file(tmp_path / "image_feat.npy", modality="image", n_items=3)


# The home


@pytest.mark.parametrize("way", [*CONTENT, "a_folder", "a_pipe", "a_loop"])
def test_a_damaged_file_of_a_tables_cost_counts_as_none(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MMREC_LMM_HOME", str(tmp_path))
    (tmp_path / "seconds").mkdir()
    path = tmp_path / "seconds" / "table"
    path.write_text("1.5")
    assert encoding._cost(Path("table.safetensors")) == encoding.TableCost(1.5), "as earlier versions wrote it"
    path.write_text('{"seconds": 1.5, "parameters": {"weight": 6}}')
    whole = encoding.TableCost(1.5, {"weight": 6})
    assert encoding._cost(Path("table.safetensors")) == whole
    damage(way, path)
    assert encoding._cost(Path("table.safetensors")) in (encoding.TableCost(), whole)


@pytest.mark.parametrize("way", ["empty", "cut", "random", "a list", "not UTF-8", "a_folder", "a_pipe", "a_loop"])
def test_a_damaged_memo_of_a_hash_is_not_believed(way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMREC_LMM_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(hashing, "SETTLED", 0)
    path = tmp_path / "x"
    path.write_text("content")
    right = hashing.hash_file(path)
    for memo in (tmp_path / "home/file-hashes").iterdir():
        damage(way, memo)
    assert hashing.hash_file(path) == right


# YAML


def bomb(width: int, depth: int) -> str:
    lines = [f"a0: &a0 [{', '.join(['1'] * width)}]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * width)}]" for n in range(1, depth)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (bomb(10, 9), r"x.yaml:\d+: .*at most 20,000 values with aliases"),
        ("a: &a [*a]", r"x.yaml:1: .*(contains itself|undefined alias|recursive)"),
        ("a: " + "[" * 200 + "]" * 200, "at most 100 lists and mappings within each other"),
        ("a: " + "[" * 100_000, "at most 100 lists"),
        ("a: " + "{b: " * 300 + "}" * 300, "at most 100 lists"),
        ("a: 1 #" + "x" * 1_000_001, "x.yaml: expected at most 1,000,000 bytes, got 1,000,007"),
        ("a: [" + "1, " * 20_001 + "]", "at most 20,000 values"),
    ],
)
def test_yaml_that_is_large_when_it_is_read_is_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        yaml_layers.read(path, "study", sections=())


def test_ordinary_aliases_are_read(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("a: &a {b: [1, 2]}\nc: *a\nd: [*a, *a]\n")
    assert yaml_layers.read(tmp_path / "x.yaml", "study", sections=()).values["d"] == [{"b": [1, 2]}] * 2


@pytest.mark.parametrize("text", ["9" * 5000, "0x" + "f" * 5000, str(2**63), "-" + str(2**64)])
def test_a_number_beyond_64_bits_is_text_that_no_number_s_key_takes(text: str, here: Path) -> None:
    assert yaml_layers.parse(text) == text
    answer = call(*RUN, f"--seed={text}")
    assert answer.code == 2
    assert "seed must be a whole number, got" in answer.err
    assert len(answer.err) < 400


def test_a_grid_of_too_many_runs_is_refused_with_its_count(here: Path) -> None:
    Path("big/model").mkdir(parents=True)
    keys = {"reg_weight": 2000, "learning_rate": 1000, "weight_decay": 500}
    content = {key: [(n + 1) / 1e4 for n in range(count)] for key, count in keys.items()}
    Path("big/model/bpr.yaml").write_text(yaml.safe_dump({**content, "hyper_parameters": list(keys)}))
    answer = call("run", "-m", "BPR", "-d", "toy", "--configs", "big")
    assert answer.code == 2
    assert f"expected at most {MOST_RUNS:,} runs, got 1,000,000,000" in answer.err
    Path("mine.yaml").write_text(
        f"{{models: {['BPR'] * 400}, datasets: {['toy'] * 400}, paradigms: {['pt'] * 400}}}".replace("'", "")
    )
    answer = call("study", "status", "mine.yaml")
    assert answer.code == 2
    assert "expected at most 100,000 cells, got 64,000,000 (models 400, datasets 400, paradigms 400)" in answer.err


@pytest.fixture(autouse=True)
def no_hang() -> Iterator[None]:
    """End a test that waits for a pipe."""

    def fail(*_: object) -> None:
        raise AssertionError("waited for 60 s")

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


# Limits of plugins' keys


def sections() -> Iterator[tuple[str, type]]:
    registry = load_registry()
    for kind in (registry.models, registry.encoders, registry.paradigms):
        for spec in kind:
            if spec.config is not None and (config := kind.load(spec.name, "config")) is not None:
                yield spec.name, config


@pytest.mark.parametrize(
    ("name", "config"), list(sections()), ids=lambda value: value if isinstance(value, str) else ""
)
def test_each_shipped_key_that_is_a_number_has_limits(name: str, config: type) -> None:
    check_config(config)


@pytest.mark.parametrize(
    ("model", "key", "text", "message"),
    [
        ("BPR", "embedding_size", "0", "must be from 1 to 1,048,576, got 0"),
        ("BPR", "embedding_size", "-1", "must be from 1 to 1,048,576, got -1"),
        ("BPR", "embedding_size", "1e308", "must be a whole number, got 1e+308"),
        ("VBPR", "embedding_size", "1000000000", "must be from 1 to 1,048,576"),
        ("BPR", "reg_weight", ".inf", "must be at least 0 and finite, got inf"),
        ("BPR", "reg_weight", ".nan", "must be a number, got nan"),
        ("BPR", "reg_weight", "-1", "must be at least 0 and finite, got -1"),
        ("LightGCN", "n_layers", "1e308", "must be a whole number"),
        ("LightGCN", "n_layers", "100000", "must be from 0 to 1,000"),
        ("MMGCL", "dropout_rate", "1", "must be at least 0 and below 1, got 1"),
        ("SLMRec", "temp", "0", "must be above 0 and finite, got 0"),
        ("LATTICE", "weight_size", "[64, 0]", "must be numbers, each from 1 to 1,048,576, got [64, 0]"),
        ("MMGCN", "hidden", "{image: 0}", "must be numbers, each from 1 to 1,048,576"),
        ("BPR", "topk", "[1000000000]", "must be different numbers from 1 to 1,000,000"),
        ("BPR", "threads", "1000000", "must be from 0 to 1,024"),
        ("BPR", "seed", "1" + "0" * 30, "must be a whole number"),
        ("BPR", "epochs", "1" + "0" * 30, "must be a whole number"),
    ],
)
def test_a_value_that_can_not_be_meant_is_refused(model: str, key: str, text: str, message: str, here: Path) -> None:
    answer = call("run", "-m", model, "-d", "toy", f"--{key}={text}")
    assert (answer.code, answer.out) == (2, "")
    assert f"command line: {key} {message}" in answer.err


@dataclass(frozen=True)
class Unlimited:
    size: int = 3


@dataclass(frozen=True)
class Outside:
    LIMITS: ClassVar[Mapping[str, Limit]] = {"size": between(4, 9)}
    size: int = 3


@dataclass(frozen=True)
class Unknown:
    LIMITS: ClassVar[Mapping[str, Limit]] = {"size": between(1, 9), "unknown": at_least(1)}
    size: int = 3


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (Unlimited, "size: expected a limit"),
        (Unknown, "LIMITS: expected fields size, got unknown"),
        (Outside, "size: its default must be from 4 to 9, got 3"),
    ],
)
def test_the_kit_names_keys_without_limits(config: type, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_config(config)


def test_a_tensor_that_can_not_fit_is_refused_before_it_is_allocated(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "available_memory", lambda: 10**9)
    with machine.OneAllocation("model X"):
        assert torch.nn.Embedding(1000, 64).weight.shape == (1000, 64)
        for make in (
            lambda: torch.nn.Embedding(10**9, 64),
            lambda: torch.empty((10**9, 64)),
            lambda: torch.zeros(10**9, 64),
            lambda: torch.randn(10**6, 10**6),
        ):
            with pytest.raises(ConfigError, match=r"model X: expected tensors of at most 1.0 GB, .* got one of"):
                make()
    torch.empty(0)
    monkeypatch.setattr(machine, "available_memory", lambda: 1000)
    monkeypatch.setattr(machine, "_NEVER_TOO_LARGE", 1)
    answer = call("run", "-m", "BPR", "-d", "toy", "--seed=7")
    assert answer.code == 2
    assert "error: model BPR: expected tensors of at most 0.0 GB, the free memory, got one of" in answer.err
    assert "12 x 64" in answer.err


@pytest.mark.parametrize(
    "arguments",
    [
        ("study", "run", "mine.yaml", "--jobs", "1000000000"),
        ("recommend", "x", "--users", "0", "-k", "1" + "0" * 12),
        ("recommend", "x", "--users", "0", "-k", "9" * 5000),
        ("data", "check", "-d", "toy", "--sample", "\u0663" * 20),
    ],
)
def test_a_count_that_can_not_be_meant_is_refused(arguments: tuple[str, ...], here: Path) -> None:
    answer = call(*arguments)
    assert answer.code == 2
    assert "expected a whole number from 1 to" in answer.err
    assert len(answer.err) < 3000

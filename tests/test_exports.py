"""Embeddings and recommendations as files: each format holds the same numbers by the shop's own ids, whole or not."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import safetensors
from helpers import call

from mmrec_lmm import Run, run
from mmrec_lmm.errors import ConfigError, NoAccess, RunError
from mmrec_lmm.running import exports
from mmrec_lmm.running import recommend as recommending

USERS = [f'u "{user:02d}"' for user in range(12)]
ITEMS = [f"T{item:02d}" for item in range(16)]


@pytest.fixture
def made(data_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A run on data/toy, whose users have ids with quotes and spaces."""
    monkeypatch.chdir(data_path.parent)
    names = [f'"{user.replace(chr(34), chr(34) * 2)}"' for user in USERS]
    rows = [f"{name}\t{number}\n" for number, name in enumerate(names)]
    Path("data/toy/u_id_mapping.csv").write_text("user_id\tuserID\n" + "".join(rows))
    return run("VBPR", "toy", epochs=1, embedding_size=4)


def from_parquet(path: Path) -> dict[str, list[Any]]:
    arrow = pytest.importorskip("pyarrow.parquet")
    table = arrow.read_table(path)
    return {"kind": table["kind"].to_pylist(), "id": table["id"].to_pylist(), "rows": table["embedding"].to_pylist()}


def from_lines(path: Path) -> dict[str, list[Any]]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert all(list(row) == ["kind", "id", "embedding"] for row in rows)
    return {"kind": [r["kind"] for r in rows], "id": [r["id"] for r in rows], "rows": [r["embedding"] for r in rows]}


def from_npy(path: Path) -> dict[str, list[Any]]:
    ids = json.loads(path.with_suffix(".ids.json").read_text())
    return {
        "kind": [name.removesuffix("s") for name, listed in ids.items() for _ in listed],
        "id": [one for listed in ids.values() for one in listed],
        "rows": np.load(path).tolist(),
    }


def from_safetensors(path: Path) -> dict[str, list[Any]]:
    with safetensors.safe_open(path, "numpy") as file:
        ids = json.loads(file.metadata()["ids"])
        assert json.loads(file.metadata()["run"]).startswith("VBPR-toy-")
        rows = [row for name in ids for row in file.get_tensor(name).tolist()]
    kinds = [name.removesuffix("s") for name, listed in ids.items() for _ in listed]
    return {"kind": kinds, "id": [one for listed in ids.values() for one in listed], "rows": rows}


READ: dict[str, Callable[[Path], dict[str, list[Any]]]] = {
    "npy": from_npy, "safetensors": from_safetensors, "parquet": from_parquet, "jsonl": from_lines,
}  # fmt: skip


def frame_of(path: Path) -> pd.DataFrame:
    """The recommendations in a file."""
    if path.suffix == ".parquet":
        return pytest.importorskip("pyarrow.parquet").read_table(path).to_pandas()
    if path.suffix == ".jsonl":
        return pd.DataFrame([json.loads(line) for line in path.read_text().splitlines()])
    return pd.read_csv(path, sep="," if path.suffix == ".csv" else "\t", keep_default_na=False)


@pytest.mark.parametrize("of", [None, "users", "items"])
@pytest.mark.parametrize("format", exports.EMBEDDINGS)
def test_embeddings_are_the_same_numbers_in_each_format(
    format: str, of: Any, made: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exports, "ROWS", 5)
    path, *beside = made.export_embeddings(f"all.{format}", of=of)
    assert beside == ([Path("all.ids.json")] if format == "npy" else [])
    parts = {"users": ("user", USERS, made.user_embeddings()), "items": ("item", ITEMS, made.item_embeddings())}
    kept = [part for name, part in parts.items() if of in (None, name)]
    found = READ[format](path)
    assert found["kind"] == [kind for kind, ids, _ in kept for _ in ids]
    assert found["id"] == [one for _, ids, _ in kept for one in ids]
    assert np.array_equal(np.array(found["rows"], np.float32), np.concatenate([rows for *_, rows in kept]))
    flags = [] if of is None else ["--of", of]
    again = call("embeddings", made.id, "-o", f"again.{format}", *flags)
    assert again.out.splitlines()[0] == f"again.{format}"
    assert Path(f"again.{format}").read_bytes() == path.read_bytes()


def test_recommendations_are_the_same_rows_in_each_format_and_any_block(
    made: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrow = pytest.importorskip("pyarrow.parquet")
    wanted = made.recommend(k=3)
    assert len(wanted) == 36
    monkeypatch.setattr(recommending, "USERS", 5)
    assert made.recommend(k=3).equals(wanted)
    for name in ("all.parquet", "all.jsonl", "all.csv", "all.tsv"):
        path = made.export_recommendations(name, 3)
        read = frame_of(path)
        assert read.to_dict("records") == wanted.to_dict("records"), name
        assert call("recommend", made.id, "--users", "all", "-k", "3", "-o", f"again{path.suffix}").out == ""
        assert Path(f"again{path.suffix}").read_bytes() == path.read_bytes()
    assert call("recommend", made.id, "--users", "all", "-k", "3", "--format", "csv").out == Path("all.csv").read_text()
    made.export_recommendations("numbers.parquet", 3, users=[4, 1], internal_ids=True)
    table = arrow.read_table("numbers.parquet")
    assert table["user"].to_pylist() == [4, 4, 4, 1, 1, 1]
    assert table.schema.field("item").type == "int64"


def test_a_format_is_named_by_the_suffix_or_the_flag(made: Run) -> None:
    assert [path.name for path in made.export_embeddings("plain", format="npy")] == ["plain", "plain.ids.json"]
    assert np.load("plain").shape == (28, 8)
    for name, format, message in (
        ("all.pkl", None, r"^all.pkl: expected .npy, .safetensors, .parquet, .jsonl, got pkl; try another name"),
        ("all", None, r"^all: expected .* got no suffix; try another name, or --format"),
        ("all.npy", "jsonlines", r"^--format: expected npy, .*, got jsonlines; did you mean jsonl\?"),
    ):
        with pytest.raises(ConfigError, match=message):
            made.export_embeddings(name, format=format)
    with pytest.raises(ConfigError, match=r"of: expected users or items, or None for both, got 'user'"):
        made.export_embeddings("all.npy", of="user")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"all.npy: expected .parquet, .jsonl, .csv, .tsv, got npy"):
        made.export_recommendations("all.npy")
    answer = call("recommend", made.id, "--users", "all", "--format", "parquet")
    assert (answer.code, answer.out) == (2, "")
    assert "--format parquet: expected -o FILE, got none; try -o recommendations.parquet" in answer.err
    assert call("recommend", made.id, "--users", "all", "-o", "all.txt").code == 0
    assert Path("all.txt").read_text().startswith("user ")


def test_parquet_without_pyarrow_is_one_message_before_any_work(made: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    message = "--format parquet: expected pyarrow to be installed, got .*; try pip install 'mmrec-lmm\\[parquet\\]'"
    with pytest.raises(ConfigError, match=message):
        made.export_embeddings("all.parquet")
    assert "_trained" not in vars(made)
    answer = call("recommend", made.id, "--users", "all", "-o", "all.parquet")
    assert (answer.code, "expected pyarrow to be installed" in answer.err) == (2, True)
    assert not Path("all.parquet").exists()


def test_a_failed_export_leaves_the_earlier_file(made: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    made.export_recommendations("all.jsonl", 2)
    before = Path("all.jsonl").read_bytes()
    monkeypatch.setattr(recommending, "USERS", 5)
    real, calls = recommending._top, []

    def fails_later(*arguments: Any) -> np.ndarray:
        calls.append(arguments)
        if len(calls) == 3:
            raise RunError("late")
        return real(*arguments)

    monkeypatch.setattr(recommending, "_top", fails_later)
    for name in ("all.jsonl", "all.parquet", "all.csv"):
        calls.clear()
        with pytest.raises(RunError, match="late"):
            made.export_recommendations(name, 2)
    assert Path("all.jsonl").read_bytes() == before
    assert {path.name for path in Path().iterdir()} == {"data", "runs", "all.jsonl"}


def test_exports_go_where_the_user_says(made: Run, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="runs: expected the name of a file to write, got a folder"):
        made.export_embeddings("runs", format="jsonl")
    Path("link.jsonl").symlink_to("target.jsonl")
    made.export_embeddings("link.jsonl")
    assert Path("link.jsonl").is_symlink()
    assert from_lines(Path("target.jsonl"))["id"] == [*USERS, *ITEMS]
    made.export_embeddings("new/folder/all.npy")
    assert from_npy(Path("new/folder/all.npy"))["id"] == [*USERS, *ITEMS]
    command = [sys.executable, "-m", "mmrec_lmm", "recommend", made.id, "--users", "all", "-k", "2"]
    done = subprocess.run([*command, "--format", "jsonl", "-o", "/dev/stdout"], capture_output=True, text=True)
    assert (done.returncode, len(done.stdout.splitlines())) == (0, 24), done.stderr
    if os.geteuid():
        Path("closed").mkdir(mode=0o500)
        with pytest.raises(NoAccess):
            made.export_embeddings("closed/all.npy")


def test_ids_that_safetensors_cant_hold_are_refused(made: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exports, "LARGEST_IDS", 100)
    with pytest.raises(ConfigError, match=r"all.safetensors: expected at most 100 bytes of ids, .*; try --format parq"):
        made.export_embeddings("all.safetensors")

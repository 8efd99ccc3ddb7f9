"""The index over a folder of runs follows from their results, whatever happens to it, and stands in no run's way."""

import csv
import io
import json
import re
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mmrec_lmm.errors import ConfigError, DataError
from mmrec_lmm.plugin.registry import Registry
from mmrec_lmm.running import index as run_index
from mmrec_lmm.running.grid import run_grid
from mmrec_lmm.running.index import as_csv, as_jsonl, find_runs, query, rebuild
from mmrec_lmm.types import RunResult, RunSpec

Specs = Callable[..., tuple[RunSpec, ...]]
COUNT = "SELECT count(*) AS n FROM runs"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "runs"


@pytest.fixture
def runs(specs: Specs, registry: Registry, out: Path) -> tuple[RunResult, ...]:
    """Two runs of one grid, of a shuffled control."""
    asked = specs(epochs="1", seed="[1, 2]", control="shuffled")
    return tuple(run_grid(asked, registry, out=out).results)


def count(out: Path) -> int:
    number: int = query(out, COUNT)[0]["n"]
    return number


# One row a run


def test_a_row_holds_what_a_result_is_a_result_of(runs: tuple[RunResult, ...], out: Path) -> None:
    row = find_runs(out)[[result.run_id for result in sorted(runs, key=lambda r: r.run_id)].index(runs[0].run_id)]
    record = runs[0].record
    assert row["run"] == runs[0].run_id
    assert (row["model"], row["dataset"], row["encoder"], row["paradigm"]) == ("VBPR", "toy", None, "pt")
    assert (row["modalities"], row["control"], row["seed"]) == ("image,text", "shuffled", 1)
    assert row["parameters"] == {"seed": 1}
    assert row["data_hash"] == record.data
    assert row["features_hash"] == record.features
    assert row["code_hash"] == record.code
    assert row["config_hash"] == record.config
    assert row["config"]["model_config"]["embedding_size"] == 4
    assert row["versions"] == record.versions
    assert row["seconds"]["train"] == row["train_seconds"] > 0
    assert (row["device"], row["threads"]) == (record.device, record.threads)
    assert row["peak_memory_bytes"] == record.peak_memory_bytes
    assert (out / row["per_user"]).is_file()
    assert {name: row[f"test/{name}"] for name in runs[0].test} == runs[0].test
    assert {name: row[f"valid/{name}"] for name in runs[0].valid} == runs[0].valid


def test_jsonl_and_csv_hold_the_same_rows(runs: tuple[RunResult, ...], out: Path) -> None:
    rows = find_runs(out)
    assert [json.loads(line) for line in as_jsonl(rows).splitlines()] == rows
    for ours, row in zip(csv.DictReader(io.StringIO(as_csv(rows))), rows, strict=True):
        assert list(ours) == list(row)
        assert float(ours["test/recall@20"]) == row["test/recall@20"]
        assert json.loads(ours["versions"]) == row["versions"]
        assert ours["encoder"] == ""


def test_conditions_pick_runs_by_columns_in_any_case_and_an_empty_one_means_none(
    runs: tuple[RunResult, ...], specs: Specs, registry: Registry, out: Path
) -> None:
    plain = run_grid(specs(epochs="1", seed="1"), registry, out=out).best
    assert {row["run"] for row in find_runs(out, {"model": "vbpr"})} == {plain.run_id, *(r.run_id for r in runs)}
    assert {row["run"] for row in find_runs(out, {"seed": "1"})} == {plain.run_id, runs[0].run_id}
    assert [row["run"] for row in find_runs(out, {"seed": "1", "control": ""})] == [plain.run_id]
    assert find_runs(out, {"seed": "3"}) == []
    with pytest.raises(ConfigError, match=r"--where: expected a column .*, got sed; did you mean seed\?"):
        find_runs(out, {"sed": "1"})


def test_every_column_of_the_index_is_documented() -> None:
    text = (Path(__file__).parents[1] / "docs" / "results.md").read_text(encoding="utf-8")
    documented = [
        name
        for row in re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", text, re.MULTILINE)
        for name in re.findall(r"\w+", row)
    ]
    assert not set(run_index.COLUMNS) - set(documented)


# Questions


def test_a_query_joins_runs_and_metrics(runs: tuple[RunResult, ...], out: Path) -> None:
    sql = (
        "SELECT seed, value FROM runs JOIN metrics USING (run) "
        "WHERE split = 'test' AND metric = 'recall@20' ORDER BY seed"
    )
    assert query(out, sql) == [{"seed": r.record.seed, "value": r.test["recall@20"]} for r in runs]


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("DELETE FROM runs", "not authorized"),
        ("DROP TABLE metrics", "not authorized"),
        ("PRAGMA user_version = 9", "not authorized"),
        ("ATTACH DATABASE 'elsewhere.sqlite' AS other", "not authorized"),
        ("SELECT 1; DELETE FROM runs", "one statement at a time"),
        ("SELECT sed FROM runs", "no such column: sed"),
        ("frob", "syntax error"),
    ],
)
def test_a_query_can_only_read_and_a_wrong_one_names_the_columns(
    sql: str, message: str, runs: tuple[RunResult, ...], out: Path
) -> None:
    with pytest.raises(ConfigError, match=rf"query: expected one SELECT over runs .run, model.*, got .*: .*{message}"):
        query(out, sql)
    assert count(out) == 2


# The index follows the runs


def test_the_index_is_made_by_itself_and_only_when_something_changed(runs: tuple[RunResult, ...], out: Path) -> None:
    index = out / "index.sqlite"
    assert not index.exists()  # a run never writes it
    assert count(out) == 2
    made = index.stat().st_mtime_ns
    assert count(out) == 2
    assert index.stat().st_mtime_ns == made
    with sqlite3.connect(index) as connection:  # a plain SQLite file, for other programs
        assert connection.execute(COUNT).fetchone() == (2,)


def test_a_new_run_a_changed_one_and_one_that_is_gone_are_noticed(
    runs: tuple[RunResult, ...], specs: Specs, registry: Registry, out: Path
) -> None:
    assert count(out) == 2
    run_grid(specs(epochs="1", seed="3"), registry, out=out)
    assert count(out) == 3
    (runs[0].path / "result.json").unlink()
    assert count(out) == 2
    path = runs[1].path / "result.json"
    path.write_text(path.read_text().replace('"control": "shuffled"', '"control": "random"'))
    assert {row["control"] for row in find_runs(out)} == {"random", None}
    assert query(out, "SELECT DISTINCT run FROM metrics ORDER BY run") == [{"run": r["run"]} for r in find_runs(out)]


@pytest.mark.parametrize(
    "damage",
    [
        lambda index: index.write_bytes(b"no database"),
        lambda index: index.write_bytes(b""),
        lambda index: index.write_bytes(index.read_bytes()[: index.stat().st_size // 2]),
        lambda index: index.write_bytes(index.read_bytes()[:4096] + b"\xff" * (index.stat().st_size - 4096)),
        lambda index: sqlite3.connect(index).executescript("PRAGMA user_version = 99"),
    ],
    ids=["garbage", "empty", "truncated", "overwritten", "other version"],
)
def test_an_index_that_is_damaged_or_of_another_version_is_made_anew(
    damage: Callable[[Path], object], runs: tuple[RunResult, ...], out: Path
) -> None:
    rows = find_runs(out)
    damage(out / "index.sqlite")
    assert find_runs(out) == rows


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "expected JSON"),
        ("[]", r"expected an object, got \[\]"),
        ('{"score": 1}', "run_id: expected text, got nothing"),
    ],
)
def test_a_damaged_result_is_named_and_left_out(
    content: str, message: str, runs: tuple[RunResult, ...], out: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = runs[0].path / "result.json"
    path.write_text(content)
    assert [row["run"] for row in find_runs(out)] == [runs[1].run_id]
    assert re.search(rf"left out of the index: {re.escape(str(path))}: {message}", caplog.text)
    assert rebuild(out) == 1


def test_a_folder_that_cannot_be_written_is_answered_from_memory(
    runs: tuple[RunResult, ...], out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(run_index, "write_bytes", refuse)
    assert count(out) == 2
    assert not (out / "index.sqlite").exists()


def test_a_folder_that_does_not_exist_is_named_and_not_made(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"--out: expected a folder of runs, got .*nowhere, which doesn't exist"):
        query(tmp_path / "nowhere", COUNT)
    assert not (tmp_path / "nowhere").exists()


def test_many_who_ask_at_once_all_get_the_answer_while_one_writes(runs: tuple[RunResult, ...], out: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(count, [out] * 16)) == [2] * 16

"""What a `kill -9` leaves: the old or the new under its name, never half; and what the next command removes."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import call, dead_temporary, start, wait_until

from mmrec_lmm import cache
from mmrec_lmm.config.settings import Settings
from mmrec_lmm.data.opening import open_dataset
from mmrec_lmm.disk import hashing, locks, temporaries
from mmrec_lmm.plugin.registry import Registry
from mmrec_lmm.running import run_folder

# Runs commands in forked children. The first argument names what kills: the child dies at the n-th change of a file or
# folder below the working directory, for each n until it survives. After each kill `CHECK` looks, then the command runs
# again to its end, and `CHECK` looks again.
KILLER = """
import os, signal, sys, json, shutil
from pathlib import Path
from mmrec_lmm.cli import main
from mmrec_lmm.disk import folders, temporaries
import mmrec_lmm.running.grid, mmrec_lmm_data_tools.importing, torch

COMMAND, CHECK = json.loads(sys.argv[1]), compile(sys.argv[2], "check", "exec")
if len(sys.argv) > 3:
    folders._exchange = lambda one, other: False  # as on a file system that can't exchange names
EVENTS = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link"}

def child(command, kill_at=None):
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    seen = 0
    def hook(event, arguments):
        nonlocal seen
        if event == "open" and not (isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")):
            return
        if event in EVENTS or event == "open":
            seen += 1
            if seen == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
    if kill_at:
        sys.addaudithook(hook)
    temporaries.sweep_once.cache_clear()
    os._exit(main(command))

kills = 0
while (code := child(COMMAND, kills + 1)) == -signal.SIGKILL:
    kills += 1
    when = f"kill {kills}"
    exec(CHECK, {"after": "kill", "when": when})
    assert child(COMMAND) == 0, when
    exec(CHECK, {"after": "next", "when": when})
assert code == 0, code
print(kills)
"""


def kill_everywhere(command: list[str], check: str, *more: str) -> int:
    """The number of kills, each at another moment of `command`, that `check` saw nothing wrong after."""
    done = subprocess.run(
        [sys.executable, "-c", KILLER, json.dumps(command), check, *more], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.fixture(autouse=True)
def here(data_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(data_path.parent)
    return data_path.parent


def a_shop(folder: Path, items: int) -> None:
    folder.mkdir(exist_ok=True)
    rows = [f"u{user},i{(user + step) % items}" for user in range(12) for step in range(5)]
    (folder / "clicks.csv").write_text("\n".join(["user_id,item_id", *rows]) + "\n")
    (folder / "items.csv").write_text("\n".join(["item_id,title", *(f"i{n},thing {n}" for n in range(items))]) + "\n")


IMPORT = ["data", "import", "shop", "--interactions", "new/clicks.csv", "--items", "new/items.csv"]
WHOLE = """
from pathlib import Path
shop = Path("data/shop")
if after == "kill" and OUTCOME:
    assert shop.is_dir(), when
if shop.is_dir():
    lines = len((shop / "items.tsv").read_text().splitlines()) - 1
    assert lines in (8, 9), (when, lines)
    assert len((shop / "i_id_mapping.csv").read_text().splitlines()) - 1 == lines, when
    assert f'"items": {lines}' in (shop / "manifest.json").read_text(), when
if after == "next":
    assert lines == 9, when
    assert not list(Path("data").glob(".*.tmp")) + list(Path("data").glob(".*.old")), when
"""


@pytest.mark.slow
@pytest.mark.parametrize("exchange", [True, False])
def test_a_data_set_replaced_by_import_is_whole_after_a_kill_at_every_change_of_a_file(exchange: bool) -> None:
    a_shop(Path("old"), 8)
    a_shop(Path("new"), 9)
    assert call(*(word.replace("new/", "old/") for word in IMPORT)).code == 0
    kills = kill_everywhere([*IMPORT, "--force"], WHOLE.replace("OUTCOME", str(exchange)), *([] if exchange else ["-"]))
    assert kills > 10


def test_a_data_set_moved_aside_by_a_killed_command_is_back_for_the_next_one() -> None:
    a_shop(Path("new"), 9)
    assert call(*IMPORT).code == 0
    moved = dead_temporary(Path("data", "shop")).with_suffix(".old")
    Path("data", "shop").rename(moved)
    assert call("data", "check", "-d", "shop").code == 0
    assert Path("data", "shop", "shop.inter").is_file()
    assert not moved.exists()


RUN = ["run", "-m", "BPR", "-d", "toy", "--epochs=2", "--checkpoint_seconds=0", "--device=cpu"]
SAME = """
import hashlib, json
from pathlib import Path
run = next(Path("runs").glob("BPR-*"), None)
names = ["best.safetensors", "config.json", "history.jsonl", "per_user.safetensors", "result.json"]
if after == "kill" and FORCED or after == "next":
    assert sorted(path.name for path in run.iterdir() if path.name[0] != "." and path.name != "checkpoint") == [
        *names, "topk.tsv"], when
    assert json.loads((run / "result.json").read_text())["run_id"] == run.name, when
    found = [hashlib.sha256((run / name).read_bytes()).hexdigest() for name in ("best.safetensors", "topk.tsv")]
    assert found == EXPECTED, when
if after == "next":
    assert sorted(path.name for path in run.iterdir() if path.name[0] == ".") == [], when
    assert not (run / "checkpoint").exists(), when
    if not FORCED:
        import shutil
        shutil.rmtree("runs")
"""


@pytest.mark.slow
@pytest.mark.parametrize("flag", ["--force", "--resume"])
def test_a_run_killed_at_every_change_of_a_file_loses_no_result_and_leaves_nothing(flag: str) -> None:
    assert call(*RUN).code == 0
    (run,) = Path("runs").glob("BPR-*")
    expected = [hashing.hash_file(run / name) for name in ("best.safetensors", "topk.tsv")]
    if flag == "--resume":
        shutil.rmtree("runs")
    check = SAME.replace("FORCED", str(flag == "--force")).replace("EXPECTED", repr(expected))
    assert kill_everywhere([*RUN, flag], check) > 20


def test_a_result_that_was_staged_when_its_process_was_killed_is_shown_by_the_next_command() -> None:
    assert call(*RUN).code == 0
    (run,) = Path("runs").glob("BPR-*")
    staged = run / run_folder.STAGED
    staged.mkdir()
    for name in ("best.safetensors", "result.json"):
        (run / name).rename(staged / name)
    (run / run_folder.CHECKPOINT).mkdir()
    assert run.name in call("list", "runs").out
    assert sorted(path.name for path in run.iterdir() if path.suffix != ".lock") == [
        "best.safetensors", "config.json", "history.jsonl", "per_user.safetensors", "result.json", "topk.tsv"
    ]  # fmt: skip


def test_a_forced_run_without_lists_keeps_none_of_the_earlier_result() -> None:
    assert call(*RUN).code == 0
    (run,) = Path("runs").glob("BPR-*")
    assert (run / "topk.tsv").is_file()
    assert call(*RUN, "--force", "--save_recommended_topk=false").code == 0
    assert not (run / "topk.tsv").exists()


def test_a_finished_run_drops_an_older_checkpoint_and_keeps_that_of_a_killed_force() -> None:
    assert call(*RUN).code == 0
    (run,) = Path("runs").glob("BPR-*")
    state = run / "checkpoint" / "state.safetensors"
    state.parent.mkdir()
    state.touch()
    assert call(*RUN).code == 0
    assert state.exists()
    os.utime(state, (0, 0))
    assert call(*RUN).code == 0
    assert not state.parent.exists()


@pytest.mark.slow
@pytest.mark.parametrize("what", ["runs", "home", "data"])
def test_a_run_whose_folders_vanish_ends_with_all_its_files(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MMREC_LMM_HOME", str(tmp_path / "home"))
    process = start(*RUN[:5], "--epochs=100", "--stopping_step=100", "--checkpoint_seconds=0")
    wait_until(lambda: list(Path("runs").glob("BPR-*/checkpoint/state.safetensors")), process)
    shutil.rmtree({"home": tmp_path / "home"}.get(what, Path(what)), ignore_errors=True)
    _, err = process.communicate()
    assert process.returncode == 0, err
    (run,) = Path("runs").glob("BPR-*")
    assert {"config.json", "result.json", "best.safetensors", "per_user.safetensors", "history.jsonl"} <= {
        path.name for path in run.iterdir()
    }


def test_a_run_whose_folder_was_removed_and_taken_by_another_process_ends_with_an_error() -> None:
    folder = Path("runs", "taken")
    with run_folder.claimed(folder) as claim_again:
        claim_again()  # nothing has changed
        shutil.rmtree(folder)
        with run_folder.claimed(folder), pytest.raises(run_folder.RunBusy, match="another process"):
            claim_again()
        claim_again()  # the other one has ended


def test_temporaries_of_dead_processes_go_and_those_of_the_living_stay(tmp_path: Path) -> None:
    tmp_path = tmp_path / "own"
    tmp_path.mkdir()
    dead, living = dead_temporary(tmp_path / "table"), temporaries.temporary_path(tmp_path / "table")
    elsewhere = tmp_path / ".table.00000000-1-1.tmp"  # of another machine, whose processes can't be seen
    stranger = tmp_path / ".table.123.tmp"  # not named by us
    for path in (dead, living, elsewhere, stranger):
        path.touch()
    (folder := dead.with_name(dead.name.replace("table", "folder"))).mkdir()
    (folder / "inside").touch()
    temporaries.sweep(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([living, elsewhere, stranger])
    os.utime(elsewhere, (0, time.time() - temporaries.ABANDONED - 60))
    temporaries.sweep(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([living, stranger])


def test_a_process_that_has_the_id_of_a_dead_one_does_not_keep_its_temporaries(tmp_path: Path) -> None:
    if temporaries._started(os.getpid()) == 0:
        pytest.skip("this system doesn't say when a process started")
    name = temporaries.temporary_path(tmp_path / "table").name
    before = tmp_path / name.replace(f"-{temporaries._started(os.getpid())}.", "-1.")
    before.touch()
    temporaries.sweep(tmp_path)
    assert not before.exists()


def test_what_a_kill_left_beside_a_data_set_goes_when_it_is_opened(data_path: Path, registry: Registry) -> None:
    (left := dead_temporary(data_path / "demo")).mkdir()
    open_dataset("toy", Settings(data_path=str(data_path)), registry)
    assert not left.exists()


# clean


def test_clean_shows_what_there_is_and_removes_nothing_by_itself() -> None:
    assert call(*RUN).code == 0
    before = sorted(Path("runs").rglob("*"))
    told = call("clean", "--json")
    assert told.code == 0
    kinds = {one["kind"] for one in json.loads(told.out)["stored"]}
    assert {"results", "logs", "hashes", "datasets"} <= kinds
    text = call("clean").out
    assert str(cache.home()) in text
    assert "Nothing was removed" in text
    assert sorted(Path("runs").rglob("*")) == before


def test_clean_removes_the_kinds_that_are_named_and_no_result() -> None:
    assert call(*RUN).code == 0
    features = cache.home() / "features"
    features.mkdir(parents=True, exist_ok=True)
    table, shards = features / "a.safetensors", features / "b.parts"
    table.write_bytes(b"x" * 1000)
    shards.mkdir()
    (shards / "0-256.safetensors").touch()
    unfinished = Path("runs", "BPR-toy-00000000")
    (unfinished / "checkpoint").mkdir(parents=True)
    (unfinished / "config.json").touch()
    (unfinished / ".lock").touch()
    dead = dead_temporary(features / "c.safetensors")
    dead.touch()
    kinds = ("features", "shards", "checkpoints", "temporaries", "logs", "hashes")
    dry = call("clean", *kinds, "--dry-run")
    assert f"would remove 1, 1.0 kB\n  {table}" in dry.out
    assert table.exists()
    assert call("clean", *kinds, "--older", "1h").code == 0
    assert table.exists()
    assert call("clean", *kinds).code == 0
    assert not any(path.exists() for path in (table, shards, unfinished, dead))
    assert not list(Path("runs", "log").iterdir())
    (run,) = Path("runs").glob("BPR-*")
    assert (run / "result.json").is_file()
    assert Path("data", "toy", "toy.inter").is_file()


def test_clean_keeps_and_names_what_a_living_process_uses() -> None:
    unfinished = Path("runs", "BPR-toy-00000000")
    table = cache.home() / "features" / "a.safetensors"
    table.parent.mkdir(parents=True)
    table.touch()
    with run_folder.claimed(unfinished), locks.locked(table), locks.Claims(table) as claims:
        claims.claim(0)
        run_folder.write_json(unfinished / "config.json", {})
        code = "import sys; from mmrec_lmm.cli import main; sys.exit(main(sys.argv[1:]))"
        done = subprocess.run(
            [sys.executable, "-c", code, "clean", "checkpoints", "features", "locks"], capture_output=True, text=True
        )
        assert table.with_name("a.safetensors.lock").exists()
    assert done.returncode == 0, done.stderr
    assert f"kept, in use by a living process: {unfinished / 'checkpoint'}" in done.stdout
    assert f"kept, in use by a living process: {table}" in done.stdout
    assert (unfinished / "config.json").exists()
    assert table.exists()
    assert call("clean", "locks").code == 0
    assert not list(table.parent.glob("*.lock"))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("fetures",), "did you mean features?"),
        (("results",), "never removed"),
        (("features", "--older", "soon"), "such as 30d, 12h or 45m, got 'soon'"),
    ],
)
def test_clean_refuses_what_it_does_not_remove(arguments: tuple[str, ...], says: str) -> None:
    told = call("clean", *arguments)
    assert told.code == 2
    assert says in told.err

"""Several users of one home and folder of runs: files follow the umask, and what is there serves all who may read."""

import os
import re
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import write_toy
from helpers import Answer, call
from people import ANN, BOB, GROUP, Lab, can_mount, lab

from mmrec_lmm import cache

__all__ = ["lab"]  # a fixture

DATA = ("--data-path", "../data")
OUT = ("--out", "../runs")
ENCODE = ("encode", "-d", "toy", "--encoder", "basic", *DATA)
RUN = ("run", "-m", "VBPR", "-d", "toy", "--encoder", "basic", "--epochs=2", "--embedding_size=4", *DATA, *OUT)
STUDY = "datasets: [toy]\nmodels: [BPR, VBPR]\nencoders: [basic]\nsettings: {epochs: 1, embedding_size: 4}\n"


def prepared(lab: Lab, mode: int) -> None:
    """The lab with the toy data set, which belongs to Ann, and a study file."""
    lab.share(mode)
    write_toy(lab.folder / "data" / "toy")
    for path in (lab.folder / "data").rglob("*"):
        os.chown(path, ANN, GROUP)
    (lab.folder / "both.yaml").write_text(STUDY)


def only(answers: list[Answer]) -> Answer:
    (answer,) = answers
    assert answer.code == 0, answer.err
    return answer


def run_id(answer: Answer) -> str:
    assert answer.code == 0, answer.err
    (found,) = set(re.findall(r"VBPR-toy-\w{8}", answer.out))
    return found


def readers(run: str) -> list[tuple[object, ...]]:
    """The commands that only read home, runs and data; what they write goes to the user's own folder."""
    study = ("../both.yaml", *DATA, *OUT)
    return [
        (*ENCODE, "--export", "mine"),
        (*RUN, "--json"),
        ("recommend", run, *OUT, "--users", "0,1", "--internal-ids"),
        ("replay", run, *OUT),
        ("slices", run, *OUT),
        ("list", "runs", *OUT),
        ("list", "datasets", *DATA),
        ("results", "export", *OUT, "-o", "runs.jsonl"),
        ("results", "query", "SELECT run FROM runs", *OUT),
        ("data", "check", "-d", "toy", *DATA),
        ("doctor", *DATA),
        ("study", "run", *study),
        ("study", "status", *study),
        ("study", "table", *study),
        ("study", "page", *study, "-o", "study.html"),
    ]


def content(lab: Lab) -> dict[Path, tuple[int, int]]:
    """Owner and time of each file in home and runs."""
    files = [path for folder in (lab.home, lab.runs) for path in folder.rglob("*") if path.is_file()]
    return {path: (path.stat().st_uid, path.stat().st_mtime_ns) for path in files}


def check_all_worked(commands: list[tuple[object, ...]], answers: list[Answer]) -> None:
    for command, answer in zip(commands, answers, strict=True):
        assert answer.code == 0, (command, answer)
        assert "Traceback" not in answer.err
        assert "items/s" not in answer.err, "encoded again"


@pytest.mark.parametrize(
    "how",
    [
        "others' folders",
        pytest.param("no write bit", marks=pytest.mark.slow),
        pytest.param("read-only file systems", marks=pytest.mark.slow),
    ],
)
def test_a_second_user_reads_all_that_the_first_made_and_writes_nothing(lab: Lab, how: str) -> None:
    prepared(lab, 0o755)
    mounted = how == "read-only file systems"
    if mounted and not can_mount(lab):
        pytest.skip("file systems can't be mounted read-only here")
    first = lab.calls(ANN, RUN, ("study", "run", "../both.yaml", *DATA, *OUT))
    assert [answer.code for answer in first] == [0, 0], first
    if how == "no write bit":
        for folder in (lab.home, lab.runs, lab.folder / "data"):
            for path in (folder, *folder.rglob("*")):
                path.chmod(path.stat().st_mode & ~0o222)
    before = content(lab)
    commands = readers(run_id(first[0]))
    shared = [lab.home, lab.runs, lab.folder / "data"]
    user = ANN if mounted else BOB  # a read-only file system stops the owner, too
    answers = lab.calls(user, *commands, read_only=shared if mounted else [])
    check_all_worked(commands, answers)
    assert content(lab) == before
    assert (lab.own(user) / "mine" / "image_feat.npy").is_file()
    assert "identical" in answers[3].out


@pytest.mark.slow
def test_two_users_of_a_group_fill_the_same_folders(lab: Lab) -> None:
    prepared(lab, 0o2775)
    study = ("study", "run", "../both.yaml", *DATA, *OUT)
    first = lab.calls(ANN, (*ENCODE, "--modalities", "image"), RUN, umask=0o002)
    second = lab.calls(BOB, ENCODE, (*RUN, "--seed=1"), (*RUN, "--force"), study, umask=0o002)
    third = lab.calls(ANN, study, ("study", "run", "../both.yaml", *DATA, *OUT), (*RUN, "--seed=1"), umask=0o002)
    for answer in (*first, *second, *third):
        assert answer.code == 0, answer.err
    for path in (*lab.home.rglob("*"), *lab.runs.rglob("*")):
        assert path.stat().st_gid == GROUP, path
        assert path.stat().st_mode & 0o020, path

    lock = lab.runs / run_id(first[1]) / ".lock"  # as Ann's process leaves it that is killed, under another umask
    lock.touch(0o644)
    os.chown(lock, ANN, GROUP)
    (again,) = lab.calls(BOB, (*RUN, "--force"), umask=0o002)
    assert again.code == 0, again.err
    for path in (*lab.home.glob("features/*.claims.lock"), *lab.home.glob("features/*.safetensors")):
        path.unlink() if path.suffix == ".safetensors" else path.chmod(0o444)
    (refused,) = lab.calls(BOB, ENCODE, umask=0o002)
    assert refused.code == 4
    assert re.search(r"claims\.lock: permission denied; ask its owner to let you write it, or set MMREC_", refused.err)


@pytest.mark.slow
def test_another_users_closed_run_is_named_and_a_home_that_cant_be_filled_says_what_to_do(lab: Lab) -> None:
    prepared(lab, 0o755)
    (first,) = lab.calls(ANN, RUN)
    commands = [(*ENCODE, "--encoder.text_dim=64"), (*RUN, "--seed=5"), (*RUN, "--force"), ("results", "index", *OUT)]
    for answer in lab.calls(BOB, *commands):
        assert (answer.code, answer.out) == (4, ""), answer
        assert re.search(
            r"permission denied; ask its owner to let you write it, or (set MMREC|try another)", answer.err
        )
    (lab.runs / run_id(first)).chmod(0o700)
    (listed,) = lab.calls(BOB, ("results", "query", "SELECT run FROM runs", *OUT))
    assert listed.code == 0
    assert re.search(r"left out of the index: .*result\.json: permission denied; ask its owner", listed.err)


@pytest.mark.slow
def test_what_a_user_may_not_read_is_called_so_and_never_damaged_or_missing(lab: Lab) -> None:
    prepared(lab, 0o755)
    own = lab.own(ANN)
    write_toy(own / "data" / "toy")
    (own / "study.yaml").write_text(STUDY)
    (own / "mine.npy").write_bytes((own / "data" / "toy" / "image_feat.npy").read_bytes())
    (own / "users.txt").write_text("0\n")
    for path in (own, *own.rglob("*")):
        os.chown(path, ANN, GROUP)
    run = ("run", "-m", "VBPR", "-d", "toy", "--epochs=1", "--embedding_size=4")
    encoded = (*run, "--encoder", "basic")
    top = ("recommend", "VBPR-toy-", "--users", "0", "--internal-ids")
    made = lab.calls(ANN, encoded, ("study", "run", "study.yaml", "--out", "of-study"), (*run, "--out", "of-files"))
    assert [answer.code for answer in made] == [0, 0, 0], made
    cases = [
        ("runs/VBPR*/result.json", (*encoded,)),
        ("runs/VBPR*/result.json", ("recommend", run_id(made[0]), *top[2:])),
        ("runs/VBPR*/config.json", top),
        ("runs/VBPR*/best.safetensors", top),
        ("runs/VBPR*/history.jsonl", ("replay", run_id(made[0]))),
        ("runs/VBPR*/topk.tsv", ("slices", run_id(made[0]))),
        ("runs/VBPR*", ("recommend", run_id(made[0]), *top[2:])),
        ("runs", ("list", "runs")),
        ("runs", ("results", "export")),
        ("runs", top),
        ("runs", (*encoded, "--seed=2")),
        ("../home/features/*.safetensors", encoded),
        ("../home/features", ("encode", "-d", "toy", "--encoder", "basic")),
        ("../home/features", (*encoded, "--seed=3")),
        ("data/toy/toy.inter", encoded),
        ("data/toy/items.tsv", encoded),
        ("data/toy", encoded),
        ("data", encoded),
        ("data/toy", ("data", "check", "-d", "toy")),
        ("data/toy/image_feat.npy", (*run, "--seed=4")),
        ("mine.npy", (*run, "--features", "image=mine.npy")),
        ("of-study/study/study/*.json", ("study", "status", "study.yaml", "--out", "of-study")),
        ("of-study/study/study", ("study", "page", "study.yaml", "--out", "of-study")),
        ("of-study/study/study/*.json", ("study", "run", "study.yaml", "--out", "of-study")),
        ("data/toy/toy.inter", ("data", "import", "new", "--interactions", "data/toy/toy.inter")),
        ("data", ("data", "import", "new", "--interactions", "users.txt", "--columns", "user,item")),
        ("study.yaml", ("study", "run", "study.yaml")),
        ("of-study", ("study", "page", "study.yaml", "--out", "of-study")),
        ("mine.npy", (*run, "--encoder", "vlmo:tiny", "--weights", "mine.npy")),
        ("data", ("doctor",)),
        ("data", ("list", "datasets")),
    ]
    answers = lab.calls(ANN, *((f"deny:{pattern}", *command) for pattern, command in cases))
    for (pattern, command), answer in zip(cases, answers, strict=True):
        said = (pattern, command, answer)
        assert answer.code in (2, 4), said
        assert "Traceback" not in answer.err, said
        assert re.search("(?i)permission denied", answer.err), said
        assert not re.search("damaged|truncated|no such|unreadable|doesn't exist|got none|isn't here", answer.err), said


@pytest.fixture
def umask() -> Iterator[Callable[[int], int]]:
    """Sets the umask of this process; the test's end restores it."""
    before = os.umask(0)
    os.umask(before)
    yield os.umask
    os.umask(before)


@pytest.mark.parametrize(
    "mask", [0o027, *(pytest.param(one, marks=pytest.mark.slow) for one in (0o022, 0o002, 0o077))], ids=oct
)
def test_every_file_and_folder_that_commands_write_follows_the_umask(
    mask: int, umask: Callable[[int], int], data_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(data_path.parent)
    work, home = data_path.parent / "work", cache.home()
    (data_path.parent / "both.yaml").write_text(STUDY)
    (data_path.parent / "sales.csv").write_text(
        "user,item\n" + "".join(f"u{user},i{(user + step) % 9}\n" for user in range(9) for step in range(6))
    )
    (data_path.parent / "items.csv").write_text("item,title\n" + "".join(f"i{n},thing {n}\n" for n in range(9)))
    out = ("--out", "work/runs")
    study = ("both.yaml", *out)
    run = ("run", "-m", "VBPR", "-d", "toy", "--encoder", "clip:tiny", "--embedding_size=4", "--epochs=1", *out)
    umask(mask)
    for command in (
        (*run, "--save_recommended_topk=true", "--checkpoint_seconds=0"),
        (*run, "--paradigm=ft", "--ft.epochs=1"),
        (*run, "--paradigm=ete"),
        ("encode", "-d", "toy", "--encoder", "basic", "--export", "work/exported"),
        ("results", "index", *out),
        ("results", "export", *out, "--format", "csv", "-o", "work/exports/runs.csv"),
        ("study", "run", *study),
        ("study", "table", *study, "-o", "work/pages/study.md"),
        ("study", "page", *study, "-o", "work/pages/study.html"),
        ("data", "import", "mine", "--interactions", "sales.csv", "--items", "items.csv", "--data-path", "work/data"),
        ("data", "check", "-d", "toy", "--format", "html", "-o", "work/pages/data.html"),
    ):
        answer = call(*command)
        assert answer.code == 0, (command, answer.err)
    made = {path: stat.S_IMODE(path.stat().st_mode) for folder in (work, home) for path in folder.rglob("*")}
    assert {path.suffix for path in made} >= {".safetensors", ".npy", ".json", ".tsv", ".html", ".inter", ".sqlite"}
    for path, mode in made.items():
        assert mode == (0o777 if path.is_dir() else 0o666) & ~mask, (path, oct(mode))

"""What goes wrong in practice: each has one clear message and its exit code, and leaves earlier results intact."""

import json
import os
import pickle
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers import Answer, call, dead_temporary, plugin, start, wait_until
from safetensors.numpy import load_file, save_file

from mmrec_lmm.data.opening import make_dataset
from mmrec_lmm.disk.hashing import hash_file

RUN = ("run", "-m", "VBPR", "-d", "toy", "--epochs=2", "--embedding_size=4")


@pytest.fixture(autouse=True)
def toy(data_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder data/toy in a user's working folder."""
    monkeypatch.chdir(data_path.parent)
    return data_path / "toy"


@pytest.fixture
def earlier(toy: Path) -> Iterator[None]:
    """A finished run, which must stand after the test as it stood before."""
    assert call(*RUN, "--seed=1").code == 0
    before = results()
    yield
    assert before.items() <= results().items()
    for folder in Path("runs").glob("VBPR-*"):
        assert not list(folder.rglob(".*.tmp")), "a half-written file was left"


def results() -> dict[Path, str]:
    return {
        path: hash_file(path) for path in Path("runs").glob("VBPR-*/*.*") if path.suffix in (".json", ".safetensors")
    }


def refusal(answer: Answer, code: int) -> str:
    """The one message of a command that failed with `code` and printed no result."""
    assert (answer.code, answer.out) == (code, ""), answer.err
    assert "Traceback" not in answer.err
    (message,) = re.findall(r"^error: (.*)", answer.err, re.MULTILINE | re.DOTALL)
    return message.removesuffix("\n")


# Images that are all lost


def pointers(toy: Path) -> str:
    for path in (toy / "images").iterdir():
        path.write_text("version https://git-lfs.github.com/spec/v1\n")
    return "a pointer of Git LFS"


def repeated_prefix(toy: Path) -> str:
    items = pd.read_csv(toy / "items.tsv", sep="\t", dtype=str, keep_default_na=False)
    items["image"] = [name and f"images/{name}" for name in items["image"]]
    items.to_csv(toy / "items.tsv", sep="\t", index=False)
    return "No such file"


@pytest.mark.parametrize("lose", [pointers, repeated_prefix])
def test_a_data_set_without_a_readable_image_ends_a_run_and_an_encoding_and_not_those_of_text(lose, toy, earlier):
    reason = lose(toy)
    for command in (RUN, ("encode", "-d", "toy")):
        said = refusal(call(*command, "--encoder", "basic"), 4)
        assert "none of 15 images can be read, the first is data/toy/images" in said
        assert reason in said
    said = refusal(call(*RUN, "--encoder", "vlmo:tiny", "--paradigm", "ft"), 4)
    assert said.startswith(
        "joint features can't be encoded: none of 14 images can be read, the first is data/toy/images"
    )
    assert reason in said
    assert call(*RUN, "--encoder", "basic", "--modalities", "text").code == 0


# Names of columns


@pytest.mark.parametrize(
    "command",
    [
        (*RUN, "--encoder", "basic"),
        ("encode", "-d", "toy", "--encoder", "basic"),
        ("data", "check", "-d", "toy"),
    ],
)
def test_a_mistyped_text_field_is_named_with_the_likely_one(command, earlier):
    answer = call(*command, "--text_fields=[titel,brand]")
    assert refusal(answer, 2).endswith("got titel; did you mean title? there are title, brand")


def test_a_mistyped_text_field_in_a_study_fails_the_runs_that_read_it_with_the_likely_one(toy):
    Path("mine.yaml").write_text(
        "{models: [VBPR, BPR], datasets: [toy], encoders: [basic],\nsettings: {epochs: 1, text_fields: [titel]}}"
    )
    answer = call("study", "run", "mine.yaml")
    assert answer.code == 1
    assert "mine.yaml:2: text_fields: expected columns" in answer.out + answer.err, answer.out + answer.err
    assert "did you mean title?" in answer.out + answer.err


# Interactions


def edit(toy: Path, change: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
    change(pd.read_csv(toy / "toy.inter", sep="\t")).to_csv(toy / "toy.inter", sep="\t", index=False)


def truncate(path: Path, left: float) -> None:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * left)])


INTERACTIONS: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda toy: (toy / "toy.inter").unlink(), r"data/toy/toy.inter: no such file"),
    "empty": (lambda toy: truncate(toy / "toy.inter", 0), r"data/toy/toy.inter: .*got an empty file"),
    "only a header": (
        lambda toy: edit(toy, lambda table: table[:0]),
        r"toy.inter: expected rows, got only a header",
    ),
    "cut within a row": (
        lambda toy: (toy / "toy.inter").write_text((toy / "toy.inter").read_text()[:-3]),
        r"toy.inter, line 97: expected 3 cells, as many as there are columns, got 2; is the file truncated\?",
    ),
    "cut in the middle": (lambda toy: truncate(toy / "toy.inter", 0.5), r"data/toy/toy.inter.*"),
    "binary": (
        lambda toy: (toy / "toy.inter").write_bytes(b"\0\xff" * 99),
        r"data/toy/toy.inter.*: expected a table of text",
    ),
    "a negative id": (
        lambda toy: edit(toy, lambda table: table.assign(userID=table.userID - 1)),
        r"data/toy/toy.inter, line 2: userID: expected 0 or more, got -1 \(8 such rows\)",
    ),
    "a gap in the users": (
        lambda toy: edit(toy, lambda table: table[table.userID != 3]),
        r"userID: expected 0 to 11 without gaps, got 11 of these 12 ids; the first missing is 3",
    ),
    "an item beyond the catalog": (
        lambda toy: edit(toy, lambda table: table.assign(itemID=table.itemID + 1)),
        r"itemID: expected at most 15, as the catalog has 16 rows \(data/toy/items.tsv\), got 16",
    ),
    "no validation rows": (
        lambda toy: edit(toy, lambda table: table[table.x_label != 1]),
        r"expected rows in each split, got none for valid \(train 72, valid 0, test 12\)",
    ),
    "no training rows": (
        lambda toy: edit(toy, lambda table: table[table.x_label != 0]),
        r"expected rows in each split, got none for train \(train 0, valid 0, test 0\)",
    ),
    "another label": (
        lambda toy: edit(toy, lambda table: table.assign(x_label=3)),
        r"line 2: x_label: expected 0 \(train\), 1 \(valid\) or 2 \(test\), got 3 \(96 such rows\)",
    ),
    "another column": (
        lambda toy: edit(toy, lambda table: table.rename(columns={"itemID": "item_id"})),
        r"expected the column 'itemID', got userID, item_id, x_label; did you mean item_id\?",
    ),
}


@pytest.mark.usefixtures("earlier")
@pytest.mark.parametrize("what", INTERACTIONS)
def test_wrong_interactions_are_refused_with_file_and_place(toy: Path, what: str) -> None:
    spoil, message = INTERACTIONS[what]
    spoil(toy)
    assert re.search(message, refusal(call(*RUN), 4))


def test_without_a_catalog_a_gap_in_the_items_is_refused(toy: Path) -> None:
    (toy / "items.tsv").unlink()
    edit(toy, lambda table: table[table.itemID != 5])
    message = refusal(call(*RUN), 4)
    assert "itemID: expected 0 to 15 without gaps, got 15 of these 16 ids; the first missing is 5" in message


def test_an_unknown_data_set_names_those_that_are_there(toy: Path) -> None:
    assert (
        refusal(call(*RUN[:3], "-d", "toi"), 4) == "data/toi/toi.inter: no such file; data holds toy; did you mean toy?"
    )
    missing = refusal(call(*RUN, "--data-path", "nowhere"), 4)
    assert (
        missing == "nowhere/toy/toy.inter: no such file; the folder nowhere doesn't exist (--data-path chooses another)"
    )


def test_users_with_one_training_row_or_none_train_and_are_counted(toy: Path) -> None:
    def thin(table: pd.DataFrame) -> pd.DataFrame:
        train, other = table[table.x_label == 0], table[table.x_label != 0]
        return pd.concat([train[train.userID > 0].groupby("userID").head(1), other]).sort_values(["userID", "itemID"])

    edit(toy, thin)
    answer = call(*RUN)
    assert answer.code == 0
    assert "toy: valid: dropped 1 rows of users without a training row" in answer.err


# Features


class Payload:
    """Creates the file `ran` where it is unpickled."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, str]]:
        return open, ("ran", "w")


def not_a_number(path: Path) -> None:
    values = np.ones((16, 3), np.float32)
    values[[2, 11]] = np.nan
    np.save(path, values)


FEATURES: dict[str, tuple[Callable[[Path], object], str]] = {
    "too few rows": (
        lambda path: np.save(path, np.ones((15, 3))),
        r"expected 16 rows, row i for item i, got 15$",
    ),
    "NaN": (not_a_number, r"NaN or infinity in 2 of 16 rows, first 2, 11$"),
    "pickled objects": (
        lambda path: np.save(path, np.array([Payload()], object), allow_pickle=True),
        r"pickled Python objects, which could run code when read",
    ),
    "a pickle": (lambda path: path.write_bytes(pickle.dumps(Payload())), r"a pickle, which can hold code"),
    "truncated": (lambda path: truncate(path, 0.8), r"got a truncated or damaged file"),
    "empty": (lambda path: truncate(path, 0), r"expected a \.npy file, got an empty file; copy or download it again$"),
    "one number per item": (
        lambda path: np.save(path, np.ones(16)),
        r"expected numbers of shape \(items, width\), got",
    ),
}


@pytest.mark.usefixtures("earlier")
@pytest.mark.parametrize("what", FEATURES)
def test_wrong_features_are_refused_and_nothing_in_them_runs(toy: Path, what: str) -> None:
    spoil, message = FEATURES[what]
    spoil(toy / "image_feat.npy")
    answer = refusal(call(*RUN), 4)
    assert answer.startswith("data/toy/image_feat.npy: ")
    assert re.search(message, answer)
    assert not Path("ran").exists()


def test_the_payload_of_these_tests_would_run() -> None:
    pickle.loads(pickle.dumps(Payload())).close()
    assert Path("ran").exists()


def test_without_features_and_encoder_it_is_said_how_to_come_by_them(toy: Path) -> None:
    for path in toy.glob("*.npy"):
        path.unlink()
    assert refusal(call(*RUN), 2) == (
        "data set toy: expected item features among its files, got none; try --encoder NAME (basic, beit3, clip, "
        "cnn_sbert, hf, st, vlmo), or --features image=FILE.npy"
    )
    (toy / "items.tsv").unlink()
    assert "try a catalog (items.tsv) for an encoder to read, or --features image=" in refusal(call(*RUN), 2)
    assert "the data set has no catalog (items.tsv)" in refusal(call(*RUN, "--encoder", "basic"), 2)


def test_a_modality_that_is_not_there_is_refused_with_those_that_are(toy: Path) -> None:
    message = refusal(call(*RUN, "--modalities", "audio"), 2)
    assert message.startswith(
        "data set toy: expected audio features among its files, got image, text; try --features audio="
    )
    message = refusal(call(*RUN, "--modalities", "text,joint", "--encoder", "basic"), 2)
    assert message.startswith(
        "encoder basic: expected joint features for data set toy, got image, text; it encodes image, text, and the "
        "data set has 16 items, 15 of them with an image, 15 with text in title"
    )
    assert refusal(call(*RUN, "--features", "image=nowhere.npy"), 4) == "nowhere.npy: no such file"


def test_an_image_that_cannot_be_read_is_masked_with_its_reason(toy: Path) -> None:
    (toy / "images" / "4.png").write_bytes(b"no image")
    answer = call("encode", "-d", "toy", "--encoder", "basic", "--modalities", "image")
    assert answer.code == 0
    assert "image of item T04 is masked, unreadable: data/toy/images/4.png: no image format that is known" in answer.err
    assert re.search(r"^image +16 +14 ", answer.out, re.MULTILINE)


# Configuration


@pytest.mark.usefixtures("earlier")
def test_a_mistake_in_yaml_names_file_and_line() -> None:
    Path("configs/model").mkdir(parents=True)
    Path("configs/model/vbpr.yaml").write_text("embedding_size: 4\nreg_weight: [0.1\nepochs: 2\n")
    assert re.match(r"configs/model/vbpr\.yaml:3: not valid YAML: expected ',' or '\]'", refusal(call(*RUN), 2))


@pytest.mark.usefixtures("earlier")
def test_all_unknown_keys_and_wrong_values_are_told_at_once() -> None:
    Path("configs/model").mkdir(parents=True)
    Path("configs/model/vbpr.yaml").write_text("embeding_size: 4\nlearning_rate: fast\n")
    assert refusal(call(*RUN, "--epocs=3"), 2).splitlines() == [
        "configs/model/vbpr.yaml:1: unknown key embeding_size; did you mean embedding_size?",
        "configs/model/vbpr.yaml:2: learning_rate must be a number, got 'fast'",
        "command line: unknown key epocs; did you mean epochs?",
    ]


# Full disks


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    if os.geteuid() != 0 or not shutil.which("mount"):
        pytest.skip("mounting a small file system needs root")
    disk = tmp_path / "small"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", disk], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"a small file system can't be mounted here: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", disk], check=True)


@pytest.mark.parametrize(("seconds", "file"), [(0, r"checkpoint/\S+"), (600, r"best\.safetensors")])
def test_a_disk_that_fills_while_weights_are_written_ends_the_run_and_nothing_else(
    small_disk: Path, seconds: int, file: str
) -> None:
    assert call(*RUN, "--out", small_disk).code == 0
    before = {path: hash_file(path) for path in small_disk.glob("VBPR-*/*.*")}
    large = (*RUN, "--out", small_disk, "--embedding_size=600", f"--checkpoint_seconds={seconds}")
    message = refusal(call(*large), 1)
    assert re.match(rf"{small_disk}/VBPR-\S+/{file}: no space left on the disk; nothing was lost", message)
    assert not list(small_disk.rglob(".*.tmp"))
    assert before.items() <= {path: hash_file(path) for path in small_disk.glob("VBPR-*/*.*")}.items()


def test_a_disk_that_fills_while_features_are_written_ends_encoding_and_keeps_what_was(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MMREC_LMM_HOME", str(small_disk))
    encode = ("encode", "-d", "toy", "--encoder", "basic", "--modalities", "text")
    assert call(*encode, "--encoder.text_dim=64").code == 0
    before = {path: hash_file(path) for path in small_disk.glob("features/*.safetensors")}
    assert len(before) == 1
    message = refusal(call(*encode, "--encoder.text_dim=8192"), 1)
    assert re.match(rf"{small_disk}/features/\S+: no space left on the disk; nothing was lost", message)
    assert {path: hash_file(path) for path in small_disk.glob("features/*.safetensors")} == before
    assert not list(small_disk.rglob(".*.tmp"))
    assert call(*encode, "--encoder.text_dim=64").code == 0


# Two at once, and interruption

WAIT = """
@hookimpl
def mmrec_epoch_finished(run, epoch):
    Path("waiting").touch()
    while not Path("go").exists():
        time.sleep(0.01)
"""
INTERRUPT = """
@hookimpl
def mmrec_epoch_finished(run, epoch):
    if epoch.epoch == 3 and not Path("interrupted").exists():
        Path("interrupted").touch()
        signal.raise_signal(signal.{})
"""


def test_the_second_of_two_equal_runs_ends_at_once_and_the_first_finishes() -> None:
    first = start(*RUN, "-p", plugin(Path("wait.py"), WAIT), "--json")
    wait_until(Path("waiting").exists, first)
    assert re.fullmatch(
        r"runs/VBPR-toy-\w{8}: another process is at work on this very run; wait for it, or end it",
        refusal(call(*RUN), 1),
    )
    assert call(*RUN, "--seed=5").code == 0  # another run isn't held up
    Path("go").touch()
    out, _ = first.communicate()
    assert first.returncode == 0
    assert json.loads(out)["epochs"] == 2


@pytest.mark.parametrize("signal_name", ["SIGINT", "SIGTERM"])
def test_an_interrupted_run_saves_its_state_and_resumes_to_the_same_result(toy: Path, signal_name: str) -> None:
    run = (*RUN, "--epochs=8", "--train_batch_size=16", "--learning_rate=0.01", "--valid_metric=NDCG@10")
    whole = json.loads(call(*run, "--json", "--out", "whole").out)
    assert whole["best_epoch"] > 3
    stopped = call(*run, "-p", plugin(Path("interrupt.py"), INTERRUPT.format(signal_name)))
    assert refusal(stopped, 130) == (
        f"{whole['run_id']}: interrupted; the state after epoch 3 is saved; the same command with --resume continues"
    )
    resumed = json.loads(call(*run, "--resume", "--json").out)
    assert (resumed["valid"], resumed["test"]) == (whole["valid"], whole["test"])
    for name in ("best.safetensors", "per_user.safetensors"):
        assert hash_file(Path("runs", whole["run_id"], name)) == hash_file(Path("whole", whole["run_id"], name))


@pytest.mark.parametrize("lost", ["model.", "validation.items", "rows"])
def test_best_weights_of_a_checkpoint_that_do_not_fit_are_refused_before_training(lost: str, toy: Path) -> None:
    run = (*RUN, "--epochs=8", "--learning_rate=0.5")
    call(*run, "-p", plugin(Path("interrupt.py"), INTERRUPT.format("SIGINT")))
    (path,) = Path("runs").glob("VBPR-*/checkpoint/best-*.safetensors")
    assert path.name != "best-3.safetensors", "the state should have weights of its own"
    tensors = load_file(path)
    if lost == "rows":
        tensors["validation.items"] = tensors["validation.items"][1:]
    else:
        del tensors[next(name for name in tensors if name.startswith(lost))]
    save_file(tensors, path)
    assert "checkpoint: expected a checkpoint of this code" in refusal(call(*run, "--resume"), 4)


def test_a_run_that_starts_over_says_that_it_could_have_been_resumed(toy: Path) -> None:
    run = (*RUN, "--epochs=8")
    call(*run, "-p", plugin(Path("interrupt.py"), INTERRUPT.format("SIGINT")))
    answer = call(*run)
    assert answer.code == 0
    assert re.search(r"VBPR-toy-\w{8} starts over; --resume would have continued it from its checkpoint", answer.err)


@pytest.mark.slow
def test_ctrl_c_in_a_terminal_ends_training_with_130_and_one_message() -> None:
    notes = "@hookimpl\ndef mmrec_epoch_finished(run, epoch):\n    if epoch.epoch:\n        Path('trained').touch()\n"
    process = start(
        "run", "-m", "VBPR", "-d", "toy", "--epochs=1000000", "--stopping_step=1000000", "--embedding_size=4",
        "-p", plugin(Path("notes.py"), notes),
    )  # fmt: skip
    wait_until(Path("trained").exists, process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    message = refusal(Answer(process.returncode, out, err), 130)
    assert re.fullmatch(
        r"VBPR-toy-\w{8}: interrupted; the state after epoch \d+ is saved; .* --resume continues", message
    )


# Data sets that plugins make


def test_a_data_set_whose_making_fails_leaves_nothing_and_is_made_the_next_time(tmp_path: Path) -> None:
    folder = tmp_path / "made" / "half"

    def fail(target: Path) -> None:
        target.mkdir()
        (target / "half.inter").write_text("userID\titemID\tx_label\n")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_dataset(folder, fail)
    assert not folder.exists()
    left_by_a_kill = dead_temporary(folder) / "half"
    left_by_a_kill.mkdir(parents=True)
    (left_by_a_kill / "stale").touch()
    make_dataset(folder, lambda target: target.mkdir())
    assert folder.is_dir()
    assert not list(folder.iterdir())
    assert [path.name for path in folder.parent.iterdir() if path.is_dir()] == ["half"]


def test_a_data_set_that_is_not_made_by_its_plugin_is_an_error_that_says_so(toy: Path) -> None:
    lazy = plugin(
        Path("lazy.py"),
        "@hookimpl\ndef mmrec_register_datasets():\n    return [DatasetSpec('lazy', make=lambda folder: None)]\n",
    )
    message = refusal(call(*RUN[:3], "-d", "lazy", "-p", lazy), 2)
    assert message == "data set lazy: the plugin that brings it made no such folder"


# Names that are no text, and pipes


def test_a_name_that_is_no_text_is_printed_instead_of_a_traceback(toy: Path) -> None:
    process = start("doctor", "--data-path", os.fsdecode(b"no\xfftext"))
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert "data sets in no\\udcfftext" in out


@pytest.mark.usefixtures("earlier")
def test_a_pipe_in_the_place_of_an_array_or_an_archive_is_refused(toy: Path) -> None:
    os.mkfifo("pipe")
    for command in ((*RUN, "--features", "image=pipe"), ("data", "images", "toy", "--from", "pipe")):
        assert refusal(call(*command), 4).startswith("pipe: expected a file, got a pipe, a socket or a device")


def test_ids_of_users_may_come_through_a_pipe_that_sigterm_ends_waiting_for(toy: Path) -> None:
    assert call(*RUN).code == 0
    os.mkfifo("ids")
    process = start("recommend", "VBPR-toy", "--users", "@ids")
    with Path("ids").open("w") as ids:
        ids.write("3\n")
    assert process.wait() == 0
    waiting = start("recommend", "VBPR-toy", "--users", "@ids")
    with Path("ids").open("w"):  # waits until the command has opened it, too
        waiting.send_signal(signal.SIGTERM)
        assert waiting.wait() == 130


@pytest.mark.parametrize("command", [("results", "index", "--out=--"), (*RUN, "--encoder=--"), (*RUN, "--seed=--")])
def test_dashes_are_no_value_of_a_flag_or_key(command: tuple[str, ...]) -> None:
    said = refusal(call(*command), 2)
    assert said == f"{command[-1].removesuffix('=--')}: expected a value, got --"


def test_tuning_that_diverges_at_once_says_so() -> None:
    command = (*RUN, "--encoder", "vlmo:tiny", "--paradigm", "ft", "--ft.learning_rate=2147483648")
    assert "learning_rate" in refusal(call(*command), 1)


@pytest.mark.parametrize("place", ["", ".", "/"])
def test_a_folder_is_no_place_to_write_a_table(place: str) -> None:
    said = refusal(call("paper", "--table", "3", f"--output={place}"), 1)
    assert said == f"{place or '.'}: expected the name of a file to write, got a folder; try another"

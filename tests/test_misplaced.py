"""A sound file in another's place, as a wrong copy leaves it, is never taken for the one that belongs there."""

import shutil
from pathlib import Path

import pytest
from helpers import Answer, call

from mmrec_lmm.cache import home
from mmrec_lmm.features import encoding
from mmrec_lmm.features.files import load_with_header, save_table
from mmrec_lmm.types import FeatureTable

TEXTS = ("[title]", "[title,brand]")
RUN = ("run", "-m", "VBPR", "-d", "toy", "--epochs=2", "--embedding_size=4", "--encoder", "basic")


@pytest.fixture(autouse=True)
def toy(data_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(data_path.parent)
    monkeypatch.setenv("MMREC_LMM_HOME", str(tmp_path / "home"))
    return data_path / "toy"


@pytest.fixture
def runs() -> list[Path]:
    """Two finished runs that differ in their seed."""
    for seed in (1, 2):
        assert call(*RUN, f"--seed={seed}").code == 0
    return sorted(Path("runs").glob("VBPR-*"))


def refused(answer: Answer, *words: str) -> None:
    assert (answer.code, answer.out) == (4, ""), answer.err
    assert all(word in answer.err for word in words), answer.err


def test_a_table_under_the_name_of_another_is_made_again() -> None:
    assert call("encode", "-d", "toy", "--encoder", "basic").code == 0
    one, other = sorted((home() / "features").glob("*.safetensors"))
    right = one.read_bytes()
    shutil.copy(other, one)
    again = call("encode", "-d", "toy", "--encoder", "basic")
    assert again.code == 0
    assert f"{one}: expected the table of that name, got {other.stem}; it is made again" in again.err
    assert one.read_bytes() == right


def test_a_shard_of_another_table_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "SHARD", 8)
    assert call("encode", "-d", "toy", "--encoder", "basic").code == 0
    for table in (home() / "features").glob("*.safetensors"):
        right, (found, _) = table.read_bytes(), load_with_header(table)
        shard = table.with_suffix(".parts") / "0-8.safetensors"
        shard.parent.mkdir()
        rows = found.values[:8] + 1
        save_table(shard, FeatureTable(found.modality, rows, found.present[:8], "of-another 0-8"))
        table.unlink()
        assert "expected" in call("encode", "-d", "toy", "--encoder", "basic").err
        assert table.read_bytes() == right


def test_a_tuned_encoder_and_prepared_items_of_another_are_made_again() -> None:
    tune = ("--encoder=vlmo:tiny", "--paradigm=ft", "--ft.epochs=1", "--ft.batch_size=4", "--ft.held_out=0.3")
    for fields in TEXTS:
        assert call("encode", "-d", "toy", *tune, f"--text_fields={fields}").code == 0
    one, other = sorted((home() / "tuned").glob("*.safetensors"))
    prepared, theirs = sorted(path for path in (home() / "prepared").iterdir() if path.is_dir())
    for source, target in ((other, one), (one, other)):
        right = target.read_bytes()
        shutil.copy(source, target)
        shutil.rmtree(prepared)
        shutil.copytree(theirs, prepared)
        told = "".join(call("encode", "-d", "toy", *tune, f"--text_fields={fields}").err for fields in TEXTS)
        assert f"{target}: expected the encoder of that name, got {source.stem}; the encoder is tuned again" in told
        target.write_bytes(right)
    assert f"{prepared}: expected the items of that name, got {theirs.name}; it is made again" in told


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("best.safetensors", ("recommend", "{run}", "--users=0", "--internal-ids")),
        ("config.json", ("recommend", "{run}", "--users=0", "--internal-ids")),
        ("config.json", ("slices", "{run}")),
        ("topk.tsv", ("slices", "{run}")),
        ("result.json", ("recommend", "{run}", "--users=0", "--internal-ids")),
        ("result.json", RUN),
    ],
)
def test_a_file_of_another_run_is_named(runs: list[Path], name: str, command: tuple[str, ...]) -> None:
    mine, theirs = runs
    shutil.copy(theirs / name, mine / name)
    asked = [word.format(run=mine) for word in command]
    if command is RUN:
        both = [call(*RUN, f"--seed={each}") for each in (1, 2)]
        [answer] = [each for each in both if each.code]
    else:
        answer = call(*asked)
    refused(answer, f"{mine / name}:", "expected")


def test_runs_with_anothers_result_are_left_out_of_lists(runs: list[Path]) -> None:
    mine, theirs = runs
    shutil.copy(theirs / "result.json", mine / "result.json")
    for command in (("list", "runs"), ("results", "export")):
        answer = call(*command)
        assert answer.code == 0
        assert answer.out.count(theirs.name) >= 1
        assert mine.name not in answer.out
        assert f"{mine / 'result.json'}: run_id: expected the name of its folder, got {theirs.name}" in answer.err

"""`completion`: the script in a real bash, and tables that fit a terminal."""

import shutil
import subprocess
from pathlib import Path

import pytest
from helpers import call

from mmrec_lmm.cli.text import fitted, table

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")


@pytest.fixture(scope="module")
def script() -> str:
    return call("completion", "bash").out


def completed(script: str, *words: str) -> list[str]:
    """What bash offers for the last of the words, of which the first is the command."""
    asked = " ".join(f"'{word}'" for word in words)
    ask = f"COMP_WORDS=({asked})\nCOMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))\n_mmrec_lmm\n"
    code = f"{script}\n{ask}printf '%s\\n' \"${{COMPREPLY[@]}}\""
    done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["mmrec-lmm", "stu"], ["study"]),
        (["mmrec-lmm", "study", "ru"], ["run"]),
        (["mmrec-lmm", "run", "-m", "Light"], ["LightGCN"]),
        (["mmrec-lmm", "-m", "Light"], ["LightGCN"]),
        (["mmrec-lmm", "run", "-m", "BPR", "--samp"], ["--sampler"]),
        (["mmrec-lmm", "run", "--sampler", "pop"], ["popularity"]),
        (["mmrec-lmm", "run", "--sampler", "=", "pop"], ["popularity"]),
        (["mmrec-lmm", "run", "--split", "=", "glob"], ["global-time"]),
        (["mmrec-lmm", "run", "--control", ""], ["shuffled", "random", "constant", "none"]),
        (["mmrec-lmm", "run", "--out", "study"], []),  # a folder: bash offers files
        (["mmrec-lmm", "list", "sam"], ["samplers"]),
        (["mmrec-lmm", "plugin", "new", "sam"], ["sampler"]),
        (["mmrec-lmm", "info", "Nov"], ["Novelty"]),
        (["mmrec-lmm", "data", "import", "--inter"], ["--interactions"]),
    ],
    ids=" ".join,
)
def test_bash_completes(script: str, words: list[str], expected: list[str]) -> None:
    assert sorted(completed(script, *words)) == sorted(expected)


def test_zsh_reads_the_script_of_bash(script: str) -> None:
    assert call("completion", "zsh").out == f"autoload -U +X bashcompinit && bashcompinit\n{script}"


ROWS = [
    {"name": "a", "count": 12345, "summary": "words " * 30, "plugin": "mmrec-lmm:models"},
    {"name": "a very long name that stays", "count": 1, "summary": "few", "plugin": None},
]


@pytest.mark.parametrize("width", [70, 80, 120, 240])
def test_a_table_fits_the_terminal_and_keeps_names_and_numbers(width: int) -> None:
    lines = table(fitted(ROWS, width)).splitlines()
    assert max(map(len, lines)) <= width
    assert lines[3].startswith("a very long name that stays")
    assert "12345" in lines[2]
    assert (" ..." in lines[2]) == (width < 240)
    assert fitted(ROWS, None) == ROWS


def test_a_table_that_cannot_fit_keeps_a_little_of_each_text() -> None:
    assert fitted(ROWS, 10)[0]["summary"] == "words wo ..."
    assert fitted([], 80) == []


def test_a_list_is_whole_where_it_is_piped() -> None:
    assert " ..." not in call("list", "models").out


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["--lr=0.1"], "command line: unknown key lr; did you mean learning_rate?"),
        (["--patience=3"], "command line: unknown key patience; did you mean stopping_step?"),
        (["--dim=3"], "command line: unknown key dim; did you mean embedding_size?"),
        (["--lr", "0.1"], "or a configuration key as --learning_rate=VALUE, got --lr"),
    ],
)
def test_a_key_that_has_another_name_elsewhere_is_suggested(typed: list[str], message: str) -> None:
    assert message in call("config", "show", "-m", "BPR", "-d", "demo", *typed).err


def test_config_show_names_shipped_files_briefly(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    shown = call("config", "show", "-m", "BPR", "-d", "demo").out
    assert " mmrec-lmm:configs/model/bpr.yaml:" in shown
    assert "/configs/model" not in shown.replace("mmrec-lmm:configs/model", "")

"""From clicks.csv, items.csv and a folder of photos to recommendations by the shop's own ids, as docs/data.md says."""

import csv
import random
import re
import shlex
from pathlib import Path

import pandas as pd
import pytest
from helpers import Answer, call
from PIL import Image

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "data.md").read_text(encoding="utf-8")
SECTION = PAGE.partition("## From clicks to recommendations\n")[2].partition("\n## ")[0]
COMMANDS = re.findall(r"^ +mmrec-lmm (.*)$", SECTION, re.MULTILINE)

COLORS = ("red", "blue", "green", "gold")
THINGS = ("cup", "mug", "jug", "pot", "vase", "bowl", "dish", "tray", "lamp", "cushion")


def write_shop(folder: Path) -> dict[str, str]:
    """The files of a shop whose customers click on items of one color. Returns each id's color."""
    draw = random.Random(0)
    titles = {f"SKU-{color[:2]}{number}": f"{color} {thing}" for color in COLORS for number, thing in enumerate(THINGS)}
    colors = {sku: title.split()[0] for sku, title in titles.items()}
    with (folder / "items.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [
                ("sku", "title", "description"),
                *((sku, title, f'A {title}, "handmade"') for sku, title in titles.items()),
            ]
        )
    (folder / "photos").mkdir()
    for sku, color in colors.items():
        Image.new("RGB", (80, 60), color).save(folder / "photos" / f"{sku}.jpg")
    clicks = []
    for customer in range(120):
        mine, own = f"U{customer:04d}", COLORS[customer % 4]
        colors[mine] = own
        clicks += [(mine, sku) for sku in draw.sample([sku for sku in titles if colors[sku] == own], 5)]
    draw.shuffle(clicks)
    with (folder / "clicks.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("customer", "sku"), *clicks])
    return colors


def typed(command: str) -> Answer:
    """A command as the page shows it, with a small encoder and little training."""
    small = " --epochs=30 --train_batch_size=128 --topk=[5,20]" if command.startswith("run ") else ""
    return call(*shlex.split(command.replace("--encoder clip", "--encoder clip:tiny") + small))


@pytest.mark.slow
def test_five_commands_lead_from_a_shops_files_to_recommendations_by_its_ids(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    colors = write_shop(tmp_path)
    assert len(COMMANDS) == 5
    answers = []
    for command in COMMANDS:
        answers.append(typed(command))
        assert answers[-1].code == 0, f"{command}: {answers[-1].err}"
    imported, _, ran, shown, _ = (answer.out for answer in answers)
    following = re.findall(r"(?:next: |^ +)mmrec-lmm (.*)$", imported, re.MULTILINE)
    assert [line.split()[0] for line in following] == ["data", "run"]
    for line in following:
        assert typed(line).code == 0, line
    (last,) = re.findall(r"^next: mmrec-lmm (.*)$", ran, re.MULTILINE)
    assert typed(last.replace("ID,ID,...", "U0003")).code == 0
    assert {line.split()[0] for line in shown.splitlines()[2:]} == {"U0001", "U0002"}

    table = pd.read_csv("recommendations.csv")
    assert sorted(table["user"].unique()) == sorted(id for id in colors if id.startswith("U"))
    first = table[table["rank"] <= 3]
    hits = (first["item"].map(colors) == first["user"].map(colors)).mean()
    assert hits > 0.8, "a customer gets items of the color that they click on; by chance .14"
    assert (table["title"].str.split().str[0] == table["item"].map(colors)).all()

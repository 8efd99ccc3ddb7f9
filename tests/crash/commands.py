"""The commands that are killed, and the shop that they work on: 12 users, 16 items with title and picture."""

import zipfile
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

SMALL = (
    "--epochs=2", "--stopping_step=2", "--embedding_size=4", "--train_batch_size=32", "--topk=[5]",
    "--valid_metric=Recall@5", "--threads=1", "--checkpoint_seconds=0",
)  # fmt: skip
RUN = ("run", "-m", "VBPR", "-d", "shop", *SMALL)
PLAIN = ("run", "-m", "LightGCN", "-d", "shop", *SMALL)  # without features
SHORT = ("--ft.epochs=2", "--ft.held_out=0.3", "--ft.batch_size=4")
IMPORT = ("data", "import", "shop", "--items", "items.csv", "--images", "photos", "--interactions")
OLD, NEW = (*IMPORT, "clicks.csv"), (*IMPORT, "more.csv", "--force")
STUDY = """\
models: VBPR
datasets: shop
metrics: Recall@5
settings:
  {epochs: 2, stopping_step: 2, embedding_size: 4, train_batch_size: 32, topk: [5], valid_metric: Recall@5, threads: 1,
   checkpoint_seconds: 0}
"""
STUDIES = {
    "study.yaml": f"{STUDY}encoders: [basic, 'clip:tiny']\nseeds: [1, 2]\ncontrols: [none]\n",
    "grid.yaml": f"{STUDY}encoders: basic\ngrids: {{VBPR: {{reg_weight: [0.1, 0.01, 0.001, 1]}}}}\n",
}


@dataclass(frozen=True)
class Command:
    """A command, what is run before it, and how it is given again after a kill: unless said, the same."""

    name: str
    words: tuple[str, ...]
    before: tuple[tuple[str, ...], ...] = ()
    again: tuple[str, ...] = ()


COMMANDS = {
    command.name: command
    for command in (
        Command("run", (*RUN, "--encoder=basic"), again=(*RUN, "--encoder=basic", "--resume")),
        Command("run --force", (*PLAIN, "--force")),
        Command("grid", (*PLAIN, "--reg_weight=[0.1,0.01]"), again=(*PLAIN, "--reg_weight=[0.1,0.01]", "--resume")),
        Command(
            "ft",
            (*RUN, "--encoder=clip:tiny", "--paradigm=ft", *SHORT),
            again=(*RUN, "--encoder=clip:tiny", "--paradigm=ft", *SHORT, "--resume"),
        ),
        Command(
            "ete",
            (*RUN, "--encoder=clip:tiny", "--paradigm=ete"),
            again=(*RUN, "--encoder=clip:tiny", "--paradigm=ete", "--resume"),
        ),
        Command("encode", ("encode", "-d", "shop", "--encoder=clip:tiny", "--export", "features")),
        Command("study", ("study", "run", "study.yaml")),
        Command("demo", ("demo", "--epochs=1", "--embedding_size=4", "--threads=1")),
        Command("data demo", ("data", "demo"), again=("data", "demo", "--force")),
        Command(
            "import",
            ("data", "import", "second", *OLD[3:]),
            again=("data", "import", "second", *OLD[3:], "--force"),
        ),
        Command("import --force", NEW),
        Command("images", ("data", "images", "shop", "--from", "photos.zip", "--again")),
        Command("export", ("results", "export", "--format=csv", "-o", "runs.csv")),
        Command("index", ("results", "index")),
        Command("recommend", ("recommend", "LightGCN-shop", "--users=all", "--format=csv", "-o", "best.csv")),
        Command("replay", ("replay", "LightGCN-shop")),
        Command("check", ("data", "check", "-d", "shop", "--format=html", "-o", "shop.html")),
        Command("page", ("study", "page", "study.yaml"), before=(("study", "run", "study.yaml"),)),
        Command(
            "table",
            ("study", "table", "study.yaml", "--format=latex", "-o", "table.tex", "--plots", "plots"),
            before=(("study", "run", "study.yaml"),),
        ),
    )
}

#: Under `--jobs 2`, killed with all their processes at random moments, and given again.
TOGETHER = tuple(
    Command(f"{name} --jobs 2", ("study", "run", f"{name}.yaml", "--jobs=2"), again=("study", "run", f"{name}.yaml"))
    for name in ("study", "grid")
)

#: What every workspace begins with: a data set, and a finished run that no later command may lose.
EARLIER: tuple[tuple[str, ...], ...] = (OLD, PLAIN)

#: What must work right after a kill.
READERS = (("list", "runs"), ("list", "datasets"), ("results", "export"))


def write_shop(folder: Path) -> None:
    """Write the tables, pictures and study files that the commands read. Even users like even items, odd ones odd."""
    (folder / "photos").mkdir(parents=True)
    colors = ["red", "blue"] * 8
    for item, color in enumerate(colors):
        Image.new("RGB", (8 + item, 8), color).save(folder / "photos" / f"i{item}.png")
    with zipfile.ZipFile(folder / "photos.zip", "w") as archive:
        for path in sorted((folder / "photos").iterdir()):
            archive.write(path, path.name)
    items = "".join(f"i{item},{color} thing {item}\n" for item, color in enumerate(colors))
    (folder / "items.csv").write_text(f"item,title\n{items}")
    clicks = [f"u{user},i{item}\n" for user in range(12) for item in range(user % 2, 16, 2)]
    (folder / "clicks.csv").write_text("user,item\n" + "".join(clicks))
    (folder / "more.csv").write_text("user,item\n" + "".join([*clicks, "u0,i1\n", "u1,i0\n"]))
    for name, text in STUDIES.items():
        (folder / name).write_text(text)

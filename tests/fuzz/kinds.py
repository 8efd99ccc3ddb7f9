"""The kinds of files that the product reads, each with the commands that read it."""

from collections.abc import Mapping
from dataclasses import dataclass

from .workspace import ENCODED, RUN, SHARDED, STOPPED, TUNED

ANOTHER = f"{RUN} --seed=8"
LIST = ("list runs", "list runs --json", "list datasets")
LOOK = (
    "recommend {run} --users U00,U01", "recommend {run} --users all --format json -k 3",
    "recommend {run} --users @users.txt --internal-ids", "replay {run}", "slices {run}", "slices {run} --json",
    "results query 'select * from runs'", "results query 'select run, value from metrics' --json", "results index",
    "results export --format csv", "results export --where model=VBPR",
)  # fmt: skip
STUDY = (
    "study status mine.yaml", "study status mine.yaml --json", "study table mine.yaml", "study run mine.yaml",
    "study page mine.yaml -o page.html", "study run mine.yaml --dry-run --no-probe",
    "study table mine.yaml --layout slices",
)  # fmt: skip
CHECK = (
    "data check -d toy", "data check -d toy --format json", "data check -d toy --format html -o page.html",
    "data check -d toy --no-decode", "data table -d toy --encoders basic", "list datasets",
)  # fmt: skip
SPLITS = tuple(
    f"{ANOTHER} --split {rule}" for rule in ("ratio", "leave-one-out", "user-time", "global-time", "cold-item")
)
IMPORT = (
    "data import new --interactions raw/shop/clicks.csv --items raw/shop/items.csv --images raw/shop/photos",
    "data import new --interactions raw/shop/clicks.csv --drop-unknown --items raw/shop/items.csv --core 2",
    "data import new --interactions raw/shop/clicks.csv --split leave-one-out --min-rating 2",
)
CONFIGURED = (
    "config show -m VBPR -d toy --configs own", f"{ANOTHER} --configs own", f"{ENCODED} --seed=8 --configs own",
    "config show -m VBPR -d toy --configs own --preset mine", f"{ANOTHER} --configs own --preset mine",
    "run -m VBPR -d toy --configs own --grid mine", "config show -m VBPR -d toy --configs own --grid mine",
    "study status mine --configs own", "data check -d toy --configs own", "encode -d toy --encoder basic --configs own",
)  # fmt: skip


@dataclass(frozen=True)
class Kind:
    """Files by patterns, their format (of damage.FORMATS) and the commands that read them, one of which is run.

    `{file}` is the file, `{folder}` its folder, `{run}` that of its run, or else of any. `may_change` are existing
    files that these commands may replace. `after` is a command that is run before the damage.
    `may_wait`: a pipe is as good as a file, and waited for until SIGTERM.
    """

    files: tuple[str, ...]
    format: str
    commands: tuple[str, ...]
    may_change: tuple[str, ...] = ()
    after: str = ""
    may_wait: bool = False


def _build(name: str) -> str:
    return f"data build new --from raw/{name}"


def _weights(name: str) -> tuple[str, ...]:
    encode = f"encode -d toy --encoder clip:tiny --weights weights/{name}"
    return (
        encode,
        f"{encode} --modalities text",
        f"{RUN} --encoder clip:tiny --weights weights/{name} --modalities image",
    )


OWN_RUN = ("{run}/*",)
IN_HOME = ("home/*",)

KINDS: Mapping[str, Kind] = {
    "interactions": Kind(("data/toy/toy.inter",), "table", (ANOTHER, RUN, *SPLITS, *CHECK, *LOOK[:6], *STUDY[3:4])),
    "interactions without catalog": Kind(
        ("data/plain/plain.inter",), "table",
        ("run -m VBPR -d plain --epochs=1", "recommend VBPR-plain --users U01", "data check -d plain", "list datasets"),
    ),
    "catalog": Kind(
        ("data/toy/items.tsv",), "table",
        (ANOTHER, f"{ENCODED} --seed=8", "encode -d toy --encoder basic", TUNED, *CHECK, *LOOK[:6],
         "data images toy --from raw/shop/photos"),
        may_change=("data/toy/images.tsv", "data/toy/items.tsv", "data/toy/images/*"),
    ),
    "features": Kind(
        ("data/toy/*_feat.npy",), "npy",
        (ANOTHER, RUN, *CHECK, "run -m VBPR -d toy --encoder precomputed --epochs=1", "replay {run}", *STUDY[3:4],
         f"{ANOTHER} --features image=data/toy/image_feat.npy --features text=data/toy/text_feat.npy",
         f"{ANOTHER} --control shuffled --missing=mean --normalize=standard", "run -m LATTICE -d toy --epochs=1"),
    ),
    "missing images": Kind(("data/toy/missed_img_itemIDs.csv",), "table", (ANOTHER, *CHECK, *LOOK[4:6])),
    "mappings": Kind(
        ("data/plain/*_id_mapping.csv", "data/toy/*_id_mapping.csv"), "table",
        ("recommend VBPR-plain --users U01,U02", "recommend VBPR-plain --users all --format csv", "data check -d plain",
         "recommend VBPR-plain --users 1 --internal-ids", "run -m BPR -d plain --epochs=1",
         "recommend {run} --users U01"),
    ),
    "images": Kind(
        ("data/toy/images/*", "raw/shop/photos/*"), "image",
        ("encode -d toy --encoder basic", f"{ENCODED} --seed=8", "encode -d toy --encoder vlmo:tiny", TUNED, *CHECK[:3],
         "data images toy --from raw/shop/photos", IMPORT[0]),
        may_change=("data/toy/images.tsv", "data/toy/items.tsv", "data/toy/images/*"),
    ),
    "image lists": Kind(
        ("data/shop/images.tsv",), "table",
        ("data images shop --from raw/shop/photos", "data images shop --from raw/shop/photos --again",
        "data check -d shop"),
        may_change=("data/shop/*",),
    ),
    "image archives": Kind(
        ("raw/shop/photos.zip",), "zip",
        ("data images shop --from raw/shop/photos.zip", f"{IMPORT[0]}.zip"), may_change=("data/shop/*",),
    ),
    "image tar archives": Kind(
        ("raw/shop/photos.tar.gz",), "bytes",
        ("data images shop --from raw/shop/photos.tar.gz", f"{IMPORT[0]}.tar.gz"), may_change=("data/shop/*",),
    ),
    "addresses": Kind(
        ("raw/shop/urls.tsv",), "table", ("data images shop --urls raw/shop/urls.tsv --tries 1 --timeout 1",),
        may_change=("data/shop/*",),
    ),
    "configuration": Kind(("own/*.yaml",), "yaml", CONFIGURED),
    "studies": Kind(("mine.yaml",), "yaml", STUDY, may_change=("runs/study/*",)),
    "bundles": Kind(
        ("mine.zip",), "zip", ("verify mine.zip", "verify mine.zip --tier replayed", "board add board mine.zip"),
        may_change=("board/*",),
    ),
    "boards": Kind(
        ("board/*.yaml", "board/*/*.json", "board/*/*/*.json", "board/*/*/*.zip"), "bytes",
        ("board check board", "board build board", "best -d toy -m VBPR --board board"), may_change=("board/*",),
    ),
    "model files of MMRec": Kind(
        ("checkout/src/models/lightgcn.py", "checkout/src/configs/model/*.yaml"), "text",
        ("run -m checkout/src/models/lightgcn.py -d toy --epochs=1", "import-mmrec checkout --to taken"),
    ),
    "config.json": Kind(("runs/VBPR-toy-*/config.json",), "json", (*LIST, *LOOK, *STUDY, RUN, TUNED), OWN_RUN),
    "result.json": Kind(("runs/*/result.json",), "json", (*LIST, *LOOK, *STUDY, RUN), OWN_RUN),
    "history": Kind(
        ("runs/*-toy-*/history.jsonl",), "json",
        (*LIST, *LOOK, *STUDY, f"{RUN} --plots plots", "study table mine.yaml --plots plots"), OWN_RUN,
    ),
    "values of users": Kind(("runs/VBPR-toy-*/per_user.safetensors",), "safetensors", (*LOOK[3:], *STUDY), OWN_RUN),
    "weights of runs": Kind(("runs/VBPR-toy-*/best.safetensors",), "safetensors", (*LOOK[:6], *STUDY[:4], RUN),
    OWN_RUN),
    "best items": Kind(("runs/VBPR-toy-*/topk.tsv",), "table", (*LOOK, *STUDY, RUN), OWN_RUN),
    "checkpoints": Kind(
        ("runs/*/checkpoint/*.safetensors",), "safetensors",
        (f"{STOPPED} --resume", STOPPED, f"{STOPPED} --force", "list runs"), OWN_RUN,
    ),
    "index": Kind(("runs/index.sqlite",), "database", (*LIST[:2], *LOOK[6:], *STUDY[:3])),
    "study records": Kind(("runs/study/*/*.json",), "json", STUDY),
    "leaderboards": Kind(
        ("runs/study/mine/leaderboard.json",), "json",
        ("table {file}", "table {file} --layout table4 --format latex", "table {file} --layout table3 --format html",
         "table {file} --format csv", "table {file} --layout slices", "leaderboard {file} -o page.html", STUDY[2]),
    ),
    "feature tables": Kind(
        ("home/features/*.safetensors",), "safetensors",
        (ENCODED, f"{ENCODED} --seed=8", "encode -d toy --encoder basic --export out", f"{TUNED} --seed=8",
         "recommend {run} --users U00", *LOOK[3:5], SHARDED), IN_HOME,
    ),
    "shards": Kind(("home/features/*.parts/*",), "safetensors", (SHARDED,), IN_HOME),
    "prepared items": Kind(
        ("home/prepared/*.npy", "home/prepared/*.json"), "npy",
        (f"{TUNED} --ft.learning_rate=0.002", "encode -d toy --encoder vlmo:tiny --paradigm ft --ft.epochs=2"), IN_HOME,
    ),
    "tuned encoders": Kind(
        ("home/tuned/*.safetensors",), "safetensors",
        (f"{TUNED} --seed=8", "encode -d toy --encoder vlmo:tiny --paradigm ft --ft.epochs=1 --modalities text",
         f"{TUNED} --seed=8 --modalities image"), IN_HOME,
    ),
    "hash memos": Kind(
        ("home/file-hashes/*",), "text", (RUN, ENCODED, "encode -d toy --encoder basic", "data check -d toy",
        *LOOK[3:4]),
        IN_HOME, after=ENCODED,
    ),
    "seconds": Kind(
        ("home/seconds/*",), "text",
        ("study run mine.yaml --dry-run", "encode -d toy --encoder basic", ENCODED, f"{ENCODED} --force",
        f"{TUNED} --seed=8"),
        (*IN_HOME, "runs/VBPR-toy-*"),
    ),
    "weights, safetensors": Kind(("weights/clip.safetensors",), "safetensors", _weights("clip.safetensors")),
    "weights, torch": Kind(("weights/clip.pt",), "zip", _weights("clip.pt")),
    "weights, old torch": Kind(("weights/legacy.pt",), "bytes", _weights("legacy.pt")),
    "weights, TorchScript": Kind(("weights/script.pt",), "zip", _weights("script.pt")),
    "amazon 2014": Kind(("raw/amazon_2014/*.csv", "raw/amazon_2014/*.b"), "table", (_build("amazon_2014"),)),
    "amazon 2014 metadata": Kind(("raw/amazon_2014/*.gz",), "gzip", (_build("amazon_2014"),)),
    "amazon 2018": Kind(("raw/amazon_2018/*",), "json", (_build("amazon_2018"), f"{_build('amazon_2018')} --strict")),
    "amazon 2023": Kind(("raw/amazon_2023/*.gz",), "gzip", (_build("amazon_2023"),)),
    "amazon 2023 metadata": Kind(("raw/amazon_2023/*.jsonl",), "json", (_build("amazon_2023"),)),
    "movielens": Kind(("raw/movielens_*",), "table", ("data build new --from {folder}",)),
    "recbole": Kind(("raw/recbole/*",), "table", (_build("recbole"),)),
    "mmrec": Kind(("raw/mmrec/*",), "table", (_build("mmrec"),)),
    "published data": Kind(
        ("raw/baby/*", "data/baby/manifest.json"), "bytes",
        ("data get baby --from raw/baby --core 0 --no-images --accept-terms --force",
        "data get baby --from raw/baby --core 0 --no-images"),
        may_change=("data/baby", "data/baby/*", "home/*"),
    ),
    "manifests": Kind(
        ("data/*/manifest.json",), "json",
        ("data get baby --from raw/baby --core 0 --no-images --accept-terms", "data check -d shop", "list datasets",
         f"{IMPORT[0].replace(' new ', ' shop ')} --force"),
        may_change=("data/baby", "data/baby/*", "data/shop", "data/shop/*", "home/*"),
    ),
    "clicks": Kind(("raw/shop/clicks.csv",), "table", (*IMPORT, f"{IMPORT[2]} --quotes multiline")),
    "clicks, JSON": Kind(("raw/shop/clicks.jsonl",), "json", ("data import new --interactions raw/shop/clicks.jsonl",)),
    "items": Kind(("raw/shop/items.csv",), "table", (*IMPORT[:2], f"{IMPORT[0]} --quotes none")),
    "user lists": Kind(
        ("users.txt",), "text",
        ("recommend {run} --users @users.txt", "recommend {run} --users @users.txt --internal-ids"), may_wait=True,
    ),
}  # fmt: skip

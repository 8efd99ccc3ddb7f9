"""A folder with one of each thing that commands read, small enough that a command takes milliseconds."""

import gzip
import json
import os
import shutil
import stat
import warnings
import zipfile
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path

from . import judge

CHECKOUT = Path(__file__).parents[1] / "mmrec_checkout"
RUN = "run -m VBPR -d toy --epochs=2 --embedding_size=4"
ENCODED = f"{RUN} --encoder basic"
TUNED = f"{RUN} --encoder vlmo:tiny --paradigm ft --ft.epochs=1"
STOPPED = f"{RUN} --epochs=6 --checkpoint_seconds=0 --seed=77"
SHARDED = "encode -d toy --encoder basic --encoder.text_dim=128 --modalities text"

STUDY = """title: Small
models: [VBPR, BPR]
datasets: [toy]
seeds: [1, 2, 3]
settings: {epochs: 1, embedding_size: 4}
grids:
  VBPR: {reg_weight: [0.1, 0.01]}
for:
  - {model: BPR, set: {learning_rate: 0.01}}
controls: [none]
controls_at: winner
baseline: {model: BPR}
"""
CONFIGS = {
    "overall.yaml": "seed: 7\nepochs: 1\ntopk: [10, 20]\nmetrics: [Recall, NDCG]\nlearning_rate_scheduler: [0.96, 50]\n"
    "clip_grad_norm: {max_norm: 5, norm_type: 2}\nUSER_ID_FIELD: userID\n",
    "dataset/toy.yaml": "inter_file_name: toy.inter\nUSER_ID_FIELD: userID\nITEM_ID_FIELD: itemID\n"
    'field_separator: "\\t"\nvision_feature_file: image_feat.npy\ntext_fields: [title, brand]\n',
    "model/VBPR.yaml": "embedding_size: 4\nreg_weight: 0.1\n",
    "preset/mine.yaml": "learning_rate: 0.01\nembedding_size: 4\nreg_weight: 0.01\n",
    "grid/mine/VBPR.yaml": "reg_weight: [0.1, 0.01]\nlearning_rate: [0.01]\nhyper_parameters: [reg_weight]\n",
    "encoder/basic.yaml": "image_size: 8\ntext_dim: 64\n",
    "study/mine.yaml": STUDY,
}

#: Existing files that any command may replace.
RENEWED = ("home/seconds/*", "home/file-hashes/*", "runs/index.sqlite*", "runs/study/*", "runs/log/*", "*.lock")

State = tuple[int, ...]  # of a path: kind, inode, size, times of change


class Workspace:
    """The folder, and a copy of it from which it is restored."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._pristine = folder / "work", folder / "pristine"
        if not self._pristine.is_dir():
            shutil.rmtree(self.folder, ignore_errors=True)
            make(self.folder)
            shutil.copytree(self.folder, self._pristine, symlinks=True)
        else:
            shutil.rmtree(self.folder, ignore_errors=True)
            shutil.copytree(self._pristine, self.folder, symlinks=True)
        self._known = self.scan()

    def scan(self) -> dict[str, State]:
        """The state of each file and folder, by its path in the workspace."""
        return dict(_scan(self.folder, ""))

    def files(self, *patterns: str) -> list[str]:
        """The files of the workspace that match one of `patterns`."""
        return sorted(
            name
            for name, state in self.scan().items()
            if stat.S_ISREG(state[0]) and any(fnmatchcase(name, pattern) for pattern in patterns)
        )

    def restore(self) -> None:
        """Make the workspace as it was made."""
        now = self.scan()
        changed = [name for name in self._known if now.get(name) != self._known[name]]
        for name in sorted((*(now.keys() - self._known.keys()), *changed), reverse=True):
            _remove(self.folder / name)
        for name in sorted(changed):
            path, source = self.folder / name, self._pristine / name
            if source.is_dir() and not source.is_symlink():
                path.mkdir(exist_ok=True)
            else:
                shutil.copy2(source, path, follow_symlinks=False)
        if changed:
            self._known = self.scan()


def wrongs(before: dict[str, State], after: dict[str, State], *, may_change: tuple[str, ...] = ()) -> list[str]:
    """What a command did to files between two scans that it shouldn't have: "changed PATH", "left PATH"."""
    allowed = (*RENEWED, *may_change)
    changed = [
        f"changed {name}"
        for name, state in before.items()
        if after.get(name) != state and not any(fnmatchcase(name, pattern) for pattern in allowed)
    ]
    return changed + [f"left {name}" for name in after.keys() - before.keys() if _is_leftover(name)]


def _is_leftover(path: str) -> bool:
    """True for what is in a folder of temporaries, half-downloaded, or hidden, unless it is a lock."""
    name = path.rpartition("/")[2]
    hidden = name.startswith(".") and not name.endswith(".lock")
    return hidden or path.startswith("tmp/") or name.endswith((".tmp", ".part"))


def _scan(folder: Path, prefix: str) -> Iterator[tuple[str, State]]:
    for entry in os.scandir(folder):
        found, name = entry.stat(follow_symlinks=False), f"{prefix}{entry.name}"
        if entry.is_dir(follow_symlinks=False):
            yield name, (stat.S_IFMT(found.st_mode), found.st_ino)
            yield from _scan(Path(entry.path), f"{name}/")
        else:
            kind = stat.S_IFMT(found.st_mode)
            yield name, (kind, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


# Making it


def make(folder: Path) -> None:
    """Make the workspace."""
    from conftest import write_toy

    for name in ("tmp", "data", "raw", "weights"):
        (folder / name).mkdir(parents=True)
    write_toy(folder / "data/toy")
    _write_extras(folder / "data/toy")
    _write_mmrec(folder / "data/plain", folder / "data/toy")
    for name, text in CONFIGS.items():
        (folder / "own" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "own" / name).write_text(text)
    (folder / "mine.yaml").write_text(STUDY)
    (folder / "users.txt").write_text("0\n3\n5\n")
    _write_raw(folder / "raw")
    with warnings.catch_warnings(action="ignore"):  # TorchScript is deprecated; archives of it stay in the world
        _write_weights(folder / "weights")

    do = partial(_do, folder)
    do("data import shop --interactions raw/shop/clicks.csv --items raw/shop/items.csv --images raw/shop/photos")
    do("data images shop --from raw/shop/photos")
    do("data get baby --from raw/baby --core 0 --no-images --accept-terms")
    for command in (RUN, ENCODED, TUNED, "run -m VBPR -d plain --epochs=1 --embedding_size=4", "study run mine.yaml"):
        do(command)
    do("study table mine.yaml")
    do("submit mine.yaml -o mine.zip")
    do("board new board -d toy --name mine")
    do("board add board mine.zip")
    do("board build board")
    shutil.copytree(CHECKOUT, folder / "checkout")
    do(STOPPED, code=130, prepare=_stop_after_two_checkpoints)
    do(SHARDED, code=130, prepare=_stop_before_assembling)
    do("results index")


def _do(folder: Path, command: str, *, code: int = 0, prepare: Callable[[], object] = lambda: None) -> None:
    outcome = judge.run(command.split(), folder, seconds=120, prepare=prepare)
    if outcome.code != code:
        raise RuntimeError(f"{command}: expected exit code {code}, got {outcome.code}: {outcome.said}")


def _stop_after_two_checkpoints() -> None:
    from mmrec_lmm.training import resume

    save, done = resume.save_checkpoint, []

    def saved(*arguments: object) -> None:
        save(*arguments)  # type: ignore[arg-type]
        done.append(arguments)
        if len(done) == 2:
            raise KeyboardInterrupt

    resume.save_checkpoint = saved  # type: ignore[assignment]


def _stop_before_assembling() -> None:
    from mmrec_lmm.features import encoding

    def stop(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    encoding._assemble = stop


def _write_extras(folder: Path) -> None:
    """What MMRec's folders have and the toy data set lacks: mappings, a list of items without image, times."""
    (folder / "u_id_mapping.csv").write_text("userID\tuser_id\n" + "".join(f"{n}\tU{n:02d}\n" for n in range(12)))
    (folder / "i_id_mapping.csv").write_text("itemID\tasin\n" + "".join(f"{n}\tT{n:02d}\n" for n in range(16)))
    (folder / "missed_img_itemIDs.csv").write_text("15\n")
    header, *rows = (folder / "toy.inter").read_text().splitlines()
    timed = [f"{header}\trating\ttimestamp", *(f"{row}\t{n % 5 + 1}.0\t{10**9 + n}" for n, row in enumerate(rows))]
    (folder / "toy.inter").write_text("\n".join(timed) + "\n")


def _write_mmrec(folder: Path, toy: Path) -> None:
    """A data set without a catalog, whose ids stand in mappings alone."""
    folder.mkdir()
    for name in ("u_id_mapping.csv", "i_id_mapping.csv", "image_feat.npy"):
        shutil.copy(toy / name, folder / name)
    shutil.copy(toy / "toy.inter", folder / "plain.inter")


def _write_raw(folder: Path) -> None:
    """Public data sets in their layouts, and a shop's tables and images."""
    from test_sources import MAKERS

    for name, (_, write) in MAKERS.items():
        (folder / name).mkdir()
        write(folder / name)
    (folder / "baby").mkdir()
    rows = "".join(f"A{user:012d},B{item:09d},5.0,{10**9 + item}\n" for user in range(6) for item in range(6))
    (folder / "baby/ratings_Baby.csv").write_text(rows)
    items = "".join(f"{{'asin': 'B{item:09d}', 'title': 'Bottle {item}', 'brand': 'Acme'}}\n" for item in range(6))
    (folder / "baby/meta_Baby.json.gz").write_bytes(gzip.compress(items.encode()))

    shop, toy = folder / "shop", folder.parent / "data/toy"
    shutil.copytree(toy / "images", shop / "photos")
    clicks = "".join(f"u{user},i{item},{item % 5 + 1},{10**9 + item}\n" for user in range(8) for item in range(8))
    (shop / "clicks.csv").write_text(f"user_id,item_id,rating,timestamp\n{clicks}")
    catalog = "".join(f'i{item},"Thing, {item}",Acme,{item}.png\n' for item in range(8))
    (shop / "items.csv").write_text(f"item_id,title,brand,image\n{catalog}")
    (shop / "urls.tsv").write_text("item\turl\n" + "".join(f"i{n}\thttp://127.0.0.1:9/{n}.png\n" for n in range(8)))
    with zipfile.ZipFile(shop / "photos.zip", "w") as archive:
        for item in range(8):
            archive.write(shop / f"photos/{item}.png", f"photos/i{item}.png")
    shutil.make_archive(str(shop / "photos"), "gztar", shop, "photos")
    (shop / "clicks.jsonl").write_text("".join(json.dumps({"user": n % 4, "item": n // 4}) + "\n" for n in range(32)))


def _write_weights(folder: Path) -> None:
    """Checkpoints of the tiny CLIP and VLMo, in each format."""
    import torch
    from safetensors.torch import save_file
    from test_clip import TINY, archive, golden_state

    state = golden_state(TINY)
    save_file(state, folder / "clip.safetensors")
    torch.save({"state_dict": state, "epoch": 3}, folder / "clip.pt")
    torch.save(state, folder / "legacy.pt", _use_new_zipfile_serialization=False)
    archive(state, folder / "script.pt")

"""The conformance checks of encoders, paradigms, data sets, splits and observers. Each takes the registry, the name of
what is checked, and how messages call it.

Shapes: B batch.
"""

import random
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..checking.check import check
from ..config.resolve import Request, resolve_request
from ..config.settings import Settings
from ..data.items import pad_and_stack
from ..data.opening import make_dataset, open_dataset
from ..data.splitting import Rule
from ..errors import NotApplicable, PluginError, WeightsMissing
from ..plugin.contracts import ItemEncoder, Paradigm
from ..plugin.registry import Registry
from ..running.recommend import recommend
from ..running.runner import run
from ..types import SPLITS, EncoderName, EpochReport, RawItem, RunResult, RunSpec
from . import check_encoder, checkerboard, checkerboard_features, checks_of_metrics, checks_of_samplers, days
from .conformance import OBSERVERS, Fault

_ITEMS = (
    RawItem(0, Image.new("RGB", (40, 30), "red"), "a red box"),
    RawItem(1, Image.new("RGB", (8, 90), "blue"), "a tall blue tower with a very long name indeed"),
    RawItem(2, None, ""),
    RawItem(3, Image.new("RGB", (64, 64), "green"), "grass"),
)


def _encoder(registry: Registry, name: str) -> tuple[ItemEncoder, Any, tuple[str, ...]]:
    """The encoder with its configuration and modalities; NotApplicable where its weights aren't on this machine."""
    spec = registry.encoders.get(name)
    if spec.cls is None:
        raise NotApplicable("it has no class: its features come from files")
    make = registry.encoders.load(name, "config")
    config = make(**{"variant": "tiny"} if "tiny" in spec.variants else {})
    wanted = spec.encodes(config)
    try:
        for modality in wanted:
            registry.encoders.load(name, "weights_id")(config, modality)
        torch.manual_seed(0)
        return registry.encoders.load(name, "cls")(config, wanted).eval(), config, wanted
    except WeightsMissing as error:
        raise NotApplicable(str(error)) from None


def encoder_contract(registry: Registry, name: str, owner: str) -> None:
    """Dims, shapes, missing content, independence of the batch, losses, hidden states: as `check_encoder` says."""
    _, config, wanted = _encoder(registry, name)
    check_encoder(registry.encoders.load(name, "cls"), config, wanted)


def preparation(registry: Registry, name: str, owner: str) -> None:
    """`prepare` gives the same tensors whenever it is called."""
    encoder, _, _ = _encoder(registry, name)
    for item in _ITEMS:
        first = encoder.prepare(item)
        torch.manual_seed(1)
        np.random.seed(1)
        random.seed(1)
        again = encoder.prepare(item)
        for key, tensor in first.items():
            if not torch.equal(tensor, again[key]):
                raise Fault(
                    f"{owner}: prepare gives another {key} at a second call: leave out random crops and other draws, "
                    "as features are cached"
                )


def rows(registry: Registry, name: str, owner: str) -> None:
    """An item's features don't depend on the order of the batch, and are the same at a second call."""
    encoder, _, wanted = _encoder(registry, name)
    prepared = [encoder.prepare(item) for item in _ITEMS]

    def encoded(order: list[int]) -> Mapping[str, Tensor]:
        with torch.inference_mode():
            return encoder(pad_and_stack([prepared[at] for at in order], padding=encoder.padding, encoder=name))

    straight, turned = encoded([0, 1, 2, 3]), encoded([3, 2, 1, 0])
    for modality in wanted:
        if not torch.allclose(straight[modality], turned[modality].flip(0), rtol=1e-4, atol=1e-5):
            raise Fault(
                f"{owner}: an item's {modality} features depend on the batch or vary from call to call: compute each "
                "row by itself, without BatchNorm in training mode, dropout or a mean over the batch"
            )


def alone(registry: Registry, name: str, owner: str) -> None:
    """Built for one modality, it gives it the features that it has beside the others: `pt` encodes each modality by
    itself, `ft` and `ete` train on all, and both must start from the same weights."""
    encoder, config, wanted = _encoder(registry, name)
    if len(wanted) < 2:
        raise NotApplicable("it encodes one modality")

    def encoded(encoder: ItemEncoder) -> Mapping[str, Tensor]:
        prepared = [encoder.prepare(item) for item in _ITEMS]
        with torch.inference_mode():
            return encoder(pad_and_stack(prepared, padding=encoder.padding, encoder=name))

    beside = encoded(encoder)
    for modality in wanted:
        torch.manual_seed(0)
        single = encoded(registry.encoders.load(name, "cls")(config, (modality,)).eval())[modality]
        if single.shape != beside[modality].shape or not torch.allclose(single, beside[modality], rtol=1e-4, atol=1e-5):
            raise Fault(
                f"{owner}: expected the same {modality} features from an encoder of {modality} alone as from one of "
                f"{', '.join(wanted)}, got others: draw the random weights of each modality from a generator of its "
                "own, as in nn.init.normal_(weight, generator=torch.Generator().manual_seed(0))"
            )


def declared(registry: Registry, name: str, owner: str) -> None:
    """The spec's dims are the encoder's at default settings, and what identifies weights is the same at each call."""
    spec = registry.encoders.get(name)
    encoder, config, wanted = _encoder(registry, name)
    if spec.dims is not None and "tiny" not in spec.variants and dict(encoder.dims) != dict(spec.dims):
        raise Fault(
            f"{owner}: the spec says dims={dict(spec.dims)}, the encoder {dict(encoder.dims)}: correct the spec"
        )
    weights_id = registry.encoders.load(name, "weights_id")
    for modality in wanted:
        found = weights_id(config, modality)
        if not isinstance(found, str) or found != weights_id(config, modality):
            raise Fault(f"{owner}: weights_id gives {found!r} for {modality}: return the same str at each call")


def dataset_made(registry: Registry, name: str, owner: str) -> None:
    """It is made or read without an error of `data check`, the same each time."""
    spec = registry.datasets.get(name)
    if spec.make is None:
        raise NotApplicable(f"it isn't made here{f': {spec.get}' if spec.get else ''}")
    prints = []
    for _ in range(2):
        with tempfile.TemporaryDirectory() as folder:
            settings = Settings(data_path=folder)
            make_dataset(Path(folder) / name, registry.datasets.load(name, "make"))
            if spec.load is not None:
                prints.append(open_dataset(name, settings, registry).fingerprint)
                continue
            report = check(name, settings, registry).report
            for finding in report.findings:
                if finding.severity == "error":
                    raise Fault(f"{owner}: `data check` finds {finding.name}: {finding.text}")
            prints.append(str(report.fingerprint))
    if prints[0] != prints[1]:
        raise Fault(f"{owner}: made twice, its rows differ: seed what it draws, as np.random.default_rng(0)")


def split_labels(registry: Registry, name: str, owner: str) -> None:
    """A label for each interaction, some of each kind, the same from the same generator; no array is written into."""
    rng = np.random.default_rng(0)
    users = np.repeat(np.arange(200), 12)
    items = rng.integers(0, 60, len(users))
    times = days(len(users))[rng.permutation(len(users))]
    spec = registry.splits.get(name)
    rule = Rule(name, registry.splits.load(name, "draw"), spec.needs_times, owner)
    drawn = []
    for elsewhere in (0, 1):
        np.random.seed(elsewhere)
        random.seed(elsewhere)
        try:
            drawn.append(rule.labels(users, items, times, seed=7))
        except PluginError as error:
            raise Fault(str(error)) from None
    if not np.array_equal(drawn[0], drawn[1]):
        raise Fault(f"{owner}: two draws of one seed differ: draw from `rng` alone")
    counts = np.bincount(drawn[0], minlength=3)
    if not counts.all():
        shown = ", ".join(f"{split} {count:,}" for split, count in zip(SPLITS, counts, strict=True))
        raise Fault(f"{owner}: expected rows of each split, of 2,400 of 200 users, got {shown}")


def split_run(registry: Registry, name: str, owner: str) -> None:
    """BPR trains and is ranked on a data set that it splits."""
    finished_run(registry, model="BPR", with_features=False, keys={"split": name})


def paradigm_whole(registry: Registry, name: str, owner: str) -> None:
    """The class defines what its spec promises."""
    spec, cls = registry.paradigms.get(name), registry.paradigms.load(name, "cls")
    if not isinstance(cls, type) or not issubclass(cls, Paradigm):
        raise Fault(f"{owner}: expected a subclass of Paradigm, got {cls!r}")
    promised = {"prepares": ("prepare", "prepared_path"), "joint": ("callback",)}
    for flag, methods in promised.items():
        for method in methods:
            if getattr(spec, flag) and getattr(cls, method) is getattr(Paradigm, method):
                raise Fault(f"{owner}: its spec has {flag}=True, so its class must define {method}")
    if spec.config is not None:
        registry.paradigms.load(name, "config")()


def paradigm_run(registry: Registry, name: str, owner: str) -> None:
    """A run of VBPR and the encoder `basic` ends, and ends the same from the same seed."""
    one, other = (finished_run(registry, model="VBPR", paradigm=name, encoder="basic") for _ in range(2))
    if one.test != other.test:
        raise Fault(f"{owner}: two runs of one seed have other results: draw from torch's default generator alone")


def observed(registry: Registry, name: str, owner: str) -> None:
    """It takes the start, the epochs and the result of a real run without raising."""

    class Strict:
        def notify_start(self, run: RunSpec, folder: Path) -> None:
            registry.call_observer(name, OBSERVERS[0], run=run, folder=folder)

        def notify_epoch(self, run: RunSpec, epoch: EpochReport) -> None:
            registry.call_observer(name, OBSERVERS[1], run=run, epoch=epoch)

        def notify_run(self, run: RunSpec, result: RunResult) -> None:
            registry.call_observer(name, OBSERVERS[2], run=run, result=result)

    finished_run(registry, model="BPR", with_features=False, observers=Strict())


CHECKS: Mapping[str, Mapping[str, Callable[[Registry, str, str], None]]] = {
    "encoder": {
        "contract": encoder_contract,
        "preparation": preparation,
        "rows": rows,
        "alone": alone,
        "declared": declared,
    },
    "metric": checks_of_metrics.CHECKS,
    "sampler": checks_of_samplers.CHECKS,
    "dataset": {"made": dataset_made},
    "split": {"labels": split_labels, "run": split_run},
    "paradigm": {"whole": paradigm_whole, "run": paradigm_run},
    "observer": {"run": observed},
}


def finished_run(
    registry: Registry,
    *,
    model: str,
    paradigm: str = "pt",
    encoder: str | None = None,
    with_features: bool = True,
    keys: Mapping[str, str] = MappingProxyType({}),
    observers: Any = None,
) -> RunResult:
    """The result of a run, with these configuration keys, on the checkerboard as a data set on disk; its
    recommendations have been read back."""
    with tempfile.TemporaryDirectory() as folder:
        data, out = Path(folder) / "data", Path(folder) / "runs"
        _write_data(data / "check", with_features=with_features)
        small = {"data_path": str(data), "epochs": "2", "min_steps": "0", "train_batch_size": "32", "device": "cpu"}
        spec = resolve_request(
            Request(
                model=model,
                dataset="check",
                encoder=None if encoder is None else EncoderName.parse(encoder),
                paradigm=paradigm,
                overrides={**small, **keys},
            ),
            registry,
        ).runs[0]
        result = run(spec, registry, out=out, observers=observers)
        listed = recommend(result.run_id, None, 3, registry, out=out)
        assert len(listed) == 3 * checkerboard()[0].n_users, f"{model}: a stored run recommends {len(listed)} rows"
    return result


def _write_data(folder: Path, *, with_features: bool) -> None:
    """The checkerboard in MMRec's layout, with a catalog of images and texts; each held-out row is of valid or test."""
    data, held_out = checkerboard()
    (folder / "images").mkdir(parents=True)
    rows = []
    for user in range(data.n_users):
        own = data.train.items[data.train.users == user]
        rows += [f"{user}\t{item}\t{0 if place else 1}" for place, item in enumerate(own)]
    rows += [f"{user}\t{item}\t2" for user, item in zip(held_out.users, held_out.items, strict=True)]
    times = np.random.default_rng(0).permutation(days(len(rows)))  # users at all times, for splits by time
    lines = ["userID\titemID\tx_label\ttimestamp", *(f"{row}\t{at:.0f}" for row, at in zip(rows, times, strict=True))]
    (folder / f"{folder.name}.inter").write_text("\n".join(lines) + "\n")
    items = ["itemID\traw_id\ttitle\timage"]
    for item in range(data.n_items):
        color = ("red", "blue")[item % 2]
        Image.new("RGB", (8 + item, 8), color).save(folder / "images" / f"{item}.png")
        items.append(f"{item}\tT{item:02d}\t{color} thing {item}\t{item}.png")
    (folder / "items.tsv").write_text("\n".join(items) + "\n")
    if with_features:
        for modality, table in checkerboard_features().items():
            np.save(folder / f"{modality}_feat.npy", table.values)

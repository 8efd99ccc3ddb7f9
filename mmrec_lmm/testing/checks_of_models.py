"""The conformance checks of models. Each takes the registry, the model's name, and how messages call it.

Shapes: U users, I items, B batch.
"""

import contextlib
import os
import tempfile
import textwrap
import tracemalloc
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ..config.settings import Settings
from ..data.sampling import TrainingRows
from ..errors import MMRecError, NotApplicable
from ..plugin.contracts import Recommender, check_model_class
from ..plugin.item_features import ItemFeatures
from ..plugin.registry import Registry
from ..training.loop import TrainingState, Validation
from ..training.resume import check_storable, load_checkpoint, load_weights, save_checkpoint, save_weights
from ..training.trainer import Trainer, TrainerNumbers
from ..types import FeatureTable, Interactions, TrainingData
from . import MODALITIES, _check_steady, batch_of, check_model, checkerboard, checkerboard_features, days, scores_of
from .conformance import Fault

_EPOCHS = 3
_ITEMS = 2048  # of the data on which memory is watched: more than any other dimension there
_LARGE_CATALOG = 200_000  # items: a model that holds a number for each two of them has to refuse so many
_ROOM = 4 << 30  # bytes that a model may ask for until it refuses


@dataclass(frozen=True)
class _Model:
    """A model under test."""

    cls: type[Recommender]
    config: Any
    uses_features: bool
    owner: str

    def build(
        self,
        data: TrainingData,
        modalities: Sequence[str] = MODALITIES,
        *,
        joint: bool = False,
        tables: Mapping[str, FeatureTable] | None = None,
        seed: int = 0,
    ) -> Recommender:
        tables = checkerboard_features(data.n_items, modalities=tuple(modalities)) if tables is None else tables
        torch.manual_seed(seed)
        return self.cls(data, ItemFeatures.from_tables(tables, joint=joint), self.config)


def _model(registry: Registry, name: str, owner: str) -> _Model:
    cls = registry.models.load(name, "cls")
    check_model_class(cls, owner=owner)
    return _Model(cls, registry.models.load(name, "config")(), registry.models.get(name).uses_features, owner)


def whole(registry: Registry, name: str, owner: str) -> None:
    """The class has all that the host calls, and its configuration has a default for each key."""
    check_model_class(registry.models.load(name, "cls"), owner=owner)
    try:
        registry.models.load(name, "config")()
    except TypeError as error:
        raise Fault(f"{owner}: expected a configuration with a default for each key, got {error}") from None


def contract(registry: Registry, name: str, owner: str) -> None:
    """Losses train it; scores are finite, the same twice, in evaluation, by `vectors`, and after loading."""
    model = _model(registry, name, owner)
    for modalities in (MODALITIES, *((modality,) for modality in MODALITIES)) if model.uses_features else (MODALITIES,):
        check_model(model.cls, model.config, modalities=modalities)
    if registry.models.get(name).negatives == "several":
        _check_several(model)


def _check_several(model: _Model) -> None:
    """Raise Fault unless the loss takes two negatives per positive, and one in each of the two shapes alike."""
    data, _ = checkerboard()
    batch = batch_of(data)

    def loss(negatives: Tensor) -> Tensor:
        built = model.build(data).train()
        built.on_epoch_start(0)
        shape = "(B,)" if negatives.ndim == 1 else f"(B, {negatives.shape[1]})"
        try:
            terms = built.training_loss(replace(batch, negatives=negatives))
        except Exception as error:
            reason = textwrap.shorten(f"{type(error).__name__}: {error}", 300, placeholder=" ...")
            raise Fault(
                f'{model.owner}: negatives="several": expected a loss from negatives of shape {shape}, got {reason}; '
                'try batch.negatives.reshape(len(batch.users), -1), or negatives="one"'
            ) from error
        return torch.stack([*terms.values()]).sum()

    if not loss(torch.stack([batch.negatives, batch.positives], dim=1)).isfinite():
        raise Fault(f'{model.owner}: negatives="several": expected a finite loss from negatives of shape (B, 2)')
    one, as_column = loss(batch.negatives), loss(batch.negatives.unsqueeze(1))
    if not torch.allclose(one, as_column, rtol=1e-3):
        raise Fault(
            f'{model.owner}: negatives="several": expected the same loss from negatives of shape (B,) and (B, 1), got '
            f"{one.item():.4g} and {as_column.item():.4g}; try batch.negatives.reshape(len(batch.users), -1)"
        )


def gradients(registry: Registry, name: str, owner: str) -> None:
    """Each trainable parameter gets a gradient within some epochs, with two modalities or with three."""
    model = _model(registry, name, owner)
    if not any(parameter.requires_grad for parameter in model.build(checkerboard()[0]).parameters()):
        raise NotApplicable("it has no parameters to train")
    two = _without_gradient(model, MODALITIES)
    left = two & _without_gradient(model, ("image", "audio", "text")) if two and model.uses_features else two
    if left:
        raise Fault(
            f"{owner}: parameter {min(left)} gets no gradient in {_EPOCHS} epochs: use it in training_loss without "
            "detach() or .data, or make it a buffer"
        )


def _without_gradient(model: _Model, modalities: Sequence[str]) -> set[str]:
    data, _ = checkerboard()
    built = model.build(data, modalities)
    waiting = {key: parameter for key, parameter in built.named_parameters() if parameter.requires_grad}
    optimizer = torch.optim.Adam(built.parameters(), lr=0.01)
    for epoch in range(_EPOCHS):
        built.train()
        built.on_epoch_start(epoch)
        for batch in TrainingRows(data.train, data.n_users, 16).epoch(torch.Generator().manual_seed(epoch)):
            optimizer.zero_grad()
            torch.stack([*built.training_loss(batch).values()]).sum().backward()
            reached = [key for key, one in waiting.items() if one.grad is not None and one.grad.any()]
            for key in reached:
                del waiting[key]
            if not waiting:
                return set()
            optimizer.step()
    return set(waiting)


def state(registry: Registry, name: str, owner: str) -> None:
    """The host's files keep all that it is: training that resumes from a checkpoint ends as if it hadn't stopped."""
    model = _model(registry, name, owner)
    data, _ = checkerboard()
    built = model.build(data)
    check_storable(built.state_dict(), owner=owner)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.safetensors"
        if not any(parameter.requires_grad for parameter in built.parameters()):
            save_weights(path, built.state_dict())
            again = model.build(data, seed=1)
            again.load_state_dict(load_weights(path))
            _same_scores(again, built, f"{owner}: scores change when it is saved and loaded")
            return
        states: list[TrainingState[TrainerNumbers]] = []

        def keep(state: TrainingState[TrainerNumbers]) -> None:
            if state.numbers.epoch == 1:
                save_checkpoint(Path(folder) / "checkpoint", state)
                states.append(state)

        _trainer(built, data).fit(on_checkpoint=keep)
        save_weights(path, built.state_dict())
        loaded = model.build(data, seed=1)
        loaded.load_state_dict(load_weights(path))
        _same_scores(
            loaded,
            built,
            f"{owner}: scores change when it is saved and loaded: keep what they need in parameters and buffers, or "
            "build it in __init__ from the training data and the features",
        )
        resumed = model.build(data, seed=1)
        trainer, saved = _trainer(resumed, data), load_checkpoint(Path(folder) / "checkpoint", TrainerNumbers)
        assert saved is not None
        trainer.restore(saved)
        trainer.fit()
        _same_scores(
            resumed,
            built,
            f"{owner}: training that resumes from a checkpoint ends with other scores: what changes in training "
            "(a counter, a graph, a generator of its own) belongs in a buffer, or is made in on_epoch_start",
        )


def batches(registry: Registry, name: str, owner: str) -> None:
    """A user's scores depend neither on the batch's size nor on the users beside it or their order."""
    model = _model(registry, name, owner)
    data, _ = checkerboard()
    built = model.build(data).eval()
    with torch.no_grad():
        scores = scores_of(built)
        score = built.scorer()
        order = torch.randperm(data.n_users, generator=torch.Generator().manual_seed(0))
        for users in (order, *order.split(1), *order.split(5), torch.tensor([3, 3, 0])):
            found = score(users)
            if found.shape != (len(users), data.n_items):
                raise Fault(
                    f"{owner}: scorer returns {tuple(found.shape)} for {len(users)} users: return (len(users), n_items)"
                )
            if not torch.allclose(found, scores[users], rtol=1e-4, atol=1e-5):
                _check_steady(built)
                raise Fault(
                    f"{owner}: a user's scores depend on the batch: compute each row from that user's vector alone, "
                    "without a mean, a norm or a softmax over users, and index by the ids that scorer gets"
                )


def modalities(registry: Registry, name: str, owner: str) -> None:
    """One modality, an absent item, and a modality that no item has, leave losses, gradients and scores finite."""
    model = _model(registry, name, owner)
    if not model.uses_features:
        raise NotApplicable("it uses no features")
    data, _ = checkerboard()
    for chosen in (MODALITIES, *((modality,) for modality in MODALITIES)):
        for absent in (None, *chosen):
            tables = checkerboard_features(modalities=chosen)
            where = f"with {' and '.join(chosen)} and an item that lacks them"
            if absent is not None:
                values, present = tables[absent].values, tables[absent].present
                tables[absent] = FeatureTable(absent, np.zeros_like(values), np.zeros_like(present), "absent")
                where = f"where no item has {absent}" + ("" if len(chosen) == 1 else ", and most have another modality")
            built = model.build(data, tables=tables).train()
            built.on_epoch_start(0)
            cure = "features.present says which items have it; divide by a count only where it isn't 0"
            if any(parameter.requires_grad for parameter in built.parameters()):
                terms = built.training_loss(batch_of(data))
                for key, term in terms.items():
                    if not term.isfinite():
                        raise Fault(f"{owner}: loss term {key} is {term.item()} {where}: {cure}")
                torch.stack([*terms.values()]).sum().backward()
                for key, parameter in built.named_parameters():
                    if parameter.grad is not None and not parameter.grad.isfinite().all():
                        raise Fault(f"{owner}: the gradient of {key} isn't finite {where}: {cure}")
            if not scores_of(built).isfinite().all():
                raise Fault(f"{owner}: a score isn't finite {where}: {cure}")


def seed(registry: Registry, name: str, owner: str) -> None:
    """The same seed gives the same weights and scores, to the last bit."""
    model = _model(registry, name, owner)
    data, _ = checkerboard()
    one, other = _trained(model, data), _trained(model, data)
    _compare(
        one,
        other,
        f"{owner}: {{}} differs between two runs of one seed: draw from torch's default generator, which the host "
        "seeds, not from numpy, random or a generator of its own",
    )


def memory(registry: Registry, name: str, owner: str) -> None:
    """Nothing has as many numbers as there are pairs of items, unless the model refuses large catalogs."""
    model = _model(registry, name, owner)
    rng = np.random.default_rng(0)
    users, items = np.repeat(np.arange(24), 40), rng.integers(0, _ITEMS, 24 * 40)
    data = TrainingData(24, _ITEMS, Interactions(users, items), days(len(users)))
    found = _largest(model, data)
    if found and not _refuses(model):
        raise Fault(
            f"{owner}: {found}, items x items on {_ITEMS:,} items: keep some neighbors per item "
            "(mmrec_lmm.graph.nearest_neighbors), work in blocks of rows, or raise NotApplicable for large catalogs"
        )


def training_rows(registry: Registry, name: str, owner: str) -> None:
    """What it becomes follows from training rows alone: other held-out rows, or none at all, change nothing."""
    model = _model(registry, name, owner)
    data, held_out = checkerboard()
    others = Interactions(held_out.users, (held_out.items + 1) % data.n_items)
    with folder_of(data, held_out):
        one = _trained(model, data)
    with folder_of(data, others):
        other = _trained(model, data)
    cure = "build it from data.train, and read no file of the data set"
    _compare(one, other, f"{owner}: {{}} changes with the rows of validation and test: {cure}")
    with folder_of(data, None):
        try:
            alone = _trained(model, data)
        except OSError as error:
            raise Fault(f"{owner}: it reads {error.filename}, which isn't there: {cure}") from None
    _compare(one, alone, f"{owner}: {{}} changes where the data set's files are gone: {cure}")


def live_features(registry: Registry, name: str, owner: str) -> None:
    """Features are read at every use, and their gradient reaches them: end-to-end training needs both."""
    model = _model(registry, name, owner)
    if not model.uses_features:
        raise NotApplicable("it uses no features")
    data, _ = checkerboard()
    for modality in MODALITIES:
        built = model.build(data, joint=True)
        before = scores_of(built)
        values = built.features()[modality].detach().flip(0) + 1
        built.features.refresh(modality, torch.arange(data.n_items), values)
        tables = checkerboard_features(data.n_items)
        tables[modality] = replace(tables[modality], values=values.numpy())
        made = model.build(data, tables=tables, joint=True)
        if torch.equal(scores_of(made), before):
            continue  # scores don't depend on them, as where the loss alone reads them
        if torch.equal(scores_of(built), before):
            raise Fault(
                f"{owner}: scores ignore {modality} features that changed: it keeps a copy; keep `features` in "
                "__init__ and call self.features() at every use (or features.derived for what is made of them)"
            )
    if not any(parameter.requires_grad for parameter in built.parameters()):
        return
    built = model.build(data, joint=True).train()
    built.on_epoch_start(0)
    torch.stack([*built.training_loss(batch_of(data)).values()]).sum().backward()
    for modality, leaf in built.features().items():
        if leaf.grad is None or not leaf.grad.any():
            raise Fault(
                f"{owner}: the loss sends no gradient to {modality} features: use self.features() in training_loss "
                "without detach(), no_grad() or a copy"
            )


def run_of_host(registry: Registry, name: str, owner: str) -> None:
    """The host trains, ranks and records it on a small data set, and the stored run recommends the same items."""
    from .checks_of_others import finished_run

    finished_run(registry, model=name, with_features=registry.models.get(name).uses_features)


CHECKS: Mapping[str, Callable[[Registry, str, str], None]] = {
    "whole": whole,
    "contract": contract,
    "gradients": gradients,
    "state": state,
    "batches": batches,
    "modalities": modalities,
    "seed": seed,
    "memory": memory,
    "training rows": training_rows,
    "live features": live_features,
    "run": run_of_host,
}


def _trainer(model: Recommender, data: TrainingData) -> Trainer:
    """A trainer of a few epochs, the last of which is the best."""
    settings = Settings(epochs=_EPOCHS, min_steps=0, learning_rate=0.01)
    scores = iter(range(100))
    return Trainer(
        model,
        TrainingRows(data.train, data.n_users, 32),
        settings,
        validate=lambda: Validation(float(next(scores)), {settings.valid_metric.lower(): 0.0}),
        generator=torch.Generator().manual_seed(0),
    )


def _trained(model: _Model, data: TrainingData) -> Recommender:
    built = model.build(data)
    _trainer(built, data).fit()
    return built


def _same_scores(one: Recommender, other: Recommender, fault: str) -> None:
    if not torch.equal(scores_of(one), scores_of(other)):
        _check_steady(one)
        raise Fault(fault)


def _compare(one: Recommender, other: Recommender, fault: str) -> None:
    """Raise Fault unless two models have the same buffers, parameters and scores; `fault` has {} for what differs."""
    for what, tensors in (("buffer", one.named_buffers()), ("parameter", one.named_parameters())):
        of_other = dict(other.named_buffers() if what == "buffer" else other.named_parameters())
        for key, tensor in tensors:
            pair = (tensor, of_other[key])
            dense, again = (value if value.layout == torch.strided else value.to_dense() for value in pair)
            if dense.shape != again.shape or not torch.equal(dense, again):
                raise Fault(fault.format(f"{what} {key}"))
    _same_scores(one, other, fault.format("a score"))


@contextlib.contextmanager
def folder_of(data: TrainingData, held_out: Interactions | None) -> Iterator[None]:
    """A working directory with the data set `check` in data/, as runs have it; an empty one without held-out rows."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        if held_out is not None:
            (Path(folder) / "data" / "check").mkdir(parents=True)
            half = len(held_out) // 2
            labels = [0] * len(data.train) + [1] * half + [2] * (len(held_out) - half)
            users = [*data.train.users, *held_out.users]
            rows = zip(users, [*data.train.items, *held_out.items], labels, strict=True)
            lines = ["userID\titemID\tx_label", *(f"{user}\t{item}\t{label}" for user, item, label in rows)]
            (Path(folder) / "data" / "check" / "check.inter").write_text("\n".join(lines) + "\n")
        os.chdir(folder)
        try:
            yield
        finally:
            os.chdir(before)


class _Watch(TorchDispatchMode):
    """Notes the result of an operation that has most numbers in memory, if they are at least `limit`."""

    def __init__(self, limit: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.limit, self.found = limit, ""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor) and not self.found and _numbers(tensor) >= self.limit:
                shape = " x ".join(f"{length:,}" for length in tensor.shape)
                self.found = f"{function.overloadpacket} makes a tensor of {shape} numbers"
        return result


def _numbers(tensor: Tensor) -> int:
    """The numbers that a tensor has in memory: of one that is expanded, those that are stored."""
    if tensor.layout != torch.strided:
        return tensor._nnz() if tensor.is_sparse else tensor.values().numel()
    return tensor.untyped_storage().nbytes() // tensor.itemsize


def _largest(model: _Model, data: TrainingData) -> str:
    """A sentence on the first array of items x items that building, training or scoring makes; "" if there is none."""

    def use() -> None:
        built = model.build(data)
        built.train()
        built.on_epoch_start(0)
        if any(parameter.requires_grad for parameter in built.parameters()):
            torch.stack([*built.training_loss(batch_of(data)).values()]).sum().backward()
        built.eval()
        with torch.no_grad():
            built.scorer()(torch.arange(4))

    return largest_array(use, data.n_items**2)


def largest_array(use: Callable[[], None], limit: int) -> str:
    """A sentence on the first tensor that `use` makes of `limit` numbers or more, or on numpy's arrays if they take so
    many bytes; "" if there are none."""
    watch = _Watch(limit)
    with watch:
        use()
    if watch.found:
        return watch.found
    tracemalloc.start()  # numpy's arrays; what is imported or cached on first use was so before
    try:
        use()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    return f"arrays of numpy take {peak / 1e6:.1f} MB" if peak >= limit else ""


def _refuses(model: _Model) -> bool:
    """True if the model refuses a catalog so large that items x items can't fit."""
    data = TrainingData(2, _LARGE_CATALOG, Interactions(np.array([0, 1]), np.array([0, 1])), days(2))
    with _limited(_ROOM):
        try:
            model.build(data)
        except MMRecError:
            return True
        except Exception:  # of memory: each library has its own
            return False
    return False


@contextlib.contextmanager
def _limited(room: int) -> Iterator[None]:
    """A context in which this process may ask for `room` more bytes: what needs more fails, and harms no other."""
    try:
        import resource

        now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        before = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (now + room, before[1]))
    except (ImportError, OSError, ValueError):  # another system than Linux
        yield
        return
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)

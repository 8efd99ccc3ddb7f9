"""For plugin authors: small data sets with a known answer, and checks that any model or encoder must pass.

    from mmrec_lmm.testing import check_model
    def test_my_model(): check_model(MyModel, MyConfig())

Shapes: U users, I items, D feature width, B batch.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, replace
from typing import Any, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from ..config.schema import schema_of
from ..data.sampling import TrainingRows
from ..errors import NotApplicable
from ..plugin.contracts import ItemEncoder, Recommender
from ..plugin.item_features import ItemFeatures
from ..types import Batch, FeatureTable, Interactions, RawItem, TrainingData

MODALITIES = ("image", "text")
_STEPS_PER_CHECK = 50


def checkerboard(n_users: int = 12, n_items: int = 16) -> tuple[TrainingData, Interactions]:
    """Users like the items of their own color, as on a chessboard: even users even items, odd users odd ones.

    Each user's training rows are all but one item of their color; that one is held out, so it is the one right
    recommendation. Each row is a day later than the one before. Both numbers are even.
    """
    pairs = np.array([(user, item) for user in range(n_users) for item in range(user % 2, n_items, 2)])
    users, items = pairs.T
    held_out = items == 2 * (users // 2 % (n_items // 2)) + users % 2
    train = Interactions(*pairs[~held_out].T.copy())
    return TrainingData(n_users, n_items, train, days(len(train))), Interactions(*pairs[held_out].T.copy())


def days(count: int) -> np.ndarray:
    """Times (count,) a day apart, in seconds since 1970."""
    return 1.6e9 + 86_400.0 * np.arange(count)


def checkerboard_features(n_items: int = 16, *, modalities: tuple[str, ...] = MODALITIES) -> dict[str, FeatureTable]:
    """Features that give an item's color, with a little noise; the last item lacks every modality."""
    rng = np.random.default_rng(0)
    present = np.arange(n_items) < n_items - 1
    tables = {}
    for width, modality in enumerate(modalities, start=5):
        values = rng.normal(scale=0.1, size=(n_items, width)).astype(np.float32)
        values[:, 0] += np.where(np.arange(n_items) % 2, 1.0, -1.0)
        tables[modality] = FeatureTable(modality, values * present[:, None], present, f"checkerboard-{modality}")
    return tables


def check_config(config: Any) -> None:
    """Fail unless each key of a configuration that is a number, or holds numbers, has a limit in LIMITS, and
    its default keeps it."""
    schema = schema_of(config, config.__name__)
    if unknown := getattr(config, "LIMITS", {}).keys() - schema.keys.keys():
        raise AssertionError(f"{schema.owner}.LIMITS: expected fields {', '.join(schema.keys)}, got {min(unknown)}")
    for name, key in schema.keys.items():
        if not _holds_numbers(key.hint):
            continue
        assert key.limit is not None, (
            f"{schema.owner}.{name}: expected a limit, got none; try LIMITS: ClassVar[Mapping[str, Limit]] = "
            f"{{{name!r}: at_least(1)}}"
        )
        if key.default is not MISSING:
            default = getattr(config(), name) if key.default is None else key.default  # None: other keys may decide it
            try:
                key.read(default)
            except ValueError as error:
                raise AssertionError(f"{schema.owner}.{name}: its default {error}") from None


def _holds_numbers(hint: Any) -> bool:
    return hint in (int, float) or any(map(_holds_numbers, get_args(hint)))


def batch_of(data: TrainingData, size: int = 16, *, seed: int = 0) -> Batch:
    """One training batch."""
    rows = TrainingRows(data.train, data.n_users, size)
    return next(rows.epoch(torch.Generator().manual_seed(seed)))


class TinyEncoder(ItemEncoder):
    """Two linear layers on the mean color of the image and the length of the text: real, trainable, instant."""

    def __init__(self, config: Any = None, modalities: tuple[str, ...] = MODALITIES) -> None:
        super().__init__()
        self.dims = dict.fromkeys(modalities, 4)
        self.layers = nn.ModuleDict({"image": nn.Linear(3, 4), "text": nn.Linear(1, 4)})

    def prepare(self, item: RawItem) -> dict[str, Tensor]:
        pixels = np.zeros((1, 1, 3)) if item.image is None else np.asarray(item.image.convert("RGB")) / 255
        return {
            "pixels": torch.tensor(pixels.mean(axis=(0, 1)), dtype=torch.float32),
            "length": torch.tensor([len(item.text) / 100], dtype=torch.float32),
        }

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        inputs = {"image": batch["pixels"], "text": batch["length"]}
        return {modality: torch.tanh(self.layers[modality](inputs[modality])) for modality in self.dims}


def check_model(
    model_class: type[Recommender], config: Any, *, modalities: tuple[str, ...] = MODALITIES, joint: bool = False
) -> None:
    """Assert what the host relies on in every model, on the checkerboard.

    Where parameters are trainable, the loss is a dict of finite scalars with a gradient; scores are (B, I), finite,
    independent of the batch and of training mode; `vectors`, where there are any, give the same scores; saving and
    loading changes no score; features are read live; joint features receive a gradient; and a modality that no item
    has, alone or beside another, leaves losses, gradients and scores finite.
    """
    data, _ = checkerboard()
    tables = checkerboard_features(modalities=modalities)

    def build(tables: Mapping[str, FeatureTable] = tables) -> Recommender:
        torch.manual_seed(0)
        return model_class(data, ItemFeatures.from_tables(tables, joint=joint), config)

    model, batch = build(), batch_of(data)
    name = model_class.__name__
    if _trains(model):
        _check_loss(model, batch)

    scores = scores_of(model)
    assert scores.shape == (data.n_users, data.n_items), f"{name}: scores are {tuple(scores.shape)}"
    assert scores.isfinite().all(), f"{name}: a score isn't finite"
    _check_steady(model)
    halves = [model.scorer()(users) for users in torch.arange(data.n_users).split(5)]
    torch.testing.assert_close(torch.cat(halves), scores, msg=f"{name}: a user's scores depend on the batch")
    vectors = model.vectors()
    if vectors is not None:
        torch.testing.assert_close(vectors[0] @ vectors[1].T, scores, msg=f"{name}: vectors and scorer disagree")

    loaded = build()
    loaded.load_state_dict(model.state_dict())
    assert torch.equal(scores_of(loaded), scores), f"{name}: loading saved weights changes scores"

    if joint:
        losses = _losses_of(model, batch)
        for modality, leaf in model.features().items():
            model.features.refresh(modality, torch.arange(data.n_items), leaf.detach() + 1)
        others = {m: replace(table, values=model.features()[m].detach().numpy()) for m, table in tables.items()}
        if not torch.equal(scores_of(build(others)), scores_of(build())):
            assert not torch.equal(scores_of(model), scores), f"{name} ignores refreshed features: it keeps a copy"
        else:  # its scores don't depend on features
            assert not torch.equal(_losses_of(model, batch), losses), f"{name}'s loss ignores refreshed features"
    _check_absent_modality(model_class, config, modalities, joint=joint)


def _check_steady(model: Recommender) -> None:
    """Assert that scoring twice in eval mode gives the same to the last bit."""
    assert torch.equal(scores_of(model), scores_of(model)), (
        f"{type(model).__name__}: scoring twice gives two answers: draw noise and dropout in training alone, as "
        "dropout(x, rate, training=self.training) does"
    )


def _losses_of(model: Recommender, batch: Batch) -> Tensor:
    """The terms of the loss of an epoch's first batch, from one state of the random generator."""
    torch.manual_seed(0)
    model.train()
    model.on_epoch_start(0)
    with torch.no_grad():
        return torch.stack([*model.training_loss(batch).values()])


def _trains(model: Recommender) -> bool:
    """True if the host trains the model: one without trainable parameters is evaluated as it is built."""
    return any(parameter.requires_grad for parameter in model.parameters())


def _check_loss(model: Recommender, batch: Batch) -> None:
    """Assert that losses are named finite scalars, which reach a parameter and all joint features."""
    name = type(model).__name__
    model.train()
    model.on_epoch_start(0)
    terms = model.training_loss(batch)
    assert terms, f"{name}.training_loss returned no term"
    assert all(isinstance(key, str) and term.ndim == 0 and term.isfinite() for key, term in terms.items()), (
        f"{name}.training_loss must return named finite scalars, not {terms}"
    )
    torch.stack([*terms.values()]).sum().backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert any(gradient.any() for gradient in gradients), f"{name}: no gradient"
    if model.features.joint:
        for modality, leaf in model.features().items():
            assert leaf.grad is not None, f"{name}: the loss doesn't reach joint features of {modality}"
            assert leaf.grad.any(), f"{name}: the gradient of joint features of {modality} is zero"


def _check_absent_modality(
    model_class: type[Recommender], config: Any, modalities: tuple[str, ...], *, joint: bool
) -> None:
    """Assert that a modality which no item has leaves losses, gradients and scores finite: as the only one, and beside
    others that items have."""
    data, _ = checkerboard()
    batch, first = batch_of(data), modalities[0]
    for wanted in dict.fromkeys([(first,), modalities]):
        tables = checkerboard_features(modalities=wanted)
        zeros, nobody = np.zeros_like(tables[first].values), np.zeros_like(tables[first].present)
        tables[first] = FeatureTable(first, zeros, nobody, "absent")
        others = f" beside {', '.join(wanted[1:])}" if len(wanted) > 1 else ""
        where = f"{model_class.__name__}, where no item has {first}{others}"
        torch.manual_seed(0)
        model = model_class(data, ItemFeatures.from_tables(tables, joint=joint), config).train()
        model.on_epoch_start(0)
        if _trains(model):
            terms = model.training_loss(batch)
            for key, term in terms.items():
                assert term.isfinite(), f"{where}: loss term {key} is {term.item()}"
            torch.stack([*terms.values()]).sum().backward()
        for key, parameter in model.named_parameters():
            assert parameter.grad is None or parameter.grad.isfinite().all(), f"{where}: gradient of {key} isn't finite"
        assert scores_of(model).isfinite().all(), f"{where}: a score isn't finite"


def check_model_learns(
    model_class: type[Recommender],
    config: Any,
    *,
    steps: int = 300,
    lr: float = 0.01,
    seeds: Iterable[int] = (0, 1, 2),
    margin: float = 0.25,
) -> None:
    """Assert that on the checkerboard the one right item becomes every user's first recommendation, from every seed.

    For each seed the model trains for at most `steps` batches and is ranked after about every 50, as a run selects its
    best epoch: the right item is held out, so it is drawn as a negative of its user, and more training may teach a
    model to rank it low. At one of these checks, for every user, the right item's score must exceed the best wrong
    one's by `margin` of its lead over the mean of the wrong ones (1 where all wrong ones are equal), and that lead must
    be larger than in the untrained model. The shipped models hold twice the default in tests/test_machines.py.
    """
    for seed in seeds:
        _check_learning_of_one_seed(model_class, config, steps=steps, lr=lr, seed=seed, margin=margin)


def _check_learning_of_one_seed(
    model_class: type[Recommender], config: Any, *, steps: int, lr: float, seed: int, margin: float
) -> None:
    data, held_out = checkerboard()
    torch.manual_seed(seed)
    model = model_class(data, ItemFeatures.from_tables(checkerboard_features()), config)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    rows, generator = TrainingRows(data.train, data.n_users, 32), torch.Generator().manual_seed(seed)
    _, _, untrained = _margin(model, data, held_out)
    checks, done, checked = [], 0, 0
    while done < steps:
        model.train()
        model.on_epoch_start(done)
        for batch in rows.epoch(generator):
            optimizer.zero_grad()
            torch.stack([*model.training_loss(batch).values()]).sum().backward()
            optimizer.step()
            done += 1
        if done >= min(checked + _STEPS_PER_CHECK, steps):
            checked = done
            found, reached, lead = _margin(model, data, held_out)
            if found == len(held_out) and reached >= margin and lead > untrained:
                return
            checks.append((found, reached, lead))
    found, reached, lead = max(checks)
    name = f"{model_class.__name__} finds {found} of {len(held_out)} right items at best (seed {seed}, {done} steps)"
    if found == len(held_out) and reached >= margin:
        raise AssertionError(
            f"{name}, but not by training: expected a mean lead in score above the untrained model's {untrained:.3g}, "
            f"got {lead:.3g}; try smaller initial weights, as a graph or a mean of features ranks well here untrained"
        )
    raise AssertionError(f"{name}: expected all, by a margin of {margin}, got {reached:.2f}")


def _margin(model: Recommender, data: TrainingData, held_out: Interactions) -> tuple[int, float, float]:
    """The number of users whose right item is first, the smallest ratio of its lead over the best wrong item to that
    over the mean of the wrong ones, and the mean of the latter lead."""
    scores = scores_of(model).double()
    users, items = torch.from_numpy(held_out.users), torch.from_numpy(held_out.items)
    right = scores[users, items]
    wrong = torch.ones_like(scores, dtype=torch.bool)
    wrong[data.train.users, data.train.items] = False
    wrong[users, items] = False
    best = scores.masked_fill(~wrong, -torch.inf).amax(1)[users]
    mean = (scores.masked_fill(~wrong, 0).sum(1) / wrong.sum(1))[users]
    ahead, lead = right - best, right - mean
    smallest = torch.where(ahead > 0, ahead / lead, torch.where(ahead.isnan(), ahead, ahead.clamp(max=0))).amin()
    return int((ahead > 0).sum()), float(smallest), float(lead.mean())


def check_encoder(
    encoder_class: Callable[[Any, tuple[str, ...]], ItemEncoder], config: Any, modalities: tuple[str, ...]
) -> None:
    """Assert what the host relies on in every encoder: dims, shapes, missing content, independence of the batch, and
    losses that train it and a frozen part, where it has any."""
    from ..data.items import pad_and_stack

    for wanted in (modalities, *((modality,) for modality in modalities)):
        torch.manual_seed(0)
        encoder = encoder_class(config, wanted).eval()
        name = type(encoder).__name__
        assert set(encoder.dims) == set(wanted), f"{name}: dims {dict(encoder.dims)} for modalities {wanted}"
        items = [
            RawItem(0, Image.new("RGB", (40, 30), "red"), "a red box"),
            RawItem(1, Image.new("RGB", (8, 90), "blue"), "a tall blue tower with a very long name indeed"),
            RawItem(2, None, ""),
        ]
        prepared = [encoder.prepare(item) for item in items]
        assert len({frozenset(tensors) for tensors in prepared}) == 1, f"{name}.prepare returns different keys"
        with torch.inference_mode():
            together = encoder(pad_and_stack(prepared, padding=encoder.padding, encoder=name))
            alone = [encoder(pad_and_stack([each], padding=encoder.padding, encoder=name)) for each in prepared]
        for modality in wanted:
            values = together[modality]
            assert values.shape == (3, encoder.dims[modality]), f"{name}: {modality} is {tuple(values.shape)}"
            assert values.dtype == torch.float32, f"{name}: {modality} is {values.dtype}"
            assert values.isfinite().all(), f"{name}: {modality} has a value that isn't finite"
            assert not torch.equal(values[0], values[1]), f"{name}: two different items get the same {modality}"
            single = torch.cat([each[modality] for each in alone])
            torch.testing.assert_close(values, single, atol=1e-5, rtol=1e-5, msg=f"{name}: a row depends on its batch")
        _check_frozen_part(encoder, pad_and_stack(prepared, padding=encoder.padding, encoder=name), together)
        _check_hidden_states(encoder, items, together)
        if wanted == modalities and encoder.is_tunable(config):
            _check_tuning_losses(encoder, pad_and_stack(prepared[:2], padding=encoder.padding, encoder=name))


def _check_frozen_part(encoder: ItemEncoder, batch: dict[str, Tensor], features: Mapping[str, Tensor]) -> None:
    """Assert that a frozen part, if there is one, leads to the same features, and that no training reaches it."""
    name = type(encoder).__name__
    made = encoder.frozen_part(batch)
    if made is None:
        return
    assert all(len(rows) == len(features[next(iter(features))]) for rows in made.values()), f"{name}: frozen_part: rows"
    reached = [key for key, rows in made.items() if rows.requires_grad]
    assert not reached, f"{name}: frozen_part: {reached[0] if reached else ''} depends on weights that are trained"
    with torch.inference_mode():
        again = encoder(made)
    for modality, values in features.items():
        message = f"{name}: {modality} is another after frozen_part"
        torch.testing.assert_close(again[modality], values, atol=1e-5, rtol=1e-5, msg=message)


def _check_hidden_states(encoder: ItemEncoder, items: Sequence[RawItem], features: Mapping[str, Tensor]) -> None:
    """Assert that hidden states, if there are any, are vectors of as many layers for every item, that depend on nothing
    but the item's content in their modality."""
    from ..data.items import pad_and_stack

    name = type(encoder).__name__

    def states_of(chosen: Sequence[RawItem]) -> Mapping[str, Sequence[Tensor]]:
        batch = pad_and_stack([encoder.prepare(each) for each in chosen], padding=encoder.padding, encoder=name)
        with torch.inference_mode():
            return encoder.hidden_states(batch)

    try:
        together = states_of(items)
    except NotApplicable:
        return
    assert set(together) == set(features), f"{name}.hidden_states: expected {set(features)}, got {set(together)}"
    single = [states_of([item]) for item in items]
    without = {
        "image": [replace(item, text="") for item in items],
        "text": [replace(item, image=None) for item in items],
    }
    alone = {modality: states_of(without[modality])[modality] for modality in together if modality in without}
    for modality, layers in together.items():
        of_items = [each[modality] for each in single]
        assert len(layers) > 1, f"{name}.hidden_states: {modality} has {len(layers)} layers"
        counts = {len(layers), *map(len, of_items)}
        assert len(counts) == 1, f"{name}.hidden_states: {modality} has now {min(counts)} layers, now {max(counts)}"
        for number, rows in enumerate(layers):
            where = f"{name}.hidden_states: layer {number} of {modality}"
            assert rows.ndim == 2, f"{where} is {tuple(rows.shape)}"
            assert len(rows) == len(items), f"{where} is {tuple(rows.shape)}"
            assert rows.isfinite().all(), f"{where} has a value that isn't finite"
            near = 1e-4 * max(1.0, rows.abs().max().item())
            again = torch.cat([each[number] for each in of_items])
            torch.testing.assert_close(rows, again, atol=near, rtol=1e-4, msg=f"{where}: a row depends on its batch")
            if modality in alone:
                other = alone[modality][number]
                message = f"{where} depends on another modality"
                torch.testing.assert_close(rows, other, atol=near, rtol=1e-4, msg=message)


def _check_tuning_losses(encoder: ItemEncoder, batch: dict[str, Tensor]) -> None:
    """Assert that the losses of two items are finite, one of them contrastive, and that each trains the encoder."""
    name = type(encoder).__name__
    terms = encoder.train().tuning_losses(batch)
    parameters = [parameter for parameter in encoder.parameters() if parameter.requires_grad]
    assert any(key.startswith("itc") for key in terms), f"{name}.tuning_losses has no itc, which selects the epoch"
    for key, term in terms.items():
        assert not term.shape, f"{name}: tuning loss {key} must be a scalar, not of shape {tuple(term.shape)}"
        assert term.isfinite(), f"{name}: tuning loss {key} is {term}"
        gradients = torch.autograd.grad(term, parameters, retain_graph=True, allow_unused=True)
        reached = any(gradient is not None and gradient.any() for gradient in gradients)
        assert reached, f"{name}: tuning loss {key} reaches no parameter"


@torch.no_grad()
def scores_of(model: Recommender) -> Tensor:
    """All users' scores (U, I) in eval mode."""
    model.eval()
    return model.scorer()(torch.arange(model.n_users))


# Waiting for a GPU

_aten = torch.ops.aten

#: Operations whose value, or the shape of whose result, the host must know: on a GPU it waits for all work before them.
_SYNCING = {
    _aten._local_scalar_dense,  # item(), int(), bool(), and `if` of a tensor
    _aten.nonzero,
    _aten.masked_select,
    _aten._unique,
    _aten._unique2,
    _aten.unique_dim,
    _aten.unique_consecutive,
    _aten.equal,
    _aten.bincount,
    _aten.multinomial,  # it checks its probabilities
}
_INDEXED = {_aten.index, _aten.index_put, _aten.index_put_, _aten._index_put_impl_}


@contextmanager
def no_syncs(device: torch.device | str = "cpu") -> Iterator[None]:
    """A context in which nothing may make the host wait for a GPU: that is an AssertionError on the CPU, where the
    operations stand for the same ones on a GPU, and torch's RuntimeError on one.

    On the CPU a tensor that lies on the host also on a GPU looks like any other, so reading it counts, too.
    """
    if torch.device(device).type == "cuda":
        with _debugging("error"):
            yield
        return

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} makes the host wait for a GPU")

    with _FunctionWatch(refuse), _DispatchWatch(refuse):
        yield


@contextmanager
def noted_syncs(device: torch.device | str = "cpu") -> Iterator[list[str]]:
    """A context that notes in a list what `no_syncs` refuses; on a GPU the list is filled when the context ends."""
    found: list[str] = []
    if torch.device(device).type == "cuda":
        with warnings.catch_warnings(record=True) as caught, _debugging("warn"):
            warnings.simplefilter("always")
            yield found
        found += [str(each.message) for each in caught if "synchronizing CUDA operation" in str(each.message)]
        return
    with _FunctionWatch(found.append), _DispatchWatch(found.append):
        yield found


class _FunctionWatch(TorchFunctionMode):
    """Notes copies to the host, which are no operation on the CPU."""

    def __init__(self, note: Callable[[str], None]) -> None:
        super().__init__()
        self._note = note

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in (Tensor.cpu, Tensor.tolist):
            self._note(f"Tensor.{function.__name__}")
        return function(*args, **(kwargs or {}))


class _DispatchWatch(TorchDispatchMode):
    """Notes operations that wait, in forward and backward passes."""

    def __init__(self, note: Callable[[str], None]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._note = note

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if _waits(function, args, kwargs):
            self._note(str(function))
        return function(*args, **kwargs)


def _waits(function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """True if a GPU's host waits in an operation."""
    operation = function.overloadpacket
    if operation in _INDEXED:  # by a mask, whose True places are counted first
        return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
    if operation is _aten.repeat_interleave:  # by a tensor, whose sum is the result's length
        return isinstance(args[-1], Tensor) and kwargs.get("output_size") is None
    return operation in _SYNCING


@contextmanager
def _debugging(mode: str) -> Iterator[None]:
    """A context in which torch says if an operation on a GPU waits."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode(mode)
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)

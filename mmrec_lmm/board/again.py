"""The tiers that train: *replayed*, the submitted runs made again here, and *fresh*, a world that nobody knew before.

*Fresh* answers what lists can't: whether a model learned from its data, or knew the answers. The verifier draws a seed
after the submission. It names users and items by other numbers, shuffles the rows and draws another split; features
follow their items. Then the submitted configuration is trained there, and so is a baseline. An honest model keeps what
it leads by. One that has memorized pairs of test finds other users and items under their numbers, and falls to chance.

Shapes: U users, I items, N interactions, D feature width.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..cache import fingerprint
from ..config.resolve import Request, Value, resolve_request
from ..config.settings import OF_INPUTS
from ..data.opening import split_rule
from ..data.splitting import Rule, hash_labels, shipped_rule
from ..errors import ConfigError, DataError, MMRecError
from ..machine import choose_device
from ..plugin.registry import Registry
from ..running import run_folder
from ..running.inputs import gather, shared_keys
from ..running.marks import at_chance
from ..running.provenance import code_hashes, plugin_code, run_id, versions
from ..running.replay import ABSOLUTE, RELATIVE, departure
from ..running.runner import Interrupted, Unobserved, run
from ..types import SPLITS, Dataset, DrawnSplit, FeatureTable, Inputs, Interactions, RunResult, RunSpec
from .bundle import LISTS, Bundle, Refusal, load_lists
from .recompute import Data, recomputable

BASELINE = "Pop"  # where no board names another: it costs nothing
ERRORS = 3.0  # standard errors by which a lead may shrink in a fresh world
KEPT = 0.5  # the share of its lead that a row keeps, or its lead shrank by no more than noise


@dataclass(frozen=True)
class Replayed:
    """A run that was made again: identical to the last bit, or the largest difference of a metric's mean."""

    identical: bool
    largest: float
    lists: float  # share of users whose list is the same
    seconds: float


@dataclass(frozen=True)
class Fresh:
    """A row's metric that selects, as claimed and in the fresh world, beside a baseline in both. Means over users."""

    metric: str
    claim: float
    fresh: float
    baseline_here: float  # on the split of the claim
    baseline_fresh: float
    chance: float  # of random lists in the fresh world
    lead: float  # of the claim over the baseline
    fresh_lead: float
    error: float  # standard error of the difference of the two leads, over users
    seconds: float


class Trainer:
    """Trains the runs of a bundle again, in the folder `scratch`. Inputs that runs share are gathered once."""

    def __init__(
        self,
        bundle: Bundle,
        data: Data,
        registry: Registry,
        scratch: Path,
        *,
        device: str | None = None,
        progress: bool = False,
    ) -> None:
        self._bundle, self._data, self._registry = bundle, data, registry
        self._scratch, self._device, self._progress = scratch, device, progress
        self._inputs: dict[str, Inputs] = {}
        self._baselines: dict[str, RunResult] = {}
        self.notes: dict[str, None] = {}  # what readers of the verification should know, in order

    def spec(self, run: str) -> RunSpec:
        """A run of the bundle as it is trained here. Refusal where a plugin of it isn't here, or has other code."""
        folder, result = self._bundle.run(run), self._bundle.result(run)
        record = result.record
        try:
            spec = run_folder.load_config(folder, self._registry)
        except ConfigError as error:
            plugin = ", ".join(f"{one.name} {one.version or ''}".strip() for one in self._bundle.manifest.plugins[:3])
            raise Refusal(
                "plugin", f"{run}: expected the plugins that it was made with ({plugin}), got: {error}; try -p PLUGIN"
            ) from None
        except DataError as error:
            raise Refusal("configuration", f"{run}: {str(error).removesuffix(f'; {run_folder.CURE}')}") from None
        settings = self._data.here(spec.settings)
        settings = dataclasses.replace(
            settings, threads=settings.threads or record.threads, device=self._device or settings.device
        )
        beside = Path(settings.data_path) / spec.dataset  # paths of another machine came as names
        features = {name: path if path.is_file() else beside / path.name for name, path in spec.features.items()}
        spec = dataclasses.replace(spec, settings=settings, features=features)
        now = code_hashes(spec, self._registry)
        then, own = record.versions.get("mmrec_lmm"), versions()["mmrec_lmm"]
        changed = [part for part in now if part != "host" and now[part] != record.code.get(part)]
        if then != own:  # what comes with another version has other code: the numbers decide
            self.notes[f"made with mmrec-lmm {then}, trained again with {own}"] = None
            changed = [part for part in changed if part in plugin_code(spec, self._registry)]
        if changed:
            raise Refusal(
                "code",
                f"{run}: expected the code that it was made with, got other code of its {' and its '.join(changed)}; "
                f"try its version of {self._registry.models.provider(spec.model)}",
            )
        return spec

    def inputs(self, spec: RunSpec) -> Inputs:
        """The run's data and features."""
        key = shared_keys(spec, self._registry).inputs
        if key not in self._inputs:
            self._inputs = {key: gather(spec, self._registry, progress=self._progress)}  # only one: tables are large
        return self._inputs[key]

    def replay(self, run: str) -> Replayed:
        """Train a run again, and compare. Refusal where its inputs or its numbers are others.

        Where all losses are the same to the last bit, so must be all numbers. Else, as on another machine, means may
        differ by RELATIVE or ABSOLUTE, and the claimed epoch must be as good here as the best.
        """
        spec, claimed = self.spec(run), self._bundle.result(run)
        inputs, record = self.inputs(spec), claimed.record
        now = {modality: table.fingerprint for modality, table in inputs.tables.items()}
        if inputs.dataset.fingerprint != record.data:
            raise Refusal("data", f"{run}: expected the data set as it is here, got a run on another")
        if now != record.features:
            odd = sorted(name for name in {**now, **record.features} if now.get(name) != record.features.get(name))
            raise Refusal(
                "features", f"{run}: expected the features that are made here, got others of {', '.join(odd)}"
            )
        if (name := run_id(spec, inputs, self._registry)) != run:
            raise Refusal(
                "identity", f"{run}: expected the name of these values, {name}: its configuration is another's"
            )
        again = self._run(spec, inputs, self._scratch / "replayed")
        return _compared(self._bundle.run(run), claimed, again, on_cpu=_on_cpu(spec) and record.device == "cpu")

    def fresh(self, run: str, baseline: str, keys: Mapping[str, object], seed: int) -> tuple[Fresh, str]:
        """Train a run and the baseline, with configuration `keys`, in the fresh world of a seed. Also returns why the
        run doesn't pass; "" if it does."""
        spec, claimed = self.spec(run), self._bundle.result(run)
        metric = spec.settings.valid_metric
        selects = self._registry.metrics.get(metric.partition("@")[0])
        if selects.needs or not selects.per_user:
            raise Refusal(
                "fresh", f"{run}: expected a metric of each user that lists give as the one that selects, got {metric}"
            )
        inputs = self.inputs(spec)
        if inputs.dataset.timestamps is not None:
            raise Refusal("fresh", f"{run}: expected a model that reads no times, got {spec.model}, which reads them")
        world = fresh_inputs(inputs, split_rule(spec.settings, self._registry), seed)
        again = self._run(spec, world, self._scratch / "fresh")
        beside = baseline_spec(spec, baseline, keys, self._registry)
        if not self._registry.models.get(baseline).uses_features:
            inputs, world = dataclasses.replace(inputs, tables={}), dataclasses.replace(world, tables={})
        here, there = self._baseline(beside, inputs), self._baseline(beside, world)
        found = _leads(claimed, self._bundle.run(run), again, here, there, metric.lower())
        return found, _judged(run, claimed, again, found)

    def _baseline(self, spec: RunSpec, inputs: Inputs) -> RunResult:
        key = fingerprint([spec, inputs.dataset.fingerprint])
        if key not in self._baselines:
            self._baselines[key] = self._run(spec, inputs, self._scratch / "baseline")
        return self._baselines[key]

    def _run(self, spec: RunSpec, inputs: Inputs, out: Path) -> RunResult:
        try:
            return run(spec, self._registry, inputs=inputs, out=out, observers=Unobserved(), progress=self._progress)
        except Interrupted:
            raise Interrupted("verify: interrupted; nothing of a verification is kept") from None


def fresh_inputs(inputs: Inputs, rule: Rule | None, seed: int) -> Inputs:
    """The same interactions and content under other numbers, in another order and another split, all drawn from a seed.

    A rule by time can't be drawn again, and a file's own labels have no rule: the split is then `ratio`.
    """
    rng = np.random.default_rng(seed)
    old = inputs.dataset
    users, items = rng.permutation(old.n_users), rng.permutation(old.n_items)  # old id -> new id
    rows = [getattr(old, split) for split in SPLITS]
    order = rng.permutation(sum(map(len, rows)))
    of_user = users[np.concatenate([one.users for one in rows])][order]  # (N,)
    of_item = items[np.concatenate([one.items for one in rows])][order]
    if rule is None or rule.needs_times:
        rule = shipped_rule("ratio")
    labels = rule.labels(of_user, of_item, None, int(rng.integers(2**31)))
    splits = {split: Interactions(of_user[labels == i], of_item[labels == i]) for i, split in enumerate(SPLITS)}
    trained = np.zeros(old.n_users, dtype=bool)
    trained[splits["train"].users] = True
    left_out: dict[str, int] = {}
    for split in ("valid", "test"):
        kept = trained[splits[split].users]
        left_out[split] = int((~kept).sum())
        splits[split] = Interactions(splits[split].users[kept], splits[split].items[kept])
        if not kept.any():
            raise DataError(f"{old.name}: expected rows of {split} in a fresh split by the rule {rule.name}, got none")
    back = np.argsort(items)  # new id -> old id
    drawn = DrawnSplit(
        rule.name, seed, hash_labels(rule.name, labels), {key: len(one) for key, one in splits.items()}, left_out
    )
    catalog = old.catalog and dataclasses.replace(
        old.catalog,
        fields={key: tuple(column[item] for item in back) for key, column in old.catalog.fields.items()},
        images=tuple(old.catalog.images[item] for item in back),
        raw_ids=tuple(str(item) for item in range(old.n_items)),
        fingerprint=fingerprint([old.catalog.fingerprint, "fresh", seed]),
    )
    dataset = Dataset(
        name=old.name,
        n_users=old.n_users,
        n_items=old.n_items,
        train=splits["train"],
        valid=splits["valid"],
        test=splits["test"],
        catalog=catalog,
        feature_files={},
        fingerprint=fingerprint([old.fingerprint, "fresh", seed]),
        split=drawn,
    )
    tables = {
        modality: FeatureTable(
            modality, table.values[back], table.present[back], fingerprint([table.fingerprint, "fresh", seed])
        )
        for modality, table in inputs.tables.items()
    }
    return Inputs(dataset, tables, tuned=inputs.tuned)


def baseline_spec(spec: RunSpec, model: str, keys: Mapping[str, object], registry: Registry) -> RunSpec:
    """The run of the baseline beside another run: on the same data, measured alike, with the same seed."""
    request = Request(model, spec.dataset, overrides={name: Value(value) for name, value in keys.items()})
    found = resolve_request(request, registry).runs[0]
    shared = {name: getattr(spec.settings, name) for name in OF_INPUTS}
    shared |= {
        name: getattr(spec.settings, name)
        for name in ("seed", "topk", "valid_metric", "valid_users", "mask_valid_in_test", "threads", "device")
    }
    shared["metrics"] = tuple(recomputable(spec.settings, registry))  # others need features, which it may not have
    modalities = spec.modalities if registry.models.get(model).uses_features else ()
    return dataclasses.replace(found, settings=dataclasses.replace(found.settings, **shared), modalities=modalities)


def _on_cpu(spec: RunSpec) -> bool:
    return choose_device(spec.settings).type == "cpu"


def _compared(folder: Path, claimed: RunResult, again: RunResult, *, on_cpu: bool) -> Replayed:
    run = claimed.run_id
    then, now = run_folder.load_history(folder), run_folder.load_history(again.path)
    departs = departure(then, now)
    users, lists = load_lists(folder / LISTS)
    own_users, own_lists = run_folder.load_topk(again.path, n_users=2**31, n_items=2**31)
    same = (lists == own_lists).all(axis=1).mean() if np.array_equal(users, own_users) else 0.0
    differences = {
        f"{split} {name}": (value, getattr(again, split).get(name, math.inf))
        for split in ("valid", "test")
        for name, value in getattr(claimed, split).items()
    }
    largest = max(abs(one - other) for one, other in differences.values())
    seconds = again.record.seconds.train + again.record.seconds.rank
    if departs is None and same == 1 and largest == 0:
        return Replayed(True, 0.0, 1.0, seconds)
    exact = on_cpu and bool(then) and [one.losses for one in then] == [one.losses for one in now]
    if exact:
        raise Refusal(
            "replay",
            f"{run}: expected the numbers of these losses, which are the same here to the last bit, got others: "
            f"{departs or f'{1 - same:.0%} of the lists differ'}",
        )
    for what, (value, here) in differences.items():
        if not math.isclose(value, here, rel_tol=RELATIVE, abs_tol=ABSOLUTE):
            raise Refusal(
                "replay",
                f"{run}: {what}: expected {here:.4f} within {RELATIVE:.0%} or {ABSOLUTE}, as trained here, got "
                f"{value:.4f}; {departs or 'the history is the same'}",
            )
    return Replayed(False, largest, float(same), seconds)


def _leads(claimed: RunResult, folder: Path, again: RunResult, here: RunResult, there: RunResult, metric: str) -> Fresh:
    """The leads over the baseline, on the claim's split and in the fresh world, with the error of their difference."""
    name, errors = f"test/{metric}", []
    for ours, theirs in ((folder, here.path), (again.path, there.path)):
        mine, other = run_folder.load_per_user(ours), run_folder.load_per_user(theirs)
        difference = mine[name] - other[name]  # (U,) of the same users
        errors.append(float(difference.std(ddof=1) / math.sqrt(len(difference))) if len(difference) > 1 else 0.0)
    chance = again.record.chance
    return Fresh(
        metric=metric,
        claim=claimed.test[metric],
        fresh=again.test[metric],
        baseline_here=here.test[metric],
        baseline_fresh=there.test[metric],
        chance=chance.test.mean if chance is not None else 0.0,
        lead=claimed.test[metric] - here.test[metric],
        fresh_lead=again.test[metric] - there.test[metric],
        error=math.hypot(*errors),
        seconds=again.record.seconds.train + there.record.seconds.train,
    )


def _judged(run: str, claimed: RunResult, again: RunResult, found: Fresh) -> str:
    """Why a run doesn't pass: it is at chance in the fresh world and wasn't, or loses more of its lead than noise
    explains. "" if it passes."""
    beside = (
        f"{found.metric} {found.fresh:.4f} where {found.claim:.4f} is claimed; the baseline has "
        f"{found.baseline_fresh:.4f} there and {found.baseline_here:.4f} here"
    )
    then, now = claimed.record.chance, again.record.chance
    if now is not None and at_chance(now.test) and (then is None or not at_chance(then.test)):
        return f"{run}: expected more than chance ({found.chance:.4f}) under other numbers, got {beside}"
    shrunk = found.lead - found.fresh_lead
    if found.lead > 0 and shrunk > ERRORS * found.error and found.fresh_lead < KEPT * found.lead:
        return (
            f"{run}: expected to keep its lead of {found.lead:.4f} over the baseline, by half or within {ERRORS:g} "
            f"standard errors of {found.error:.4f}, got {found.fresh_lead:.4f}: {beside}"
        )
    return ""


def failed_here(error: MMRecError, run: str) -> Refusal:
    """What a run's failure to train here means for its bundle."""
    return Refusal("training", f"{run}: expected a run that trains here, got: {error}")

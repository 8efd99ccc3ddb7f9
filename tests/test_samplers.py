"""The samplers of negatives: their distributions, what a batch carries, who takes what, and faults of plugins.

Shapes: N training rows, B batch.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mmrec_lmm.data.sampling import Checked, Popularity, PopularityConfig, TrainingRows, Uniform
from mmrec_lmm.errors import ConfigError, DataError, NotApplicable, PluginError
from mmrec_lmm.losses import batch_norms, bpr
from mmrec_lmm.plugin.contracts import Sampler
from mmrec_lmm.plugin.item_features import ItemFeatures
from mmrec_lmm.plugin.registry import Registry, load_registry
from mmrec_lmm.running import run_folder, runner
from mmrec_lmm.running.provenance import run_id
from mmrec_lmm.testing import checkerboard
from mmrec_lmm.types import Batch, Interactions, RunSpec, TrainingData

Specs = Callable[..., tuple[RunSpec, ...]]

#: Items 0, 1, 2, 3 with 1, 4, 2 and 3 rows; item 4 with none. User 0 has item 1, user 1 items 0 and 3.
ROWS = [(0, 1), (1, 0), (1, 3), (2, 1), (2, 3), (3, 1), (3, 2), (4, 1), (4, 3), (4, 2)]
DATA = TrainingData(5, 5, Interactions(*np.array(ROWS).T.copy()))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def drawn(sampler: Sampler, user: int, count: int = 40_000) -> np.ndarray:
    """How often each item is drawn for a user, (I,)."""
    items = sampler.draw(torch.full((count,), user), generator())
    return np.bincount(items, minlength=DATA.n_items) / count


def popularity(power: float) -> Sampler:
    return Checked(Popularity(DATA, PopularityConfig(power)), DATA, name="sampler popularity")


# What is drawn


@pytest.mark.parametrize(
    ("power", "user", "shares"),
    [
        (1.0, 0, [1 / 6, 0, 2 / 6, 3 / 6, 0]),  # counts 1, 2, 3 without the user's own item 1
        (1.0, 1, [0, 4 / 6, 2 / 6, 0, 0]),
        (0.5, 1, [0, 2 / (2 + 2**0.5), 2**0.5 / (2 + 2**0.5), 0, 0]),
        (0.0, 0, [1 / 3, 0, 1 / 3, 1 / 3, 0]),
    ],
)
def test_popularity_draws_in_proportion_to_a_power_of_counts(power: float, user: int, shares: list[float]) -> None:
    np.testing.assert_allclose(drawn(popularity(power), user), shares, atol=0.01)


def test_an_enormous_power_draws_the_most_popular_item_that_the_user_lacks() -> None:
    assert drawn(popularity(2.0), 1)[1] == pytest.approx(4 / 5, abs=0.01)
    data = TrainingData(2, 3, Interactions(np.array([0, 1, 1]), np.array([0, 1, 2])))
    sampler = Popularity(data, PopularityConfig(1e300))
    assert set(sampler.draw(torch.zeros(100, dtype=torch.int64), generator()).tolist()) <= {0, 1, 2}


def test_the_same_seed_draws_the_same() -> None:
    users = torch.arange(5).repeat(40)
    assert torch.equal(popularity(0.75).draw(users, generator(3)), popularity(0.75).draw(users, generator(3)))


# What a batch carries


def test_one_negative_per_row_is_what_it_always_was() -> None:
    data, _ = checkerboard()
    plain = TrainingRows(data.train, data.n_users, 7)
    named = TrainingRows(data.train, data.n_users, 7, sampler=Uniform(data), n_negatives=1)
    for one, other in zip(plain.epoch(generator()), named.epoch(generator()), strict=True):
        assert torch.equal(one.negatives, other.negatives)
        assert one.negatives.shape == one.users.shape


def test_several_negatives_are_rows_of_items_that_the_user_lacks() -> None:
    data, _ = checkerboard()
    own = set(zip(data.train.users.tolist(), data.train.items.tolist(), strict=True))
    rows = TrainingRows(data.train, data.n_users, 32, sampler=Uniform(data), n_negatives=3)
    batches = list(rows.epoch(generator()))
    assert [tuple(batch.negatives.shape) for batch in batches] == [(32, 3), (32, 3), (20, 3)]
    pairs = [(user, item) for b in batches for user, row in zip(b.users.tolist(), b.negatives.tolist(), strict=True)
             for item in row]  # fmt: skip
    assert not own & set(pairs)
    positives = {pair for b in batches for pair in zip(b.users.tolist(), b.positives.tolist(), strict=True)}
    assert positives == own


def test_without_a_sampler_a_batch_has_no_negatives_even_for_a_user_who_has_all_items() -> None:
    train = Interactions(np.array([0, 0, 1]), np.array([0, 1, 0]))
    [batch] = TrainingRows(train, 2, 10, n_negatives=0).epoch(generator())
    assert batch.negatives.shape == (3, 0)
    with pytest.raises(DataError, match="user 0 has all 2 training items"):
        TrainingRows(train, 2, 10)


def test_several_negatives_of_bpr_are_the_mean_over_all_pairs(registry: Registry) -> None:
    torch.manual_seed(0)
    model = registry.models.load("BPR", "cls")(DATA, ItemFeatures({}, {}), registry.models.load("BPR", "config")(4))
    batch = Batch(torch.tensor([0, 1]), torch.tensor([1, 0]), torch.tensor([[0, 2, 3], [1, 2, 4]]))
    users, items = model.vectors()
    scores = users @ items.T
    pairs = [(0, 1, 0), (0, 1, 2), (0, 1, 3), (1, 0, 1), (1, 0, 2), (1, 0, 4)]
    by_hand = torch.stack([bpr(scores[u, p].view(1), scores[u, n].view(1)) for u, p, n in pairs]).mean()
    terms = model.training_loss(batch)
    torch.testing.assert_close(terms["bpr"], by_hand)
    norms = batch_norms(users[batch.users], items[batch.positives], items[batch.negatives])
    torch.testing.assert_close(terms["reg"], 0.1 * norms)


# Runs


def test_an_interrupted_run_with_several_negatives_by_popularity_resumes_to_the_same_bits(
    specs: Specs, registry: Registry, tmp_path: Path
) -> None:
    keys = {"sampler": "Popularity", "n_negatives": "3", "popularity.power": "0.5", "checkpoint_seconds": "0"}
    [spec] = specs(model="BPR", epochs="4", **keys)
    assert (spec.settings.sampler, spec.sampler_config) == ("popularity", PopularityConfig(0.5))
    whole = runner.run(spec, registry, out=tmp_path / "whole")

    class Stops:
        def notify_start(self, run: RunSpec, folder: Path) -> None: ...

        def notify_epoch(self, run: RunSpec, epoch: Any) -> None:
            if epoch.epoch == 2:
                raise KeyboardInterrupt

        def notify_run(self, run: RunSpec, result: Any) -> None: ...

    with pytest.raises(runner.Interrupted):
        runner.run(spec, registry, out=tmp_path / "parts", observers=Stops())
    parts = runner.run(spec, registry, out=tmp_path / "parts", resume=True)
    assert parts.test == whole.test
    names = (run_folder.WEIGHTS, run_folder.PER_USER)
    assert all((parts.path / name).read_bytes() == (whole.path / name).read_bytes() for name in names)
    assert run_folder.load_config(whole.path, registry) == spec


def test_a_sampler_its_keys_and_its_count_name_a_run_unless_they_are_the_default(
    specs: Specs, registry: Registry
) -> None:
    def name(**keys: Any) -> str:
        [spec] = specs(model="BPR", **keys)
        return run_id(spec, runner.gather(spec, registry), registry)

    names = [
        name(),
        name(n_negatives="2"),
        name(sampler="popularity"),
        name(sampler="popularity", **{"popularity.power": "0.5"}),
        name(sampler="popularity", n_negatives="2"),
    ]
    assert len(set(names)) == len(names)
    assert name(sampler="UNIFORM", n_negatives="1") == names[0]


def test_samplers_are_an_axis_of_a_grid(specs: Specs) -> None:
    runs = specs(model="BPR", **{"sampler": "[uniform, popularity]", "popularity.power": "[0.5, 1]"})
    assert [(run.settings.sampler, run.sampler_config) for run in runs] == [
        ("uniform", None), ("uniform", None), ("popularity", PopularityConfig(0.5)),
        ("popularity", PopularityConfig(1.0)),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"sampler": "popularty"}, "command line: unknown sampler popularty; did you mean popularity?"),
        ({"popularity.power": "1"}, "unknown key popularity.power: it belongs to sampler: popularity"),
        ({"sampler": "popularity", "power": "1"}, "unknown key power; did you mean popularity.power?"),
        ({"sampler": "popularity", "popularity.power": "-1"}, "popularity.power must be at least 0"),
        ({"n_negatives": "0"}, "n_negatives must be from 1 to 1,000"),
    ],
)
def test_a_wrong_sampler_or_key_is_named(specs: Specs, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("?", r"\?")):
        specs(model="BPR", **keys)


@pytest.mark.parametrize(
    ("model", "keys", "message"),
    [
        ("LightGCN", {"n_negatives": "4"}, "n_negatives: expected 1 for model LightGCN, which takes one negative"),
        ("LightGCN", {"sampler": "none"}, "sampler: expected one that draws negatives for model LightGCN, got none"),
        ("BPR", {"sampler": "none"}, "sampler: expected one that draws negatives for model BPR, got none; try uniform"),
    ],
)
def test_a_sampler_that_does_not_fit_the_model_is_not_applicable(
    specs: Specs, registry: Registry, tmp_path: Path, model: str, keys: dict[str, Any], message: str
) -> None:
    [spec] = specs(model=model, **keys)
    with pytest.raises(NotApplicable, match=message):
        runner.run(spec, registry, out=tmp_path)


def test_a_model_that_reads_no_negatives_runs_with_none(specs: Specs, registry: Registry, tmp_path: Path) -> None:
    [spec] = specs(model="SLMRec", sampler="none", epochs="1")
    assert runner.run(spec, registry, out=tmp_path).epochs == 1


# Faults of plugins

PLUGIN = """
import torch
from mmrec_lmm.api import Sampler, SamplerSpec, hookimpl


class Endless(Sampler):
    redraws = True

    def draw(self, users, generator):
        return torch.zeros_like(users)  # an item that somebody has


class Short(Sampler):
    def draw(self, users, generator):
        return torch.zeros(1, dtype=torch.int64)


class Beyond(Sampler):
    def draw(self, users, generator):
        return torch.full_like(users, 10**6)


@hookimpl
def mmrec_register_samplers():
    return [SamplerSpec("endless", Endless), SamplerSpec("short", Short), SamplerSpec("beyond", Beyond)]
"""


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("endless", r"sampler endless: expected an item that user \d+ doesn't have, got none in 1,000 draws"),
        ("short", r"sampler short: expected items int64 \(\d+,\) from draw, got torch.int64 \(1,\)"),
        ("beyond", r"sampler beyond: expected items from 0 to \d+ from draw, got 1000000 to 1000000"),
    ],
)
def test_a_plugins_broken_sampler_is_one_error_that_names_it(
    specs: Specs, tmp_path: Path, name: str, message: str
) -> None:
    file = tmp_path / "broken_samplers.py"
    file.write_text(PLUGIN)
    registry = load_registry([str(file)])
    [spec] = specs(known=registry, model="BPR", sampler=name)
    with pytest.raises(PluginError, match=f"plugin {file}: {message}"):
        runner.run(spec, registry, out=tmp_path / "runs")


def test_a_sampler_that_redraws_gives_up_on_nobody_who_lacks_an_item() -> None:
    class Ones(Sampler):
        redraws = True

        def draw(self, users: Tensor, generator: torch.Generator) -> Tensor:
            return torch.randint(self.data.n_items, users.shape, generator=generator)

    users = torch.tensor([4] * 100)  # has items 1, 2 and 3
    items = Checked(Ones(DATA, None), DATA, name="ones").draw(users, generator())
    assert set(items.tolist()) == {0, 4}

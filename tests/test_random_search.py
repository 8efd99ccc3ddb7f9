"""Random search in studies: a planted optimum is found without test, a kill changes nothing, and records prove budgets.
And shards: disjoint, together complete, joined by copying."""

import json
import shutil
from pathlib import Path

import pytest
from helpers import Answer, call, plugin, start, wait_until

from mmrec_lmm import study
from mmrec_lmm.config.search import Range, Search, draw
from mmrec_lmm.errors import ConfigError, ConfigValueError
from mmrec_lmm.plugin.registry import Registry, load_registry
from mmrec_lmm.studies.executor import Plan, Shard, make_plan
from mmrec_lmm.studies.file import Cell, load_study, winner

BEST_ON_VALID, BEST_ON_TEST = 0.3, 0.8
PLANTED = f"""
import torch

@dataclass(frozen=True)
class Where:
    place: float = 0.0
    depth: int = 1

class Planted(Recommender):
    '''Ranks the item of valid first for most users at one place, and that of test at another.'''

    def __init__(self, data, features, config):
        super().__init__(data, features, config)
        self.idle = torch.nn.Parameter(torch.ones(()))
        users, items = torch.arange(data.n_users)[:, None], torch.arange(data.n_items)[None]
        nth = (items // 2 - users // 2) % 8
        own = users % 2 == items % 2
        scores = torch.zeros(data.n_users, data.n_items)
        for label, best in ((0, {BEST_ON_VALID}), (1, {BEST_ON_TEST})):
            lucky = users < data.n_users * (1 - abs(config.place - best))
            scores[own & (nth == label)] = -1.0
            scores[own & (nth == label) & lucky] = 1.0
        self.register_buffer("scores", scores)

    def training_loss(self, batch):
        time.sleep(float(os.environ.get("PAUSE", 0)))
        return {{"idle": self.idle**2}}

    def scorer(self):
        return lambda users: self.scores[users]

@hookimpl
def mmrec_register_models():
    return [ModelSpec(name, cls=Planted, config=Where, uses_features=False) for name in ("Planted", "Other", "Fixed")]
"""
SEARCH = """
models: [Planted, Other, Fixed]
datasets: [toy]
seeds: [1, 2]
seeds_at: winner
search: random
trials: 10
grids:
  Planted: {place: {from: 0, to: 1}}
  Other: {place: {from: 1e-3, to: 1, scale: log}, depth: {from: 1, to: 3}}
  Fixed: {}
settings: {epochs: 1, valid_metric: Recall@5, threads: 1}
metrics: [Recall@5]
"""


@pytest.fixture(autouse=True)
def here(data_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with data/toy, a study, and the plugin of its models."""
    monkeypatch.chdir(data_path.parent)
    Path("search.yaml").write_text(SEARCH)
    plugin(Path("planted.py"), PLANTED)
    return data_path.parent


@pytest.fixture
def planted() -> Registry:
    return load_registry(["planted.py"])


def study_call(verb: str, *more: object) -> Answer:
    return call("study", verb, "search.yaml", "-p", "planted.py", *more)


def plan_of(planted: Registry, out: str = "runs", shard: Shard | None = None) -> Plan:
    return make_plan(load_study(Path("search.yaml")), planted, out=Path(out), shard=shard)


def cells(planted: Registry, **changes: str) -> dict[str, Cell]:
    text = SEARCH
    for old, new in changes.items():
        text = text.replace(OLD[old], new)
    Path("changed.yaml").write_text(text)
    return {cell.axes.model: cell for cell in load_study(Path("changed.yaml")).cells(planted)}


OLD = {"trials": "trials: 10", "grid": "{place: {from: 0, to: 1}}", "search": "search: random", "fixed": "Fixed: {}"}


def places(cell: Cell) -> list[float]:
    return [run.point["place"] for run in cell.runs if run.point["seed"] == 1]


# Drawing


def test_every_model_has_as_many_points_within_its_space_and_each_seed_has_them_all(planted: Registry) -> None:
    found = cells(planted)
    assert [len(cell.runs) for cell in found.values()] == [20, 20, 2]
    for model in ("Planted", "Other"):
        points = [{**run.point, "seed": 0} for run in found[model].runs]
        assert points[:10] == points[10:]
        assert len({repr(point) for point in points}) == 10
    assert all(0 <= place <= 1 for place in places(found["Planted"]))
    assert sum(place < 0.1 for place in places(found["Other"])) > 3  # two of three powers of ten; one on a linear scale
    assert {run.model_config.depth for run in found["Other"].runs} == {1, 2, 3}
    assert [run.point for run in found["Fixed"].runs] == [{"seed": 1}, {"seed": 2}]


def test_points_are_the_same_each_time_and_more_trials_keep_the_first(planted: Registry) -> None:
    first = cells(planted)
    assert places(cells(planted)["Other"]) == places(first["Other"])
    more = cells(planted, trials="trials: 24")
    assert places(more["Planted"])[:10] == places(first["Planted"])
    other = cells(planted, trials="trials: 10\nsearch_seed: 1")
    assert not set(places(other["Planted"])) & set(places(first["Planted"]))
    wider = cells(planted, grid="{depth: [1, 2], place: {from: 0, to: 1}}")
    assert places(wider["Planted"]) == places(first["Planted"])


def test_a_range_comes_evenly_with_both_ends() -> None:
    whole, share = Range(1, 4, "linear", True), [(step + 0.5) / 4000 for step in range(4000)]
    counts = [sum(whole.value(one) == number for one in share) for number in range(1, 5)]
    assert counts == [1000] * 4
    assert [Range(1, 100, "log", False).value(one) for one in (0.0, 0.25, 0.5, 1.0)] == [1, 3.162, 10, 100]
    assert Range(0.12344, 0.2, "linear", False).value(0.0) == 0.12344
    with pytest.raises(ConfigValueError, match="trials"):
        draw({"x": Range(0.1, 0.1002, "linear", False)}, Search(50, 0, {}), "Planted")


def test_a_published_grid_is_drawn_from_and_lists_are_used_up(planted: Registry) -> None:
    Path("lmm.yaml").write_text(
        "{models: VBPR, datasets: toy, encoders: basic, grids: {vbpr: lmm}, settings: {preset: paper}, search: random, "
        "trials: 7}"
    )
    [cell] = load_study(Path("lmm.yaml")).cells(planted)
    assert sorted(run.point["reg_weight"] for run in cell.runs) == sorted([2.0, 1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trials": ""}, "changed.yaml:6: trials: expected the number of points for every model, got none; try trials"),
        ({"trials": "trials: 0"}, "changed.yaml:7: trials must be from 1 to 100,000, got 0"),
        ({"search": "search: grid"}, "trials: expected search: random with it, got search: grid; try leaving it out"),
        ({"search": "", "trials": ""}, "place: expected a list of values, got a range; try search: random with"),
        (
            {"fixed": ""},
            "changed.yaml:2: grids: expected one for every model under search: random, got none for Fixed",
        ),
        (
            {"grid": "{place: [0.1, 0.2]}"},
            "changed.yaml:7: trials: expected at most 2 for Planted, whose grid has so many",
        ),
        ({"grid": "{place: {from: 0}}"}, "changed.yaml:9: place: expected {from: LOW, to: HIGH, scale: log}, got {'fr"),
        (
            {"grid": "{place: {from: 1, to: 0}}"},
            "changed.yaml:9: place: expected a range from a number to a larger one",
        ),
        (
            {"grid": "{place: {from: 0, to: 1, scale: log}}"},
            "place: expected a range from above 0 for scale: log, got 0",
        ),
        ({"grid": "{place: {from: 0, to: 1, scale: lg}}"}, "place: scale: expected linear or log, got 'lg'"),
        ({"grid": "{learner: {from: adam, to: sgd}}"}, "learner: expected a list of values, got a range, which is for"),
        ({"grid": "{depth: {from: 0.5, to: 2}}"}, "changed.yaml:9: depth must be a whole number, got 0.5"),
        ({"grid": "{plce: {from: 0, to: 1}}"}, "changed.yaml:9: unknown key plce; did you mean place?"),
    ],
)
def test_a_search_that_can_not_be_is_refused_with_its_line(
    planted: Registry, changes: dict[str, str], message: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        cells(planted, **changes)
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"search": "search: randon"}, "search must be one of grid, random, got 'randon'; did you mean random?"),
        ({"search": "serch: random"}, "unknown key serch; did you mean search?"),
        ({"trials": "trials: 0"}, "trials must be from 1 to 100,000, got 0"),
    ],
)
def test_a_misspelled_search_is_one_message(planted: Registry, changes: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        cells(planted, **changes)
    assert str(refused.value).endswith(message)
    assert "\n" not in str(refused.value)


def test_the_documented_search_gives_each_model_its_trials(planted: Registry) -> None:
    page = Path(__file__).parents[1] / "docs" / "studies.md"
    section = page.read_text(encoding="utf-8").partition("## Equal budgets")[2]
    Path("documented.yaml").write_text(section.partition("```yaml\n")[2].partition("```")[0])
    found = {cell.axes.model: cell for cell in load_study(Path("documented.yaml")).cells(planted)}
    assert {model: len(cell.runs) for model, cell in found.items()} == {"VBPR": 24, "LightGCN": 24, "Pop": 3}


# Searching


def test_a_planted_optimum_of_validation_is_found_whatever_test_says_and_records_prove_the_budgets(
    planted: Registry,
) -> None:
    assert "budgets aren't equal: Planted has 0 of 10 trials; Other has 0 of 10 trials" in study_call("status").out
    answer = study_call("run")
    assert answer.code == 0, answer.err
    proof = "equal budgets: 10 trials of each of 2 models, selected on validation; Fixed: nothing to search"
    assert proof in answer.out
    assert proof in study_call("status").out
    plan = plan_of(planted)
    own = winner(plan.cells[0], plan.outcomes()[0].results)
    assert abs(own[0].parameters["place"] - BEST_ON_VALID) < 0.1
    assert [run.record.seed for run in own] == [1, 2]
    tried = {run.parameters["place"]: run.test["recall@5"] for run in plan.outcomes()[0].results if run}
    assert own[0].test["recall@5"] < max(tried.values()), "another point is better on test, and has no say"
    assert "Equal budgets: 10 trials" in study_call("table").out

    Path("search.yaml").write_text(SEARCH.replace("{from: 0, to: 1}}", "{from: 0.25, to: 0.35}}"))
    again = study_call("run")
    assert again.code == 0, again.err
    assert "budgets aren't equal: Planted has 10 more, of an earlier file, data or code" in again.out


# Shards


def shards(planted: Registry, out: str) -> list[set[str]]:
    return [set(plan_of(planted, out, Shard(number, 2)).own) for number in (1, 2)]


def test_shards_are_disjoint_complete_and_of_one_size(planted: Registry) -> None:
    first, second = shards(planted, "runs")
    assert not first & second
    assert first | second == set(plan_of(planted).jobs)
    assert abs(len(first) - len(second)) <= 1


@pytest.mark.slow
def test_shards_in_folders_of_their_own_are_joined_by_copying(planted: Registry) -> None:
    before = shards(planted, "joined")
    for number in (1, 2):
        answer = study_call("run", "--shard", f"{number}/2", "--out", f"part-{number}")
        assert answer.code == 0, answer.err
        assert f"shard {number}/2: " in answer.out
        assert "wait for winners" in answer.out
        shutil.copytree(f"part-{number}", "joined", dirs_exist_ok=True)
    made = [{path.parent.name for path in Path(f"part-{number}").glob("*/result.json")} for number in (1, 2)]
    assert all(made)
    assert not made[0] & made[1]
    for number in (1, 2):  # the winners' other seeds
        assert study_call("run", "--shard", f"{number}/2", "--out", "joined").code == 0
    after = shards(planted, "joined")
    assert not after[0] & after[1]
    assert after[0] | after[1] == set(plan_of(planted, "joined").jobs)
    assert all(old <= new for old, new in zip(before, after, strict=True)), "no run moves to another shard"
    assert study_call("run", "--out", "whole").code == 0
    joined, whole = (study_call("table", "--out", out, "--format", "csv").out for out in ("joined", "whole"))
    assert joined == whole
    assert "equal budgets: 10 trials" in study_call("status", "--out", "joined").out
    records = [{path.name for path in Path(out, "study", "search").glob("*.json")} for out in ("joined", "whole")]
    assert records[0] == records[1]


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "a/b", "1/0", "-1/2"])
def test_a_shard_that_is_none_is_refused(text: str) -> None:
    answer = study_call("run", f"--shard={text}")
    assert answer.code == 2
    assert "argument --shard: expected I/N with I from 1 to N, got" in answer.err


@pytest.mark.parametrize("shard", [(0, 2), (3, 2), (1,), (1, 2, 3)])
def test_a_program_is_refused_such_a_shard_too(shard: tuple[int, int]) -> None:
    with pytest.raises(ConfigError, match=r"^shard: expected \(I, N\) with I from 1 to N, got "):
        study("search.yaml", plugins=["planted.py"]).run(shard=shard)


@pytest.mark.slow
def test_a_search_that_is_killed_and_continued_ends_as_the_uninterrupted_one(monkeypatch: pytest.MonkeyPatch) -> None:
    assert study_call("run", "--out", "whole").code == 0

    def records(out: str) -> dict[str, str]:
        files = [path for path in Path(out, "study", "search").glob("*.json") if len(path.stem) == 16]
        return {path.name: json.loads(path.read_text())["run_id"] for path in files}

    monkeypatch.setenv("PAUSE", "0.2")  # a run's epoch, which else ends before a kill
    for least in (3, 9):
        process = start("study", "run", "search.yaml", "-p", "planted.py")
        wait_until(lambda least=least: len(records("runs")) >= least, process)
        process.kill()
        process.communicate()
    before = records("runs")
    assert 9 <= len(before) < len(records("whole"))
    monkeypatch.delenv("PAUSE")
    answer = study_call("run")
    assert answer.code == 0, answer.err
    assert "equal budgets: 10 trials of each of 2 models" in answer.out
    assert records("runs") == records("whole")

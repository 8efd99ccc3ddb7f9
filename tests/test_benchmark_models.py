"""The models' benchmark runs, counts the real code's work and draws what it found. Nothing here looks at a clock."""

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import jobs, models
from benchmarks.counting import count
from benchmarks.growth import Series, svg
from benchmarks.memory import peak_bytes
from benchmarks.synthetic import BABY, QUICK, clustered
from mmrec_lmm.graph import SparseMatrix, nearest_neighbors, neighbor_sum, propagate
from mmrec_lmm.plugin.contracts import ParameterFree
from mmrec_lmm.plugin.registry import load_registry
from mmrec_lmm.plugin.specs import resolve


def measured(row: str, **more: Any) -> dict[str, Any]:
    model, options = models.ROWS[row]
    return jobs.train(model, options=options, steps=2, factor=1, widths={}, quick=True, **more)


@pytest.mark.parametrize("row", models.ROWS)
def test_a_models_first_batch_later_steps_and_evaluation_are_measured_and_have_a_floor(row: str) -> None:
    result = measured(row)
    assert result["batches"] == 8  # seven whole ones of 2,000 // 7 rows, and a short one
    for part in ("first", "step", "evaluation"):
        assert result["seconds"][part] > 0
        assert result["floor"][part] > 0
    assert result["work"]["evaluation"]["selected"]["50"] == QUICK.users * QUICK.items


def test_the_epochs_of_a_model_are_measured_whole_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    trained = []
    monkeypatch.setattr(jobs.Trainer, "train_epoch", lambda self, epoch: trained.append((epoch, len(self._rows))))
    result = jobs.epochs("SLMRec", options={}, number=3, widths={}, quick=True)
    assert len(result["seconds"]) == 3
    assert trained == [(0, 1), (1, 1), (2, 1)]


def test_epochs_can_be_measured_on_a_data_set_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "baby").mkdir()
    rows = [f"{user}\t{(user + step) % 5}\t{label}" for user in range(6) for step, label in enumerate((0, 0, 0, 1, 2))]
    (tmp_path / "baby" / "baby.inter").write_text("\n".join(["userID\titemID\tx_label", *rows]))
    result = jobs.epochs("BPR", options={}, number=2, widths={}, quick=True, data_path=str(tmp_path))
    assert len(result["seconds"]) == 2


def test_every_model_that_trains_and_ships_is_measured() -> None:
    specs = (spec for spec in load_registry().models if spec.paper)
    shipped = {spec.name for spec in specs if not issubclass(resolve(spec.cls), ParameterFree)}
    assert {model for model, _ in models.ROWS.values()} == shipped


def test_an_epoch_of_lattice_builds_its_graph_in_the_first_batch_and_in_no_other() -> None:
    work = measured("LATTICE")["work"]
    assert work["first"]["selected"] == {"11": 2 * QUICK.items**2}  # two modalities, ten neighbors and one for ties
    assert work["step"]["selected"] == {}
    assert work["step"]["flops"] == 0 < work["first"]["flops"]


def test_the_arithmetic_of_a_step_of_lightgcn_is_three_layers_forth_and_back() -> None:
    work = measured("LightGCN")["work"]["step"]
    assert work["sparse_flops"] == 2 * 3 * 2 * (2 * QUICK.train) * 64
    assert work["flops"] == 0


def test_frozen_ids_spare_mmgcn_the_products_of_what_is_constant() -> None:
    learned, frozen = (measured(row)["work"]["step"] for row in ("MMGCN", "MMGCN, frozen ids"))
    assert frozen["sparse_flops"] < learned["sparse_flops"]
    assert frozen["moved"] < learned["moved"]  # the optimizer's pass over ids and preferences


def test_features_can_lie_in_a_memory_mapped_file_and_the_number_of_items_be_set() -> None:
    work = measured("LATTICE", mapped=True, items=250)["work"]
    assert work["first"]["selected"] == {"11": 2 * 250**2}


def test_a_sparse_product_counts_its_entries_forth_and_back() -> None:
    rows, cols = torch.tensor([0, 0, 2]), torch.tensor([1, 3, 2])
    matrix = SparseMatrix.from_entries(rows, cols, torch.ones(3), (3, 4))
    x = torch.ones(4, 5, requires_grad=True)
    counted = count(lambda: propagate(matrix, x).sum().backward())
    assert (counted.sparse_flops, counted.flops) == (2 * (2 * 3 * 5), 0)


def test_a_sum_over_neighbors_counts_like_the_sparse_product_that_it_is() -> None:
    items, weights, x = torch.tensor([[0, 1], [1, 2], [2, 2]]), torch.ones(3, 2), torch.ones(3, 5)
    assert count(lambda: neighbor_sum(items, weights, x)).sparse_flops == 2 * 6 * 5


def test_a_lookup_moves_its_rows_forth_and_back_and_not_the_table() -> None:
    table, ids = torch.ones(1000, 4, requires_grad=True), torch.tensor([3, 5])
    counted = count(lambda: torch.nn.functional.embedding(ids, table).sum().backward())
    rows = 2 * 4 * 4
    assert counted.moved == (16 + 2 * rows) + (16 + 3 * rows)  # read, written; gradient and sum read, sum written


def test_adam_reads_four_numbers_per_weight_and_writes_three() -> None:
    weight = torch.ones(10, 10, requires_grad=True)
    adam = torch.optim.Adam([weight], fused=True)
    weight.grad = torch.ones_like(weight)
    assert count(adam.step).moved == pytest.approx(7 * 4 * 100, abs=16)  # and the number of the step


def test_a_floor_is_each_kind_of_work_at_its_own_rate() -> None:
    work = {"flops": 2e9, "sparse_flops": 3e9, "moved": 4e9, "selected": {"50": 5e9}}
    rates = {"product": 20.0, "sparse": 10.0, "copy": 8.0, "largest 50": 1.0}
    assert jobs.floor(work, rates) == pytest.approx(0.1 + 0.3 + 0.5 + 5.0)


def test_growing_multiplies_users_items_and_interactions_alike() -> None:
    grown = BABY.times(4, {"image": 8})
    assert (grown.users, grown.items, grown.train) == (4 * BABY.users, 4 * BABY.items, 4 * BABY.train)
    assert grown.widths == {"image": 8}


def test_the_peak_of_a_process_holds_what_it_has_touched() -> None:
    before = peak_bytes()
    block = torch.ones(64 << 20)  # a quarter of a GB
    assert peak_bytes() >= max(before, block.nbytes)


def test_the_plot_is_svg_with_a_line_for_each_series_in_either_panel() -> None:
    series = [
        Series("one", (1, 2, 4), (1.0, 2.0, 4.0), (0.1, 0.2, 0.4)),
        Series("two", (1, 2, 4), (3, 9, 30), (1, 1, 1)),
    ]
    drawn = ElementTree.fromstring(svg(series))
    name = "{http://www.w3.org/2000/svg}"
    lines = [
        [tuple(map(float, point.split(","))) for point in line.attrib["points"].split()]
        for line in drawn.findall(f"{name}polyline")
    ]
    assert len(lines) == 2 * (2 + 2)  # two guides and two lines
    in_proportion, as_square, one, two = lines[:4]
    assert [one[0], one[-1]] == in_proportion
    assert in_proportion[0] == as_square[0]
    assert in_proportion[1][1] > as_square[1][1], "the square is higher up"
    assert [x for x, _ in two] == [x for x, _ in one]
    assert one[0][1] > two[0][1] > two[1][1] > two[2][1]
    assert len({y for _, y in lines[7]}) == 1, "the same memory at each size"
    assert {"one", "two"} <= {text.text for text in drawn.findall(f"{name}text")}


def test_what_neighbors_are_searched_among_is_clustered_and_the_recall_is_measured() -> None:
    pytest.importorskip("faiss", reason="approximate neighbors need faiss: pip install 'mmrec-lmm[ann]'")
    assert jobs.neighbors(items=2_000, width=8)["recall"] == 1.0
    assert 0.1 < jobs.neighbors(items=2_000, width=8, probes=1)["recall"] < 1.0
    vectors = torch.from_numpy(clustered(5_000, 16, np.random.default_rng(0)))
    assert nearest_neighbors(vectors, 10).cosines.mean() > nearest_neighbors(torch.randn(5_000, 16), 10).cosines.mean()


@pytest.mark.slow
def test_the_harness_prints_a_line_for_each_model_measured_in_processes_of_their_own(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    quick = ["--quick", "--steps", "2"]
    models.main([*quick, "--models", "BPR"])
    models.main(["growth", *quick, "--models", "BPR", "--factors", "1", "2", "--plot", str(tmp_path / "growth.svg")])
    for at_size in ("large", "neighbors", "ranking", "million"):
        models.main([at_size, *quick])
    models.main(["epochs", *quick, "--models", "SLMRec", "--epochs", "2"])
    printed = capsys.readouterr().out
    for line in (
        r"\| BPR \| [\d.]+ \|",
        r"\| SLMRec \| [\d.]+ \| [\d.]+ \| [\d.]+ \|",
        r"\| exact neighbors \|",
        r"LATTICE, 2,000 items, exact .* ok",
        "large product",
        r"50 of 300 users, 1,000 items: .* ratio [\d.]+ of 1.5: ",
        r"\| LightGCN \|( [\d.]+ \|){11}",
    ):
        assert re.search(line, printed)
    assert re.search(r"\| 2,000 \| 64 \| approximate, probes 16 \| [\d.]+ \| [\d.]+ \|", printed)
    assert (tmp_path / "growth.svg").read_text().startswith("<svg")

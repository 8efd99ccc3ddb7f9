"""The GPU's benchmark runs, here on the CPU at a tiny size, and keeps to its time. Nothing here looks at a clock."""

import re
from types import SimpleNamespace

import pytest
import torch

from benchmarks import gpu
from mmrec_lmm.plugin.registry import load_registry

QUICK = ("--device", "cpu", "--quick", "--models", "BPR", "LATTICE", "--encoders", "clip")


def test_it_prints_a_line_for_each_model_and_each_part_of_an_encoder(capsys: pytest.CaptureFixture[str]) -> None:
    gpu.main(QUICK)
    printed = capsys.readouterr().out
    number = r"[\d,.]+"
    for model in ("BPR", "LATTICE"):
        assert re.search(rf"^\| {model} (\| {number} ){{5}}\|$", printed, re.MULTILINE)
    for part, items in (("encoding", 24), ("ete epoch", 24), ("ft epoch", 16)):
        found = re.search(rf"^\| clip \| {part} \| {items} \| .*$", printed, re.MULTILINE)
        assert found, printed
        assert re.fullmatch(rf"(\| {number} ){{4}}\| {number} % \| {number} \|", found[0].partition(f"{part} ")[2])
    assert "skipped" not in printed


def test_what_has_no_time_is_skipped_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    gpu.main([*QUICK, "--budget", "0"])
    printed = capsys.readouterr().out
    assert printed.count("| skipped: no time is left |") == 2
    assert len(re.findall(r"^\| clip \| .* \| skipped: .* 0 s are allowed \|$", printed, re.MULTILINE)) == 3


def test_the_time_that_is_left_is_shared_by_the_parts_to_come(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(gpu, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    budget = gpu.Budget(100, 4)
    assert budget.next_part() == 25
    clock[0] = 10  # it took less
    assert budget.next_part() == 30
    clock[0] = 120  # far more
    assert budget.next_part() == 0


def test_a_part_takes_the_items_that_fit() -> None:
    assert gpu.fitting(100, 0.001, 512, 7_050) == 7_050
    assert gpu.fitting(100, 0.1, 512, 7_050) == 700
    with pytest.raises(gpu.Skipped, match="512 items would take 51 s, and 10 s are allowed"):
        gpu.fitting(10, 0.1, 512, 7_050)


def test_the_arithmetic_of_an_item_is_that_of_its_products() -> None:
    linear = torch.nn.Linear(3, 5)
    assert gpu.flops(lambda: linear(torch.ones(7, 3))) == 2 * 7 * 3 * 5


def test_prepared_items_are_as_many_as_asked_with_lengths_where_they_vary() -> None:
    encoder = gpu.build(load_registry().encoders.get("vlmo"), quick=True)
    items = gpu.prepared(encoder, 70)
    assert {len(array) for array in items.arrays.values()} == {70}
    assert items.lengths.keys() == {"ids"}
    batch = items.batch(torch.arange(64, 70).numpy())
    with torch.no_grad():
        assert {key: tuple(rows.shape) for key, rows in encoder(batch).items()} == {
            key: (6, encoder.dims[key]) for key in ("image", "text")
        }

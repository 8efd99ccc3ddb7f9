"""The encoders' benchmark runs, and reads its figures right. Nothing here looks at a clock."""

from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from benchmarks import encoders
from benchmarks.encoders import Rates
from mmrec_lmm.plugin.registry import load_registry
from mmrec_lmm.testing import TinyEncoder


@pytest.mark.parametrize("modality", ["image", "text"])
def test_forward_loader_and_pipeline_are_measured_by_the_work_that_they_are(tmp_path, monkeypatch, modality):
    """Each kind of work moves the clocks by its own number of seconds an item, so that the rates are known."""
    clock = [0]

    class Slow(TinyEncoder):
        def prepare(self, item):
            clock[0] += 5
            return super().prepare(item)

        def forward(self, batch):
            clock[0] += 100 * len(batch["length"])
            return super().forward(batch)

    monkeypatch.setattr(encoders, "time", SimpleNamespace(perf_counter=lambda: clock[0], process_time=lambda: clock[0]))
    found = encoders.rates(
        encoders.make_catalog(tmp_path, 4, 8), Slow(None, (modality,)), modality, name="some",
        device=torch.device("cpu"), batch_size=3, workers=0, rounds=1,
    )  # fmt: skip
    assert found == Rates(forward=1 / 100, loader=1 / 5, pipeline=1 / 105, added=5)


def test_the_loader_may_have_processes_of_its_own(tmp_path):
    found = encoders.rates(
        encoders.make_catalog(tmp_path, 1, 8), TinyEncoder(None, ("text",)), "text", name="some",
        device=torch.device("cpu"), batch_size=3, workers=1, rounds=1,
    )  # fmt: skip
    assert min(found.forward, found.loader, found.pipeline) > 0


def test_the_pipeline_is_held_against_the_slower_of_forward_and_loader():
    encoder_bound, reading_bound = Rates(100, 400, 95, 0.001), Rates(400, 100, 95, 0.001)
    assert encoder_bound.ratio == reading_bound.ratio == 0.95
    assert encoder_bound.limit == "the encoder"
    assert reading_bound.limit == "reading: 4.0 workers would keep up"


def test_its_pictures_are_jpegs_of_a_posters_size_and_weight(tmp_path):
    catalog = encoders.make_catalog(tmp_path, 2, 8)
    assert [image is not None for image in catalog.images] == [True] * 2 + [False] * 6
    with Image.open(catalog.images[0]) as image:
        assert (image.format, image.size) == ("JPEG", (300, 450))
    assert 20_000 < catalog.images[0].stat().st_size < 60_000


def test_it_prints_a_line_for_each_encoder_that_has_a_tiny_variant(capsys):
    known = [spec.name for spec in load_registry().encoders if "tiny" in spec.variants]
    encoders.main(["--quick", "--encoders", known[0], "--modalities", "image"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith(f"| {known[0]} | image | ")
    assert lines[-1].count("|") == lines[-2].count("|") == lines[-3].count("|")

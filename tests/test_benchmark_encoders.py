"""The encoders' benchmark runs, and reads its figures right. Nothing here looks at a clock."""

import pytest
import torch
from PIL import Image

from benchmarks import encoders
from benchmarks.encoders import Rates
from mmrec_lmm.plugin.registry import load_registry
from mmrec_lmm.testing import TinyEncoder


@pytest.mark.parametrize("modality", ["image", "text"])
def test_forward_loader_and_pipeline_are_measured_for_each_modality(tmp_path, modality):
    catalog = encoders.catalogue(tmp_path, 4, 8)
    found = encoders.rates(
        catalog, TinyEncoder(None, (modality,)), modality, name="some", device=torch.device("cpu"), batch_size=3,
        workers=1, rounds=1,
    )  # fmt: skip
    assert min(found.forward, found.loader, found.pipeline, found.added) > 0


def test_the_pipeline_is_held_against_the_slower_of_forward_and_loader():
    encoder_bound, reading_bound = Rates(100, 400, 95, 0.001), Rates(400, 100, 95, 0.001)
    assert encoder_bound.ratio == reading_bound.ratio == 0.95
    assert encoder_bound.limit == "the encoder"
    assert reading_bound.limit == "reading: 4.0 workers would keep up"


def test_its_pictures_are_jpegs_of_a_posters_size_and_weight(tmp_path):
    catalog = encoders.catalogue(tmp_path, 2, 8)
    assert [image is not None for image in catalog.images] == [True] * 2 + [False] * 6
    with Image.open(catalog.images[0]) as image:
        assert (image.format, image.size) == ("JPEG", (300, 450))
    assert 20_000 < catalog.images[0].stat().st_size < 60_000


def test_it_prints_a_line_for_each_encoder_that_has_a_tiny_variant(capsys):
    known = [spec.name for spec in load_registry().encoders if "tiny" in spec.variants]
    if not known:
        pytest.skip("no encoder with a tiny variant is installed")
    encoders.main(["--quick", "--encoders", known[0], "--modalities", "image"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith(f"| {known[0]} | image | ")
    assert lines[-1].count("|") == lines[-2].count("|") == lines[-3].count("|")

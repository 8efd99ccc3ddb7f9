"""The `basic` encoder: what its features tell, and what they don't depend on."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from mmrec_lmm.plugin.registry import load_registry
from mmrec_lmm.types import RawItem

ENCODERS = load_registry().encoders
BasicEncoder, BasicConfig = ENCODERS.load("basic", "cls"), ENCODERS.load("basic", "config")

COLORS = {"red": (210, 40, 40), "green": (40, 170, 60), "blue": (50, 70, 210)}
SHAPES = ("square", "circle", "triangle")


def picture(shape: str, color: str, rng: np.random.Generator) -> Image.Image:
    """A 64 x 64 picture of a shape of random size and place on white."""
    image = Image.new("RGB", (64, 64), "white")
    size, left, top = rng.integers(28, 40), *rng.integers(4, 20, size=2)
    box = [(left, top), (left + size, top + size)]
    draw = ImageDraw.Draw(image)
    if shape == "square":
        draw.rectangle(box, fill=COLORS[color])
    elif shape == "circle":
        draw.ellipse(box, fill=COLORS[color])
    else:
        draw.polygon([(left, top + size), (left + size // 2, top), (left + size, top + size)], fill=COLORS[color])
    return image


def features(items: list[RawItem], modality: str, config: Any = None) -> np.ndarray:
    encoder = BasicEncoder(config or BasicConfig(), (modality,))
    batch = {modality: torch.stack([encoder.prepare(item)[modality] for item in items])}
    return encoder(batch)[modality].numpy()


def linear_accuracy(rows: np.ndarray, labels: np.ndarray) -> float:
    """The share of the second half that ridge regression on the first half labels rightly."""
    classes = np.unique(labels)
    rows, targets = np.c_[rows, np.ones(len(rows))], np.where(labels[:, None] == classes, 1.0, -1.0)
    half = len(rows) // 2
    weights = np.linalg.solve(
        rows[:half].T @ rows[:half] + 1e-2 * np.eye(rows.shape[1]), rows[:half].T @ targets[:half]
    )
    return float(np.mean(classes[(rows[half:] @ weights).argmax(axis=1)] == labels[half:]))


@pytest.fixture(scope="module")
def pictures() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    shapes, colors = rng.choice(SHAPES, 240), rng.choice(list(COLORS), 240)
    items = [
        RawItem(i, picture(shape, color, rng), "") for i, (shape, color) in enumerate(zip(shapes, colors, strict=True))
    ]
    return features(items, "image"), shapes, colors


def test_a_linear_model_reads_shape_and_color_off_the_image_features(pictures):
    rows, shapes, colors = pictures
    assert linear_accuracy(rows, colors) > 0.97
    assert linear_accuracy(rows, shapes) > 0.9


def test_a_linear_model_reads_a_stripe_direction_off_the_image_features():
    rng = np.random.default_rng(4)
    directions, items = rng.choice(["across", "down"], 80), []
    for i, direction in enumerate(directions):
        stripes = np.where((np.arange(64) + rng.integers(8)) // 4 % 2, 230, 90).astype(np.uint8)  # (64,)
        gray = np.tile(stripes, (64, 1)) if direction == "down" else np.tile(stripes[:, None], (1, 64))
        items.append(RawItem(i, Image.fromarray(gray).convert("RGB"), ""))
    assert linear_accuracy(features(items, "image"), directions) == 1.0


def test_rows_have_norm_one(pictures):
    texts = features([RawItem(0, None, "A blue mug"), RawItem(1, None, "long words and " * 50)], "text")
    np.testing.assert_allclose(np.linalg.norm(pictures[0], axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(texts, axis=1), 1, atol=1e-5)


def test_texts_that_share_words_or_parts_of_words_are_closer_than_texts_that_share_none():
    mug, same, plural, other = features(
        [RawItem(i, None, text) for i, text in enumerate(["Blue mug", "blue, MUG!", "blue mugs", "oak shelf"])], "text"
    )
    assert mug @ same == pytest.approx(1, abs=1e-6)
    assert mug @ other < 0.1 < mug @ plural < 1


def test_words_alone_are_hashed_where_no_ngrams_are_asked_for():
    mug, plural = features([RawItem(0, None, "mug"), RawItem(1, None, "mugs")], "text", BasicConfig(ngrams=()))
    assert mug @ plural == 0


def test_text_hashes_are_those_of_every_machine_and_release():
    (row,) = features([RawItem(0, None, "mug")], "text", BasicConfig(text_dim=16, ngrams=()))
    assert np.flatnonzero(row).tolist() == [4]  # CRC-32 of <mug>, modulo 16


def test_an_item_without_image_or_text_gets_rows_of_the_usual_shape():
    encoder = BasicEncoder(BasicConfig(), ("image", "text"))
    empty = encoder.prepare(RawItem(0, None, ""))
    assert {name: tuple(row.shape) for name, row in empty.items()} == {n: (d,) for n, d in encoder.dims.items()}
    assert not any(row.any() for row in empty.values())


def test_images_of_any_size_and_a_flat_image_work():
    sizes = [(1, 1), (7, 300), (1000, 30)]
    rows = features([RawItem(i, Image.new("RGB", size, "teal"), "") for i, size in enumerate(sizes)], "image")
    assert np.isfinite(rows).all()
    np.testing.assert_allclose(rows[0], rows[2], atol=1e-6)


@pytest.mark.parametrize("wrong", [{"image_size": 0}, {"image_size": 65}, {"text_dim": 0}, {"ngrams": (3, 0)}])
def test_a_config_that_makes_no_sense_names_its_key(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        BasicConfig(**wrong)


def test_there_are_no_weights_to_name():
    assert ENCODERS.load("basic", "weights_id")(BasicConfig(), "image") == "none"

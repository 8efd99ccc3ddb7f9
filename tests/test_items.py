"""Items as encoders get them: every odd file that stands in a catalog is read or masked, and none ends anything."""

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mmrec_lmm.data import items
from mmrec_lmm.data.images import read_image
from mmrec_lmm.errors import ConfigError, DataError, PluginError
from mmrec_lmm.types import ItemCatalog


def catalog(texts: list[str], images: list[Path | None]) -> ItemCatalog:
    return ItemCatalog({"title": tuple(texts)}, tuple(images), tuple(f"raw{item}" for item in range(len(texts))), "")


def noise(width: int = 64, height: int = 48) -> Image.Image:
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


# Images that are odd, and read


def center(image: Image.Image) -> tuple[int, ...]:
    pixel = image.getpixel((image.width // 2, image.height // 2))
    assert isinstance(pixel, tuple)
    return tuple(int(channel) for channel in pixel)


@pytest.mark.parametrize("mode", ["P", "RGBA", "L", "LA", "1", "CMYK", "YCbCr"])
def test_an_image_of_any_mode_is_read_as_rgb(tmp_path, mode):
    suffix = "jpg" if mode in ("CMYK", "YCbCr") else "png"
    path = tmp_path / f"white.{suffix}"
    Image.new("RGB", (4, 4), "white").convert(mode).save(path)
    image = read_image(path)
    assert (image.mode, center(image)) == ("RGB", (255, 255, 255))


@pytest.mark.parametrize(("background", "color"), [("white", (255,) * 3), ("black", (0,) * 3), ("none", (10, 200, 30))])
def test_transparency_is_laid_on_the_background_and_pillow_does_not_warn_of_a_palette(
    tmp_path, recwarn, background, color
):
    path = tmp_path / "palette.png"
    Image.new("RGB", (4, 4), (10, 200, 30)).quantize(4).save(path, transparency=b"\x00\x80\xff\x10")
    assert center(read_image(path, background)) == color
    assert not recwarn.list


def test_of_an_animation_the_first_picture_is_read(tmp_path):
    path = tmp_path / "moving.gif"
    first, *others = (Image.new("RGB", (8, 8), color) for color in ("red", "blue", "green"))
    first.save(path, save_all=True, append_images=others)
    assert center(read_image(path)) == (255, 0, 0)


def test_of_sixteen_bits_a_pixel_the_upper_eight_are_read(tmp_path):
    path = tmp_path / "deep.png"
    Image.fromarray(np.array([[0, 0x1234, 0x80FF, 0xFFFF]], np.uint16)).save(path)
    assert np.asarray(read_image(path))[0, :, 0].tolist() == [0, 0x12, 0x80, 0xFF]


def test_a_rotation_that_exif_asks_for_is_not_made(tmp_path):
    path = tmp_path / "rotated.jpg"
    tags = Image.Exif()
    tags[0x0112] = 6  # a viewer would turn it by 90 degrees
    noise(40, 20).save(path, exif=tags)
    assert read_image(path).size == (40, 20)


def test_a_single_pixel_is_an_image(tmp_path):
    path = tmp_path / "dot.png"
    Image.new("RGB", (1, 1), "red").save(path)
    assert read_image(path).size == (1, 1)


# Images that can't be read


def truncated(path: Path) -> None:
    noise().save(path, "JPEG")
    path.write_bytes(path.read_bytes()[:900])


def truncated_png(path: Path) -> None:
    noise().save(path, "PNG")
    path.write_bytes(path.read_bytes()[:-2000])


def bomb(path: Path) -> None:
    """A picture of a hundred million pixels, as Pillow itself writes it, in some kilobytes."""
    Image.new("1", (10_000, 10_000)).save(path, "PNG")


def strip(path: Path) -> None:
    """Few pixels, but gigabytes as soon as its short side is to be 224."""
    Image.new("1", (3, 50_000)).save(path, "PNG")


def words(path: Path) -> None:
    path.write_text("<html>404 Not Found</html>")


def empty(path: Path) -> None:
    path.touch()


def folder(path: Path) -> None:
    path.mkdir()


def pipe(path: Path) -> None:
    os.mkfifo(path)


def loop(path: Path) -> None:
    path.symlink_to(path)


def nothing(path: Path) -> None:
    pass


UNREADABLE: list[tuple[Callable[[Path], None], str]] = [
    (truncated, "truncated"),
    (truncated_png, "truncated|broken"),
    (bomb, "too many pixels: 10000 x 10000"),
    (strip, "a strip: 3 x 50000 pixels"),
    (words, "a web page"),
    (empty, "an empty file"),
    (folder, "not a plain file"),
    (pipe, "not a plain file"),
    (loop, "symbolic links"),
    (nothing, "No such file"),
]


@pytest.mark.parametrize(("make", "message"), UNREADABLE, ids=[make.__name__ for make, _ in UNREADABLE])
def test_an_image_that_cannot_be_read_goes_on_as_an_item_without_one_and_with_the_reason(tmp_path, make, message):
    path = tmp_path / "item.jpg"
    make(path)
    source = items.source_of(catalog([""], [path]), "image", ())
    seen = []
    loaded = items._Items(source, lambda raw: seen.append(raw) or {})[0]
    assert (loaded[0], loaded[1], seen[0].image) == (0, {}, None)
    assert loaded[2] is not None
    assert re.search(message, loaded[2]), loaded[2]


@pytest.fixture
def as_nobody() -> Iterator[Path]:
    """A folder that anyone may use, in a process that isn't root for the while of a test."""
    place = Path(tempfile.mkdtemp())
    place.chmod(0o777)
    root = os.geteuid() == 0
    try:
        if root:
            os.seteuid(65534)
        yield place
    finally:
        if root:
            os.seteuid(0)
        shutil.rmtree(place)


def test_a_file_that_this_process_may_not_read_is_masked_too(as_nobody, monkeypatch):
    monkeypatch.setenv("MMREC_LMM_HOME", str(as_nobody / "home"))
    mine, locked = as_nobody / "mine.png", as_nobody / "locked.png"
    for path in (mine, locked):
        noise().save(path)
    locked.chmod(0)
    source = items.source_of(catalog(["", ""], [locked, mine]), "image", ())
    dataset = items._Items(source, lambda raw: {})
    assert source.items.tolist() == [0, 1]
    assert dataset[0][2] == "PermissionError: Permission denied"
    assert dataset[1][2] is None
    locked.chmod(0o600)
    assert items.source_of(catalog(["", ""], [locked, mine]), "image", ()).fingerprint != source.fingerprint


# Texts, both, and batches


def test_the_text_of_an_item_is_its_fields_in_order_joined_by_one_space():
    two = ItemCatalog({"title": ("Mug\nblue", ""), "brand": ("", "Acme")}, (None, None), ("a", "b"), "")
    assert items.item_texts(two, ["title", "brand", "unknown"]) == ["Mug blue", "Acme"]
    assert items.item_texts(two, ["brand", "title"]) == ["Mug blue", "Acme"]
    assert items.item_texts(two, ["unknown"]) == ["", ""]


def test_joint_items_are_those_with_image_and_text_and_both_are_given(tmp_path):
    path = tmp_path / "0.png"
    noise().save(path)
    four = catalog(["short", "", "no picture", "the longest"], [path, path, None, path])
    joint, image, text = (items.source_of(four, modality, ["title"]) for modality in ("joint", "image", "text"))
    assert joint.items.tolist() == [3, 0]  # the longest text first
    assert image.items.tolist() == [0, 1, 3]
    assert text.items.tolist() == [3, 2, 0]
    assert len({joint.fingerprint, image.fingerprint, text.fingerprint}) == 3
    both, only_image, only_text = joint.read(3), image.read(3), text.read(3)
    assert (both.image.size, both.text) == ((64, 48), "the longest")
    assert (only_image.image.size, only_image.text) == ((64, 48), "")
    assert (only_text.image, only_text.text) == (None, "the longest")


def test_joint_features_change_with_either_content(tmp_path):
    paths = [tmp_path / "0.png", tmp_path / "1.png"]
    for path, color in zip(paths, ("red", "blue"), strict=True):
        Image.new("RGB", (8, 8), color).save(path)
    names = {
        items.source_of(catalog([text], [path]), "joint", ["title"]).fingerprint
        for text in ("a", "b") for path in paths
    }  # fmt: skip
    assert len(names) == 4


@pytest.mark.parametrize(
    ("modality", "texts", "with_image", "message"),
    [
        ("text", [""], True, "no item has text in the fields title; there are title"),
        ("image", ["a"], False, "no item has an image"),
        ("joint", ["a"], False, "no item has an image"),
        ("joint", [""], True, "no item has text"),
        ("joint", ["a", ""], True, "no item has both image and text"),
    ],
)
def test_a_catalog_with_nothing_of_a_modality_is_refused(tmp_path, modality, texts, with_image, message):
    (tmp_path / "0.png").touch()
    images = [None] * (len(texts) - 1) + [tmp_path / "0.png" if with_image else None]
    with pytest.raises(DataError, match=rf"{modality} features can't be encoded: {message}.*--features {modality}="):
        items.source_of(catalog(texts, images), modality, ["title"])


def test_a_modality_that_no_catalog_holds_is_refused():
    with pytest.raises(ConfigError, match="modalities: expected image, text or joint, got audio"):
        items.source_of(catalog(["a"], [None]), "audio", ["title"])


def test_integers_are_padded_with_their_own_value_and_other_differing_shapes_are_refused():
    ids = [{"ids": torch.tensor([1, 2])}, {"ids": torch.tensor([3])}]
    batch = items.pad_and_stack(ids, padding={"ids": 9}, encoder="some")
    assert batch["ids"].tolist() == [[1, 2], [3, 9]]
    with pytest.raises(PluginError, match="encoder some: prepare: expected image for each item"):
        items.pad_and_stack([{"image": torch.ones(1)}, {"image": torch.ones(2)}], padding={}, encoder="some")
    with pytest.raises(PluginError, match="got it for 1 of 2 items"):
        items.pad_and_stack([{"ids": torch.ones(1)}, {}], padding={}, encoder="some")

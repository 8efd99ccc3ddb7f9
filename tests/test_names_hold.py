"""A name promises content: nothing that changed, broke or failed in passing is taken for what was hashed."""

import errno
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
from PIL import Image, UnidentifiedImageError

from mmrec_lmm import cache
from mmrec_lmm.data import images as images_module
from mmrec_lmm.data import items as items_module
from mmrec_lmm.errors import DataError, RunError
from mmrec_lmm.features import encoding, files
from mmrec_lmm.plugin.registry import load_registry
from mmrec_lmm.plugin.specs import EncoderSpec, WeightFile
from mmrec_lmm.types import FeatureTable, ItemCatalog, RawItem
from mmrec_lmm.weights.download import find_weights

ENCODERS = load_registry().encoders
BasicEncoder, BasicConfig = ENCODERS.load("basic", "cls"), ENCODERS.load("basic", "config")
BASIC = EncoderSpec("basic", BasicEncoder, BasicConfig, ("image", "text"), lambda config, modality: "none")
COLORS = ("red", "green", "blue", "gray", "white", "black")


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    """Six images of one color each."""
    paths = [tmp_path / f"{color}.png" for color in COLORS]
    for path in paths:
        Image.new("RGB", (8, 8), path.stem).save(path)
    return paths


def catalog(images: list[Path]) -> ItemCatalog:
    raw_ids = tuple(f"raw{item}" for item in range(len(images)))
    return ItemCatalog({"title": raw_ids}, tuple(images), raw_ids, "of no matter here")


def encoded(images: list[Path], spec: EncoderSpec = BASIC, **options: Any) -> FeatureTable:
    chosen = encoding.EncodeOptions(**options)
    return encoding.encode(catalog(images), spec, BasicConfig(), modalities=["image"], options=chosen)["image"]


def settle() -> None:
    """Wait until hashes are remembered: until no file changed a moment ago."""
    time.sleep(getattr(cache, "SETTLED", 0) / 1e9 + 0.05)


def rewrite(path: Path, content: bytes) -> None:
    """Other content under the old times, as `cp -p`, `touch -d` and archives leave it."""
    before = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 0b10001
    path.write_bytes(content)


@pytest.fixture
def settled_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "SETTLED", 0, raising=False)


# A.1: hashes that are remembered


@pytest.mark.usefixtures("settled_at_once")
def test_features_of_equal_shape_and_time_are_other_features(tmp_path: Path) -> None:
    one, other = np.ones((4, 2), np.float32), np.full((4, 2), 2, np.float32)
    path, second = tmp_path / "image_feat.npy", tmp_path / "second.npy"
    np.save(path, one)
    np.save(second, other)
    settle()
    first = [files.read_feature_file(path, modality="text", n_items=4).fingerprint, cache.hash_file(path)]
    rewrite(path, second.read_bytes())
    assert cache.hash_file(path) != first[1]
    table = files.read_feature_file(path, modality="text", n_items=4)
    assert (table.fingerprint != first[0], table.values[0, 0]) == (True, 2)


@pytest.mark.usefixtures("settled_at_once")
def test_published_weights_that_are_overwritten_under_their_old_time_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "tower.bin"
    path.write_bytes(b"sound")
    settle()
    file = WeightFile("tower.bin", "https://example.org/tower.bin", sha256=cache.hash_bytes(b"sound"))
    assert find_weights(file, encoder="some", given=path) == path
    rewrite(path, b"wrong")
    with pytest.raises(DataError, match=r"tower.bin: expected sha256"):
        find_weights(file, encoder="some", given=path)


@dataclass(frozen=True)
class Stretch:
    weights: str


class Stretched(BasicEncoder):  # type: ignore[misc, valid-type]
    """basic, times the number in a file of weights."""

    def __init__(self, config: Stretch, modalities: tuple[str, ...]) -> None:
        super().__init__(BasicConfig(), modalities)
        self.factor = float(Path(config.weights).read_text())

    def forward(self, batch: dict[str, Any]) -> dict[str, Any]:
        return {modality: self.factor * rows for modality, rows in super().forward(batch).items()}


def test_weights_that_change_between_hashing_and_loading_end_the_encoding(
    images: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = tmp_path / "weights"
    weights.write_text("1")
    spec = EncoderSpec("s", Stretched, Stretch, ("image",), lambda config, modality: cache.hash_file(weights))
    build = encoding.build_encoder

    def replaced(*given: Any) -> Any:
        rewrite(weights, b"2")
        return build(*given)

    monkeypatch.setattr(encoding, "build_encoder", replaced)
    with pytest.raises(DataError, match=r"weights: expected the file as it was hashed"):
        encoding.encode(catalog(images), spec, Stretch(str(weights)), modalities=["image"])


# A.2: what is encoded is what was hashed


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])  # torch takes 10 s to end workers
def test_an_image_that_is_replaced_while_others_are_encoded_ends_that_and_keeps_the_shards_before(
    images: list[Path], monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    monkeypatch.setattr(encoding, "SHARD", 2)

    class Replacing(BasicEncoder):  # type: ignore[misc, valid-type]
        """Replaces the last image when it prepares the fourth."""

        def prepare(self, item: RawItem) -> Any:
            if item.item == 3:
                rewrite(images[-1], images[0].read_bytes())
            return super().prepare(item)

    spec = EncoderSpec("r", Replacing, BasicConfig, ("image",), lambda config, modality: "none")
    with pytest.raises(DataError, match=r"black.png: expected the file as it was hashed, .*; start again"):
        encoded(images, spec, workers=workers, batch_size=1)
    assert not [*(cache.home() / "features").glob("*.safetensors")]
    if not workers:
        assert len([*(cache.home() / "features").glob("*.parts/*.safetensors")]) == 2
    table = encoded(images, spec)
    np.testing.assert_array_equal(table.values[-1], table.values[0])


def test_an_image_that_vanishes_or_comes_while_others_are_encoded_ends_that(
    images: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = items_module.source_of(catalog([*images, images[0].with_name("late.png")]), "image", ())
    images[0].rename(images[0].with_name("late.png"))
    for item in (0, len(images)):
        with pytest.raises(DataError, match="expected the file as it was hashed"):
            source.read(item)


# A.3: no live mapping of a user's file

CUT = """
import os, sys
import numpy as np
from pathlib import Path
from mmrec_lmm.features.files import read_feature_file
path = Path(sys.argv[1])
np.save(path, np.ones((50_000, 16), np.float32))
table = read_feature_file(path, modality="text", n_items=50_000)
with path.open("r+b") as file:
    file.seek(1000)
    file.write(bytes(4096))
assert table.values.all(), "changed"
os.truncate(path, 200)
assert table.values.all(), "changed"
"""


def test_a_feature_file_that_is_overwritten_or_cut_while_it_is_used_changes_nothing(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CUT, str(tmp_path / "f.npy")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


# A.4: stored tables


@pytest.mark.parametrize("part", ["values", "mask", "header"])
def test_a_stored_table_with_two_flipped_bits_is_made_again_with_a_warning(
    images: list[Path], caplog: pytest.LogCaptureFixture, part: str
) -> None:
    sound = encoded(images)
    [path] = (cache.home() / "features").glob("*.safetensors")
    content = path.read_bytes()
    flip(path, {"values": -100, "mask": -2, "header": 60}[part])
    again = encoded(images)
    assert "expected a feature table, got a damaged one" in caplog.text
    assert caplog.text.count("it is made again") == 1
    np.testing.assert_array_equal(again.values, sound.values)
    np.testing.assert_array_equal(again.present, sound.present)
    assert path.read_bytes() == content


def test_a_damaged_shard_is_made_again_alone(
    images: list[Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(encoding, "SHARD", 2)
    assemble, read = encoding._assemble, []

    class Counting(BasicEncoder):  # type: ignore[misc, valid-type]
        def prepare(self, item: RawItem) -> Any:
            read.append(item.item)
            return super().prepare(item)

    def flipped(path: Path, *given: Any, **options: Any) -> None:
        if len(read) == len(images):
            flip(path.with_suffix(".parts") / "2-2.safetensors", -100)
        assemble(path, *given, **options)

    monkeypatch.setattr(encoding, "_assemble", flipped)
    spec = EncoderSpec("c", Counting, BasicConfig, ("image",), lambda config, modality: "none")
    np.testing.assert_array_equal(encoded(images, spec).values, encoded(images).values)
    assert read == [0, 1, 2, 3, 4, 5, 2, 3]
    assert "it is made again" in caplog.text


# A.5: failures that pass


def failing(path: Path, error: Exception) -> Callable[..., Any]:
    """`Image.open` that fails for the image at `path`."""
    open_image, content = Image.open, path.read_bytes()

    def open_or_fail(file: Any, *given: Any, **options: Any) -> Any:
        if (file.getvalue() if hasattr(file, "getvalue") else Path(file).read_bytes()) == content:
            raise error
        return open_image(file, *given, **options)

    return open_or_fail


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])  # torch takes 10 s to end workers
@pytest.mark.parametrize(
    "error",
    [OSError(errno.EIO, "Input/output error"), OSError(errno.EMFILE, "Too many open files"), MemoryError()],
    ids=["EIO", "EMFILE", "MemoryError"],
)
def test_an_error_of_the_machine_masks_no_item_and_keeps_the_shards_before(
    images: list[Path], monkeypatch: pytest.MonkeyPatch, error: Exception, workers: int
) -> None:
    monkeypatch.setattr(encoding, "SHARD", 2)
    with monkeypatch.context() as patch:
        patch.setattr(Image, "open", failing(images[4], error))
        with pytest.raises(RunError, match=r"white.png: can't be read by this machine: .*finished work is kept"):
            encoded(images, workers=workers, batch_size=1)
    if not workers:
        assert len([*(cache.home() / "features").glob("*.parts/*.safetensors")]) == 2
    assert encoded(images).present.all()


def other_decoders(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    monkeypatch.setattr(PIL, "__version__", version)
    images_module.decoders.cache_clear()


def test_a_mask_of_the_decoders_is_tried_again_by_others_and_only_by_others(
    images: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    images[1].write_bytes(b"no image")
    missing = failing(images[4], UnidentifiedImageError(f"cannot identify image file {str(images[4])!r}"))
    with monkeypatch.context() as patch:
        other_decoders(patch, "1")
        patch.setattr(Image, "open", missing)
        before = encoded(images)
        assert before.present.tolist() == [True, False, True, True, False, True]
        other_decoders(patch, "2")
        assert encoded(images).fingerprint == before.fingerprint
    monkeypatch.setattr(encoding, "_make", lambda *given: pytest.fail("all items were encoded again"))
    other_decoders(monkeypatch, "3")
    after = encoded(images)
    assert after.present.tolist() == [True, False, True, True, True, True]
    assert after.fingerprint != before.fingerprint
    assert encoded(images).fingerprint == after.fingerprint
    monkeypatch.undo()
    other_decoders(monkeypatch, "4")
    images[1].unlink()
    np.testing.assert_array_equal(encoded(images).values, after.values)
    other_decoders(monkeypatch, PIL.__version__)


def test_a_reason_names_todays_path(images: list[Path], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    images[1].write_bytes(b"no image")
    encoded(images)
    moved = tmp_path / "moved"
    moved.mkdir()
    caplog.clear()
    encoded([path.rename(moved / path.name) for path in images])
    assert f"raw1 is masked, unreadable: {moved / 'green.png'}: no image format that is known" in caplog.text
    assert str(images[1]) not in caplog.text
    assert "BytesIO" not in caplog.text


def test_force_encodes_again_what_is_in_the_cache(images: list[Path]) -> None:
    encoded(images)
    [path] = (cache.home() / "features").glob("*.safetensors")
    inode, content = path.stat().st_ino, path.read_bytes()
    encoded(images)
    assert path.stat().st_ino == inode
    spare = path.with_name("spare")
    os.link(path, spare)  # so that the inode isn't reused
    encoded(images, force=True)
    assert path.stat().st_ino != inode
    assert path.read_bytes() == content

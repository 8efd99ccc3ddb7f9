"""Features on disk and encoding: rows never shift, nothing stale is reused, a kill costs one shard at most."""

import io
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from mmrec_lmm import artifacts, encoding
from mmrec_lmm.builtin.basic import BasicConfig, BasicEncoder
from mmrec_lmm.contracts import ItemEncoder
from mmrec_lmm.errors import ConfigError, DataError, PluginError, RunError
from mmrec_lmm.specs import EncoderSpec
from mmrec_lmm.types import FeatureTable, ItemCatalog, RawItem

BASIC = EncoderSpec("basic", BasicEncoder, BasicConfig, ("image", "text"), lambda config: "none")


@pytest.fixture(autouse=True)
def own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMREC_LMM_HOME", str(tmp_path / "home"))


def catalog(texts: list[str] | None = None, images: list[Path | None] | None = None) -> ItemCatalog:
    n_items = len(texts or images or [])
    return ItemCatalog(
        fields={"title": tuple(texts or [""] * n_items)},
        images=tuple(images or [None] * n_items),
        raw_ids=tuple(f"raw{item}" for item in range(n_items)),
        fingerprint="of no matter here",
    )


def encode_texts(texts: list[str], spec: EncoderSpec, config: Any = None, **options: Any) -> FeatureTable:
    return encoding.encode(catalog(texts), spec, config, modalities=["text"], text_fields=["title"], **options)["text"]


@dataclass(frozen=True)
class LengthConfig:
    scale: float = 1.0


class LengthEncoder(ItemEncoder):
    """text -> [scale x number of letters, scale x sum of codes]; counts how often it is built and what it prepares."""

    built = 0
    prepared: list[int] = []  # noqa: RUF012
    padding: Mapping[str, int] = {"codes": -1}

    def __init__(self, config: LengthConfig, modalities: tuple[str, ...]) -> None:
        super().__init__()
        type(self).built += 1
        self.scale = config.scale
        self.dims = dict.fromkeys(modalities, 2)

    def prepare(self, item: RawItem) -> dict[str, Tensor]:
        self.prepared.append(item.item)
        return {"codes": torch.tensor([ord(letter) for letter in item.text] or [0])}

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        real = batch["codes"] != -1  # (B, T)
        counts = torch.stack([real.sum(1), (batch["codes"] * real).sum(1)], dim=1)  # (B, 2)
        return {modality: self.scale * counts.float() for modality in self.dims}


LENGTHS = EncoderSpec("lengths", LengthEncoder, LengthConfig, ("text",), lambda config: "none")


@pytest.fixture(autouse=True)
def fresh_counts() -> None:
    LengthEncoder.built, LengthEncoder.prepared = 0, []


def save(path: Path, array: np.ndarray, **options: Any) -> Path:
    np.save(path, array, **options)
    return path


# Feature files


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_feature_file_of_any_float_type_becomes_float32_with_row_i_for_item_i(tmp_path, dtype):
    rows = np.arange(1, 7, dtype=dtype).reshape(3, 2) / 8
    table = encoding.read_feature_file(save(tmp_path / "f.npy", rows), modality="text", n_items=3)
    assert table.values.dtype == np.float32
    np.testing.assert_array_equal(table.values, rows)
    assert table.present.all()


def test_a_fortran_ordered_file_is_read_in_the_right_order(tmp_path):
    rows = np.asfortranarray(np.arange(1, 7, dtype=np.float32).reshape(3, 2))
    table = encoding.read_feature_file(save(tmp_path / "f.npy", rows), modality="text", n_items=3)
    np.testing.assert_array_equal(torch.as_tensor(table.values), [[1, 2], [3, 4], [5, 6]])


def test_an_all_zero_row_is_an_absent_item(tmp_path):
    path = save(tmp_path / "f.npy", np.array([[1.0, 0], [0, 0]]))
    assert encoding.read_feature_file(path, modality="text", n_items=2).present.tolist() == [True, False]


def test_images_that_mmrec_filled_with_the_mean_are_absent_and_the_file_stays_as_it_is(tmp_path):
    path = save(tmp_path / "image_feat.npy", np.array([[1, 3], [2, 2], [3, 1]], np.float32))
    before = path.read_bytes()
    (tmp_path / "missed_img_itemIDs.csv").write_text("1\n")
    image = encoding.read_feature_file(path, modality="image", n_items=3)
    text = encoding.read_feature_file(path, modality="text", n_items=3)
    assert image.present.tolist() == [True, False, True]
    np.testing.assert_array_equal(image.values, [[1, 3], [0, 0], [3, 1]])
    assert text.present.all()
    assert image.fingerprint != text.fingerprint
    assert path.read_bytes() == before
    np.testing.assert_array_equal(encoding.mean_filled(image).values, [[1, 3], [2, 2], [3, 1]])


def test_a_list_of_missed_images_that_names_no_item_is_refused(tmp_path):
    path = save(tmp_path / "image_feat.npy", np.ones((3, 2)))
    (tmp_path / "missed_img_itemIDs.csv").write_text("1,3\n")
    with pytest.raises(DataError, match=r"missed_img_itemIDs.csv: 3.0 is no item; ids are 0 to 2"):
        encoding.read_feature_file(path, modality="image", n_items=3)


def bad_features(tmp_path: Path, kind: str) -> Path:
    path = tmp_path / "f.npy"
    good = np.ones((4, 3), np.float32)
    if kind == "missing":
        return path
    if kind == "not npy":
        path.write_text("1,2,3")
    elif kind == "pickle":
        path.write_bytes(b"\x80\x04K\x01.")
    elif kind == "objects":
        save(path, np.array([[{}]], object), allow_pickle=True)
    elif kind == "flat":
        save(path, np.ones(4))
    elif kind == "words":
        save(path, np.array([["a"]] * 4))
    elif kind == "rows":
        save(path, good[:3])
    elif kind == "nan":
        good[1, 2], good[3, 0] = np.nan, np.inf
        save(path, good)
    elif kind == "too large":
        save(path, good * np.array(1e200))
    elif kind == "truncated":
        save(path, good)
        path.write_bytes(path.read_bytes()[:-5])
    elif kind == "truncated head":
        save(path, good)
        path.write_bytes(path.read_bytes()[:9])
    return path


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "no such file"),
        ("not npy", "not a .npy file"),
        ("pickle", "a pickle, which could run code"),
        ("objects", "pickled Python objects"),
        ("flat", r"shape \(4,\)"),
        ("words", "of <U1"),
        ("rows", "3 rows, but the data set has 4 items"),
        ("nan", "NaN or infinity in 2 of 4 rows, first 1, 3"),
        ("too large", "NaN or infinity in 4 of 4 rows"),
        ("truncated", "truncated or damaged"),
        ("truncated head", "truncated or damaged"),
    ],
)
def test_a_bad_feature_file_is_named_with_what_is_wrong(tmp_path, kind, message):
    path = bad_features(tmp_path, kind)
    with pytest.raises(DataError, match=message) as caught:
        encoding.read_feature_file(path, modality="image", n_items=4)
    assert str(caught.value).startswith(f"{path}: ")


def test_a_large_float32_file_is_mapped_rather_than_read(tmp_path):
    path = save(tmp_path / "f.npy", np.ones((64, 8), np.float32))
    values: Any = encoding.read_feature_file(path, modality="text", n_items=64).values
    while values.base is not None and not isinstance(values, np.memmap):
        values = values.base
    assert isinstance(values, np.memmap)


# Tables in the store


def test_a_saved_table_is_loaded_as_it_was(tmp_path):
    table = FeatureTable("text", np.arange(6, dtype=np.float32).reshape(3, 2).T, np.array([True, False]), "abc")
    loaded = encoding.load_table(encoding.save_table(tmp_path / "t.safetensors", table, encoder="some"))
    np.testing.assert_array_equal(loaded.values, table.values)
    np.testing.assert_array_equal(loaded.present, table.present)
    assert (loaded.modality, loaded.fingerprint) == ("text", "abc")


@pytest.mark.parametrize("keep", [0, 5, 60, -1])
def test_a_damaged_table_is_named(tmp_path, keep):
    path = tmp_path / "t.safetensors"
    encoding.save_table(path, FeatureTable("text", np.ones((2, 2), np.float32), np.ones(2, bool), "abc"))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match=r"t.safetensors: damaged feature table .* delete it"):
        encoding.load_table(path)


# Encoding


def test_rows_follow_item_ids_whatever_the_texts_lengths_and_items_without_text_are_zero_and_masked():
    table = encode_texts(["abc", "", "a", "abcde", "  \n"], LENGTHS, LengthConfig(), batch_size=2)
    assert table.values[:, 0].tolist() == [3, 0, 1, 5, 0]
    assert table.present.tolist() == [True, False, True, True, False]


def test_the_text_of_an_item_is_its_fields_in_order_joined_by_one_space():
    items = ItemCatalog({"title": ("Mug\nblue", ""), "brand": ("", "Acme")}, (None, None), ("a", "b"), "")
    assert encoding.item_texts(items, ["title", "brand", "unknown"]) == ["Mug blue", "Acme"]
    assert encoding.item_texts(items, ["brand", "title"]) == ["Mug blue", "Acme"]
    assert encoding.item_texts(items, ["unknown"]) == ["", ""]


def test_a_second_call_takes_the_table_from_the_store_without_building_the_encoder():
    first = encode_texts(["abc", "de"], LENGTHS, LengthConfig(), batch_size=1)
    second = encode_texts(["abc", "de"], LENGTHS, LengthConfig(), batch_size=2)
    assert LengthEncoder.built == 1
    assert second.fingerprint == first.fingerprint
    np.testing.assert_array_equal(second.values, first.values)


def test_each_thing_that_features_depend_on_gives_another_table():
    def replaced(**change: Any) -> EncoderSpec:
        return EncoderSpec(**{**vars(LENGTHS), **change})

    names = [
        encode_texts(["abc", "de"], LENGTHS, LengthConfig()).fingerprint,
        encode_texts(["abc", "df"], LENGTHS, LengthConfig()).fingerprint,
        encode_texts(["de", "abc"], LENGTHS, LengthConfig()).fingerprint,
        encode_texts(["abc", "de"], LENGTHS, LengthConfig(scale=2)).fingerprint,
        encode_texts(["abc", "de"], replaced(version=2), LengthConfig()).fingerprint,
        encode_texts(["abc", "de"], replaced(name="other"), LengthConfig()).fingerprint,
        encode_texts(["abc", "de"], replaced(weights_id=lambda config: "new"), LengthConfig()).fingerprint,
    ]
    assert len(set(names)) == len(names) == LengthEncoder.built


def test_text_features_are_kept_when_only_an_image_changes(tmp_path):
    def both(colour: str) -> dict[str, FeatureTable]:
        Image.new("RGB", (8, 8), colour).save(tmp_path / "0.png")
        items = catalog(["mug"], [tmp_path / "0.png"])
        return encoding.encode(items, BASIC, BasicConfig(), modalities=["image", "text"], text_fields=["title"])

    red, blue = both("red"), both("blue")
    assert red["text"].fingerprint == blue["text"].fingerprint
    assert red["image"].fingerprint != blue["image"].fingerprint
    assert not np.array_equal(red["image"].values, blue["image"].values)


def damaged_images(folder: Path) -> list[Path | None]:
    """Good, truncated, text, decompression bomb (for a limit of 5,000 pixels), missing file, no image, good."""
    buffer = io.BytesIO()
    Image.effect_noise((64, 64), 80).save(buffer, "JPEG")
    names = [folder / name for name in ("good.jpg", "cut.jpg", "text.jpg", "bomb.png", "gone.jpg")]
    names[0].write_bytes(buffer.getvalue())
    names[1].write_bytes(buffer.getvalue()[:900])
    names[2].write_text("not an image")
    Image.new("L", (100, 100)).save(names[3])
    return [*names, None, names[0]]


def test_images_that_cannot_be_read_are_reported_by_raw_id_and_masked_and_shift_no_row(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5000)
    images = damaged_images(tmp_path)
    with caplog.at_level(logging.INFO):
        for _ in range(2):  # the second time from the store
            caplog.clear()
            table = encoding.encode(catalog(images=images), BASIC, BasicConfig(), modalities=["image"])["image"]
            warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
            assert [message.split(" is masked")[0] for message in warnings] == [
                f"image of item raw{item}" for item in (1, 2, 3, 4)
            ]
            for reason, message in zip(("truncated", "cannot identify", "bomb", "No such file"), warnings, strict=True):
                assert reason in message
            assert (
                "image: 2 of 7 items have it; 5 don't and are masked, first raw1, raw2, raw3, raw4, raw5" in caplog.text
            )
    assert table.present.tolist() == [True, False, False, False, False, False, True]
    assert not table.values[1:6].any()
    np.testing.assert_array_equal(table.values[0], table.values[6])
    assert table.values[0].any()


def test_the_row_of_an_unreadable_image_is_zero_whatever_the_encoder_makes_of_it(tmp_path):
    spec = EncoderSpec("lengths", LengthEncoder, LengthConfig, ("image",), lambda config: "none")
    items = catalog(images=damaged_images(tmp_path)[:2])
    table = encoding.encode(items, spec, LengthConfig(), modalities=["image"])["image"]
    assert table.values.tolist() == [[1, 0], [0, 0]]  # this encoder answers [1, 0] to an item without text


def test_an_image_with_palette_or_transparency_is_read_as_rgb(tmp_path):
    for mode in ("P", "RGBA", "L", "CMYK"):
        path = tmp_path / f"{mode}.tiff"
        Image.new("RGB", (4, 4), "white").convert(mode).save(path)
        image = encoding.read_image(path)
        assert (image.mode, image.getpixel((0, 0))) == ("RGB", (255, 255, 255))


def test_batch_size_order_and_workers_change_no_row(monkeypatch, tmp_path):
    rng = np.random.default_rng(0)
    texts = ["".join(rng.choice(list("abcdef "), rng.integers(1, 40))) for _ in range(50)]
    tables = []
    for run, (batch_size, workers) in enumerate([(1, 0), (7, 0), (64, 2)]):
        monkeypatch.setenv("MMREC_LMM_HOME", str(tmp_path / str(run)))
        tables.append(encode_texts(texts, LENGTHS, LengthConfig(), batch_size=batch_size, workers=workers))
    reversed_table = encode_texts(texts[::-1], LENGTHS, LengthConfig())
    for table in tables[1:]:
        np.testing.assert_allclose(table.values, tables[0].values, atol=1e-5)
    np.testing.assert_allclose(reversed_table.values[::-1], tables[0].values, atol=1e-5)


def test_an_encoder_that_draws_its_weights_draws_the_same_ones_each_time_and_leaves_the_random_state_alone(
    monkeypatch, tmp_path
):
    class Random(LengthEncoder):
        def __init__(self, config: LengthConfig, modalities: tuple[str, ...]) -> None:
            super().__init__(config, modalities)
            self.mix = torch.nn.Linear(2, 2)

        def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
            return {"text": self.mix(super().forward(batch)["text"])}

    spec = EncoderSpec("random", Random, LengthConfig, ("text",), lambda config: "drawn")
    tables = []
    for seed in (1, 2):
        monkeypatch.setenv("MMREC_LMM_HOME", str(tmp_path / str(seed)))
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        tables.append(encode_texts(["abc", "de"], spec, LengthConfig(), workers=0))
        assert torch.equal(torch.get_rng_state(), before)
    np.testing.assert_array_equal(tables[0].values, tables[1].values)


def test_a_modality_that_the_encoder_lacks_is_an_error_that_says_how_else():
    with pytest.raises(ConfigError, match=r"encoder lengths makes no image features, only text: .*--features image="):
        encoding.encode(catalog(["a"]), LENGTHS, LengthConfig(), modalities=["text", "image"], text_fields=["title"])


def test_a_catalogue_with_nothing_of_a_modality_is_an_error_that_says_what_there_is():
    with pytest.raises(DataError, match=r"no item has text in the fields brand; there are title"):
        encoding.encode(catalog(["a"]), LENGTHS, LengthConfig(), modalities=["text"], text_fields=["brand"])
    with pytest.raises(DataError, match="no item has an image"):
        encoding.encode(catalog(["a"]), BASIC, BasicConfig(), modalities=["image"])


@pytest.mark.parametrize(
    ("fault", "message"),
    [("nan", "NaN or infinity"), ("narrow", r"shape \(2, 1\)"), ("unnamed", "dims must name text")],
)
def test_an_encoder_that_breaks_its_contract_is_named(fault, message):
    class Faulty(LengthEncoder):
        def __init__(self, config: LengthConfig, modalities: tuple[str, ...]) -> None:
            super().__init__(config, () if fault == "unnamed" else modalities)

        def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
            rows = super().forward(batch)["text"]
            return {"text": rows[:, :1] if fault == "narrow" else rows * torch.nan}

    spec = EncoderSpec("faulty", Faulty, LengthConfig, ("text",), lambda config: "none")
    with pytest.raises(PluginError, match=f"encoder faulty: .*{message}"):
        encode_texts(["ab", "c"], spec, LengthConfig())


def test_integers_are_padded_with_their_own_value_and_other_differing_shapes_are_refused():
    ids = [{"ids": torch.tensor([1, 2])}, {"ids": torch.tensor([3])}]
    batch = encoding.pad_and_stack(ids, padding={"ids": 9}, encoder="some")
    assert batch["ids"].tolist() == [[1, 2], [3, 9]]
    with pytest.raises(PluginError, match="encoder some: prepare must give image"):
        encoding.pad_and_stack([{"image": torch.ones(1)}, {"image": torch.ones(2)}], padding={}, encoder="some")
    with pytest.raises(PluginError, match="came for 1 of 2 items"):
        encoding.pad_and_stack([{"ids": torch.ones(1)}, {}], padding={}, encoder="some")


def test_a_failure_in_the_middle_keeps_the_finished_shards(monkeypatch):
    monkeypatch.setattr(encoding, "SHARD", 4)
    texts = ["abcdefghij"[: 10 - item] for item in range(10)]  # longest first: item 0 is the first to be encoded
    whole = encoding.save_table

    def full_disk_at_the_second(path: Path, table: FeatureTable, **about: Any) -> Path:
        if path.name.startswith("4-"):
            raise RunError("no space left on the disk")
        return whole(path, table, **about)

    monkeypatch.setattr(encoding, "save_table", full_disk_at_the_second)
    with pytest.raises(RunError, match="no space left"):
        encode_texts(texts, LENGTHS, LengthConfig(), batch_size=2)
    monkeypatch.setattr(encoding, "save_table", whole)
    LengthEncoder.prepared = []
    table = encode_texts(texts, LENGTHS, LengthConfig(), batch_size=2)
    assert sorted(LengthEncoder.prepared) == [4, 5, 6, 7, 8, 9]
    assert table.values[:, 0].tolist() == list(range(10, 0, -1))
    assert [path.suffix for path in (artifacts.home() / "features").iterdir() if path.suffix != ".lock"] == [
        ".safetensors"
    ]


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_encoding import LENGTHS, LengthConfig, LengthEncoder, encode_texts

class Mortal(LengthEncoder):
    def prepare(self, item):
        log = Path(sys.argv[2])
        with log.open("a") as file:
            print(item.item, file=file)
        if sum(1 for line in log.open()) == int(sys.argv[3]):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().prepare(item)

spec = type(LENGTHS)(**{**vars(LENGTHS), "cls": Mortal})
encode_texts([f"item {number}" for number in range(600)], spec, LengthConfig())
"""


def test_after_kill_9_no_more_than_one_shard_is_prepared_again(tmp_path):
    log, die_at = tmp_path / "prepared", encoding.SHARD + 200

    def start() -> int:
        command = [sys.executable, "-c", KILLED, str(Path(__file__).parent), str(log), str(die_at)]
        return subprocess.run(command, env=os.environ, check=False).returncode

    assert start() == -signal.SIGKILL
    assert len(log.read_text().split()) == die_at
    assert start() == 0
    prepared = log.read_text().split()
    assert set(map(int, prepared)) == set(range(600))
    assert 600 < len(prepared) <= 600 + encoding.SHARD
    expected = [len(f"item {number}") for number in range(600)]
    assert encode_texts([f"item {n}" for n in range(600)], LENGTHS, LengthConfig()).values[:, 0].tolist() == expected
    assert LengthEncoder.built == 0


# Controls


def tables() -> dict[str, FeatureTable]:
    """200 items; row i of either modality holds i, so that a row tells where it came from."""
    ids = np.arange(200, dtype=np.float32)[:, None] + 1
    with_image, with_text = np.arange(200) % 5 != 0, np.arange(200) % 3 != 0
    return {
        "image": FeatureTable("image", np.hstack([ids, -ids]) * with_image[:, None], with_image, "i"),
        "text": FeatureTable("text", ids * with_text[:, None], with_text, "t"),
    }


def test_shuffled_features_move_whole_items_among_those_that_have_the_same_modalities():
    real, shuffled = tables(), encoding.control_tables(tables(), "shuffled", seed=1)
    for modality, table in shuffled.items():
        np.testing.assert_array_equal(table.present, real[modality].present)
        np.testing.assert_array_equal(np.sort(table.values[:, 0]), np.sort(real[modality].values[:, 0]))
        assert not table.values[~table.present].any()
    both = real["image"].present & real["text"].present
    np.testing.assert_array_equal(shuffled["image"].values[both, 0], shuffled["text"].values[both, 0])
    assert np.mean(shuffled["text"].values[both] == real["text"].values[both]) < 0.1


def test_random_features_have_the_mean_and_deviation_of_each_column_and_zero_where_absent():
    real, random = tables()["image"], encoding.control_tables(tables(), "random", seed=1)["image"]
    np.testing.assert_array_equal(random.present, real.present)
    assert not random.values[~random.present].any()
    known, drawn = real.values[real.present], random.values[random.present]
    np.testing.assert_allclose(drawn.mean(axis=0), known.mean(axis=0), atol=0.3 * known.std())
    np.testing.assert_allclose(drawn.std(axis=0), known.std(axis=0), rtol=0.2)
    assert drawn.dtype == np.float32


def test_a_control_is_the_same_for_the_same_seed_and_named_after_kind_and_seed():
    runs = [("shuffled", 1), ("shuffled", 2), ("random", 1)]
    made = [encoding.control_tables(tables(), control, seed=seed)["image"] for control, seed in runs]
    again = encoding.control_tables(tables(), "shuffled", seed=1)["image"]
    np.testing.assert_array_equal(made[0].values, again.values)
    assert made[0].fingerprint == again.fingerprint
    assert len({table.fingerprint for table in [*made, tables()["image"]]}) == 4


def test_an_exported_table_is_read_again_with_the_same_values_and_gaps(tmp_path):
    table = FeatureTable("text", np.array([[1, 2], [0, 0], [3, 4]], np.float32), np.array([True, False, True]), "t")
    path = encoding.export_table(tmp_path / "out" / "text_feat.npy", table)
    again = encoding.read_feature_file(path, modality="text", n_items=3)
    np.testing.assert_array_equal(again.values, table.values)
    np.testing.assert_array_equal(again.present, table.present)


def test_the_control_none_leaves_zero_rows_of_the_same_width_with_nothing_present():
    for modality, table in encoding.control_tables(tables(), "none", seed=1).items():
        assert table.values.shape == tables()[modality].values.shape
        assert not table.values.any()
        assert not table.present.any()


def test_an_unknown_control_is_refused_with_a_suggestion():
    with pytest.raises(ConfigError, match=r"unknown control shufled; .*did you mean shuffled\?"):
        encoding.control_tables(tables(), "shufled", seed=1)


def test_mean_filled_features_are_present_everywhere_and_absent_rows_hold_the_mean():
    filled = encoding.mean_filled(FeatureTable("text", np.array([[1.0], [0], [3]]), np.array([True, False, True]), "t"))
    assert filled.values.tolist() == [[1], [2], [3]]
    assert filled.present.all()
    assert filled.fingerprint != "t"

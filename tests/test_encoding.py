"""Encoding: rows never shift, nothing stale is reused, a kill costs one shard at most; how it runs changes no row."""

import dataclasses
import io
import logging
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from mmrec_lmm import cache
from mmrec_lmm.disk import locks
from mmrec_lmm.errors import ConfigError, DataError, PluginError, RunError
from mmrec_lmm.features import encoding
from mmrec_lmm.plugin.contracts import ItemEncoder
from mmrec_lmm.plugin.registry import load_registry
from mmrec_lmm.plugin.specs import EncoderSpec, resolve
from mmrec_lmm.types import FeatureTable, ItemCatalog, RawItem

ENCODERS = load_registry().encoders
BasicEncoder, BasicConfig = ENCODERS.load("basic", "cls"), ENCODERS.load("basic", "config")
BASIC = EncoderSpec("basic", BasicEncoder, BasicConfig, ("image", "text"), lambda config, modality: "none")


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
    chosen = encoding.EncodeOptions(**options)
    made = encoding.encode(catalog(texts), spec, config, modalities=["text"], text_fields=["title"], options=chosen)
    return made["text"]


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


LENGTHS = EncoderSpec("lengths", LengthEncoder, LengthConfig, ("text",), lambda config, modality: "none")


@pytest.fixture(autouse=True)
def fresh_counts() -> None:
    LengthEncoder.built, LengthEncoder.prepared = 0, []


# Encoding


def test_rows_follow_item_ids_whatever_the_texts_lengths_and_items_without_text_are_zero_and_masked():
    table = encode_texts(["abc", "", "a", "abcde", "  \n"], LENGTHS, LengthConfig(), batch_size=2)
    assert table.values[:, 0].tolist() == [3, 0, 1, 5, 0]
    assert table.present.tolist() == [True, False, True, True, False]


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
        encode_texts(["abc", "de"], replaced(weights_id=lambda config, modality: "new"), LengthConfig()).fingerprint,
    ]
    assert len(set(names)) == len(names) == LengthEncoder.built


def test_text_features_are_kept_when_only_an_image_changes(tmp_path):
    def both(color: str) -> dict[str, FeatureTable]:
        Image.new("RGB", (8, 8), color).save(tmp_path / "0.png")
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
    monkeypatch.setattr("mmrec_lmm.data.images.MOST_PIXELS", 5000)
    images = damaged_images(tmp_path)
    with caplog.at_level(logging.INFO):
        for _ in range(2):  # the second time from the store
            caplog.clear()
            table = encoding.encode(catalog(images=images), BASIC, BasicConfig(), modalities=["image"])["image"]
            *warnings, last = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
            assert [message.split(" is masked")[0] for message in warnings] == [
                f"image of item raw{item}" for item in (1, 2, 3, 4)
            ]
            assert last == "image: most images can't be read, 4 of 6; `data check` names causes"
            for reason, message in zip(
                ("cut short", "no image format", "too many pixels", "No such"), warnings, strict=True
            ):
                assert reason in message
            assert (
                "image: 2 of 7 items have it; 5 don't and are masked, first raw1, raw2, raw3, raw4, raw5" in caplog.text
            )
    assert table.present.tolist() == [True, False, False, False, False, False, True]
    assert not table.values[1:6].any()
    np.testing.assert_array_equal(table.values[0], table.values[6])
    assert table.values[0].any()


def test_the_row_of_an_unreadable_image_is_zero_whatever_the_encoder_makes_of_it(tmp_path):
    spec = EncoderSpec("lengths", LengthEncoder, LengthConfig, ("image",), lambda config, modality: "none")
    items = catalog(images=damaged_images(tmp_path)[:2])
    table = encoding.encode(items, spec, LengthConfig(), modalities=["image"])["image"]
    assert table.values.tolist() == [[1, 0], [0, 0]]  # this encoder answers [1, 0] to an item without text


RUNNABLE = [spec for spec in load_registry().encoders if "tiny" in spec.variants or spec.name == "basic"]


@pytest.fixture
def shop(tmp_path: Path) -> ItemCatalog:
    """Eleven items of all sizes and lengths; one has no image, one a damaged one, one no text."""
    rng = np.random.default_rng(0)
    images: list[Path | None] = []
    for item in range(11):
        images.append(tmp_path / f"{item}.jpg")
        pixels = rng.integers(0, 256, (20 + 13 * item, 90 - 7 * item, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{item}.jpg")
    images[3] = None
    (tmp_path / "5.jpg").write_text("no image")
    texts = [" ".join(rng.choice(["red", "mug", "lamp", "of", "wood"], 1 + 5 * item % 17)) for item in range(11)]
    texts[7] = ""
    return catalog(texts, images)


WAYS = {
    "one at a time": {"batch_size": 1},
    "batches of 3": {"batch_size": 3},
    "two workers": {"batch_size": 4, "workers": 2},
    "shards of 4": {"shard": 4},
    "reversed": {"reverse": True},
}


@pytest.mark.parametrize("spec", RUNNABLE, ids=lambda spec: spec.name)
def test_how_a_real_encoder_is_run_changes_no_row(spec, shop, monkeypatch, tmp_path):
    config = resolve(spec.config)(**({"variant": "tiny"} if "tiny" in spec.variants else {}))

    def encoded(way: str, *, shard: int = 256, reverse: bool = False, **options: Any) -> dict[str, FeatureTable]:
        monkeypatch.setenv("MMREC_LMM_HOME", str(tmp_path / way))
        monkeypatch.setattr(encoding, "SHARD", shard)
        order = slice(None, None, -1) if reverse else slice(None)
        items = catalog(list(shop.fields["title"][order]), list(shop.images[order]))
        chosen = encoding.EncodeOptions(**options)
        made = encoding.encode(items, spec, config, modalities=spec.modalities, text_fields=["title"], options=chosen)
        return {
            name: dataclasses.replace(table, values=table.values[order], present=table.present[order])
            for name, table in made.items()
        }

    usual = encoded("usual")
    assert set(usual) == set(spec.modalities)
    present = {"image": {3, 5}, "text": {7}, "joint": {3, 5, 7}}
    for modality, table in usual.items():
        assert set(np.flatnonzero(~table.present)) == present[modality]
        assert len(np.unique(table.values, axis=0)) == len(table.values) - len(present[modality]) + 1  # zeros once
    for way, changes in WAYS.items():
        tables = encoded(way, **changes)
        for modality, table in usual.items():
            np.testing.assert_array_equal(tables[modality].present, table.present)
            np.testing.assert_allclose(tables[modality].values, table.values, atol=1e-5, rtol=0, err_msg=way)


class Sized(LengthEncoder):
    """Notes how many items it is given at once; with `room` for so many, more make the allocator itself fail."""

    sizes: list[int] = []  # noqa: RUF012
    room = 10**6

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        n_items = len(batch["codes"])
        if n_items > self.room:
            torch.empty(2**45)  # 140 TB
        self.sizes.append(n_items)
        return super().forward(batch)


SIZED = dataclasses.replace(LENGTHS, cls=Sized)


def test_out_of_memory_the_batch_is_halved_until_it_fits_and_stays_so_and_no_row_is_lost(monkeypatch, caplog):
    monkeypatch.setattr(Sized, "sizes", [])
    monkeypatch.setattr(Sized, "room", 3)
    texts = ["x" * length for length in range(1, 21)]
    with caplog.at_level(logging.WARNING):
        table = encode_texts(texts, SIZED, LengthConfig(), batch_size=10)
    assert table.values[:, 0].tolist() == list(range(1, 21))
    assert Sized.sizes == [2] * 10
    assert [record.getMessage() for record in caplog.records] == [
        "encoder lengths: no memory for 10 items at once; going on with 5 (encode_batch_size)",
        "encoder lengths: no memory for 5 items at once; going on with 2 (encode_batch_size)",
    ]


def test_no_memory_for_a_single_item_ends_encoding_with_what_to_do(monkeypatch):
    monkeypatch.setattr(Sized, "room", 0)
    with pytest.raises(RunError, match=r"encoder lengths: cpu has no memory left for a single item .*--device"):
        encode_texts(["a", "b"], SIZED, LengthConfig())


def test_another_failure_of_the_encoder_is_not_taken_for_lack_of_memory():
    class Broken(LengthEncoder):
        def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
            return {"text": torch.ones(2, 3) @ torch.ones(2, 3)}

    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        encode_texts(["a"], dataclasses.replace(LENGTHS, cls=Broken), LengthConfig())


class Mixing(LengthEncoder):
    """A matrix product, so that the precision shows."""

    def __init__(self, config: LengthConfig, modalities: tuple[str, ...]) -> None:
        super().__init__(config, modalities)
        self.mix = torch.nn.Linear(2, 2)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"text": self.mix(super().forward(batch)["text"])}


MIXING = dataclasses.replace(LENGTHS, name="mixing", cls=Mixing)


def test_half_precision_gives_other_features_under_another_name_but_float32_ones():
    full, half, brain = (
        encode_texts(["abc", "de"], MIXING, LengthConfig(), dtype=dtype) for dtype in ("float32", "float16", "bfloat16")
    )
    assert len({full.fingerprint, half.fingerprint, brain.fingerprint}) == 3
    for table, tolerance in ((half, 1e-2), (brain, 1e-1)):
        assert table.values.dtype == np.float32
        assert not np.array_equal(table.values, full.values)
        np.testing.assert_allclose(table.values, full.values, rtol=tolerance, atol=tolerance)


def test_what_float16_cannot_hold_is_said_to_be_so():
    with pytest.raises(PluginError, match=r"finite, got NaN or infinity; float16 ends at 65,504, so try bfloat16"):
        encode_texts(["x" * 2000], MIXING, LengthConfig(scale=100), dtype="float16")


@pytest.mark.slow
def test_a_compiled_encoder_gives_the_same_rows_in_the_same_table(monkeypatch, tmp_path):
    texts = ["abc", "de", "fghi"]
    plain = encode_texts(texts, MIXING, LengthConfig(), batch_size=2)
    monkeypatch.setenv("MMREC_LMM_HOME", str(tmp_path / "compiled"))
    compiled = encode_texts(texts, MIXING, LengthConfig(), batch_size=2, compile=True)
    assert compiled.fingerprint == plain.fingerprint
    np.testing.assert_allclose(compiled.values, plain.values, atol=1e-5)


def test_an_encoder_that_cannot_be_compiled_goes_on_as_it_is(monkeypatch, caplog):
    def refuse(module: Any) -> Any:
        def forward(batch: Any) -> Any:
            from torch._dynamo.exc import Unsupported

            raise Unsupported("no such thing\nand why", case_name="none")

        return forward

    monkeypatch.setattr(torch, "compile", refuse)  # what a machine without a compiler does takes seconds to find out
    table = encode_texts(["abc"], LENGTHS, LengthConfig(), compile=True)
    assert table.values[:, 0].tolist() == [3]
    assert "encoder lengths can't be compiled, so it goes on as it is: no such thing" in caplog.text


def test_what_breaks_the_contract_in_a_worker_is_said_as_without_one():
    class Ragged(LengthEncoder):
        def prepare(self, item: RawItem) -> dict[str, Tensor]:
            return {"codes": torch.ones(len(item.text))}

    messages = []
    for workers in (0, 1):
        with pytest.raises(PluginError) as caught:
            encode_texts(["ab", "c"], dataclasses.replace(LENGTHS, cls=Ragged), LengthConfig(), workers=workers)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
    assert messages[0].startswith("encoder lengths: prepare: expected codes for each item")


def test_an_error_of_an_item_in_a_worker_is_said_as_without_one():
    class Refusing(LengthEncoder):
        def prepare(self, item: RawItem) -> dict[str, Tensor]:
            raise DataError("folder: expected another tokenizer")

    for workers in (0, 1):
        with pytest.raises(DataError, match=r"^folder: expected another tokenizer$"):
            encode_texts(["ab", "c"], dataclasses.replace(LENGTHS, cls=Refusing), LengthConfig(), workers=workers)


def test_a_worker_that_is_killed_ends_encoding_with_what_to_do():
    class Mortal(LengthEncoder):
        def prepare(self, item: RawItem) -> dict[str, Tensor]:
            os.kill(os.getpid(), signal.SIGKILL)
            return {}

    with pytest.raises(
        RunError, match=r"a process that prepares items has died: .*; finished shards are kept.*fewer workers"
    ):
        encode_texts(["ab", "c"], dataclasses.replace(LENGTHS, cls=Mortal), LengthConfig(), workers=1)


def test_workers_compute_on_one_thread_and_leave_ctrl_c_to_the_main_process():
    class Asking(LengthEncoder):
        def prepare(self, item: RawItem) -> dict[str, Tensor]:
            ignores = signal.getsignal(signal.SIGINT) == signal.SIG_IGN
            return {"codes": torch.tensor([torch.get_num_threads(), int(ignores)])}

        def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
            return {"text": batch["codes"].float()}

    table = encode_texts(["ab", "c"], dataclasses.replace(LENGTHS, cls=Asking), LengthConfig(), workers=2)
    assert table.values.tolist() == [[1, 1], [1, 1]]


def test_joint_features_are_of_the_items_that_have_image_and_text(tmp_path):
    class Both(LengthEncoder):
        def prepare(self, item: RawItem) -> dict[str, Tensor]:
            return {"codes": torch.tensor([item.image.width if item.image else -1, len(item.text)])}

        def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
            return {"joint": batch["codes"].float()}

    good, bad = tmp_path / "0.png", tmp_path / "1.png"
    Image.new("RGB", (7, 9)).save(good)
    bad.write_text("no image")
    spec = dataclasses.replace(LENGTHS, cls=Both, modalities=("image", "text", "joint"))
    items = catalog(["abc", "", "defgh", "ij"], [good, good, None, bad])
    made = encoding.encode(items, spec, LengthConfig(), modalities=["joint"], text_fields=["title"])
    assert made["joint"].values.tolist() == [[7, 3], [0, 0], [0, 0], [0, 0]]
    assert made["joint"].present.tolist() == [True, False, False, False]


def test_the_log_tells_items_per_second_and_what_took_the_time(caplog):
    with caplog.at_level(logging.INFO):
        encode_texts(["ab", "c"], LENGTHS, LengthConfig())
        encode_texts(["ab", "c"], LENGTHS, LengthConfig())  # from the store: nothing to tell
    (line,) = [record.getMessage() for record in caplog.records if "items/s" in record.getMessage()]
    assert re.fullmatch(
        r"lengths text: 2 items in \d+\.\d s, [\d.]+ items/s; \d+ % of the time waiting until items were read and "
        r"prepared \(workers: 0\), \d+ % computing(; more workers would help)?",
        line,
    )


def test_on_a_terminal_a_bar_tells_items_per_second_and_time_left(monkeypatch):
    screen = io.StringIO()
    monkeypatch.setattr(screen, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", screen)
    encode_texts(["ab", "c"], LENGTHS, LengthConfig(), progress=True)
    assert re.search(r"lengths text: 100%\|.*\| 2/2 \[00:00<00:00, .* items/s\]", screen.getvalue())


def test_an_encoder_that_draws_its_weights_draws_the_same_ones_each_time_and_leaves_the_random_state_alone(
    monkeypatch, tmp_path
):
    tables = []
    for seed in (1, 2):
        monkeypatch.setenv("MMREC_LMM_HOME", str(tmp_path / str(seed)))
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        tables.append(encode_texts(["abc", "de"], MIXING, LengthConfig()))
        assert torch.equal(torch.get_rng_state(), before)
    np.testing.assert_array_equal(tables[0].values, tables[1].values)


def test_a_modality_that_the_encoder_lacks_is_an_error_that_says_how_else():
    with pytest.raises(ConfigError, match=r"lengths: expected modalities among text, got image; .*--features image="):
        encoding.encode(catalog(["a"]), LENGTHS, LengthConfig(), modalities=["text", "image"], text_fields=["title"])


def test_a_catalog_with_nothing_of_a_modality_is_an_error_that_says_what_there_is():
    with pytest.raises(DataError, match=r"no item has text in the fields brand; there are title"):
        encoding.encode(catalog(["a"]), LENGTHS, LengthConfig(), modalities=["text"], text_fields=["brand"])
    with pytest.raises(DataError, match="no item has an image"):
        encoding.encode(catalog(["a"]), BASIC, BasicConfig(), modalities=["image"])


@pytest.mark.parametrize(
    ("fault", "message"),
    [("nan", "NaN or infinity"), ("narrow", r"shape \(2, 1\)"), ("unnamed", "expected dims of text")],
)
def test_an_encoder_that_breaks_its_contract_is_named(fault, message):
    class Faulty(LengthEncoder):
        def __init__(self, config: LengthConfig, modalities: tuple[str, ...]) -> None:
            super().__init__(config, () if fault == "unnamed" else modalities)

        def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
            rows = super().forward(batch)["text"]
            return {"text": rows[:, :1] if fault == "narrow" else rows * torch.nan}

    spec = EncoderSpec("faulty", Faulty, LengthConfig, ("text",), lambda config, modality: "none")
    with pytest.raises(PluginError, match=f"encoder faulty: .*{message}"):
        encode_texts(["ab", "c"], spec, LengthConfig())


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
    assert [path.suffix for path in (cache.home() / "features").iterdir() if path.suffix != ".lock"] == [".safetensors"]


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
    command = [sys.executable, "-c", KILLED, str(Path(__file__).parent), str(log), str(die_at)]
    assert subprocess.run(command, env=os.environ, check=False).returncode == -signal.SIGKILL
    prepared = list(map(int, log.read_text().split()))
    assert len(prepared) == die_at
    table = encode_texts([f"item {number}" for number in range(600)], LENGTHS, LengthConfig())
    assert sorted(LengthEncoder.prepared) == sorted(set(range(600)) - set(prepared[: encoding.SHARD]))
    assert table.values[:, 0].tolist() == [len(f"item {number}") for number in range(600)]


TOGETHER = """
import os, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_encoding import MIXING, LengthConfig, Mixing, encode_texts

class Meeting(Mixing):
    def __init__(self, config, modalities):
        super().__init__(config, modalities)
        self.own = Path(sys.argv[2], os.environ["RANK"])
        self.own.touch()
        while len(list(self.own.parent.iterdir())) < 2:  # so that both take part, whichever starts first
            time.sleep(0.01)

    def prepare(self, item):
        with self.own.open("a") as file:
            print(item.item, file=file)
        time.sleep(0.002)
        return super().prepare(item)

spec = type(MIXING)(**{**vars(MIXING), "cls": Meeting})
encode_texts([f"item {number}" for number in range(600)], spec, LengthConfig())
"""


@pytest.mark.slow
def test_two_processes_of_torchrun_share_the_shards_and_make_the_same_table(tmp_path, monkeypatch):
    script, counts = tmp_path / "together.py", tmp_path / "counts"
    script.write_text(TOGETHER)
    counts.mkdir()
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", script]
    subprocess.run(
        [sys.executable, *map(str, command), str(Path(__file__).parent), str(counts)],
        env=os.environ | {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"},
        check=True,
        timeout=100,
    )
    shares = [(counts / rank).read_text().split() for rank in "01"]
    assert all(shares)  # both have worked
    assert sorted(int(item) for share in shares for item in share) == list(range(600))  # and on nothing twice
    features = cache.home() / "features"
    assert not list(features.glob("*.parts"))
    (together,) = features.glob("*.safetensors")
    monkeypatch.setenv("MMREC_LMM_HOME", str(tmp_path / "alone"))
    encode_texts([f"item {number}" for number in range(600)], MIXING, LengthConfig())
    (alone,) = (cache.home() / "features").glob("*.safetensors")
    assert together.name == alone.name
    assert together.read_bytes() == alone.read_bytes()


HOLDER = """
import sys, time
from pathlib import Path
from mmrec_lmm.disk.locks import Claims
with Claims(Path(sys.argv[1])) as claims:
    print(claims.claim(0), flush=True)
    time.sleep(60)
"""


def test_the_shard_of_a_process_that_dies_is_made_by_another_that_waits_for_no_dead(monkeypatch, tmp_path):
    monkeypatch.setattr(encoding, "SHARD", 2)
    texts = ["xxxx", "xxx", "xx", "x"]
    name = encode_texts(texts, LENGTHS, LengthConfig()).fingerprint
    LengthEncoder.prepared = []
    monkeypatch.setenv("MMREC_LMM_HOME", str(tmp_path / "shared"))
    monkeypatch.setenv("WORLD_SIZE", "2")
    table = cache.home() / "features" / f"{name}.safetensors"
    command = [sys.executable, "-c", HOLDER, str(table)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "True\n"
        death = threading.Timer(0.5, holder.kill)
        death.start()
        rows = encode_texts(texts, LENGTHS, LengthConfig()).values[:, 0].tolist()
    assert rows == [4, 3, 2, 1]
    assert LengthEncoder.prepared == [2, 3, 0, 1]  # first what was free


def test_the_second_of_two_processes_that_share_nothing_waits_and_finds_the_table(monkeypatch):
    texts = ["ab", "c"]
    made = encode_texts(texts, LENGTHS, LengthConfig())
    path = cache.home() / "features" / f"{made.fingerprint}.safetensors"
    kept = path.read_bytes()
    path.unlink()
    with locks.locked(path):
        second = threading.Thread(target=encode_texts, args=(texts, LENGTHS, LengthConfig()))
        second.start()
        second.join(0.3)
        assert second.is_alive()
        path.write_bytes(kept)
    second.join()
    assert LengthEncoder.built == 1


# Content that is lost


def resolved(name: str) -> EncoderSpec:
    spec = load_registry().encoders.get(name)
    return dataclasses.replace(spec, cls=resolve(spec.cls), weights_id=resolve(spec.weights_id))


@pytest.mark.parametrize("modality", ["image", "joint"])
def test_where_no_image_can_be_read_the_first_is_named_with_its_reason_each_time(tmp_path, modality):
    pointers = [tmp_path / "0.jpg", tmp_path / "1.jpg"]
    for path in pointers:
        path.write_text("version https://git-lfs.github.com/spec/v1\n")
    spec = resolved("vlmo") if modality == "joint" else BASIC
    config = resolve(spec.config)(variant="tiny") if modality == "joint" else BasicConfig()
    for _ in range(2):  # the second time from the cache
        with pytest.raises(DataError) as caught:
            encoding.encode(
                catalog(["", "a", "b"], images=[None, *pointers]), spec, config,
                modalities=[modality], text_fields=["title"],
            )  # fmt: skip
        said = str(caught.value)
        assert said.startswith(f"{modality} features can't be encoded: none of 2 images can be read, the first is ")
        assert f"{pointers[0]}, of item raw1: a pointer of Git LFS" in said


def test_half_of_the_images_unreadable_is_no_warning_of_its_own(tmp_path, caplog):
    noise = tmp_path / "0.png"
    Image.new("RGB", (8, 8), "red").save(noise)
    table = encoding.encode(catalog(images=[noise, tmp_path / "gone.png"]), BASIC, BasicConfig(), modalities=["image"])[
        "image"
    ]
    assert table.present.tolist() == [True, False]
    assert "most images" not in caplog.text


def test_texts_that_are_no_content_are_counted_in_the_log_by_column(caplog):
    items = ItemCatalog(
        {"title": ("Mug", "NaN", " none ", "\u200b", ""), "brand": ("nan", "Acme", "Ball", "\x07", "")},
        (None,) * 5, tuple(f"raw{item}" for item in range(5)), "",
    )  # fmt: skip
    encoding.encode(items, BASIC, BasicConfig(), modalities=["text"], text_fields=["title", "brand", "price"])
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warnings == [
        "text: texts that say that there is none, such as 'nan', count as text: 2 in title, 1 in brand; `data check` "
        "names them",
        "text: texts that are invisible, count as text: 1 in title, 1 in brand; `data check` names them",
    ]

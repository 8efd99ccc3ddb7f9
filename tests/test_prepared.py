"""Prepared items: what an encoder's `prepare` made once comes back for any items, and only for what it was made of."""

import errno
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mmrec_lmm.cache import home
from mmrec_lmm.config.settings import Settings
from mmrec_lmm.data import items as items_module
from mmrec_lmm.data.images import UnreadableImage, decode_image, read_image
from mmrec_lmm.data.items import item_texts, pad_and_stack
from mmrec_lmm.data.loading import load_dataset
from mmrec_lmm.disk import writing
from mmrec_lmm.errors import DataError, PluginError
from mmrec_lmm.features import prepared as prepared_module
from mmrec_lmm.features.prepared import PreparedItems, ahead, prepared_items
from mmrec_lmm.plugin.contracts import ItemEncoder
from mmrec_lmm.plugin.specs import EncoderSpec
from mmrec_lmm.types import Background, ItemCatalog, RawItem

FIELDS = ("title",)


@dataclass(frozen=True)
class Config:
    """A key that changes what is prepared."""

    side: int = 2


class Words(ItemEncoder):
    """Pixels of one shape, and ids of as many as a text has words."""

    def __init__(self, config: Config, modalities: tuple[str, ...]) -> None:
        super().__init__()
        self.padding = {"ids": 9}
        self.side, self.dims, self.calls = config.side, dict.fromkeys(modalities, 1), 0

    def prepare(self, item: RawItem) -> dict[str, Tensor]:
        self.calls += 1
        tensors = {}
        if "image" in self.dims:
            pixels = np.zeros((self.side, self.side, 3), np.uint8)
            if item.image is not None:
                pixels = np.array(item.image.resize((self.side, self.side)))
            tensors["pixels"] = torch.from_numpy(pixels)
        if "text" in self.dims:
            tensors["ids"] = torch.tensor([1, *(len(word) for word in item.text.split())])
        return tensors

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        raise NotImplementedError


SPEC = EncoderSpec("words", Words, Config, ("image", "text"), weights_id=lambda config, modality: "none")


@pytest.fixture
def toy(data_path: Path) -> Callable[[], ItemCatalog]:
    """Reads the toy catalog as it is on the disk: item 14 has no text, item 15 no image."""

    def read() -> ItemCatalog:
        catalog = load_dataset(data_path / "toy", "toy", Settings()).catalog
        assert catalog is not None
        return catalog

    return read


def prepare(catalog: ItemCatalog, encoder: ItemEncoder | None = None, **changes: Any) -> PreparedItems:
    config = changes.pop("config", Config())
    encoder = encoder or Words(config, ("image", "text"))
    return prepared_items(catalog, SPEC, config, encoder, text_fields=FIELDS, **changes)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_batch_is_what_the_encoder_prepares_of_its_items_padded_to_their_longest(
    workers: int, toy: Callable[[], ItemCatalog]
) -> None:
    catalog, encoder = toy(), Words(Config(), ("image", "text"))
    items = prepare(catalog, encoder, workers=workers)
    texts = item_texts(catalog, FIELDS)
    for chosen in ([3], [14], [15, 2, 2], [14, 0, 15]):
        raw = [
            RawItem(item, read_image(path) if (path := catalog.images[item]) else None, texts[item]) for item in chosen
        ]
        expected = pad_and_stack([encoder.prepare(item) for item in raw], padding={"ids": 9}, encoder="words")
        batch = items.batch(np.array(chosen))
        assert batch.keys() == expected.keys()
        for key, tensor in batch.items():
            assert tensor.dtype == expected[key].dtype
            assert torch.equal(tensor, expected[key])
    assert items.batch(np.array([14]))["ids"].tolist() == [[1]]


def test_an_encoder_for_one_modality_is_given_just_that(toy: Callable[[], ItemCatalog]) -> None:
    assert set(prepare(toy(), Words(Config(), ("text",))).arrays) == {"ids"}
    assert set(prepare(toy(), Words(Config(), ("image",))).arrays) == {"pixels"}


def test_items_are_prepared_once_for_what_they_and_the_encoder_are(toy: Callable[[], ItemCatalog]) -> None:
    first, again, other = (Words(Config(side), ("image", "text")) for side in (2, 2, 3))
    prepare(toy(), first)
    prepare(toy(), again)
    prepare(toy(), other, config=Config(3))
    assert (first.calls, again.calls, other.calls) == (16, 0, 16)
    changed = toy().images[4]
    assert changed is not None
    shutil.copy(changed.with_name("5.png"), changed)
    prepare(toy(), again)
    assert again.calls == 16


def test_an_image_that_cannot_be_read_is_a_missing_one_and_the_text_stays(toy: Callable[[], ItemCatalog]) -> None:
    broken = toy().images[4]
    assert broken is not None
    broken.write_bytes(b"no image")
    items = prepare(toy())
    assert items.unreadable == {4}
    batch = items.batch(np.array([4]))
    assert not batch["pixels"].any()
    assert batch["ids"].tolist() == [[1, 3, 5, 1]]  # "red thing 4"


def test_items_are_prepared_again_when_other_decoders_can_read_them_and_only_then(
    toy: Callable[[], ItemCatalog], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(items_module, "decode_image", without_decoder(toy().images[4] or Path()))
        patch.setattr(prepared_module, "decoders", lambda: "old")
        assert prepare(toy()).unreadable == {4}
        encoder = Words(Config(), ("image", "text"))
        assert prepare(toy(), encoder).unreadable == {4}
        patch.setattr(prepared_module, "decoders", lambda: "other")
        assert prepare(toy(), encoder).unreadable == {4}
        assert encoder.calls == 0
        patch.setattr(prepared_module, "decoders", lambda: "third")
        patch.setattr(writing, "_make_empty", refused)  # to note it
        assert prepare(toy(), encoder).unreadable == {4}
    items = prepare(toy())
    assert not items.unreadable
    assert items.batch(np.array([4]))["pixels"].any()


def refused(path: Path) -> int:
    """The system refuses the file."""
    raise PermissionError(errno.EACCES, "Permission denied", str(path))


def without_decoder(path: Path) -> Callable[..., Any]:
    """`decode_image` where the decoder of this one file is missing."""
    missing = path.read_bytes()

    def decode(content: bytes, background: Background) -> Any:
        if content == missing:
            raise UnreadableImage("no image format that is known")
        return decode_image(content, background)

    return decode


def test_prepared_items_that_were_damaged_are_made_again(toy: Callable[[], ItemCatalog], caplog: Any) -> None:
    sound = prepare(toy()).batch(np.arange(5))
    for name in ("pixels.npy", "ids.npy", "lengths/ids.npy", "about.json"):
        [file] = home().glob(f"prepared/*/{name}")
        content = file.read_bytes()
        file.write_bytes(content[:-3] + bytes([content[-3] ^ 1]) + content[-2:])
        caplog.clear()
        again = prepare(toy()).batch(np.arange(5))
        assert "it is made again" in caplog.text
        for key, tensor in sound.items():
            assert torch.equal(again[key], tensor)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_changes_before_it_is_prepared_ends_that_and_nothing_is_kept(
    toy: Callable[[], ItemCatalog], monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    make, path = prepared_module._make, toy().images[4] or Path()

    def replaced(*given: Any, **options: Any) -> None:
        path.write_bytes((toy().images[5] or Path()).read_bytes())
        make(*given, **options)

    monkeypatch.setattr(prepared_module, "_make", replaced)
    with pytest.raises(DataError, match=f"{path.name}: expected the file as it was hashed"):
        prepare(toy(), workers=workers)
    assert not [*home().glob("prepared/*/*.npy")]


class Uneven(Words):
    """Pixels of whatever shape the picture has."""

    def prepare(self, item: RawItem) -> dict[str, Tensor]:
        self.side = 2 + item.item // 8
        return super().prepare(item)


def test_what_varies_though_it_may_not_is_the_encoders_fault_and_nothing_is_left(
    toy: Callable[[], ItemCatalog],
) -> None:
    with pytest.raises(PluginError, match=r"encoder words: prepare: expected .*, got .*\(3, 3, 3\).* for one;"):
        prepare(toy(), Uneven(Config(), ("image", "text")))
    assert not [path for path in (home() / "prepared").iterdir() if path.is_dir()]


def test_results_ahead_come_in_order_each_made_while_its_predecessor_is_in_use() -> None:
    made = [threading.Event() for _ in range(4)]

    def results() -> Iterator[int]:
        for number, event in enumerate(made):
            event.set()
            yield number

    for number in ahead(results()):
        assert all(event.wait(10) for event in made[: number + 2]), "the next is made without being asked for"
        assert not any(event.is_set() for event in made[number + 2 :]), "and no more"


def test_an_error_in_what_is_made_ahead_arrives_in_its_place() -> None:
    numbers = ahead(1 // number for number in (1, 0, 1))
    assert next(numbers) == 1
    with pytest.raises(ZeroDivisionError):
        next(numbers)

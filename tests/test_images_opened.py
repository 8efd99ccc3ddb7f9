"""A run opens images to hash and to decode them, each time once, and none that it knows."""

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

from mmrec_lmm import cache
from mmrec_lmm.plugin.registry import Registry
from mmrec_lmm.running.grid import run_grid
from mmrec_lmm.running.inputs import gather
from mmrec_lmm.types import RunSpec


@pytest.fixture(scope="module")
def ears() -> Iterator[dict[str, list[Path]]]:
    """Under "opened" the files that Python and Pillow open, while the key is there."""
    ears: dict[str, list[Path]] = {}

    def hear(event: str, arguments: tuple[object, ...]) -> None:
        if event == "open" and "opened" in ears and isinstance(arguments[0], str | Path):
            ears["opened"].append(Path(arguments[0]))

    sys.addaudithook(hear)  # for good: nothing removes it
    yield ears
    ears.clear()


@pytest.fixture
def opened(ears: dict[str, list[Path]], monkeypatch: pytest.MonkeyPatch) -> Callable[[], dict[str, int]]:
    """How often each image of a data set was opened since the last call; hashes of files just made are remembered."""
    monkeypatch.setattr(cache, "SETTLED", 0)
    ears["opened"] = []

    def opened() -> dict[str, int]:
        paths, ears["opened"] = ears["opened"], []
        return dict(Counter(path.name for path in paths if path.parent.name == "images"))

    return opened


@pytest.mark.parametrize(("paradigm", "times"), [("pt", 2), ("ft", 3), ("ete", 3)])
def test_a_run_hashes_an_image_once_and_decodes_it_once_for_each_use_and_the_next_run_opens_none(
    specs: Callable[..., tuple[RunSpec, ...]], registry: Registry, opened: Callable[[], dict[str, int]],
    tmp_path: Path, paradigm: str, times: int,
) -> None:  # fmt: skip
    """Its pixels are used to encode, and those kept for an encoder in training are made once."""
    tuning = {"ft.epochs": "1", "ft.batch_size": "4", "ft.held_out": "0.3"} if paradigm == "ft" else {}

    def run(seed: int) -> None:
        asked = {"encoder": "vlmo", "encoder.variant": "tiny", "seed": str(seed), "epochs": "1", **tuning}
        run_grid(specs(paradigm=paradigm, **asked), registry, out=tmp_path / "runs")

    run(1)
    assert opened() == {f"{item}.png": times for item in range(15)}
    run(2)
    assert opened() == {}


def test_images_are_opened_again_when_one_has_changed(
    specs: Callable[..., tuple[RunSpec, ...]], registry: Registry, opened: Callable[[], dict[str, int]], data_path: Path
) -> None:
    [spec] = specs(encoder="basic")
    before = gather(spec, registry)
    opened()
    Image.new("RGB", (9, 9), "green").save(data_path / "toy" / "images" / "3.png")
    after = gather(spec, registry)
    assert opened()["3.png"] == 3  # written, hashed, decoded
    assert after.tables["image"].fingerprint != before.tables["image"].fingerprint
    assert after.tables["text"].fingerprint == before.tables["text"].fingerprint
    assert after.files["image"]["images"] != before.files["image"]["images"]

"""What all tests share: one CPU thread, a home folder of their own, and a data set small enough to know by heart."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: on tensors this small, threads only wait for each other
os.environ.setdefault("MMREC_LMM_OFFLINE", "1")  # weights that are missing stay missing: no test downloads any

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from mmrec_lmm.config.resolve import Request, resolve_request
from mmrec_lmm.plugin.registry import Registry, load_registry
from mmrec_lmm.types import EncoderName, RunSpec

if TYPE_CHECKING:
    from _pytest.tmpdir import TempPathFactory

ROOT = Path(__file__).resolve().parents[1]
N_USERS, N_ITEMS = 12, 16

hypothesis.settings.register_profile("mmrec", deadline=None, max_examples=50)
hypothesis.settings.load_profile("mmrec")


@pytest.fixture(scope="session", autouse=True)
def _ctrl_c() -> None:
    """SIGINT interrupts, also where a script started the tests in background: a shell lets such jobs ignore it."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip tests that need more GPUs than there are: one, or the `devices` of the mark."""
    marker = item.get_closest_marker("gpu")
    if marker is not None:
        import torch

        needed, found = marker.kwargs.get("devices", 1), torch.cuda.device_count()
        if found < needed:
            pytest.skip(f"needs {needed} CUDA device{'s' * (needed > 1)}, torch {torch.__version__} finds {found}")


@pytest.fixture(scope="session", autouse=True)
def _session_home(tmp_path_factory: "TempPathFactory") -> Iterator[None]:
    """For what is made once per session, before the first test has its own home."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MMREC_LMM_HOME", str(tmp_path_factory.mktemp("session-home")))
        yield


@pytest.fixture(autouse=True)
def _own_home(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: "TempPathFactory") -> None:
    """No test reads or writes the user's cache, or depends on how their shell sets up plugins."""
    monkeypatch.setenv("MMREC_LMM_HOME", str(tmp_path_factory.mktemp("home")))
    monkeypatch.delenv("MMREC_LMM_BLOCK", raising=False)
    monkeypatch.delenv("MMREC_LMM_TRACE", raising=False)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data, where there is one: MMREC_LMM_SHARED, or `shared` beside the repository."""
    folder = Path(os.environ.get("MMREC_LMM_SHARED") or ROOT.parent / "shared")
    if not (folder / "data").is_dir():
        pytest.skip(f"no real data in {folder}; MMREC_LMM_SHARED names another folder")
    return folder


@pytest.fixture
def registry() -> Registry:
    """The registry of all that is installed."""
    return load_registry()


@pytest.fixture
def data_path(tmp_path: Path) -> Path:
    """A folder of data sets that holds `toy`: a checkerboard with a catalog, images and feature files."""
    folder = tmp_path / "data"
    write_toy(folder / "toy")
    return folder


def write_toy(folder: Path) -> None:
    """12 users like the items of their own color among 16: even users even items, odd users odd ones.

    Of each user's 8, one is in valid and one in test. Item 14 has no text and item 15 no image; the feature files
    tell an item's color, and the last item has none of them.
    """
    from mmrec_lmm.testing import checkerboard_features

    (folder / "images").mkdir(parents=True)
    pairs = pd.DataFrame(
        [(user, item) for user in range(N_USERS) for item in range(user % 2, N_ITEMS, 2)], columns=["userID", "itemID"]
    )
    nth = pairs.itemID // 2 - pairs.userID // 2  # counted from the user's valid item
    pairs["x_label"] = np.select([nth % 8 == 0, nth % 8 == 1], [1, 2], 0)
    pairs.to_csv(folder / "toy.inter", sep="\t", index=False)

    colors = ["red", "blue"] * (N_ITEMS // 2)
    items = pd.DataFrame({"itemID": range(N_ITEMS), "raw_id": [f"T{item:02d}" for item in range(N_ITEMS)]})
    items["title"] = [f"{color} thing {item}" for item, color in enumerate(colors)]
    items["brand"] = "Toys"
    items["image"] = [f"{item}.png" for item in range(N_ITEMS)]
    items.loc[14, ["title", "brand"]] = ""
    items.loc[15, "image"] = ""
    items.to_csv(folder / "items.tsv", sep="\t", index=False)
    for item, color in enumerate(colors[:-1]):
        Image.new("RGB", (8 + item, 8), color).save(folder / "images" / f"{item}.png")

    tables = checkerboard_features(N_ITEMS)
    np.save(folder / "image_feat.npy", tables["image"].values.astype(np.float64))
    np.save(folder / "text_feat.npy", tables["text"].values)


@pytest.fixture
def specs(data_path: Path, registry: Registry) -> Callable[..., tuple[RunSpec, ...]]:
    """Resolves runs on `toy`: `specs(reg_weight="[0.1, 0.2]")` are two, three epochs each unless `epochs` says else."""

    def specs(
        model: str = "VBPR", *, encoder: str | None = None, known: Registry = registry, **overrides: str
    ) -> tuple[RunSpec, ...]:
        small = {"data_path": str(data_path), "epochs": "3", "train_batch_size": "32", "embedding_size": "4"}
        names = known.models.load(model, "config").__dataclass_fields__
        if "embedding_size" not in names:
            del small["embedding_size"]
        request = Request(
            model=model,
            dataset="toy",
            encoder=EncoderName.parse(encoder) if encoder else None,
            paradigm=overrides.pop("paradigm", "pt"),
            modalities=_modalities(overrides.pop("modalities", None)),
            control=overrides.pop("control", None),
            overrides=small | overrides,
        )
        return resolve_request(request, known).runs

    return specs


def _modalities(text: str | None) -> tuple[str, ...] | None:
    return None if text is None else tuple(text.split(","))


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Each figure that is written, in that order."""
    figure = pytest.importorskip("matplotlib.figure").Figure
    figures: list[Any] = []
    save = figure.savefig

    def savefig(self: Any, path: Path, **options: Any) -> None:
        save(self, path, **options)
        figures.append(self)

    monkeypatch.setattr(figure, "savefig", savefig)
    return figures

"""What a run trains on: which modalities an encoder makes unasked, and how it is told to work."""

from collections.abc import Callable

import numpy as np
import pytest

from mmrec_lmm.config.settings import Settings
from mmrec_lmm.errors import ConfigError
from mmrec_lmm.machine import choose_device
from mmrec_lmm.plugin.registry import Registry
from mmrec_lmm.running import inputs
from mmrec_lmm.types import FeatureTable, RunSpec

TINY = {"encoder.variant": "tiny"}


@pytest.fixture
def made(specs: Callable[..., tuple[RunSpec, ...]], registry: Registry) -> Callable[..., dict[str, FeatureTable]]:
    def made(encoder: str = "vlmo", **overrides: str) -> dict[str, FeatureTable]:
        [spec] = specs(encoder=encoder, **overrides)
        return inputs.encode_dataset(spec, registry)

    return made


def test_joint_features_are_made_only_if_they_are_asked_for(made):
    assert set(made(**TINY)) == {"image", "text"}
    tables = made(modalities="joint", **TINY)
    assert set(tables) == {"joint"}
    assert np.flatnonzero(~tables["joint"].present).tolist() == [14, 15]  # one has no text, one no image


def test_an_encoder_without_a_joint_pass_is_asked_for_joint_features_in_vain(made):
    with pytest.raises(ConfigError, match="encoder basic: expected joint features for data set toy, got image, text"):
        made("basic", modalities="joint")


def test_the_precision_is_the_users_choice_and_gives_other_features(made):
    full, half = made(modalities="text", **TINY), made(modalities="text", encode_dtype="bfloat16", **TINY)
    assert full["text"].fingerprint != half["text"].fingerprint
    np.testing.assert_allclose(half["text"].values, full["text"].values, atol=0.1)
    assert not np.array_equal(half["text"].values, full["text"].values)


def all_gather(spec: RunSpec, registry: Registry) -> np.ndarray:
    return inputs.gather(spec, registry).tables["text"].values


def test_files_are_normalized_before_absent_items_get_the_mean_and_before_controls(specs, registry):
    [plain] = specs()
    rows = all_gather(plain, registry).astype(float)
    present = rows.any(axis=1)
    scaled = rows / np.where(present, np.linalg.norm(rows, axis=1), 1.0)[:, None]
    mean = scaled[present].mean(axis=0)
    assert (~present).sum() == 1
    [filled] = specs(normalize="unit", missing="mean")
    np.testing.assert_allclose(all_gather(filled, registry), np.where(present[:, None], scaled, mean), atol=1e-6)
    [constant] = specs(normalize="unit", control="constant")
    np.testing.assert_allclose(all_gather(constant, registry), np.outer(present, mean), atol=1e-6)


def test_what_an_encoder_makes_is_not_normalized_and_the_log_says_so(specs, registry, caplog):
    [plain], [scaled] = specs(encoder="basic"), specs(encoder="basic", normalize="standard")
    before, after = (inputs.gather(spec, registry).tables["text"] for spec in (plain, scaled))
    assert before.fingerprint == after.fingerprint
    np.testing.assert_array_equal(before.values, after.values)
    assert "normalize: standard has no effect: it is for feature files, and this run reads none" in caplog.text


def test_runs_of_unlike_seeds_share_a_constant_and_not_a_draw(specs, registry):
    for control, shared in (("constant", True), ("shuffled", False)):
        one, other = (inputs.shared_keys(specs(seed=seed, control=control)[0], registry).inputs for seed in ("1", "2"))
        assert (one == other) == shared


def test_the_mean_of_a_modality_that_no_item_has_is_refused(specs, registry, data_path):
    np.save(data_path / "toy" / "text_feat.npy", np.zeros((16, 6), np.float32))
    [spec] = specs(missing="mean")
    with pytest.raises(ConfigError, match="missing: mean: expected items that have text, got none of 16"):
        inputs.gather(spec, registry)


def test_each_process_of_torchrun_has_a_gpu_of_its_own_while_there_are_enough(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert choose_device(Settings(use_gpu=False)).type == "cpu"
    assert choose_device(Settings(device="cpu")).type == "cpu"
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.empty", lambda *args, **more: None)  # it would ask the GPU that isn't here
    for count, index in ((8, 3), (2, 1)):
        monkeypatch.setattr("torch.cuda.device_count", lambda count=count: count)
        assert choose_device(Settings()).index == choose_device(Settings(device="cuda")).index == index
        assert choose_device(Settings(device="cuda:1")).index == 1

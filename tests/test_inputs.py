"""What a run trains on: which modalities an encoder makes unasked, and how it is told to work."""

from collections.abc import Callable

import numpy as np
import pytest

from mmrec_lmm import inputs
from mmrec_lmm.errors import ConfigError
from mmrec_lmm.machine import choose_device
from mmrec_lmm.registry import Registry
from mmrec_lmm.settings import Settings
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
    with pytest.raises(ConfigError, match="encoder basic can't make joint features for data set toy"):
        made("basic", modalities="joint")


def test_the_precision_is_the_users_choice_and_gives_other_features(made):
    full, half = made(modalities="text", **TINY), made(modalities="text", encode_dtype="bfloat16", **TINY)
    assert full["text"].fingerprint != half["text"].fingerprint
    np.testing.assert_allclose(half["text"].values, full["text"].values, atol=0.1)
    assert not np.array_equal(half["text"].values, full["text"].values)


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

"""What a run trains on: which modalities an encoder makes unasked, and how it is told to work."""

from collections.abc import Callable

import numpy as np
import pytest

from mmrec_lmm.cache import fingerprint
from mmrec_lmm.config.settings import Settings
from mmrec_lmm.errors import ConfigError, NotApplicable
from mmrec_lmm.features.files import normalized, whitened
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


# Text fields that the catalog lacks: a typing error of the user's, not of the default's


def refused(spec: RunSpec, registry: Registry) -> str:
    with pytest.raises(ConfigError) as caught:
        inputs.encode_dataset(spec, registry)
    return str(caught.value)


def test_a_text_field_typed_by_the_user_that_the_catalog_lacks_is_an_error_that_suggests_another(specs, registry):
    for encoder, modalities in (("basic", None), ("basic", "text"), ("vlmo:tiny", "joint")):
        flags = {} if modalities is None else {"modalities": modalities}
        [spec] = specs(encoder=encoder, text_fields="[title, brnad]", **flags)
        assert refused(spec, registry) == (
            "command line: text_fields: expected columns of the catalog of toy, got brnad; did you mean brand? "
            "there are title, brand"
        )
        with pytest.raises(ConfigError, match="did you mean brand"):
            inputs.gather(spec, registry)
        with pytest.raises(ConfigError, match="did you mean brand"):
            inputs.cached_files(spec, inputs.open_dataset("toy", spec.settings, registry), registry)
    [spec] = specs(encoder="basic", text_fields="[price]")
    assert refused(spec, registry).endswith("got price; there are title, brand")


def test_what_reads_no_text_does_not_mind_its_fields(specs, registry):
    [images] = specs(encoder="basic", text_fields="[brnad]", modalities="image")
    assert set(inputs.encode_dataset(images, registry)) == {"image"}
    [files] = specs(text_fields="[brnad]")
    assert set(inputs.encode_dataset(files, registry)) == {"image", "text"}


def test_the_fields_of_the_default_may_be_missing_wherever_they_stand(specs, registry, caplog):
    caplog.set_level("INFO")
    default = "[title, brand, categories, description]"
    chosen = [spec for fields in ({}, {"text_fields": default}) for spec in specs(encoder="basic", **fields)]
    chosen += specs(encoder="basic", text_fields="[title, brand]")
    tables = [inputs.encode_dataset(spec, registry)["text"] for spec in chosen]
    np.testing.assert_array_equal(tables[0].values, tables[1].values)
    assert len({table.fingerprint for table in tables}) == 1
    assert "skipped" not in caplog.text


def test_a_field_of_the_users_file_is_an_error_and_one_of_a_shipped_file_a_note(
    specs, registry, tmp_path, monkeypatch, caplog
):
    caplog.set_level("INFO")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "overall.yaml").write_text("epochs: 3\ntext_fields: [title, description, subtitle]\n")
    [own] = specs(encoder="basic")
    assert refused(own, registry).startswith("configs/overall.yaml:2: text_fields: expected columns of the catalog of")
    monkeypatch.setattr("mmrec_lmm.config.yaml_layers.shipped", lambda: tmp_path / "configs")
    [shipped] = specs(encoder="basic")
    assert inputs.encode_dataset(shipped, registry)["text"].present.sum() == 15
    assert "text_fields: subtitle skipped, as the catalog of toy lacks them" in caplog.text


def test_where_a_key_was_set_is_no_part_of_a_run(specs):
    [typed], [default] = specs(), specs(text_fields="[title, brand, categories, description]")
    assert "text_fields" in default.given
    assert "text_fields" not in typed.given
    assert fingerprint(typed) == fingerprint(default)
    assert typed == default


def test_features_are_scaled_but_those_that_are_trained_only_as_their_paradigm_keeps_them(specs, registry, caplog):
    for encoder in (None, "basic"):
        [plain], [unit] = specs(encoder=encoder), specs(encoder=encoder, normalize="unit")
        raw, made = inputs.gather(plain, registry).tables, inputs.gather(unit, registry).tables
        for modality, table in made.items():
            expected = normalized(raw[modality], "unit")
            assert table.fingerprint == expected.fingerprint != raw[modality].fingerprint
            np.testing.assert_array_equal(table.values, expected.values)
            assert (table.seconds, table.parameters) == (raw[modality].seconds, raw[modality].parameters)
    assert "no effect" not in caplog.text
    raw, unit, centered = (
        {name: table.fingerprint for name, table in inputs.gather(run, registry).tables.items()}
        for how in ("none", "unit", "centered")
        for run in specs(encoder="basic", paradigm="ete", normalize=how)
    )
    assert not set(unit.values()) & set(raw.values())  # ete keeps its features at length 1
    assert centered == raw
    assert "normalize: unit" not in caplog.text
    assert "normalize: centered has no effect on image and text, which ete trains" in caplog.text


def test_features_of_files_and_encoders_are_whitened_and_a_joint_paradigm_refuses(specs, registry):
    for encoder in (None, "basic"):
        [plain], [white] = specs(encoder=encoder), specs(encoder=encoder, whiten="true")
        raw, made = inputs.gather(plain, registry).tables, inputs.gather(white, registry).tables
        for modality, table in made.items():
            expected = whitened(raw[modality])
            assert table.fingerprint == expected.fingerprint
            np.testing.assert_array_equal(table.values, expected.values)
            np.testing.assert_allclose(table.values[table.present].mean(axis=0), 0, atol=1e-4)
    [joint] = specs(encoder="basic", whiten="true", paradigm="ete")
    with pytest.raises(NotApplicable, match="whiten: expected a paradigm that leaves features as they are, got ete"):
        inputs.gather(joint, registry)

"""The encoder `precomputed`: files of features that are there already, under a name that a study can list."""

import importlib.metadata
from pathlib import Path

import numpy as np
import pytest

from mmrec_lmm.cli import main
from mmrec_lmm.errors import ConfigError, DataError
from mmrec_lmm.plugin.specs import EncoderSpec, resolve
from mmrec_lmm.running.inputs import encode_dataset, gather
from mmrec_lmm.running.provenance import run_id


@pytest.fixture(scope="module")
def spec() -> EncoderSpec:
    (entry,) = importlib.metadata.entry_points(group="mmrec_lmm", name="encoders")
    return next(spec for spec in entry.load().mmrec_register_encoders() if spec.name == "precomputed")


def test_it_gives_the_data_sets_own_files_and_so_the_same_run_as_without_an_encoder(specs, registry, data_path):
    (named,), (unnamed,) = specs(encoder="precomputed"), specs()
    tables = encode_dataset(named, registry)
    assert sorted(tables) == ["image", "text"]
    np.testing.assert_allclose(tables["image"].values, np.load(data_path / "toy" / "image_feat.npy"), atol=1e-7)
    assert run_id(named, gather(named, registry), registry) == run_id(unnamed, gather(unnamed, registry), registry)


def test_another_content_is_another_table(specs, registry, data_path):
    (run,) = specs(encoder="precomputed")
    before = encode_dataset(run, registry)
    file = data_path / "toy" / "text_feat.npy"
    np.save(file, 2 * np.load(file))
    after = encode_dataset(run, registry)
    assert before["text"].fingerprint != after["text"].fingerprint
    assert before["image"].fingerprint == after["image"].fingerprint


def test_a_folder_gives_whatever_modalities_it_has_files_of(specs, registry, tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    np.save(folder / "audio_feat.npy", np.ones((16, 3), np.float32))
    (run,) = specs(encoder="precomputed", **{"encoder.folder": str(folder)})
    tables = encode_dataset(run, registry)
    assert {modality: table.dim for modality, table in tables.items()} == {"audio": 3}


def test_encode_exports_what_precomputed_reads(specs, registry, data_path, tmp_path, capsys):
    arguments = ["encode", "-d", "toy", "--encoder", "basic", "--data-path", str(data_path)]
    assert main([*arguments, "--export", str(tmp_path / "basic")]) == 0
    (run,) = specs(encoder="precomputed", **{"encoder.folder": str(tmp_path / "basic")})
    (basic,) = specs(encoder="basic")
    for modality, table in encode_dataset(basic, registry).items():
        np.testing.assert_array_equal(encode_dataset(run, registry)[modality].values, table.values)


def test_missing_files_are_said_with_what_to_type(specs, registry, data_path):
    for file in (data_path / "toy").glob("*_feat.npy"):
        file.unlink()
    (run,) = specs(encoder="precomputed")
    with pytest.raises(ConfigError) as caught:
        encode_dataset(run, registry)
    assert "data set toy: expected item features among its files, got none" in str(caught.value)
    assert "--encoder NAME (basic," in str(caught.value)
    assert "precomputed" not in str(caught.value)


def test_an_empty_folder_and_one_that_is_not_there_are_refused(specs, registry, tmp_path, spec):
    (run,) = specs(encoder="precomputed", **{"encoder.folder": str(tmp_path)})
    with pytest.raises(DataError, match=r"expected <modality>_feat.npy, such as image_feat.npy, got no such file"):
        encode_dataset(run, registry)
    with pytest.raises(ValueError, match="folder must be one that exists"):
        resolve(spec.config)(folder=str(tmp_path / "nowhere"))


def test_a_run_a_list_and_an_info_name_it(data_path: Path, tmp_path: Path, capsys) -> None:
    run = ["run", "-m", "VBPR", "-d", "toy", "--encoder", "precomputed", "--data-path", str(data_path)]
    assert main([*run, "--out", str(tmp_path / "runs"), "--epochs=1", "--embedding_size=4"]) == 0
    assert main(["list", "encoders"]) == 0
    assert main(["info", "precomputed"]) == 0
    assert "encoder.folder" in capsys.readouterr().out

"""Tensor files of our own: equal to safetensors' for other programs, and no bit of them changes unseen."""

from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from mmrec_lmm.weights.sealed import DamagedFile, load_arrays, load_tensors, save_file, verify

STATE = {
    "weight": torch.arange(6.0).reshape(2, 3).T,  # not contiguous
    "half": torch.tensor([[1.5, -2.0]], dtype=torch.bfloat16),
    "count": torch.tensor(7),
    "mask": torch.tensor([True, False, True]),
    "none": torch.empty(0, 4),
    "double": torch.tensor([1 / 3], dtype=torch.float64),
    "bytes": torch.arange(5, dtype=torch.uint8),
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    save_file(STATE, tmp_path / "state.safetensors", {"about": '{"sha256":"of something else"}'})
    return tmp_path / "state.safetensors"


def test_tensors_come_back_as_they_were_here_and_in_the_safetensors_library(path: Path) -> None:
    verify(path)
    for loaded in (load_tensors(path), safetensors.torch.load_file(path)):
        assert loaded.keys() == STATE.keys()
        for name, tensor in STATE.items():
            assert (loaded[name].dtype, loaded[name].shape) == (tensor.dtype, tensor.shape)
            assert torch.equal(loaded[name], tensor)


def test_equal_content_makes_equal_files(path: Path) -> None:
    content = path.read_bytes()
    save_file(dict(reversed(STATE.items())), path, {"about": '{"sha256":"of something else"}'})
    assert path.read_bytes() == content


def test_no_byte_changes_unseen_and_no_cut(path: Path) -> None:
    content = path.read_bytes()
    for place in range(len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 0b10100]) + content[place + 1 :])
        with pytest.raises(DamagedFile, match=r"state.safetensors: expected"):
            load_tensors(path)
        with pytest.raises(DamagedFile, match=r"state.safetensors: expected"):
            verify(path)
    for length in range(0, len(content), 7):
        path.write_bytes(content[:length])
        with pytest.raises(DamagedFile, match=r"state.safetensors: expected"):
            load_tensors(path)
    path.write_bytes(content + b"more")
    with pytest.raises(DamagedFile, match=r"state.safetensors: expected"):
        load_tensors(path)


def test_a_file_of_the_safetensors_library_is_read_where_no_checksum_is_needed(tmp_path: Path) -> None:
    path = tmp_path / "theirs.safetensors"
    safetensors.torch.save_file({"a": torch.ones(2)}, path)
    assert load_arrays(path, sealed=False)[0]["a"].tolist() == [1, 1]
    with pytest.raises(DamagedFile, match=r"expected content of checksum in its metadata"):
        load_arrays(path)


@pytest.mark.parametrize(
    "header",
    [
        b"[]", b"{", b'{"a":1}', b'{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}', b"[" * 5000,
        b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}',
        b'{"a":{"dtype":"X","shape":[1],"data_offsets":[0,4]}}',
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}', b'{"__metadata__":[]}', b'{"__metadata__":{"a":1}}',
    ],
)  # fmt: skip
def test_a_header_that_makes_no_sense_is_a_damaged_file(tmp_path: Path, header: bytes) -> None:
    path = tmp_path / "odd.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(DamagedFile, match=r"odd.safetensors: expected"):
        load_arrays(path, sealed=False)


def test_what_was_read_does_not_change_with_the_file(path: Path) -> None:
    arrays, metadata = load_arrays_of(path)
    path.write_bytes(b"")
    np.testing.assert_array_equal(arrays["weight"], STATE["weight"].numpy())
    assert metadata["about"] == '{"sha256":"of something else"}'


def load_arrays_of(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    save_file(
        {name: tensor for name, tensor in STATE.items() if name != "half"},
        path,
        {"about": '{"sha256":"of something else"}'},
    )
    return load_arrays(path)

"""Reading checkpoints of every kind without running what they hold, and filling modules with exactly what they need."""

import argparse
import math
import os
import pickle
import re
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from mmrec_lmm.errors import DataError
from mmrec_lmm.weights.formats import interpolate_positions, load_state, read_checkpoint

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning"),  # deprecated; archives of it stay in the world
    pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Detected pickle protocol:UserWarning"),
]

STATE = {"layer.weight": torch.arange(6.0).reshape(2, 3), "layer.bias": torch.tensor([0.5, -0.5]).half()}


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., Path]:
    """Writes what `torch.save` would: `saved({...})`, or with `legacy=True` as torch did before version 1.6."""

    def saved(content: Any, *, legacy: bool = False) -> Path:
        path = tmp_path / "model.pt"
        torch.save(content, path, _use_new_zipfile_serialization=not legacy)
        return path

    return saved


def same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    return list(ours) == list(theirs) and all(
        ours[key].dtype == theirs[key].dtype and torch.equal(ours[key], theirs[key]) for key in theirs
    )


# The formats of torch and of safetensors


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    "wrap",
    [
        dict,
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": state, "optimizer": {"lr": 0.1}, "args": argparse.Namespace(lr=0.1)},
        lambda state: {"module": {f"module.{key}": value for key, value in state.items()}},
        lambda state: {f"module.{key}": value for key, value in state.items()},
        lambda state: {key: nn.Parameter(value) for key, value in state.items()},
        lambda state: state | {"epoch": 3, "names": ["a"]},
    ],
    ids=["bare", "state_dict", "model", "module", "wrapped", "parameters", "others"],
)
def test_containers_are_opened_and_what_is_no_tensor_is_left_out(
    wrap: Callable[[dict[str, Tensor]], Any], legacy: bool, saved: Callable[..., Path]
) -> None:
    tensors = read_checkpoint(saved(wrap(STATE), legacy=legacy))
    assert same(tensors, STATE)
    assert not any(tensor.requires_grad for tensor in tensors.values())


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_refused_and_other_numbers_may_be(bad: float) -> None:
    module = nn.BatchNorm1d(2)
    state = {key: value.clone() for key, value in module.state_dict().items()}
    state["running_var"][0] = math.inf  # a buffer: masks hold infinity
    load_state(module, state, source="file")
    state["weight"][1] = bad
    with pytest.raises(DataError, match=r"file: expected finite numbers, got NaN or infinity in 1 tensors \(weight\)"):
        load_state(module, state, source="file")
    assert module.weight.tolist() == [1, 1]


def test_safetensors_are_read_whatever_the_file_is_called(tmp_path: Path) -> None:
    for name in ("model.safetensors", "model.bin"):
        save_file(STATE, tmp_path / name)
        tensors = read_checkpoint(tmp_path / name)
        assert same({key: tensors[key] for key in STATE}, STATE)


@pytest.mark.parametrize("content", [torch.ones(2), [torch.ones(2)]])
def test_tensors_without_names_are_refused(content: Any, saved: Callable[..., Path]) -> None:
    with pytest.raises(DataError, match=r"model\.pt: expected tensors by name, got a (Tensor|list)"):
        read_checkpoint(saved(content))


def test_a_file_without_tensors_says_what_it_holds(saved: Callable[..., Path]) -> None:
    with pytest.raises(DataError, match=r"at the top or in state_dict, module, .*, got epoch, weights"):
        read_checkpoint(saved({"epoch": 3, "weights": {"a": torch.ones(2)}}))


# Files that are no checkpoints, or only half


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors", "script"])
@pytest.mark.parametrize("part", [0.99, 0.5, 0.1])
def test_a_truncated_file_is_refused_by_name(
    kind: str, part: float, saved: Callable[..., Path], tmp_path: Path
) -> None:
    state = {"weight": torch.rand(100, 100)}
    if kind == "safetensors":
        path = tmp_path / "model.pt"
        save_file(state, path)
    elif kind == "script":
        path = script(nn.Linear(100, 100), tmp_path)
    else:
        path = saved(state, legacy=kind == "legacy")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * part)])
    with pytest.raises(DataError, match=rf"{path}: .*(truncated|damaged).*; delete it and download it again"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\n <!DOCTYPE html><html><title>Sign in</title>", "a web page"),
        (b"<html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "a pointer of Git LFS"),
        (b"", "an empty file"),
        (b"PNG or anything else", "neither safetensors nor a file of torch"),
    ],
)
def test_what_is_no_checkpoint_is_called_by_its_name(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"{path}: expected a checkpoint, got {message}"):
        read_checkpoint(path)


def test_a_zip_that_is_not_of_torch_and_a_folder_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "model.pt", "w") as archive:
        archive.writestr("inside.txt", "text")
    with pytest.raises(DataError, match=r"expected a torch archive, got a zip of inside\.txt"):
        read_checkpoint(tmp_path / "model.pt")
    with pytest.raises(DataError, match=r"can't be read \(Is a directory\)"):
        read_checkpoint(tmp_path)
    with pytest.raises(DataError, match=r"can't be read \(No such file or directory\)"):
        read_checkpoint(tmp_path / "none.pt")


# Files with code in them


class Command:
    """What a pickle runs where it is believed: it makes a marker file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("kind", ["zip", "legacy", "raw 0", "raw 2", "raw 4", "script"])
def test_a_pickle_with_code_in_it_is_refused_and_nothing_is_executed(
    kind: str, tmp_path: Path, saved: Callable[..., Path]
) -> None:
    marker = tmp_path / "marker"
    content = {"weight": torch.ones(2), "extra": Command(marker)}
    path = saved(content, legacy=kind == "legacy")
    if kind.startswith("raw"):
        path.write_bytes(pickle.dumps(content, protocol=int(kind[-1])))
    if kind == "script":
        path = rewritten(script(nn.Linear(3, 2), tmp_path), "data.pkl", lambda _: pickle.dumps(content, protocol=2))
    with pytest.raises(DataError, match=str(path)) as refused:
        read_checkpoint(path)
    if kind != "raw 0":  # which no format of torch begins like
        assert re.search("nothing (of it )?was executed", str(refused.value))
    if kind in ("zip", "legacy", "raw 2", "script"):
        assert "names " in str(refused.value)
    assert not marker.exists()
    assert pickle.loads(pickle.dumps(Command(marker))) == 0  # where it is believed
    assert marker.exists()


# TorchScript


class Part(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 4)
        self.register_buffer("counts", torch.arange(4))
        self.register_buffer("kept_out_of_states", torch.rand(2), persistent=False)
        self.constant = torch.rand(4)
        self.sizes = [1, 2]

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + self.constant.to(x.dtype) * self.counts


class Nest(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.5))
        self.parts = nn.ModuleList([Part(), Part()])
        self.after = nn.Sequential(nn.Linear(4, 5, bias=False), nn.GELU(), nn.LayerNorm(5), nn.BatchNorm1d(5))
        self.tied = nn.Linear(3, 4)
        self.tied.weight = self.parts[0].linear.weight
        self.view = nn.Parameter(torch.rand(4, 3).T)  # not contiguous
        self.empty = nn.Parameter(torch.empty(0, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.parts[0](x) + self.parts[1](x) + self.tied(x @ self.view @ self.view.T)) * self.scale


def script(module: nn.Module, folder: Path) -> Path:
    path = folder / "script.pt"
    torch.jit.script(module).save(path)
    return path


def rewritten(path: Path, entry: str, change: Callable[[bytes], bytes]) -> Path:
    """An archive with one entry's content changed."""
    buffer = BytesIO()
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(buffer, "w") as new:
        assert any(name.endswith(f"/{entry}") for name in old.namelist())
        for name in old.namelist():
            content = old.read(name)
            new.writestr(name, change(content) if name.endswith(f"/{entry}") else content)
    path.write_bytes(buffer.getvalue())
    return path


@pytest.mark.parametrize("how", ["scripted", "traced"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_torchscript_archive_is_read_as_torch_would(how: str, dtype: torch.dtype, tmp_path: Path) -> None:
    module = Nest().eval().to(dtype)
    path = tmp_path / "script.pt"
    made = torch.jit.script(module) if how == "scripted" else torch.jit.trace(module, torch.rand(2, 3).to(dtype))
    made.save(path)
    ours = read_checkpoint(path)
    assert same(ours, torch.jit.load(path).state_dict())
    assert ours["scale"].dtype == dtype
    assert ours["parts.1.counts"].dtype == torch.int64
    assert ours["tied.weight"].data_ptr() == ours["parts.0.linear.weight"].data_ptr()


def test_a_damaged_tensor_in_a_torchscript_archive_is_noticed(tmp_path: Path) -> None:
    path = script(nn.Linear(16, 16), tmp_path)
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        entry = archive.getinfo("script/data/0")
    content[entry.header_offset + 512] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"expected a TorchScript archive, got a damaged one \(BadZipFile: Bad CRC-32"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.replace(b"K\x02K\x03t", b"K\x02K\x09t"), "reaches to element 11 of 6"),
        (lambda data: data.replace(b"torch\nFloatStorage", b"torch\nQUInt8Storage"), "names torch.QUInt8Storage"),
        (
            lambda data: data.replace(b"torch\nFloatStorage", b"builtins\neval"),
            "names builtins.eval.*nothing .*executed",
        ),
        (lambda data: data.replace(b"storage", b"elsewhere"[:7]), "expected a storage"),
        (lambda data: data[:-20], "expected a TorchScript archive, got a damaged one"),
        (lambda data: b"", "expected a TorchScript archive, got a damaged one"),
        (lambda data: b"not a pickle", "expected a TorchScript archive, got a damaged one"),
    ],
)
def test_a_torchscript_archive_that_is_not_as_it_should_be_is_refused(
    change: Callable[[bytes], bytes], message: str, tmp_path: Path
) -> None:
    path = rewritten(script(nn.Linear(3, 2), tmp_path), "data.pkl", change)
    with pytest.raises(DataError, match=f"{path}: .*{message}"):
        read_checkpoint(path)


def test_a_module_that_holds_itself_or_too_many_is_refused(tmp_path: Path) -> None:
    node = b"c__torch__.torch.nn.modules.linear\nLinear\n)\x81"
    itself = b"\x80\x02" + node + b"q\x00}U\x01mh\x00sb."
    path = rewritten(script(nn.Linear(3, 2), tmp_path), "data.pkl", lambda _: itself)
    with pytest.raises(DataError, match="expected a TorchScript archive, got a damaged one"):
        read_checkpoint(path)
    tower = (
        node
        + b"}b"
        + b"".join(  # each of 40 floors holds the one below twice
            b"q" + bytes([floor]) + b"0" + node + b"}(U\x01ah" + bytes([floor]) + b"U\x01bh" + bytes([floor]) + b"ub"
            for floor in range(40)
        )
    )
    path = rewritten(path, "data.pkl", lambda _: b"\x80\x02" + tower + b".")
    with pytest.raises(DataError, match="expected a TorchScript archive, got a damaged one"):
        read_checkpoint(path)


# Filling a module


def tower() -> nn.Module:
    return nn.ModuleDict({"image": nn.Linear(3, 2), "text": nn.Linear(4, 2)})


def full() -> dict[str, Tensor]:
    return {key: torch.rand_like(value) for key, value in tower().state_dict().items()}


def test_a_module_gets_exactly_the_files_values_in_its_own_type() -> None:
    module, state = tower(), {key: value.half() for key, value in full().items()}
    report = load_state(module, state, source="x.pt")
    assert same(dict(module.state_dict()), {key: value.float() for key, value in state.items()})
    assert report.used == tuple(state)
    assert report.summary() == "4 tensors loaded"


def test_patterns_say_what_to_drop_and_what_may_be_missing() -> None:
    module, state = tower(), full()
    initial = module["text"].weight.clone()
    del state["text.weight"], state["text.bias"]
    state |= {"input_resolution": torch.tensor(224), "head.weight": torch.rand(2)}
    report = load_state(module, state, source="x.pt", drop=("input_resolution", "head.*"), optional=("text.*",))
    assert torch.equal(module["image"].weight, state["image.weight"])
    assert torch.equal(module["text"].weight, initial)
    assert report.used == ("image.weight", "image.bias")
    assert report.dropped == ("input_resolution", "head.weight")
    assert report.missing == ("text.weight", "text.bias")
    assert report.summary() == (
        "2 tensors loaded, 2 left out (input_resolution, head.weight), 2 not in the file, at their initial values "
        "(text.weight, text.bias)"
    )


def test_all_that_does_not_fit_is_said_at_once_and_the_module_stays_as_it_was() -> None:
    module, state = tower(), full()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    state["image.weight"] = torch.rand(2, 5)
    state["head"] = torch.rand(2)
    del state["text.bias"]
    with pytest.raises(DataError) as refused:
        load_state(module, state, source="x.pt")
    assert str(refused.value) == (
        "x.pt: doesn't fit ModuleDict: wrong shapes: 1 (image.weight: expected (2, 3), got (2, 5)), "
        "missing keys: 1 (text.bias), unexpected keys: 1 (head)"
    )
    assert same(dict(module.state_dict()), before)


def test_the_checkpoint_of_another_encoder_or_size_is_recognized() -> None:
    with pytest.raises(DataError, match=r"unexpected keys: 8 \(k0, .* and 3 more\); it looks like .* another encoder"):
        load_state(tower(), full() | {f"k{i}": torch.rand(1) for i in range(8)}, source="x.pt")
    with pytest.raises(DataError, match=r"missing keys: 4 .*; it looks like .* of another encoder"):
        load_state(tower(), {}, source="x.pt")
    with pytest.raises(DataError, match=r"wrong shapes: 4 .*; it looks like .* of another size"):
        load_state(tower(), {key: torch.rand(9) for key in full()}, source="x.pt")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is counted as Linux shows it")
def test_a_checkpoint_is_not_in_memory_before_a_module_takes_it(saved: Callable[..., Path]) -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    path = saved({"weight": torch.ones(4000, 2000)})  # 32 MB
    before = resident()
    state = read_checkpoint(path)
    assert resident() - before < 8_000_000
    assert state["weight"].sum() == 8_000_000


def test_positions_of_the_same_size_are_the_same_object() -> None:
    table = torch.rand(1 + 14 * 14, 8)
    assert interpolate_positions(table, 14, prefix=1, source="a.pt") is table


@pytest.mark.parametrize("prefix", [0, 1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_positions_of_another_size_keep_their_prefix_and_follow_the_grid(prefix: int, dtype: torch.dtype) -> None:
    rows, columns = torch.rand(8), torch.rand(8)
    table = torch.cat([torch.full((prefix, 1), -7.0), torch.outer(rows, columns).reshape(64, 1)]).to(dtype)
    larger = interpolate_positions(table, 16, prefix=prefix, source="a.pt")
    assert larger.shape == (prefix + 16 * 16, 1)
    assert larger.dtype == dtype
    assert torch.equal(larger[:prefix], table[:prefix])
    expected = torch.outer(twice(rows), twice(columns))
    grid = larger[prefix:].float().reshape(16, 16)
    torch.testing.assert_close(
        grid[4:12, 4:12], expected[4:12, 4:12], atol=2e-3 if dtype.itemsize == 2 else 1e-6, rtol=0
    )


def twice(line: Tensor) -> Tensor:
    """A line of 8 at 16 places by Keys' cubic convolution (1981) with a = -3/4, written out; right but at the rim."""

    def weight(distance: float) -> float:
        d, a = abs(distance), -0.75
        if d <= 1:
            return (a + 2) * d**3 - (a + 3) * d**2 + 1
        return a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a if d < 2 else 0.0

    centers = [(i + 0.5) / 2 - 0.5 for i in range(16)]  # of the new pixels, in old ones (align_corners=False)
    return torch.tensor([sum(weight(center - j) * float(line[j]) for j in range(8)) for center in centers])


def test_positions_that_are_no_square_grid_are_refused() -> None:
    with pytest.raises(DataError, match=r"^a.pt: expected a square grid .* after 0 rows, got shape \(197, 8\)"):
        interpolate_positions(torch.rand(197, 8), 16, prefix=0, source="a.pt")

"""Paradigms of strangers: one that prepares an encoder. docs/plugins.md has one that trains beside the model."""

import json
from pathlib import Path

import numpy as np
import pytest
from helpers import call, plugin

from mmrec_lmm.config.resolve import Request, resolve_request
from mmrec_lmm.plugin.registry import load_registry
from mmrec_lmm.running.inputs import shared_keys
from mmrec_lmm.running.run_folder import list_results
from mmrec_lmm.types import EncoderName

JITTER = '''
import torch
from safetensors.torch import save_file


@dataclass(frozen=True)
class JitterConfig:
    size: float = 0.1


class Jitter(Paradigm):
    """The encoder with noise in its weights."""

    def prepared_path(self, run, catalog, registry):
        return home() / "jitter" / f"{run.encoder}-{self.config.size}.safetensors"

    def prepare(self, run, catalog, registry, *, progress):
        encoder = registry.encoders.load(run.encoder, "cls")(run.encoder_config, ("image", "text"))
        noise = torch.Generator().manual_seed(0)
        weights = {
            name: value + self.config.size * torch.randn(value.shape, generator=noise)
            if value.is_floating_point() else value
            for name, value in encoder.state_dict().items()
        }
        path = self.prepared_path(run, catalog, registry)
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(weights, path)
        return Tuned(path, path.stem, {"size": self.config.size})


@hookimpl
def mmrec_register_paradigms():
    return [ParadigmSpec("jitter", Jitter, JitterConfig, prepares=True, summary="noise in the encoder's weights")]
'''


def test_a_plugins_paradigm_prepares_the_encoder_of_runs_and_of_encode(
    data_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(data_path.parent)
    file = plugin(tmp_path / "jitter.py", JITTER)
    common = ("-d", "toy", "--encoder", "clip:tiny", "-p", file)
    runs = []
    for arguments in (["--paradigm", "jitter"], ["--paradigm", "jitter", "--jitter.size=0.2"], []):
        answer = call("run", "-m", "VBPR", *common, "--epochs=1", *arguments, "--json")
        assert answer.code == 0, answer.err
        runs.append(json.loads(answer.out)["run_id"])
    assert len(set(runs)) == 3
    records = {result.run_id: result.record for result in list_results(Path("runs"))}
    assert records[runs[1]].reports == {"jitter": {"fingerprint": "clip-0.2", "size": 0.2}}
    assert records[runs[2]].reports == {}
    assert len({records[run].features["image"] for run in runs}) == 3

    for folder, arguments in (("noisy", ["--paradigm", "jitter"]), ("plain", [])):
        assert call("encode", *common, *arguments, "--export", folder).code == 0
    noisy, plain = (np.load(Path(folder) / "image_feat.npy") for folder in ("noisy", "plain"))
    assert noisy.shape == plain.shape
    assert not np.array_equal(noisy, plain)


def test_what_a_paradigm_prepares_is_never_shared_with_another_paradigm(tmp_path: Path) -> None:
    """Not even if neither has a configuration."""
    bare = JITTER.replace("Jitter, JitterConfig, prepares", "Jitter, None, prepares")
    registry = load_registry([str(plugin(tmp_path / "bare.py", bare))])
    runs = [
        resolve_request(Request("VBPR", "toy", EncoderName("basic"), paradigm=name), registry).runs[0]
        for name in ("pt", "jitter")
    ]
    assert len({shared_keys(run, registry).encoded for run in runs}) == 2


def test_a_section_of_a_strangers_paradigm_is_refused_beside_another_paradigm(
    data_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(data_path.parent)
    run = ("run", "-m", "VBPR", "-d", "toy", "-p", plugin(tmp_path / "jitter.py", JITTER), "--encoder", "basic")
    answer = call(*run, "--jitter.size=0.2")
    assert (answer.code, answer.out) == (2, "")
    assert "unknown key jitter.size: it belongs to --paradigm jitter" in answer.err
    answer = call(*run, "--paradigm", "jitter", "--jitter.sise=1")
    assert "unknown key jitter.sise; did you mean jitter.size?" in answer.err
    assert "unknown paradigm jiter; did you mean jitter?" in call(*run, "--paradigm", "jiter").err

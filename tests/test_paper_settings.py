"""docs/studies.md: the paper's settings beside what `config show --preset paper` prints."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from mmrec_lmm.config import yaml_layers
from mmrec_lmm.config.resolve import Request, resolve_request
from mmrec_lmm.config.yaml_layers import as_yaml, shipped
from mmrec_lmm.plugin.registry import Registry
from mmrec_lmm.types import EncoderName

PAGE = (Path(__file__).parents[1] / "docs" / "studies.md").read_text(encoding="utf-8")
SETTINGS = re.findall(r"^\| .+ \| .*\| `([\w.]+)`(?: of (\w+))? \| `(.+)` \| `(.+)` \|$", PAGE, re.MULTILINE)


def shown(registry: Registry, key: str, model: str, preset: str | None) -> Any:
    """What `config show` prints of a key, with or without a preset."""
    paradigm = key.partition(".")[0] if "." in key else "pt"
    request = Request(model or "VBPR", "baby", EncoderName("clip"), paradigm, preset=preset)
    resolved = resolve_request(request, registry)
    value = resolved.axes[key][0] if key in resolved.axes else resolved.origins[key].value
    return yaml.safe_load(as_yaml(value))


@pytest.mark.parametrize(("key", "model", "with_preset", "without"), SETTINGS)
def test_a_line_of_the_papers_settings_is_what_config_show_prints(
    key: str, model: str, with_preset: str, without: str, registry: Registry, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)  # no ./configs
    assert shown(registry, key, model, "paper") == yaml.safe_load(with_preset)
    assert shown(registry, key, model, None) == yaml.safe_load(without)


def test_the_papers_settings_have_a_line_for_each_key_that_the_preset_sets(registry: Registry) -> None:
    sections = registry.paradigms.names()
    files = {"": shipped() / "preset" / "paper.yaml"}
    files |= {path.stem: path for path in (shipped() / "preset" / "paper").glob("*.yaml")}
    told = {(key, model.lower()) for key, model, _, _ in SETTINGS}
    for model, path in files.items():
        for key in yaml_layers.read(path, "preset", sections=sections).values:
            assert (key, model) in told, (key, model)

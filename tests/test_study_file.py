"""Study files: what a file says becomes cells and runs, what is wrong with it is told at once, and who wins a cell."""

import dataclasses
import re
from pathlib import Path

import pytest

from mmrec_lmm.config.yaml_layers import shipped
from mmrec_lmm.errors import ConfigError
from mmrec_lmm.plugin.registry import Registry
from mmrec_lmm.studies.file import Cell, Study, StudyKeys, find_study, load_study, winner
from mmrec_lmm.types import RunResult

STUDIES_PAGE = Path(__file__).parents[1] / "docs" / "studies.md"


def study(tmp_path: Path, text: str) -> Study:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    return load_study(path)


def cells(tmp_path: Path, registry: Registry, text: str) -> dict[str, Cell]:
    return {cell.key: cell for cell in study(tmp_path, text).cells(registry)}


def test_cells_are_the_product_of_the_axes_and_runs_that_of_grid_and_seeds(tmp_path: Path, registry: Registry) -> None:
    found = cells(
        tmp_path,
        registry,
        """
        models: [vbpr]
        datasets: [toy]
        encoders: [basic, "CLIP:tiny"]
        paradigms: [pt, ete]
        modalities: [image, text+image]
        seeds: [1, 2]
        grids: {VBPR: {reg_weight: [0.1, 0.01]}}
        """,
    )
    assert list(found) == [
        f"VBPR/toy/{encoder}/{paradigm}/{modalities}"
        for encoder in ("basic", "clip:tiny")
        for paradigm in ("pt", "ete")
        for modalities in ("image", "text+image")
    ]
    runs = found["VBPR/toy/clip:tiny/ete/text+image"].runs
    assert [run.point for run in runs] == [{"seed": s, "reg_weight": w} for s in (1, 2) for w in (0.1, 0.01)]
    assert {(run.encoder, run.encoder_config.variant, run.modalities) for run in runs} == {
        ("clip", "tiny", ("text", "image"))
    }


def test_a_model_without_features_is_one_cell_and_meets_no_encoder(tmp_path: Path, registry: Registry) -> None:
    found = cells(
        tmp_path,
        registry,
        "{models: [LightGCN, VBPR], datasets: [toy], encoders: [basic, 'clip:tiny'], paradigms: [pt, ete], "
        "controls: [none], each_modality: true}",
    )
    assert [key for key in found if key.startswith("LightGCN")] == ["LightGCN/toy/-/pt/-"]


def test_a_twin_without_features_is_one_cell_for_all_encoders_and_paradigms(tmp_path: Path, registry: Registry) -> None:
    found = cells(
        tmp_path,
        registry,
        "{models: [VBPR], datasets: [toy], encoders: [basic, 'clip:tiny'], paradigms: [pt, ete], "
        "controls: [none, constant], each_modality: true, "
        "for: [{encoder: basic, set: {eval_step: 2}}, {control: none, set: {epochs: 7}}]}",
    )
    twins = {key: cell for key, cell in found.items() if cell.axes.control == "none"}
    assert list(twins) == [f"VBPR/toy/-/pt/{names}/none" for names in ("image+text", "image", "text")]
    assert {cell.runs[0].settings.epochs for cell in twins.values()} == {7}
    asked = [cell.runs[0].modalities for cell in twins.values()]
    assert asked == [None, ("image",), ("text",)]  # as its original: of what a catalog lacks, none is asked for
    assert {cell.runs[0].settings.eval_step for cell in twins.values()} == {1}  # it isn't basic's
    assert "VBPR/toy/basic/pt/-/constant" in found


def test_a_cell_that_cannot_be_stays_with_its_reason(tmp_path: Path, registry: Registry) -> None:
    found = cells(
        tmp_path,
        registry,
        "{models: [VBPR], datasets: [toy], encoders: [basic, null], paradigms: [pt, ft, ete], controls: [shuffled]}",
    )
    reasons = {key: cell.reason for key, cell in found.items() if not cell.runs}
    assert set(reasons) == {
        "VBPR/toy/basic/ft/-", "VBPR/toy/basic/ft/-/shuffled", "VBPR/toy/basic/ete/-/shuffled",
        "VBPR/toy/-/ft/-", "VBPR/toy/-/ft/-/shuffled", "VBPR/toy/-/ete/-", "VBPR/toy/-/ete/-/shuffled",
    }  # fmt: skip
    assert "expected an encoder with losses over images and texts, got basic" in reasons["VBPR/toy/basic/ft/-"]


def test_null_is_the_default_encoder_of_a_data_set_that_has_one(tmp_path: Path, registry: Registry) -> None:
    assert list(cells(tmp_path, registry, "{models: VBPR, datasets: Demo}")) == ["VBPR/demo/basic/pt/-"]


def test_settings_reach_the_cells_that_have_such_a_key_and_for_those_that_it_selects(
    tmp_path: Path, registry: Registry
) -> None:
    found = cells(
        tmp_path,
        registry,
        """
        models: [VBPR, LATTICE]
        datasets: [toy]
        encoders: ["clip:tiny", basic]
        paradigms: [pt, ft]
        settings: {preset: lmm, epochs: 7, knn_k: 3, ft: {epochs: 2}}
        for:
          - {encoder: clip, model: [lattice, MMGCL], set: {epochs: 9, ft.learning_rate: 1e-3}}
          - {encoder: basic, set: {modalities: text, preset: mmrec}}
        """,
    )
    lattice, vbpr = (found[f"{model}/toy/clip:tiny/ft/-"].runs[0] for model in ("LATTICE", "VBPR"))
    assert (lattice.settings.epochs, vbpr.settings.epochs) == (9, 7)
    assert (lattice.paradigm_config.learning_rate, vbpr.paradigm_config.learning_rate) == (1e-3, 3e-5)
    assert (lattice.paradigm_config.epochs, lattice.model_config.knn_k) == (2, 3)
    assert (vbpr.settings.seed, found["VBPR/toy/basic/pt/text"].runs[0].settings.seed) == (2022, 999)


def test_the_variants_of_a_paradigm_are_rows_of_their_own(tmp_path: Path, registry: Registry) -> None:
    found = cells(
        tmp_path,
        registry,
        """
        models: [VBPR]
        datasets: [demo]
        encoders: ["clip:tiny"]
        paradigms: [pt, ete, "ete:side", "ETE:last:1", "ft:lora"]
        for:
          - {paradigm: ete, set: {ete.warm_epochs: 3}}
          - {paradigm: "ete:side", set: {ete.warm_epochs: auto}}
        """,
    )
    names = [cell.axes.paradigm for cell in found.values()]
    assert names == ["pt", "ete", "ete:side", "ete:last:1", "ft:lora"]
    runs = [cell.runs[0] for cell in found.values()]
    assert [run.axes.paradigm for run in runs] == names
    assert [run.paradigm for run in runs] == ["pt", "ete", "ete", "ete", "ft"]
    assert [run.paradigm_config.tune for run in runs[1:]] == ["full", "side", "last:1", "lora"]
    assert [run.paradigm_config.warm_epochs for run in runs[1:4]] == [3, "auto", 3]


@pytest.mark.parametrize(
    ("paradigm", "setting", "says"),
    [
        ("ete:side", "ete.tune: lora", "ete.tune: expected one value, got lora, and --paradigm ete:side"),
        ("ete:sides", "epochs: 2", "ete.tune must be full, lora, side"),
        ("pt:side", "epochs: 2", "--paradigm: expected NAME, as it has no variants, got pt:side; try --paradigm pt"),
        ("etc:side", "epochs: 2", "unknown paradigm etc; did you mean ete?"),
    ],
)
def test_a_variant_that_can_not_be_is_refused(
    tmp_path: Path, registry: Registry, paradigm: str, setting: str, says: str
) -> None:
    text = f"""
        models: [VBPR]
        datasets: [demo]
        encoders: ["clip:tiny"]
        paradigms: ["{paradigm}"]
        settings: {{{setting}}}
        """
    with pytest.raises(ConfigError) as refused:
        cells(tmp_path, registry, text)
    assert says in str(refused.value)


def test_narrowing_merges_the_cells_that_become_one(tmp_path: Path, registry: Registry) -> None:
    found = cells(
        tmp_path,
        registry,
        "{models: VBPR, datasets: toy, encoders: [basic, 'clip:tiny'], each_modality: true, "
        "for: [{encoder: basic, set: {modalities: text}}]}",
    )
    assert list(found) == ["VBPR/toy/basic/pt/text", *(f"VBPR/toy/clip:tiny/pt/{m}" for m in ("-", "image", "text"))]


def test_a_published_grid_is_asked_for_by_name(tmp_path: Path, registry: Registry) -> None:
    [cell] = cells(
        tmp_path,
        registry,
        "{models: VBPR, datasets: toy, encoders: basic, grids: {vbpr: lmm}, settings: {preset: paper}}",
    ).values()
    assert [run.point["reg_weight"] for run in cell.runs] == [2.0, 1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5]


@pytest.mark.parametrize(
    ("text", "messages"),
    [
        (
            "{modles: VBPR, datasets: toy}",
            [
                "mine.yaml:1: unknown key modles; did you mean models?",
                "mine.yaml: models: expected at least one, got none",
            ],
        ),
        (
            "{models: VBPR, datasets: toy, paradigms: fft}",
            ["mine.yaml:1: unknown paradigm fft; did you mean ft? known: ete, ft, pt"],
        ),
        (
            "{models: VBPR, datasets: toy, baseline: {coder: x}}",
            ["mine.yaml:1: baseline: expected an axis, got coder; "],
        ),
        (
            "{models: VBPR, datasets: toy, for: [{encodr: x, set: {epochs: 1}}]}",
            ["mine.yaml:1: for: expected an axis or set, got encodr; did you mean encoder?"],
        ),
        (
            "{models: VBPR, datasets: toy, for: [{encoder: x}]}",
            ["mine.yaml:1: set: expected {key: value, ...}, got none"],
        ),
        ("{models: VBPR, datasets: toy, for: 3}", ["mine.yaml:1: for: expected a list of"]),
        (
            "models: [VPBR]\ndatasets: toy\nencoders: klip:tiny",
            [
                "mine.yaml:1: unknown model VPBR; did you mean VBPR?",
                "mine.yaml:3: unknown encoder klip; did you mean clip?",
            ],
        ),
        (
            "models: VBPR\ndatasets: toy\nsettings:\n  epochs: many\n  sed: 1",
            [
                "mine.yaml:4: epochs must be a whole number, got 'many'",
                "mine.yaml:5: unknown key sed; did you mean seed?",
            ],
        ),
        (
            "models: [VBPR, LATTICE]\ndatasets: toy\nfor:\n  - model: VBPR\n    set: {knn_k: 3}",
            ["mine.yaml:5: knn_k: expected a key that a cell of this entry reads, got one that none"],
        ),
        (
            "models: VBPR\ndatasets: toy\nfor:\n  - {encoder: clip, set: {preset: mmrec}}",
            ["mine.yaml:4: for: expected an entry that selects a cell, got one that selects none"],
        ),
        (
            "{models: VBPR, datasets: toy, settings: {ft.epochs: 2}}",
            ["mine.yaml:1: ft.epochs: expected a key that a cell reads, "],
        ),
        (
            "{models: VBPR, datasets: toy, grids: {LATTICE: mmrec}}",
            ["grids: expected a model of this study, got LATTICE"],
        ),
        ("{models: VBPR, datasets: toy, grids: {VBPR: nowhere}}", ["mine.yaml:1: unknown grid of model VBPR: nowhere"]),
        (
            "models: VBPR\ndatasets: toy\nsettings:\n  metrics: [Recall, Recal]",
            ["mine.yaml:4: unknown metric Recal; did you mean Recall?"],
        ),
        (
            "models: VBPR\ndatasets: toy\nsettings:\n  epochs: 3\n  preset: mrec",
            ["mine.yaml:5: unknown preset: mrec; did you mean mmrec?"],
        ),
        (
            "models: VBPR\ndatasets: toy\nsettings: {preset: mmrec}\nfor:\n  - model: VBPR\n    set: {preset: 3}",
            ["mine.yaml:6: unknown preset: 3; known: "],
        ),
        (
            "models: VBPR\ndatasets: toy\nsettings:\n  epochs: 3\n  topk: [5]",
            ["mine.yaml:5: valid_metric Recall@20 is not computed with metrics"],
        ),
        (
            "models: LATTICE\ndatasets: toy\ngrids: {LATTICE: {knn_k: [5, 0]}}",
            ["mine.yaml:3: knn_k must be from 1 to 1,048,576, got 0"],
        ),
        (
            "models: VBPR\ndatasets: toy\nmetrics: [Recall@20, Recall@15]\nslices: true\n"
            "settings: {save_recommended_topk: false}",
            [
                "mine.yaml:3: metrics: expected a metric that runs of VBPR measure, got Recall@15; did you mean",
                "mine.yaml:4: slices: expected runs that save their lists, got save_recommended_topk: false; try ",
            ],
        ),
        ("{models: VBPR, datasets: toy, alpha: 5}", ["mine.yaml:1: alpha must be above 0 and below 1, got 5"]),
        ("{models: VBPR, datasets: toy, alpha: 0}", ["mine.yaml:1: alpha must be above 0 and below 1, got 0"]),
        (
            "models: VBPR\ndatasets: toy\nsettings: {modalities: text}",
            ["mine.yaml:3: settings: expected configuration keys, got the axis modalities; try it beside settings"],
        ),
        (
            "models: VBPR\ndatasets: toy\nfor:\n  - model: VBPR\n    set: {modalities: [text]}",
            ["mine.yaml:5: modalities: expected text such as image+text, or null, got ['text']"],
        ),
        (
            "models: VBPR\ndatasets: toy\nencoders: basic\nmodalities: [txet, image]",
            ["mine.yaml:4: modalities: expected one that an encoder of this study makes, got txet; did you mean text?"],
        ),
        (
            "models: VBPR\ndatasets: toy\nseeds: [1, 2]\ngrids: {VBPR: {reg_weight: [1, 2]}}\nsettings:\n  seed: 5\n"
            "for:\n  - model: VBPR\n    set: {reg_weight: 7}",
            [
                "mine.yaml:6: seed: expected one source of values for VBPR, got a setting and seeds; try leaving",
                "mine.yaml:9: reg_weight: expected one source of values for VBPR, got a setting and grids; try leaving",
            ],
        ),
    ],
)
def test_what_is_wrong_with_a_file_is_told_at_once_with_its_line(
    tmp_path: Path, registry: Registry, text: str, messages: list[str]
) -> None:
    with pytest.raises(ConfigError) as error:
        study(tmp_path, text).cells(registry)
    for message in messages:
        assert message in str(error.value)


def test_a_study_is_found_by_its_name_or_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs" / "study").mkdir(parents=True)
    own = tmp_path / "configs" / "study" / "Mine.yaml"
    own.write_text("{}")
    assert find_study("mine").samefile(own)
    assert find_study("configs/study/Mine.yaml").samefile(own)
    with pytest.raises(
        ConfigError, match=r"^study: expected a file .* study \(.*demo.*\), got dmo; did you mean demo\?$"
    ):
        find_study("dmo")


def test_every_key_of_a_study_is_documented_and_the_example_resolves(tmp_path: Path, registry: Registry) -> None:
    text = STUDIES_PAGE.read_text(encoding="utf-8")
    section = text.partition("\n## Keys\n")[2].partition("\n## ")[0]
    keys = {field.name for field in dataclasses.fields(StudyKeys)} | {"for"}
    assert set(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)) == keys
    example = re.search(r"```yaml\n(.*?)```", text, re.DOTALL)
    assert example
    assert "VBPR/demo/clip:tiny/ft/-/shuffled" in cells(tmp_path, registry, example[1])


SHIPPED = sorted((shipped() / "study").glob("*.yaml"))
LISTED = dict(re.findall(r"^\| `([\w-]+)` \| ([\d,]+) \|", STUDIES_PAGE.read_text(encoding="utf-8"), re.MULTILINE))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_each_shipped_study_resolves_to_the_number_of_runs_that_its_file_and_the_docs_say(
    path: Path, registry: Registry
) -> None:
    study = load_study(path)
    found = study.cells(registry)
    assert any(cell.runs for cell in found)
    assert all(cell.runs or cell.reason for cell in found)
    runs = f"{sum(runs_of(cell, study) for cell in found):,}"
    assert LISTED[path.stem] == runs
    comment = " ".join(re.findall(r"^# (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE))
    assert not (said := re.findall(r"([\d,]+) runs", comment)) or runs in said


def runs_of(cell: Cell, study: Study) -> int:
    """The runs of a cell, once its winner has all seeds."""
    seeds = len({run.settings.seed for run in cell.runs})
    points = len(cell.runs) // max(seeds, 1)
    if cell.axes.control and study.controls_at == "winner":
        points = 1
    return points + seeds - 1 if seeds and study.seeds_at == "winner" else points * seeds


def test_the_docs_list_no_study_that_is_not_shipped() -> None:
    assert set(LISTED) == {path.stem for path in SHIPPED}


def test_the_winner_has_the_highest_mean_over_seeds_on_validation_whatever_test_says(
    tmp_path: Path, registry: Registry
) -> None:
    [cell] = cells(
        tmp_path,
        registry,
        "{models: VBPR, datasets: toy, encoders: basic, seeds: [1, 2], grids: {VBPR: {reg_weight: [0.1, 0.01, 1]}}}",
    ).values()
    valid = {(1, 0.1): 0.9, (2, 0.1): 0.1, (1, 0.01): 0.5, (2, 0.01): 0.6, (1, 1): 0.0}
    results = [
        RunResult("r", tmp_path, run.point, {"recall@20": score}, {"recall@20": -score}, 0, 1, "epochs")
        if (score := valid.get((run.point["seed"], run.point["reg_weight"]))) is not None
        else None
        for run in cell.runs
    ]
    assert [run.parameters for run in winner(cell, results)] == [{"seed": s, "reg_weight": 0.01} for s in (1, 2)]
    assert winner(cell, [None] * 6) == ()
    alone = [
        result and dataclasses.replace(result) if result and result.parameters["seed"] == 1 else None
        for result in results
    ]
    assert [run.parameters["reg_weight"] for run in winner(cell, alone)] == [0.1]


def test_a_baseline_that_no_cell_is_is_refused_with_its_line(tmp_path: Path, registry: Registry) -> None:
    study = "models: [VBPR, LightGCN]\ndatasets: toy\nencoders: basic\nbaseline: {model: %s}\n"
    with pytest.raises(
        ConfigError,
        match=r":4: baseline: expected values that a cell of the study has, got model BPR; try model VBPR, LightGCN",
    ):
        cells(tmp_path, registry, study % "BPR")
    assert len(cells(tmp_path, registry, study % "lightgcn")) == 2

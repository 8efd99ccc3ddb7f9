"""Configuration: MMRec's layers and grids, the schema on top of them, and what is said of a mistake."""

import pickle
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmrec_lmm.config import yaml_layers
from mmrec_lmm.config.resolve import Request, Resolved, describe, resolve
from mmrec_lmm.config.schema import Key, schema_of
from mmrec_lmm.config.settings import NOT_IDENTITY, OF_FEATURES, OF_INPUTS, Settings
from mmrec_lmm.errors import ConfigError, ConfigValueError, PluginError
from mmrec_lmm.plugin.specs import DatasetSpec, EncoderSpec, ModelSpec
from mmrec_lmm.types import EncoderName


@dataclass(frozen=True)
class MFConfig:
    embedding_size: int = 64
    reg_weight: float = 0.001
    mask_p: tuple[float, ...] = (0.5, 0.5)
    variant: Literal["released", "paper"] = "released"

    def __post_init__(self) -> None:
        if self.reg_weight < 0:
            raise ValueError(f"reg_weight must not be negative, got {self.reg_weight}")


@dataclass(frozen=True)
class LensConfig:
    image_size: int = 224
    variant: Literal["base", "tiny"] = "base"
    weights: Path | None = None


MF = ModelSpec("VBPR", "nowhere:VBPR", MFConfig)
LENS = EncoderSpec("lens", "nowhere:Lens", LensConfig, ("image",), "nowhere:weights_id")

SECTIONS = ("encoder", "ft", "ete")


@pytest.fixture(autouse=True)
def empty_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No ./configs but what a test writes."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(place: str, text: str) -> None:
    path = Path(place)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def ask(
    *,
    model: ModelSpec = MF,
    encoder: EncoderSpec | None = None,
    dataset: DatasetSpec | None = None,
    overrides: Mapping[str, str] | None = None,
    **request: Any,
) -> Resolved:
    asked = Request(
        model.name, "toy", EncoderName(encoder.name) if encoder else None, overrides=overrides or {}, **request
    )
    return resolve(asked, model=model, encoder=encoder, dataset=dataset, sections=SECTIONS)


def refusal(**request: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        ask(**request)
    return str(caught.value)


def test_the_shipped_overall_file_and_the_defaults_of_settings_agree() -> None:
    [run] = ask().runs
    assert run.settings == Settings()
    shipped = yaml_layers.read(yaml_layers.shipped() / "overall.yaml", "overall", sections=SECTIONS)
    assert set(shipped.values) == {field.name for field in fields(Settings)} | {"hyper_parameters"}


def test_each_layer_wins_over_the_ones_before_it() -> None:
    order = [
        "overall.yaml", "dataset/toy.yaml", "model/vbpr.yaml", "preset/old.yaml", "preset/old/vbpr.yaml",
        "grid/wide.yaml", "grid/wide/vbpr.yaml",
    ]  # fmt: skip
    assert ask().runs[0].settings.epochs == 1000
    for epochs, name in enumerate(order, start=1):
        write(f"configs/{name}", f"epochs: {epochs}\n")
        preset, grid = ("old" if epochs >= 4 else None), ("wide" if epochs >= 6 else None)
        resolved = ask(preset=preset, grid=grid)
        assert resolved.runs[0].settings.epochs == epochs
        assert str(resolved.origins["epochs"]) == f"configs/{name}:1"
    resolved = ask(preset="old", grid="wide", overrides={"epochs": "7"})
    assert resolved.runs[0].settings.epochs == 7
    assert resolved.origins["epochs"].layer == "command line"
    assert resolved.origins["reg_weight"].value == ask().runs[0].model_config.reg_weight


def test_a_value_that_no_file_sets_comes_from_the_default() -> None:
    assert str(ask().origins["mask_p"]) == "default"


def test_the_first_folder_that_has_a_file_wins_whatever_the_case_of_its_name(tmp_path: Path) -> None:
    own = tmp_path / "plugin"
    write("plugin/model/vbpr.yaml", "epochs: 1\n")
    model = ModelSpec("VBPR", "nowhere:VBPR", MFConfig, configs=own)
    assert ask(model=model).runs[0].settings.epochs == 1
    write("configs/model/VBPR.yaml", "epochs: 2\n")
    assert ask(model=model).runs[0].settings.epochs == 2
    write("mine/Model/Vbpr.yaml", "epochs: 3\n")
    assert ask(model=model, configs=Path("mine")).runs[0].settings.epochs == 3


def test_a_plugin_folder_serves_only_its_own_files(tmp_path: Path) -> None:
    write("plugin/overall.yaml", "epochs: 1\n")
    write("plugin/dataset/toy.yaml", "epochs: 1\n")
    model = ModelSpec("VBPR", "nowhere:VBPR", MFConfig, configs=tmp_path / "plugin")
    assert ask(model=model).runs[0].settings.epochs == 1000
    assert ask(dataset=DatasetSpec("toy", configs=tmp_path / "plugin")).runs[0].settings.epochs == 1


def test_a_configs_folder_that_holds_no_configuration_is_refused(tmp_path: Path) -> None:
    assert "--configs nowhere: expected a folder with one of overall.yaml" in refusal(configs=Path("nowhere"))
    write("elsewhere/notes.txt", "")
    assert "--configs elsewhere" in refusal(configs=Path("elsewhere"))


def test_an_unknown_preset_or_grid_is_refused_with_the_known_ones() -> None:
    message = refusal(preset="mrec", grid="nosuch")
    assert "unknown preset: mrec; did you mean mmrec? known: lmm, mmrec, paper" in message
    assert "unknown grid of model VBPR: nosuch; known: lmm, mmrec, paper-ete, paper-ft" in message


def test_a_preset_name_reaches_no_file_outside_its_folder() -> None:
    write("outside.yaml", "epochs: 1\n")
    write("configs/preset/inside.yaml", "epochs: 1\n")
    assert "unknown preset: ../../outside" in refusal(preset="../../outside")


@pytest.mark.parametrize(
    ("preset", "seed", "patience", "width"), [("mmrec", 999, 20, 64), ("lmm", 2022, 8, 128), ("paper", 2022, 49, 128)]
)
def test_presets_set_what_the_sources_train_with(preset: str, seed: int, patience: int, width: int) -> None:
    [run] = ask(preset=preset).runs
    assert (run.settings.seed, run.settings.stopping_step, run.model_config.embedding_size) == (seed, patience, width)
    assert not run.settings.zero_grad_to_none


@pytest.mark.parametrize("grid", ["mmrec", "lmm"])
def test_the_shipped_grids_of_vbpr_have_the_seven_published_points(grid: str) -> None:
    resolved = ask(grid=grid, preset=grid)
    assert resolved.axes["reg_weight"] == (2.0, 1.0, 0.1, 0.01, 1e-3, 1e-4, 1e-5)
    assert len(resolved.runs) == 7
    assert {run.model_config.embedding_size for run in resolved.runs} == {64 if grid == "mmrec" else 128}


def test_a_grid_of_another_paradigms_axes_is_refused_on_the_command_line() -> None:
    message = refusal(grid="paper-ft")
    assert "grid/paper-ft.yaml:7: expected axes that this run has, got ft.learning_rate; try --paradigm ft" in message
    study = yaml_layers.Layer("study", "mine.yaml", {})
    assert len(ask(grid="paper-ft", study=study).runs) == 1, "a study's other paradigms may have them"


def test_without_a_grid_a_shipped_model_is_one_run() -> None:
    assert len(ask().runs) == 1


MMREC_OVERALL = r"""
gpu_id: 0
use_gpu: False
seed: [999]
data_path: '../data/'
inter_splitting_label: 'x_label'
filter_out_cod_start_users: True
is_multimodal_model: True
checkpoint_dir: 'saved'
save_recommended_topk: True
recommend_topk: 'recommend_topk/'
embedding_size: 32
knn_k: 10
weight_decay: "1e-4"
req_training: True
epochs: 1000
learner: Adam
learning_rate_scheduler: [1.0, 50]
training_neg_sample_num: 1
use_neg_sampling: True
use_full_sampling: False
NEG_PREFIX: neg__
metrics: ["Recall", "NDCG", "Precision", "MAP"]
topk: [5, 10, 20, 50]
valid_metric: Recall@20
end2end: False
field_separator: "\t"
hyper_parameters: ["seed"]
"""
MMREC_DATASET = """
USER_ID_FIELD: userID
ITEM_ID_FIELD: itemID
TIME_FIELD: timestamp
inter_file_name: 'toy.inter'
user_graph_dict_file: 'user_graph_dict.npy'
"""
MMREC_MODEL = """
reg_weight: [2.0, 1e-05]
learning_rate: [.5e-3, 1e-3]
reg: [1, 2]
hyper_parameters: ["reg_weight", "learning_rate", "reg"]
"""


@pytest.fixture
def mmrec() -> Path:
    write("mmrec/overall.yaml", MMREC_OVERALL)
    write("mmrec/dataset/toy.yaml", MMREC_DATASET)
    write("mmrec/model/VBPR.yaml", MMREC_MODEL)
    return Path("mmrec")


def test_a_folder_of_mmrec_loads_unedited(mmrec: Path) -> None:
    resolved = ask(configs=mmrec)
    settings = resolved.runs[0].settings
    assert (settings.data_path, settings.inter_file_name) == ("../data/", "toy.inter")
    assert (settings.weight_decay, settings.learner) == (1e-4, "adam")
    assert resolved.runs[0].model_config.embedding_size == 32
    assert settings.topk == (5, 10, 20, 50)


def test_keys_that_nothing_reads_are_listed_with_their_file_and_are_no_axes(mmrec: Path) -> None:
    resolved = ask(configs=mmrec)
    assert resolved.unused["NEG_PREFIX"] == "mmrec/overall.yaml"
    assert resolved.unused["user_graph_dict_file"] == "mmrec/dataset/toy.yaml"
    assert resolved.unused["knn_k"] == "mmrec/overall.yaml"  # another model's
    assert resolved.unused["reg"] == "mmrec/model/VBPR.yaml"
    assert tuple(resolved.axes) == ("seed", "reg_weight", "learning_rate")


def test_the_grid_runs_in_product_order_with_the_last_key_fastest(mmrec: Path) -> None:
    points = [tuple(run.point.values()) for run in ask(configs=mmrec).runs]
    assert points == [(999, 2.0, 5e-4), (999, 2.0, 1e-3), (999, 1e-5, 5e-4), (999, 1e-5, 1e-3)]
    second = ask(configs=mmrec).runs[1]
    assert (second.model_config.reg_weight, second.settings.learning_rate) == (2.0, 1e-3)


def test_use_gpu_false_means_the_cpu_unless_a_device_is_named(mmrec: Path) -> None:
    assert ask(configs=mmrec).runs[0].settings.device == "cpu"
    assert ask(configs=mmrec, overrides={"device": "cuda:1"}).runs[0].settings.device == "cuda:1"


def test_a_scalar_on_the_command_line_makes_a_one_point_axis(mmrec: Path) -> None:
    resolved = ask(configs=mmrec, overrides={"reg_weight": "0.5", "learning_rate": "1e-2"})
    assert [dict(run.point) for run in resolved.runs] == [{"seed": 999, "reg_weight": 0.5, "learning_rate": 0.01}]


def test_a_list_on_the_command_line_is_an_axis_by_itself() -> None:
    resolved = ask(overrides={"embedding_size": "[8, 16]"})
    assert [run.model_config.embedding_size for run in resolved.runs] == [8, 16]
    assert tuple(resolved.axes) == ("seed", "embedding_size")


def test_a_list_in_a_file_must_be_named_to_be_an_axis() -> None:
    write("configs/model/vbpr.yaml", "# head\nreg_weight: [1, 2]\n")
    assert refusal() == (
        "configs/model/vbpr.yaml:2: reg_weight must be a number, got [1, 2]; to make it a grid axis, "
        "add hyper_parameters: [reg_weight]"
    )


def test_a_file_may_name_the_axis_whose_list_stands_in_another() -> None:
    write("configs/dataset/toy.yaml", "epochs: [1, 2]\n")
    write("configs/model/vbpr.yaml", "hyper_parameters: epochs\n")
    assert [run.settings.epochs for run in ask().runs] == [1, 2]


def test_a_list_is_the_value_of_a_list_key_and_a_list_of_lists_its_axis() -> None:
    write("configs/model/vbpr.yaml", "mask_p: [[.1, .9], [.5, .5]]\ntopk: [20]\nhyper_parameters: [mask_p, topk]\n")
    resolved = ask()
    assert [run.model_config.mask_p for run in resolved.runs] == [(0.1, 0.9), (0.5, 0.5)]
    assert resolved.axes["topk"] == ((20,),)
    assert ask(overrides={"mask_p": "[.2, .8]"}).axes["mask_p"] == ((0.2, 0.8),)


def test_repeated_points_of_an_axis_run_once() -> None:
    assert ask(overrides={"seed": "[1, 2, 1]"}).axes["seed"] == (1, 2)


def test_an_axis_named_without_values_has_the_default_as_its_one_point() -> None:
    write("configs/model/vbpr.yaml", "hyper_parameters: [reg_weight]\n")
    assert ask().axes["reg_weight"] == (MFConfig.reg_weight,)


def test_an_empty_axis_is_refused() -> None:
    assert refusal(overrides={"epochs": "[]"}) == (
        "command line: epochs must be a list of at least one value for a grid axis, got []"
    )


def test_an_unknown_axis_is_refused_with_a_suggestion() -> None:
    write("configs/model/vbpr.yaml", "hyper_parameters: [reg_wieght]\n")
    assert refusal() == (
        "configs/model/vbpr.yaml:1: hyper_parameters names the unknown key reg_wieght; did you mean reg_weight?"
    )


def test_hyper_parameters_must_be_a_list_of_keys() -> None:
    write("configs/model/vbpr.yaml", "hyper_parameters: {reg_weight: [1]}\n")
    assert "configs/model/vbpr.yaml:1: hyper_parameters must be a list of keys" in refusal()


def test_without_a_model_a_request_resolves_to_settings_and_encoder() -> None:
    write("configs/overall.yaml", "epochs: 3\nreg_weight: 1\n")
    [run] = resolve(Request("", "toy", EncoderName("lens")), model=None, encoder=LENS, dataset=None).runs
    assert (run.model, run.model_config, run.encoder_config) == ("", None, LensConfig())
    assert run.settings.epochs == 3


def test_encoder_keys_come_from_section_file_and_command_line() -> None:
    write("configs/overall.yaml", "encoder:\n  image_size: 8\n")
    [run] = ask(encoder=LENS).runs
    assert (run.encoder, run.encoder_config) == ("lens", LensConfig(image_size=8))
    write("configs/encoder/Lens.yaml", "image_size: 16\nweights: w.safetensors\n")
    resolved = ask(encoder=LENS)
    assert resolved.runs[0].encoder_config == LensConfig(image_size=16, weights=Path("w.safetensors"))
    assert str(resolved.origins["encoder.image_size"]) == "configs/encoder/Lens.yaml:1"
    [run] = ask(encoder=LENS, overrides={"encoder.image_size": "32"}).runs
    assert run.encoder_config.image_size == 32


@pytest.mark.parametrize(
    ("place", "text"),
    [
        ("overall.yaml", "encoder: {image_size: [8, 16]}\nhyper_parameters: [encoder.image_size]\n"),
        ("encoder/lens.yaml", "image_size: [8, 16]\nhyper_parameters: [image_size]\n"),
    ],
)
def test_an_encoder_key_can_be_a_grid_axis(place: str, text: str) -> None:
    write(f"configs/{place}", text)
    runs = ask(encoder=LENS).runs
    assert [run.encoder_config.image_size for run in runs] == [8, 16]
    assert runs[1].point["encoder.image_size"] == 16


def test_what_is_asked_of_the_features_of_a_model_without_any_is_left_out_and_noted() -> None:
    plain = ModelSpec("Plain", "nowhere:Plain", uses_features=False)
    request = Request(
        "Plain", "toy", encoder="lens:tiny", modalities=("image",), features={"text": Path("t.npy")}, control="random",
        overrides={"encoder.image_size": "[8, 16]", "epochs": "3"},
    )  # fmt: skip
    resolved = resolve(request, model=plain, encoder=LENS, dataset=None)
    unasked = resolve(Request("Plain", "toy", overrides={"epochs": "3"}), model=plain, encoder=None, dataset=None)
    assert resolved.runs == unasked.runs
    assert resolved.notes == (
        "Plain uses no item features: --encoder, --modalities, --features, --control, --encoder.image_size left out",
    )
    assert unasked.notes == ()


def test_more_values_than_a_text_may_hold_are_named_by_their_number() -> None:
    many = str([*range(yaml_layers.VALUES)])
    assert refusal(overrides={"seed": many}) == (
        "command line: seed: expected at most 20,000 values, got more; try several commands"
    )


@pytest.mark.parametrize("text", ["", ":", ":tiny", "lens:"])
def test_an_encoder_of_an_empty_name_or_variant_is_refused_not_taken_for_the_default(text: str) -> None:
    with pytest.raises(ConfigError, match="encoder: expected NAME or NAME:VARIANT, got"):
        EncoderName.typed(text)
    assert EncoderName.typed("lens:a:b") == EncoderName("lens", "a:b")


def test_a_variant_after_the_encoder_name_sets_its_key() -> None:
    assert ask(encoder=LENS).runs[0].encoder_config.variant == "base"
    request = Request("VBPR", "toy", encoder=EncoderName.parse("lens:tiny"))
    assert request.encoder == EncoderName("lens", "tiny")
    [run] = resolve(request, model=MF, encoder=LENS, dataset=None).runs
    assert (run.encoder, run.encoder_config.variant) == ("lens", "tiny")


@pytest.mark.parametrize(
    ("encoder", "overrides", "message"),
    [
        ("lens:tinny", {}, "encoder.variant must be one of base, tiny, got 'tinny'; did you mean tiny?"),
        ("lens:tiny", {"encoder.variant": "base"}, "lens:tiny and --encoder.variant both name a variant"),
    ],
)
def test_a_wrong_variant_is_refused(encoder: str, overrides: Mapping[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve(
            Request("VBPR", "toy", encoder=EncoderName.parse(encoder), overrides=overrides),
            model=MF,
            encoder=LENS,
            dataset=None,
        )


def test_a_variant_of_an_encoder_without_variants_is_refused() -> None:
    @dataclass(frozen=True)
    class Plain:
        width: int = 8

    plain = EncoderSpec("plain", "nowhere:Plain", Plain, ("text",), "nowhere:weights_id")
    with pytest.raises(ConfigError, match="--encoder: expected plain, which has no variants, got plain:tiny"):
        resolve(Request("VBPR", "toy", encoder=EncoderName("plain", "tiny")), model=MF, encoder=plain, dataset=None)


def test_encoder_keys_without_an_encoder_are_unused_in_a_file_and_refused_on_the_command_line() -> None:
    write("configs/overall.yaml", "encoder:\n  image_size: 8\n")
    assert ask().unused == {"encoder.image_size": "configs/overall.yaml"}
    message = refusal(overrides={"encoder.image_size": "8"})
    assert message == "command line: unknown key encoder.image_size: no encoder was asked for"


def test_sections_refuse_unknown_keys_and_plain_values() -> None:
    write("configs/overall.yaml", "encoder:\n  imge_size: 8\n")
    message = refusal(encoder=LENS, overrides={"ft.learning_rate": "1"})
    assert "configs/overall.yaml:2: unknown key encoder.imge_size; did you mean encoder.image_size?" in message
    assert "command line: unknown key ft.learning_rate: it belongs to --paradigm ft" in message
    write("configs/overall.yaml", "encoder: lens\n")
    assert "configs/overall.yaml:1: encoder: expected a section" in refusal()
    write("configs/overall.yaml", "")
    write("configs/encoder/lens.yaml", "imge_size: 8\n")
    assert refusal(encoder=LENS) == "configs/encoder/lens.yaml:1: unknown key imge_size; did you mean image_size?"


def test_all_mistakes_of_all_files_are_reported_at_once() -> None:
    write("configs/dataset/toy.yaml", "train_batch_size: 0\nepochs: many\n")
    write("configs/model/vbpr.yaml", "\nlerning_rate: 1\nn_layers: 2\n")
    write("configs/preset/old.yaml", "seed: [1\nepochs: 2\n")
    message = refusal(preset="old", overrides={"reg_weight": "true", "reg": "1"})
    assert message.splitlines() == [
        "configs/preset/old.yaml:2: not valid YAML: expected ',' or ']', but got ':'",
        "configs/dataset/toy.yaml:1: train_batch_size must be at least 1, got 0",
        "configs/dataset/toy.yaml:2: epochs must be a whole number, got 'many'",
        "configs/model/vbpr.yaml:2: unknown key lerning_rate; did you mean learning_rate?",
        "configs/model/vbpr.yaml:3: unknown key n_layers",
        "command line: reg_weight must be a number, got True",
        "command line: unknown key reg, which MMRec's files may hold but nothing here reads",
    ]


def test_what_a_models_own_check_refuses_is_reported_at_its_key() -> None:
    write("configs/model/vbpr.yaml", "\nreg_weight: -1\n")
    assert refusal() == "configs/model/vbpr.yaml:2: reg_weight must not be negative, got -1.0"


@dataclass(frozen=True)
class PairConfig:
    rates: tuple[float, ...] = (0.1, 0.1)
    sizes: tuple[int, ...] = (64, 64)
    share: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise ConfigValueError("share", f"must lie between 0 and 1, got {self.share}")
        if len(self.rates) != len(self.sizes):
            raise ConfigValueError("rates", f"has {len(self.rates)} values, and sizes {len(self.sizes)}", "sizes")


PAIR = ModelSpec("Pair", "nowhere:Pair", PairConfig)
PAIRED_LENS = EncoderSpec("lens", "nowhere:Lens", PairConfig, ("image",), "nowhere:weights_id")


@pytest.mark.parametrize("place", ["overall.yaml", "dataset/toy.yaml", "model/pair.yaml", "preset/old.yaml"])
def test_a_wrong_value_names_the_line_that_gave_it(place: str) -> None:
    write(f"configs/{place}", "epochs: 1\nshare: 2\n")
    preset = "old" if place.startswith("preset") else None
    assert refusal(model=PAIR, preset=preset) == f"configs/{place}:2: share must lie between 0 and 1, got 2.0"


def test_a_wrong_value_names_the_flag_or_the_studys_line_that_gave_it() -> None:
    said = "share must lie between 0 and 1, got 2.0"
    assert refusal(model=PAIR, overrides={"share": "2"}) == f"command line: {said}"
    assert refusal(model=PAIR, overrides={"share": "[0.5, 2]"}) == f"command line: {said}"
    of_study = yaml_layers.Layer("study", "mine.yaml", {"share": 2}, {"share": 7})
    assert refusal(model=PAIR, study=of_study) == f"mine.yaml:7: {said}"


def test_of_values_that_do_not_agree_the_one_that_was_set_last_is_named() -> None:
    write("configs/model/pair.yaml", "rates: [0.1]\nsizes: [64]\n")
    assert ask(model=PAIR).runs
    assert refusal(model=PAIR, overrides={"sizes": "[8, 8]"}) == "command line --sizes: rates has 1 values, and sizes 2"
    assert refusal(model=PAIR, overrides={"rates": "[1, 1]"}) == "command line: rates has 2 values, and sizes 1"
    write("configs/preset/old.yaml", "epochs: 1\nsizes: [8, 8]\n")
    assert refusal(model=PAIR, preset="old") == "configs/preset/old.yaml:2: rates has 1 values, and sizes 2"
    write("configs/model/pair.yaml", "rates: [0.1]\n\nsizes: [64, 64]\n")
    assert refusal(model=PAIR) == (
        "configs/model/pair.yaml:1, configs/model/pair.yaml:3: rates has 1 values, and sizes 2"
    )
    write("configs/model/pair.yaml", "topk: [10]\n")
    assert refusal(model=PAIR).startswith("configs/model/pair.yaml:1: valid_metric Recall@20 is not computed")


def test_what_an_encoders_check_refuses_is_named_as_it_is_written_there() -> None:
    said = "must lie between 0 and 1, got 2.0"
    assert refusal(encoder=PAIRED_LENS, overrides={"encoder.share": "2"}) == f"command line: encoder.share {said}"
    sizes = refusal(encoder=PAIRED_LENS, overrides={"encoder.sizes": "[[1]]"})
    assert sizes == "command line --encoder.sizes: encoder.rates has 2 values, and sizes 1"
    write("configs/encoder/lens.yaml", "share: 2\n")
    assert refusal(encoder=PAIRED_LENS) == f"configs/encoder/lens.yaml:1: share {said}"
    write("configs/encoder/lens.yaml", "")
    write("configs/overall.yaml", "encoder:\n  share: 2\n")
    assert refusal(encoder=PAIRED_LENS) == f"configs/overall.yaml:2: encoder.share {said}"


def test_a_default_that_its_own_check_refuses_is_its_plugins_fault() -> None:
    @dataclass(frozen=True)
    class Faulty:
        share: float = 2.0

        def __post_init__(self) -> None:
            raise ConfigValueError("share", "must be below 1")

    assert refusal(model=ModelSpec("Faulty", "nowhere:F", Faulty)) == "model Faulty: share must be below 1"


def test_a_plain_value_error_names_the_places_of_the_keys_in_its_words_or_else_the_model() -> None:
    @dataclass(frozen=True)
    class Plain:
        width: int = 1
        depth: int = 1

        def __post_init__(self) -> None:
            if self.depth > 1:
                raise ValueError("depth doesn't go with width")
            raise ValueError("too wide")

    plain = ModelSpec("Plain", "nowhere:P", Plain)
    assert refusal(model=plain) == "model Plain: too wide"
    assert refusal(model=plain, overrides={"depth": "2"}) == "command line: depth doesn't go with width"
    write("configs/overall.yaml", "width: 3\n")
    both = refusal(model=plain, overrides={"depth": "2"})
    assert both == "command line, configs/overall.yaml:1: depth doesn't go with width"


def test_a_refused_value_survives_the_way_between_processes() -> None:
    error = pickle.loads(pickle.dumps(ConfigValueError("rates", "has 2 values", "sizes")))
    assert (str(error), error.key, error.others) == ("rates has 2 values", "rates", ("sizes",))


def test_a_key_that_stands_twice_is_refused_with_its_line() -> None:
    write("configs/model/vbpr.yaml", "reg_weight: 1\nepochs: 2\nreg_weight: 3\n")
    assert refusal() == "configs/model/vbpr.yaml:3: not valid YAML: duplicate key reg_weight"


@pytest.mark.parametrize("text", ["- a\n- b\n", "just words\n"])
def test_a_file_that_holds_no_keys_is_refused(text: str) -> None:
    write("configs/overall.yaml", text)
    assert "configs/overall.yaml: expected `key: value` lines" in refusal()


def test_a_file_that_is_not_utf_8_is_refused() -> None:
    Path("configs").mkdir()
    Path("configs/overall.yaml").write_bytes(b"data_path: \xff\n")
    assert "configs/overall.yaml: can't be read as YAML in UTF-8" in refusal()


@pytest.mark.parametrize(
    "text", ["topk: &a [*a]\n", "topk: 2024-13-45\n", "topk: " + 5000 * "[" + "\n", "[a]: 1\n? [a]\n: 2\n"]
)
def test_pathological_yaml_is_refused_like_any_other(text: str) -> None:
    write("configs/overall.yaml", text)
    assert refusal().startswith("configs/overall.yaml:")


def test_yaml_that_would_run_code_is_refused() -> None:
    write("configs/overall.yaml", "data_path: !!python/object/apply:os.getcwd []\n")
    assert "configs/overall.yaml:1: not valid YAML: could not determine a constructor" in refusal()


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("seed", "-1"), ("learning_rate", "0"), ("learning_rate", ".inf"), ("weight_decay", ".nan"),
        ("weight_decay", "1e-4*2"), ("learning_rate_scheduler", "[1.0]"), ("topk", "[0]"), ("topk", "[5, 5]"),
        ("metrics", "[recall, Recall]"), ("valid_metric", "Recall"), ("device", "gpu"), ("state", "chatty"),
        ("clip_grad_norm", "{norm_type: 2}"), ("clip_grad_norm", "{max_norm: x}"),
        ("epochs", "1.5"), ("epochs", "null"), ("use_gpu", "1"),
        ("field_separator", "''"), ("missing", "median"), ("eval_step", "0"),
    ],
)  # fmt: skip
def test_a_value_out_of_its_range_is_refused(key: str, text: str) -> None:
    assert refusal(overrides={key: text}).startswith(f"command line: {key} must be ")


def test_the_metric_to_stop_by_must_be_computed() -> None:
    message = refusal(overrides={"topk": "[5, 10]"})
    assert (
        "valid_metric Recall@20 is not computed with metrics [Recall, NDCG, Precision, MAP] and topk [5, 10]" in message
    )
    assert "command line" in message.partition(": valid_metric")[0]
    assert ask(overrides={"topk": "[5, 10]", "valid_metric": "ndcg@10"}).runs[0].settings.valid_metric == "ndcg@10"


def test_a_field_without_default_must_be_set() -> None:
    @dataclass(frozen=True)
    class Needy:
        width: int

    model = ModelSpec("Needy", "nowhere:Needy", Needy)
    assert refusal(model=model) == "width: expected a whole number, got no value; set it in a file or with --width="
    assert refusal(model=model, overrides={"width": "x"}) == "command line: width must be a whole number, got 'x'"
    assert ask(model=model, overrides={"width": "3"}).runs[0].model_config == Needy(3)


def test_a_models_schema_may_not_redefine_a_key_of_the_host_but_its_yaml_may_set_it(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Greedy:
        learning_rate: float = 1.0

    with pytest.raises(
        PluginError,
        match=r"model Greedy: expected a schema .*, got learning_rate, which is the host's",
    ):
        ask(model=ModelSpec("Greedy", "nowhere:Greedy", Greedy))
    write("plugin/model/vbpr.yaml", "learning_rate_scheduler: [0.96, 50]\n")
    model = ModelSpec("VBPR", "nowhere:VBPR", MFConfig, configs=tmp_path / "plugin")
    assert ask(model=model).runs[0].settings.learning_rate_scheduler == (0.96, 50.0)


def test_a_schema_that_is_no_dataclass_or_has_other_types_names_its_plugin() -> None:
    @dataclass(frozen=True)
    class Odd:
        sizes: list[int]

    with pytest.raises(PluginError, match=r"model VBPR: field sizes: expected int, .*, got list"):
        ask(model=ModelSpec("VBPR", "nowhere:VBPR", Odd))
    with pytest.raises(PluginError, match="model VBPR: expected a dataclass as its schema, got 'nowhere:Config'"):
        ask(model=ModelSpec("VBPR", "nowhere:VBPR", "nowhere:Config"))


@pytest.mark.parametrize("text", ["1e-4", "1e-05", ".5e3", "1E5", "-2.e+3", "+1e6", "1_0e2"])
def test_numbers_with_an_exponent_are_floats(text: str) -> None:
    value = yaml_layers.parse(text)
    assert isinstance(value, float)
    assert value == float(text)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_float_that_python_prints_is_read_back(number: float) -> None:
    assert yaml_layers.parse(repr(number)) == number


@pytest.mark.parametrize("text", ["e5", "1e", "1e-4x", "v1e5", "1-e4"])
def test_words_that_resemble_numbers_stay_words(text: str) -> None:
    assert yaml_layers.parse(text) == text


@pytest.mark.parametrize(
    ("hint", "value", "expected"),
    [
        (float, 1, 1.0), (float, "1e-4", 1e-4), (int, 1e3, 1000), (int, "7", 7), (str | None, None, None),
        (int | str, "7", "7"), (int | None, "7", 7), (tuple[int, ...], 20, (20,)), (tuple[int, ...], [], ()),
        (tuple[float, str], [1, "a"], (1.0, "a")), (Mapping[str, float], {"a": 1}, {"a": 1.0}),
        (Literal["none", 2], 2, 2), (Literal["ED", "CN"], "cn", "CN"), (Path, "a/b", Path("a/b")),
        (tuple[tuple[int, ...], ...], [[1], [2, 3]], ((1,), (2, 3))),
    ],
)  # fmt: skip
def test_a_value_is_read_in_the_type_of_its_key(hint: Any, value: Any, expected: Any) -> None:
    read = Key("key", hint, None).read(value)
    assert read == expected
    assert type(read) is type(expected)


@pytest.mark.parametrize(
    ("hint", "value"),
    [
        (int, True), (float, False), (int, "1.5"), (float, float("nan")), (float, "0x10"), (bool, 0), (bool, "true"),
        (str, 1), (Path, 1), (Literal["none"], None), (tuple[int, int], [1]), (tuple[str, ...], None),
        (tuple[int, ...], [1, "x"]), (Mapping[str, int], [1]), (Mapping[str, int], {"a": "x"}), (int | None, "x"),
    ],
)  # fmt: skip
def test_a_value_of_another_type_is_refused(hint: Any, value: Any) -> None:
    with pytest.raises(ValueError, match="must be "):
        Key("key", hint, None).read(value)


def test_a_type_written_as_text_is_understood() -> None:
    assert schema_of(f"{__name__}:MFConfig", "model VBPR").keys["embedding_size"].hint is int


def test_what_is_typed_for_a_text_key_stays_text() -> None:
    typed = {"inter_file_name": "123", "field_separator": ",", "state": "debug"}
    settings = ask(overrides=typed).runs[0].settings
    assert (settings.inter_file_name, settings.field_separator, settings.state) == ("123", ",", "debug")
    assert ask(overrides={"field_separator": r'"\t"'}).runs[0].settings.field_separator == "\t"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("010", 10), ("08", 8), ("1_000", 1000), ("0x10", 16), ("-3", -3), ("1:30", "1:30"),
        ("190:20:30.15", "190:20:30.15"),
        ("0b11", "0b11"), ("2024-01-31", "2024-01-31"), ("yes", "yes"), ("NO", "NO"), ("off", "off"), ("true", True),
        ("False", False), ("1e-4", 1e-4), ("1.5", 1.5), ("~", None), ("[1, no]", [1, "no"]),
    ],
)  # fmt: skip
def test_yaml_means_what_a_person_reads(text: str, value: Any) -> None:
    read = yaml_layers.parse(text)
    assert read == value
    assert type(read) is type(value)


def test_numbers_and_switches_are_read_so_from_a_file_and_from_the_command_line() -> None:
    assert ask(overrides={"seed": "010"}).runs[0].settings.seed == 10
    assert refusal(overrides={"seed": "1:30"}).startswith("command line: seed must be a whole number, got '1:30'")
    assert ask(overrides={"text_fields": "[title, on]"}).runs[0].settings.text_fields == ("title", "on")
    assert ask(overrides={"inter_splitting_label": "no"}).runs[0].settings.inter_splitting_label == "no"
    write("configs/overall.yaml", "use_gpu: no\nsave_recommended_topk: On\nfield_separator: '\\t'\nepochs: 1:30\n")
    assert refusal() == "configs/overall.yaml:4: epochs must be a whole number, got '1:30'"
    write("configs/overall.yaml", "use_gpu: no\nsave_recommended_topk: On\nfield_separator: '\\t'\n")
    settings = ask().runs[0].settings
    assert (settings.use_gpu, settings.save_recommended_topk, settings.field_separator) == (False, True, "\t")


@pytest.mark.parametrize("typed", [r"\t", r'"\t"', ";", ",", "|", " "])
def test_a_separator_is_typed_as_in_a_shell(typed: str) -> None:
    expected = "\t" if "t" in typed else typed
    assert ask(overrides={"field_separator": typed}).runs[0].settings.field_separator == expected


@pytest.mark.parametrize("modality", ["audio", "video"])
def test_features_of_another_modality_are_told_their_flag(modality: str) -> None:
    message = refusal(overrides={f"{modality}_feature_file": "x.npy"})
    assert message.endswith(f"for another modality than image and text, try --features {modality}=FILE.npy")


def test_config_show_prints_every_value_with_its_origin() -> None:
    write("configs/overall.yaml", "topk: [10, 20]\nNEG_PREFIX: neg__\n")
    write("configs/model/vbpr.yaml", "reg_weight: [1, 1e-5]\nhyper_parameters: [reg_weight]\n")
    lines = describe(ask(encoder=LENS, overrides={"encoder.image_size": "8"})).splitlines()
    rows = {line.split()[0]: line.split(maxsplit=1)[1] for line in lines}
    squeezed = {key: " ".join(rest.split()) for key, rest in rows.items()}
    assert squeezed["topk"] == "[10, 20] configs/overall.yaml:1"
    assert squeezed["reg_weight"] == "1.0 | 1.0e-05 configs/model/vbpr.yaml:1"
    assert squeezed["encoder.image_size"] == "8 command line"
    assert squeezed["field_separator"] == r'"\t" default'
    assert squeezed["NEG_PREFIX"] == "(unused) configs/overall.yaml"
    assert {*asdict(Settings()), *asdict(MFConfig())} <= set(rows)


# What settings decide


def test_which_settings_are_part_of_a_runs_id_and_which_decide_its_inputs_stays() -> None:
    """Where these sets change, so do the ids of runs, or the work that runs of a study share."""
    assert {
        "text_fields", "image_background", "missing", "normalize", "whiten", "data_path", "inter_file_name",
        "vision_feature_file",
        "text_feature_file", "device", "use_gpu", "gpu_id", "workers", "encode_batch_size", "encode_dtype",
        "encode_compile", "recompute", "checkpoint_seconds", "state", "save_recommended_topk", "eval_batch_size",
        "protocol", "split", "split_seed", "TIME_FIELD",
    } == NOT_IDENTITY  # fmt: skip
    assert {
        "data_path", "inter_file_name", "vision_feature_file", "text_feature_file", "USER_ID_FIELD", "ITEM_ID_FIELD",
        "inter_splitting_label", "field_separator", "filter_out_cod_start_users", "text_fields", "missing",
        "image_background", "normalize", "whiten", "device", "encode_dtype", "split", "split_seed", "TIME_FIELD",
    } == OF_INPUTS  # fmt: skip
    assert {"text_fields", "image_background", "missing", "normalize", "whiten", "encode_dtype"} == OF_FEATURES

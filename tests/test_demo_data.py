"""The demo data set: deterministic, complete, and with the truth that its module promises."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from mmrec_lmm.errors import ConfigError
from mmrec_lmm_data_tools import demo, plugin


def read(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, sep="\t", keep_default_na=False)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "demo"
    demo.make(path)
    return path


@pytest.fixture(scope="module")
def items(folder: Path) -> pd.DataFrame:
    return read(folder / "items.tsv").join(read(folder / "truth.tsv").drop(columns="itemID"))


@pytest.fixture(scope="module")
def rows(folder: Path) -> pd.DataFrame:
    return read(folder / "demo.inter")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A demo of a tenth of the size, for tests that make several."""
    monkeypatch.setattr(demo, "N_USERS", 60)
    monkeypatch.setattr(demo, "N_ITEMS", 96)


def test_the_plugin_registers_the_demo_with_its_maker() -> None:
    spec = next(spec for spec in plugin.mmrec_register_datasets() if spec.make)
    assert (spec.name, spec.default_encoder) == ("demo", "basic")
    assert spec.make == f"{demo.__name__}:{demo.make.__name__}"


@pytest.mark.usefixtures("small")
def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    for name, seed in (("first", 3), ("again", 3), ("other", 4)):
        demo.make(tmp_path / name, seed=seed)
    assert files(tmp_path / "first") == files(tmp_path / "again")
    assert files(tmp_path / "first") != files(tmp_path / "other")


@pytest.mark.usefixtures("small")
def test_an_existing_demo_is_replaced_only_by_force_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    demo.make(tmp_path / "demo", seed=1)
    before = files(tmp_path / "demo")
    with pytest.raises(ConfigError, match="exists already"):
        demo.make(tmp_path / "demo", seed=2)
    assert files(tmp_path / "demo") == before
    demo.make(tmp_path / "demo", seed=2, force=True)
    assert files(tmp_path / "demo") != before
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]


@pytest.mark.usefixtures("small")
def test_a_folder_that_is_no_demo_is_left_alone_even_by_force(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match="left alone"):
        demo.make(tmp_path, force=True)
    assert files(tmp_path) == {"thesis.txt": b"years of work"}


def test_every_row_of_the_catalogue_is_its_item_and_every_image_that_it_names_exists(
    folder: Path, items: pd.DataFrame
) -> None:
    assert items["itemID"].tolist() == list(range(demo.N_ITEMS))
    named = {name for name in items["image"] if name}
    assert named == {path.name for path in (folder / "images").iterdir()}
    with Image.open(folder / "images" / items["image"][0]) as image:
        assert (image.size, image.mode) == ((64, 64), "RGB")


def test_no_two_images_are_alike(folder: Path, items: pd.DataFrame) -> None:
    contents = {path.read_bytes() for path in (folder / "images").iterdir()}
    assert len(contents) == (items["image"] != "").sum()


def test_a_few_items_lack_an_image_or_a_text_or_both(items: pd.DataFrame) -> None:
    no_image = items["image"] == ""
    no_text = (items[["title", "brand", "categories", "description"]] == "").all(axis=1)
    assert (no_image & ~no_text).sum() == demo.NO_IMAGE
    assert (no_text & ~no_image).sum() == demo.NO_TEXT
    assert (no_text & no_image).sum() == demo.NEITHER


def test_every_combination_of_shape_colour_and_pattern_occurs_equally_often(items: pd.DataFrame) -> None:
    assert items.groupby(["shape", "colour", "pattern"]).size().tolist() == [3] * 320


def test_titles_name_two_attributes_and_the_category_and_texts_name_no_wrong_one(items: pd.DataFrame) -> None:
    for item in items[items["title"] != ""].to_dict("records"):
        text = f" {item['title']} {item['description']} ".lower().replace(",", " ").replace(".", " ").replace(":", " ")
        named = {
            (attribute, value)
            for attribute, values in demo.WORDS.items()
            for value, words in values.items()
            if any(f" {word} " in text for word in words)
        }
        true = {(attribute, item[attribute]) for attribute in demo.WORDS}
        assert named <= true
        assert len(named) >= 3
        assert ("category", item["category"]) in named


def test_an_images_figure_has_the_colour_that_the_truth_names(folder: Path, items: pd.DataFrame) -> None:
    for item in items[items["image"] != ""].head(50).to_dict("records"):
        pixels = np.asarray(Image.open(folder / "images" / item["image"]).convert("HSV")).reshape(-1, 3).astype(int)
        hue = np.median(pixels[pixels[:, 1] > 180, 0]) * 360 / 255  # of saturated pixels: the backdrop is pale
        assert abs((hue - demo.HUES[item["colour"]] + 180) % 360 - 180) < 12


def test_ids_are_dense_and_no_pair_occurs_twice(rows: pd.DataFrame) -> None:
    assert rows["userID"].unique().tolist() == list(range(demo.N_USERS))
    assert rows["itemID"].max() < demo.N_ITEMS
    assert not rows.duplicated(["userID", "itemID"]).any()
    assert rows["x_label"].isin([0, 1, 2]).all()


def test_every_user_has_training_validation_and_test_rows(rows: pd.DataFrame) -> None:
    assert (rows.groupby("userID")["x_label"].nunique() == 3).all()


def test_newcomers_never_occur_in_training_and_half_of_them_nowhere(rows: pd.DataFrame, items: pd.DataFrame) -> None:
    newcomers = set(items.index[items["newcomer"] == 1])
    later = newcomers & set(rows["itemID"])
    assert newcomers.isdisjoint(rows["itemID"][rows["x_label"] == 0])
    assert (len(newcomers), len(later)) == (demo.NEWCOMERS, demo.NEWCOMERS - demo.UNSEEN_NEWCOMERS)


def test_what_a_user_trained_on_tells_what_they_choose_later(rows: pd.DataFrame, items: pd.DataFrame) -> None:
    """Held-out items share half as many again attribute values with a user's training items as any item does."""
    one_hot = pd.get_dummies(items[list(demo.WORDS)]).to_numpy(float)  # (I, values)
    taste = np.zeros((demo.N_USERS, one_hot.shape[1]))
    train = rows[rows["x_label"] == 0]
    np.add.at(taste, train["userID"].to_numpy(), one_hot[train["itemID"]])
    taste /= taste.sum(axis=1, keepdims=True)
    match = taste @ one_hot.T  # (U, I)
    test = rows[rows["x_label"] == 2]
    assert match[test["userID"], test["itemID"]].mean() > 1.5 * match.mean()

"""`data check` finds what is planted, by name and place, fails where a run fails, and is silent where all is well."""

import json
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
from helpers import call, plugin
from PIL import Image

from mmrec_lmm.checking.findings import Place
from mmrec_lmm_data_tools.importing import import_dataset

ROOT = Path(__file__).resolve().parents[1]
HOSTILE = "<script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\">"
EARLY, NOW = 1_000_000_000, int(time.time())


@pytest.fixture
def folder(data_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(data_path.parent)
    return data_path / "toy"


def checked(*flags: str, code: int | None = None) -> dict[str, Any]:
    """The report of `toy`."""
    answer = call("data", "check", "-d", "toy", "--format", "json", *flags)
    assert code is None or answer.code == code, answer.err
    found: dict[str, Any] = json.loads(answer.out)
    return found


def named(report: dict[str, Any], *severities: str) -> set[str]:
    return {finding["name"] for finding in report["findings"] if finding["severity"] in severities}


# What is planted


def table(folder: Path, change: Callable[[pd.DataFrame], pd.DataFrame | None]) -> None:
    """Change the table of interactions."""
    path = folder / "toy.inter"
    rows = pd.read_csv(path, sep="\t")
    changed = change(rows)
    (rows if changed is None else changed).to_csv(path, sep="\t", index=False)


def added(folder: Path, *lines: tuple[int, int, int]) -> None:
    with (folder / "toy.inter").open("a") as file:
        file.writelines("\t".join(map(str, line)) + "\n" for line in lines)


def relabeled(folder: Path, label: int) -> None:
    def change(rows: pd.DataFrame) -> None:
        rows.loc[rows.x_label == label, "x_label"] = 0

    table(folder, change)


def only_held_out(folder: Path) -> None:
    def change(rows: pd.DataFrame) -> None:
        rows.loc[rows.userID == 3, "x_label"] = 2

    table(folder, change)


def without_user(folder: Path) -> None:
    table(folder, lambda rows: rows[rows.userID != 5])


def timed(folder: Path, first: object, others: object = EARLY) -> None:
    table(folder, lambda rows: rows.assign(timestamp=[first, *(others for _ in range(len(rows) - 1))]))


def items(folder: Path, column: str, values: dict[int, str]) -> None:
    path = folder / "items.tsv"
    catalog = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False)
    for item, value in values.items():
        catalog.loc[item, column] = value
    catalog.to_csv(path, sep="\t", index=False)


def renamed_texts(folder: Path) -> None:
    path = folder / "items.tsv"
    path.write_text(path.read_text().replace("title\tbrand", "name\tmaker"))


def repeated_id(folder: Path) -> None:
    ids = [f"U{user}" for user in (0, 1, 1, *range(3, 12))]
    pd.DataFrame({"user_id": ids, "userID": range(12)}).to_csv(folder / "u_id_mapping.csv", sep="\t", index=False)


def one_picture(folder: Path) -> None:
    for item in range(12):
        Image.new("RGB", (20, 20), "gray").save(folder / "images" / f"{item}.png")


def unnamed_images(folder: Path) -> None:
    items(folder, "image", dict.fromkeys(range(16), ""))


def cut(path: Path) -> None:
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (64, 64, 3), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:2000])


def features(folder: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Save text features made of random ones (16, 40)."""
    rows = np.random.default_rng(0).standard_normal((16, 40)).astype(np.float32)
    np.save(folder / "text_feat.npy", change(rows))


def with_rows(rows: np.ndarray, chosen: Any, value: Any) -> np.ndarray:
    rows[chosen] = value
    return rows


class Fault(NamedTuple):
    """What to plant; the finding's name, severity, and a part of its place and words."""

    plant: Callable[[Path], object]
    name: str
    severity: str
    place: str
    words: str
    also: frozenset[str] = frozenset()  # what follows from it


FAULTS = [
    Fault(lambda f: relabeled(f, 1), "refused", "error", "toy.inter", "got none for valid"),
    Fault(lambda f: relabeled(f, 2), "refused", "error", "toy.inter", "got none for test"),
    Fault(without_user, "refused", "error", "toy.inter", "the first missing is 5"),
    Fault(
        lambda f: added(f, (0, 40, 0)),
        "refused",
        "error",
        "toy.inter",
        "at most 15, as the catalog has 16 rows",
        frozenset({"cold-items"}),
    ),
    Fault(lambda f: added(f, (0, 4, 7)), "refused", "error", "toy.inter, line 98", "0 (train), 1 (valid) or 2 (test)"),
    Fault(
        lambda f: added(f, *((0, item, 0) for item in range(16))),
        "no-negative",
        "error",
        "toy.inter, line 2; user 0",
        "1 of 12 users have all 16 training items",
        frozenset({"in-train-too", "repeated-pairs"}),
    ),
    Fault(
        lambda f: added(f, (1, 2, 2), (1, 2, 1)),
        "in-valid-too",
        "warning",
        "toy.inter, line 98; item T02; user 1",
        "1 of 13 rows of test repeat a pair of valid",
    ),
    Fault(
        lambda f: added(f, (0, 14, 0), (0, 14, 0)),
        "repeated-pairs",
        "warning",
        "toy.inter, line 98; item T14; user 0",
        "rows of train repeat a pair",
    ),
    Fault(
        lambda f: added(f, (0, 14, 2)),
        "in-train-too",
        "warning",
        "toy.inter, line 98; item T14; user 0",
        "rows of test repeat a training pair",
    ),
    Fault(only_held_out, "no-history", "warning", "toy.inter, line 26; user 3", "1 of 12 users have no training row"),
    Fault(
        lambda f: timed(f, EARLY * 1000),
        "mixed-units",
        "warning",
        "toy.inter, line 2, timestamp",
        "95 seconds and 1 milliseconds",
    ),
    Fault(lambda f: timed(f, NOW + 10**7), "future-times", "warning", "toy.inter, line 2, timestamp", "in the future"),
    Fault(lambda f: timed(f, 0), "early-times", "warning", "toy.inter, line 2, timestamp", "lie before 1973"),
    Fault(lambda f: timed(f, "", EARLY), "times-unreadable", "warning", "toy.inter, line 2", "expected a number"),
    Fault(lambda f: timed(f, EARLY), "equal-times", "warning", "toy.inter, line 2, timestamp", "order nothing"),
    Fault(
        lambda f: (f / "images" / "3.png").unlink(),
        "missing-images",
        "warning",
        "items.tsv, image; item T03",
        "1 of 15 images",
    ),
    Fault(
        lambda f: items(f, "image", {4: "images/4.png"}),
        "missing-images",
        "warning",
        "items.tsv, image; item T04",
        "leave images/ out of them",
    ),
    Fault(
        lambda f: (f / "images" / "5.png").write_text("<!doctype html><title>404</title>"),
        "unreadable-images",
        "warning",
        "items.tsv, image; item T05",
        "a web page",
    ),
    Fault(
        lambda f: (f / "images" / "6.png").write_bytes(b""),
        "unreadable-images",
        "warning",
        "items.tsv, image; item T06",
        "an empty file",
    ),
    Fault(
        lambda f: cut(f / "images" / "7.png"),
        "unreadable-images",
        "warning",
        "items.tsv, image; item T07",
        "damaged or cut short",
    ),
    Fault(
        lambda f: [path.write_text("x") for path in (f / "images").iterdir()],
        "no-image",
        "error",
        "images",
        "no image can be read",
        frozenset({"unreadable-images", "shared-images"}),
    ),
    Fault(repeated_id, "ids-refused", "warning", "u_id_mapping.csv, line 4", "U1"),
    Fault(one_picture, "shared-images", "warning", "items.tsv; items T00, T01", "12 have the same"),
    Fault(unnamed_images, "unused-images", "warning", "images/0.png", "names no image"),
    Fault(
        lambda f: items(f, "title", {2: "nan"}),
        "placeholder-texts",
        "warning",
        "items.tsv, title; item T02",
        "such as 'nan'",
    ),
    Fault(
        lambda f: items(f, "title", {8: "\u200b\u200b"}),
        "invisible-texts",
        "warning",
        "items.tsv, title; item T08",
        "no visible character",
    ),
    Fault(
        lambda f: items(f, "title", dict.fromkeys(range(12), "A thing")),
        "shared-texts",
        "warning",
        "items.tsv; items T00",
        "12 have the same",
    ),
    Fault(renamed_texts, "no-text-field", "error", "items.tsv", "--text_fields=[name,maker]"),
    Fault(lambda f: items(f, "itemID", {3: "4"}), "refused", "error", "items.tsv", "each of 0 ... 15 once"),
    Fault(
        lambda f: features(f, lambda rows: rows[:9]), "features-refused", "error", "text_feat.npy", "expected 16 row"
    ),
    Fault(
        lambda f: features(f, lambda rows: with_rows(rows, (5, 3), np.nan)),
        "features-refused",
        "error",
        "text_feat.npy",
        "in 1 of 16 rows, first 5",
    ),
    Fault(
        lambda f: (f / "text_feat.npy").write_text("version https://git-lfs.github.com/spec/v1\n"),
        "features-refused",
        "error",
        "text_feat.npy",
        "git lfs pull",
    ),
    Fault(
        lambda f: features(f, lambda rows: with_rows(rows, slice(2, 14), rows[2])),
        "repeated-rows",
        "warning",
        "text_feat.npy; items T02, T03",
        "12 have the same",
    ),
    Fault(
        lambda f: features(f, lambda rows: np.asfortranarray(with_rows(rows, slice(2, 14), rows[2]))),
        "repeated-rows",
        "warning",
        "text_feat.npy; items T02, T03",
        "12 have the same",
    ),
    Fault(
        lambda f: features(f, lambda rows: with_rows(rows, slice(2, 14), 0)),
        "absent-features",
        "warning",
        "text_feat.npy; items T02",
        "12 of 16 items have no text features",
    ),
    Fault(
        lambda f: features(f, lambda rows: with_rows(rows, np.s_[:, :30], 1)),
        "constant-columns",
        "warning",
        "text_feat.npy",
        "30 of 40 columns",
    ),
    Fault(lambda f: features(f, lambda rows: rows + 9), "scale", "warning", "text_feat.npy", "--normalize=centered"),
    Fault(
        lambda f: features(f, lambda rows: rows * np.logspace(0, 3, 16, dtype=np.float32)[:, None]),
        "scale",
        "warning",
        "text_feat.npy",
        "--normalize=unit",
    ),
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault.name}: {fault.words}")
def test_a_planted_fault_is_found_by_name_and_place_and_fails_where_a_run_does(fault: Fault, folder: Path) -> None:
    fault.plant(folder)
    runs = [call("run", "-m", "VBPR", "-d", "toy", "--epochs=1", *flags) for flags in ((), ("--encoder", "basic"))]
    fails = any(run.code for run in runs)
    report = checked(code=4 if fails else 0)
    assert fails == (fault.severity == "error")
    [finding] = [one for one in report["findings"] if one["name"] == fault.name and one["severity"] != "note"]
    assert finding["severity"] == fault.severity
    where = Place(**{name: tuple(v) if isinstance(v, list) else v for name, v in finding["where"].items()})
    assert str(where).startswith(fault.place)
    of = f"{finding['count']} of {finding['of']} " if finding["of"] else ""
    assert fault.words in f"{of}{finding['what']}; {finding['cure']}"
    assert named(report, "error", "warning") == {fault.name, *fault.also}


def test_ids_too_large_for_a_table_by_id_are_refused_in_little_memory(folder: Path) -> None:
    (folder / "items.tsv").unlink()
    added(folder, (2**40, 2**50, 0))
    report = checked(code=4)
    assert named(report, "error") == {"refused"}
    assert report["counts"] is None


def test_what_missing_mean_can_not_fill_is_an_error_as_in_a_run(folder: Path) -> None:
    features(folder, np.zeros_like)
    assert call("run", "-m", "VBPR", "-d", "toy", "--epochs=1", "--missing=mean").code
    assert named(checked("--missing=mean", code=4), "error") == {"features-refused"}
    assert named(checked(code=0), "error", "warning") == {"absent-features"}


def test_rows_of_users_without_history_are_counted_as_the_run_counts_them(folder: Path) -> None:
    only_held_out(folder)
    assert checked()["counts"]["splits"]["test"] == {"rows": 11, "users": 11, "items": 11}
    assert checked("--filter_out_cod_start_users=false")["counts"]["splits"]["test"]["rows"] == 19


def test_a_data_set_that_a_plugin_reads_is_checked_too(folder: Path) -> None:
    file = plugin(
        folder.parent / "shop.py",
        "from dataclasses import replace\nfrom mmrec_lmm.data.loading import load_dataset\n"
        "def load(folder, name, settings):\n"
        "    toy = load_dataset(folder.with_name('toy'), 'toy', settings)\n"
        "    return replace(toy, name=name, notes=('from the shop',))\n"
        "@hookimpl\ndef mmrec_register_datasets():\n    return [DatasetSpec('shop', load=load)]\n",
    )
    answer = call("data", "check", "-d", "shop", "-p", file, "--format", "json")
    report = json.loads(answer.out)
    assert (answer.code, report["counts"]["splits"]["train"]["rows"]) == (0, 72)
    assert "from the shop" in {finding["what"] for finding in report["findings"]}


def test_several_faults_are_found_at_once(folder: Path) -> None:
    relabeled(folder, 1)
    (folder / "images" / "5.png").write_text("<html>")
    features(folder, lambda rows: rows[:9])
    report = checked(code=4)
    assert named(report, "error", "warning") == {"refused", "unreadable-images", "features-refused"}
    assert report["counts"]["splits"]["valid"] == {"rows": 0, "users": 0, "items": 0}


def test_a_failing_check_says_on_stderr_what_would_stop_a_run(folder: Path) -> None:
    features(folder, lambda rows: rows[:9])
    answer = call("data", "check", "-d", "toy")
    assert answer.code == 4
    assert answer.out.startswith("toy: 1 error: a run would fail\n")
    assert answer.err == (
        "error: data set toy: a run would fail: text_feat.npy: expected 16 rows, row i for item i, got 9\n"
    )


def test_the_settings_of_a_run_apply(folder: Path) -> None:
    timed(folder, EARLY * 1000)
    assert named(checked("--split", "user-time", code=4), "error") == {"refused"}
    assert named(checked("--split", "ratio", code=0), "error") == set()
    assert named(checked("--TIME_FIELD=when", code=0), "warning") == set()
    features(folder, lambda rows: rows + 9)
    assert "scale" not in named(checked("--normalize=centered", code=0), "warning")
    renamed_texts(folder)
    assert "no-text-field" not in named(checked("--text_fields=[name]", code=0), "error")


def test_a_drawn_split_is_counted_as_a_run_draws_it(folder: Path) -> None:
    result = call("run", "-m", "BPR", "-d", "toy", "--split", "cold-item", "--epochs=1", "--json")
    drawn = json.loads(result.out)["record"]["drawn"]
    report = checked("--split", "cold-item", code=0)
    assert {split: one["rows"] for split, one in report["counts"]["splits"].items()} == drawn["rows"]
    assert report["split"] == f"cold-item-{drawn['hash'][:8]}"
    assert report["fingerprint"] == json.loads(result.out)["record"]["data"]


def test_images_are_decoded_all_or_a_sample_or_none(folder: Path) -> None:
    for item in (0, 5):
        (folder / "images" / f"{item}.png").write_text("no image")
    assert checked()["content"]["image"] == {
        "items": 13,
        "missing": {"none named": 1, "no image format that is known": 2},
        "examined": 15,
    }
    assert checked("--sample", "3")["content"]["image"]["examined"] == 3
    assert checked("--sample", "3")["content"]["image"]["missing"]["no image format that is known"] == 1
    assert checked("--no-decode")["content"]["image"] == {"items": 15, "missing": {"none named": 1}, "examined": None}


# Silence, and what is written


def test_a_few_alike_are_no_fault(folder: Path) -> None:
    shutil.copy(folder / "images" / "1.png", folder / "images" / "2.png")
    items(folder, "title", {3: "unknown"})
    report = checked(code=0)
    assert named(report, "error", "warning") == set()
    assert named(report, "note") >= {"shared-images", "placeholder-texts"}


def test_nothing_is_wrong_with_the_demo(folder: Path) -> None:
    answer = call("data", "check", "-d", "demo")
    assert answer.code == 0
    assert answer.out.startswith(
        "demo: nothing is wrong\n1,000 users, 960 items, 9,228 interactions, density 0.00961\n"
    )
    assert "\nwarning" not in answer.out


@pytest.mark.slow
@pytest.mark.parametrize("name", ["baby", "sports", "ml100k"])
def test_nothing_is_wrong_with_the_real_data(name: str, shared: Path, tmp_path: Path) -> None:
    source = shared / "data" / name
    if not source.is_dir():
        pytest.skip(f"no {source}")
    if name == "ml100k":
        import_dataset(source / "u.data", tmp_path / name, items=source / "items.tsv", images=source / "images")
    else:
        (tmp_path / name).symlink_to(source)
    answer = call("data", "check", "-d", name, "--data-path", tmp_path)
    assert answer.code == 0
    assert answer.out.startswith(f"{name}: nothing is wrong\n")


def test_the_json_has_the_same_keys_in_every_version(folder: Path) -> None:
    timed(folder, EARLY + 1)
    report = checked(code=0)
    assert report["version"] == 1
    assert set(report) == {
        "name", "folder", "split", "fingerprint", "counts", "times", "content", "features", "findings", "version",
    }  # fmt: skip
    assert set(report["counts"]) == {
        "users", "items", "rows", "interactions", "density", "cold_items", "cold_users", "splits", "degrees",
    }  # fmt: skip
    assert report["counts"]["splits"]["train"] == {"rows": 72, "users": 12, "items": 16}
    assert report["counts"]["density"] == 0.5
    users = report["counts"]["degrees"]["users"]
    assert users["quantiles"] == dict.fromkeys(["least", "5 %", "25 %", "median", "75 %", "95 %", "most"], 6.0)
    assert users["bins"][-1] == {"low": 4, "high": 7, "count": 12}
    assert report["times"] == {"column": "timestamp", "first": "2001-09-09", "last": "2001-09-09", "unit": "seconds"}
    assert report["content"]["title"] == {"items": 15, "missing": {"empty": 1}, "examined": None}
    assert report["features"]["text"] == {"file": "text_feat.npy", "items": 15, "width": 6}
    for finding in report["findings"]:
        assert set(finding) == {"name", "severity", "what", "count", "of", "where", "cure"}
        assert set(finding["where"]) == {"file", "line", "column", "items", "users"}


def test_the_page_shows_items_and_findings_and_escapes_what_files_say(folder: Path) -> None:
    items(folder, "title", dict.fromkeys(range(16), HOSTILE))
    items(folder, "raw_id", dict.fromkeys(range(16), HOSTILE))
    items(folder, "image", {9: "<b>.png"})
    page = folder.parent / "toy.html"
    answer = call("data", "check", "-d", "toy", "--format", "html", "-o", page)
    assert (answer.code, answer.out) == (0, f"{page}: toy: 2 warnings\n")
    text = page.read_text(encoding="utf-8")
    assert "<script" not in text
    assert "<b>" not in text
    assert "<img src=x" not in text
    assert "&lt;script&gt;" in text
    assert text.count('src="data:image/jpeg;base64,') >= 6
    assert not re.search(r'(?:src|href)="(?!data:)', text), "no request"
    assert "most popular" in text
    assert "<code>shared-texts</code>" in text


def test_the_page_is_made_also_where_interactions_can_not_be_read(folder: Path) -> None:
    (folder / "toy.inter").write_text("userID\titemID\tx_label\na\tb\tc\n")
    answer = call("data", "check", "-d", "toy", "--format", "html")
    assert answer.code == 4
    assert "<code>refused</code> in toy.inter, line 2" in answer.out


def test_a_data_set_that_is_not_there_is_one_message(folder: Path) -> None:
    answer = call("data", "check", "-d", "ty")
    assert (answer.code, answer.out) == (4, "")
    assert "data/ty/ty.inter: no such file; data holds toy; did you mean toy?" in answer.err


def test_every_finding_is_documented() -> None:
    page = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "mmrec_lmm" / "checking").glob("*.py"))
    names = {"refused", "scale", *re.findall(r'"((?:[a-z]+-)+[a-z]+)"', sources)}
    assert names >= {fault.name for fault in FAULTS}
    assert not [name for name in names if f"`{name}`" not in page]


# In a browser


def test_the_page_fits_a_phone_and_follows_the_color_scheme(folder: Path) -> None:
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no chromium here: apt-get install --no-install-recommends chromium")
    playwright = pytest.importorskip("playwright.sync_api", reason="no playwright here: pip install playwright")
    items(folder, "title", {0: "W" * 2000})
    call("data", "check", "-d", "toy", "--format", "html", "-o", page := folder.parent / "toy.html")
    colors, complaints = set(), list[str]()
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for scheme in ("light", "dark"):
            context = browser.new_context(viewport={"width": 390, "height": 800}, color_scheme=scheme)
            shown = context.new_page()
            shown.on("console", lambda message: complaints.append(message.text))
            shown.goto(page.as_uri())
            assert shown.evaluate("document.documentElement.scrollWidth") == 390
            assert shown.evaluate("[...document.images].every(image => image.naturalWidth > 0)")
            assert not complaints
            colors.add(shown.evaluate("getComputedStyle(document.body).backgroundColor"))
        browser.close()
    assert len(colors) == 2

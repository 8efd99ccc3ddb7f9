"""`mmrec-lmm data get`, from a mirror on this machine to a data set that runs."""

import gzip
import hashlib
import io
import json
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import mirror as served
import numpy as np
import pandas as pd
import pytest
from helpers import call, start
from mirror import FEATURES, FILMS, META, RATINGS, Mirror, amazon, cut, movielens, serving, status
from PIL import Image

from mmrec_lmm.cache import home
from mmrec_lmm.downloads import fetching
from mmrec_lmm_data_tools import published
from mmrec_lmm_data_tools.published import DATASETS

GET = ("data", "get", "baby", "--accept-terms", "--no-images")


@pytest.fixture
def mirror(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Mirror]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fetching, "PAUSES", (0.0, 0.0))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    for name in ("MMREC_LMM_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    with serving({**amazon(), FILMS: movielens()}) as server:
        yield server


def table(name: str) -> pd.DataFrame:
    return pd.read_csv(name, sep="\t", dtype=str, keep_default_na=False)


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_amazons_files_become_a_data_set_that_runs(mirror: Mirror) -> None:
    mirror.faults = {RATINGS: [status(503), cut(900)], META: [cut(50), status(429, Retry_After="0"), cut(60)]}
    answer = call(*GET, "--image-features", "--mirror", mirror.url)
    assert answer.code == 0, answer.err
    assert "baby: 12 users, 10 items, 90 interactions" in answer.out
    assert "next: mmrec-lmm " in answer.out.splitlines()[-1]
    inter, items = table("data/baby/baby.inter"), table("data/baby/items.tsv")
    assert len(inter) == 90
    by_id = items.set_index("raw_id")
    assert set(by_id.index) == {served.asin(item) for item in range(served.ITEMS)}, "leading zeros stay"
    assert by_id.loc[served.asin(3), "title"] == "Baby bottle 3"
    assert by_id.loc[served.asin(3), "description"] == "Holds milk & tea."
    assert by_id.loc[served.asin(3), "image_url"].startswith("http://ecx.images-amazon.com/images/I/3.")
    features = np.load("data/baby/image_feat.npy")
    assert features[int(by_id.loc[served.asin(3), "itemID"])].tolist() == [4.0] * 4096
    manifest = json.loads(Path("data/baby/manifest.json").read_text())
    assert manifest["options"]["get"] == "baby"
    assert manifest["inputs"]["ratings_Baby.csv"] == hashlib.sha256(mirror.files[RATINGS]).hexdigest()
    run = call("run", "-m", "VBPR", "-d", "baby", "--epochs=1", "--topk=[5]", "--valid_metric=Recall@5")
    assert run.code == 0, run.err


def test_the_real_baby_has_the_counts_of_mmrecs(shared: Path, mirror: Mirror, caplog: pytest.LogCaptureFixture) -> None:
    """The real interactions and texts, with their raw ids, in the layout of Amazon's files."""
    folder = shared / "data" / "baby"
    users, asins = (table(str(folder / f"{kind}_id_mapping.csv")).iloc[:, 0].to_numpy() for kind in "ui")
    inter, items = pd.read_csv(folder / "baby.inter", sep="\t"), table(str(folder / "items.tsv"))
    rows = pd.DataFrame({"user": users[inter.userID], "item": asins[inter.itemID], "rating": "5.0", "time": 1370000000})
    rare = pd.DataFrame({"user": ["RARE"] * 4, "item": asins[:4], "rating": "1.0", "time": 1370000000})
    mirror.files[RATINGS] = pd.concat([rare, rows]).to_csv(header=False, index=False).encode()
    fields = items[["asin", "title", "description", "imUrl"]].to_dict("records")
    lines = "\n".join(repr({key: value for key, value in row.items() if value}) for row in fields)
    mirror.files[META] = gzip.compress(lines.encode() + b"\n", 1, mtime=0)
    answer = call(*GET, "--mirror", mirror.url)
    assert answer.code == 0, answer.err
    assert "baby: 19,445 users, 7,050 items, 160,792 interactions" in answer.out
    assert "outside the 5-core 4" in answer.out
    assert "were expected" not in caplog.text
    manifest = json.loads(Path("data/baby/manifest.json").read_text())
    assert manifest["splits"] == {"train": 118_551, "valid": 20_559, "test": 21_682}
    assert (manifest["texts"]["title"], manifest["image_urls"]) == (3_416, 7_037)


def test_movielens_becomes_a_data_set_of_texts(mirror: Mirror) -> None:
    answer = call("data", "get", "ML-latest-small", "--accept-terms", "--mirror", mirror.url)
    assert answer.code == 0, answer.err
    assert "ml-latest-small: 8 users, 6 items, 48 interactions" in answer.out
    items = table("data/ml-latest-small/items.tsv")
    assert items.title[0] == "Film 1, The (1995)"
    command = answer.out.splitlines()[-1].removeprefix("      mmrec-lmm ")
    run = call(*command.split(), "--epochs=1", "--topk=[5]", "--valid_metric=Recall@5")
    assert run.code == 0, run.err


def test_a_hash_that_grouplens_publishes_decides(mirror: Mirror, monkeypatch: pytest.MonkeyPatch) -> None:
    mirror.files["/ml-1m.zip"] = movielens()
    answer = call("data", "get", "ml-1m", "--accept-terms", "--mirror", mirror.url)
    assert answer.code == 4
    assert f"expected md5 {DATASETS['ml-1m'].files[0].digest} (as published), got " in answer.err
    assert not Path("data/ml-1m").exists()


def test_options_of_build_pass_through(mirror: Mirror, caplog: pytest.LogCaptureFixture) -> None:
    answer = call(*GET, "--mirror", mirror.url, "--core", 0, "--min-rating", 4, "--split", "leave-one-out")
    assert answer.code == 0, answer.err
    manifest = json.loads(Path("data/baby/manifest.json").read_text())
    assert {manifest["options"][name] for name in ("core", "min_rating", "split")} == {0, 4.0, "leave-one-out"}
    assert set(table("data/baby/baby.inter").rating.astype(float)) == {4.0, 5.0}
    assert "were expected" not in caplog.text, "other filters have other counts"


def test_other_counts_than_the_published_are_told(
    mirror: Mirror, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert call(*GET, "--mirror", mirror.url).code == 0
    assert "160,792 interactions were expected, and it has 12 users, 10 items, 90 interactions" in caplog.text
    caplog.clear()
    same = replace(DATASETS["baby"], counts=published.Counts(12, 10, 90))
    monkeypatch.setitem(DATASETS, "baby", same)
    assert call(*GET, "--mirror", mirror.url, "--force").code == 0
    assert "were expected" not in caplog.text


# Images


@pytest.fixture
def pictures(mirror: Mirror, monkeypatch: pytest.MonkeyPatch) -> Mirror:
    """Metadata whose images are on this machine, where `data images` may go for once."""
    pytest.importorskip("aiohttp")
    adding = pytest.importorskip("mmrec_lmm_data_tools.images.adding")
    limits = replace(adding.Limits(), allow_private=True, pause=0.0)
    monkeypatch.setattr(adding, "download_images", partial(adding.download_images, limits=limits))
    mirror.files[META] = served.metadata(f"{mirror.url}pictures/{{}}.png")
    for item in range(served.ITEMS - 1):
        drawn = io.BytesIO()
        Image.new("RGB", (8 + item, 8), (20 * item, 0, 0)).save(drawn, "PNG")
        mirror.files[f"/pictures/{item}.png"] = drawn.getvalue()
    return mirror


def test_the_items_images_come_with_the_data_set(pictures: Mirror) -> None:
    del pictures.files["/pictures/4.png"]
    answer = call("data", "get", "baby", "--accept-terms", "--mirror", pictures.url)
    assert answer.code == 0, answer.err
    items = table("data/baby/items.tsv").set_index("raw_id")
    with Image.open(Path("data/baby/images") / items.loc[served.asin(3), "image"]) as image:
        assert image.size == (11, 8)
    assert not items.loc[served.asin(4), "image"]
    assert answer.out.splitlines()[-1] == "      mmrec-lmm run -d baby -m VBPR --encoder basic"
    asked = len(pictures.asked)
    again = call("data", "get", "baby", "--accept-terms", "--mirror", pictures.url)
    assert again.code == 0
    assert "data/baby is here already" in again.out
    assert len(pictures.asked) == asked, "what came isn't fetched again, nor what isn't there"


@pytest.mark.parametrize("why", ["flag", "offline"])
def test_images_are_left_out_by_a_flag_and_offline(why: str, pictures: Mirror, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = ["--no-images", "--mirror", pictures.url]
    if why == "offline":
        call(*GET, "--mirror", pictures.url)
        monkeypatch.setenv("MMREC_LMM_OFFLINE", "1")
        flags = ["--force"]
    answer = call("data", "get", "baby", "--accept-terms", *flags)
    assert answer.code == 0, answer.err
    assert not [path for path, _ in pictures.asked if path.startswith("/pictures")]
    assert "next: mmrec-lmm data images baby" in answer.out


def test_where_no_image_comes_the_rest_is_ready_and_the_message_says_so(pictures: Mirror) -> None:
    for item in range(served.ITEMS):
        pictures.files.pop(f"/pictures/{item}.png", None)
    answer = call("data", "get", "baby", "--accept-terms", "--mirror", pictures.url)
    assert answer.code == 4
    assert "data/baby: the data set is ready but for its images: " in answer.err
    assert "Later: mmrec-lmm data images baby; without them: data get --no-images" in answer.err
    assert call("data", "check", "-d", "baby").code == 0


# Terms


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("typed", "code"), [("y\n", 0), ("YES\n", 0), ("n\n", 2), ("\n", 2), ("", 2)])
def test_on_a_terminal_the_terms_are_shown_and_asked_for(
    typed: str, code: int, mirror: Mirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", Terminal(typed))
    answer = call("data", "get", "baby", "--no-images", "--mirror", mirror.url)
    assert answer.code == code, answer.err
    assert DATASETS["baby"].terms in answer.err
    assert "Accept them? [y/N]" in answer.err
    assert bool(mirror.asked) == (code == 0)


def test_elsewhere_the_terms_are_shown_and_the_flag_is_needed(mirror: Mirror, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    refused = call("data", "get", "baby", "--mirror", mirror.url)
    assert refused.code == 2
    assert DATASETS["baby"].terms in refused.err
    assert "try --accept-terms" in refused.err
    assert not mirror.asked
    accepted = call(*GET, "--mirror", mirror.url)
    assert DATASETS["baby"].terms in accepted.err, "never silently"
    assert accepted.code == 0


# By hand, again, and wrongly


def test_after_a_dead_address_the_same_command_continues_from_files_put_there_by_hand(mirror: Mirror) -> None:
    dead = call(*GET, "--mirror", f"{mirror.url}nowhere")
    assert dead.code == 4
    place = home() / "downloads" / "baby"
    assert str(place) in dead.err
    assert not Path("data/baby").exists()
    for path in (RATINGS, META):
        assert f"https://snap.stanford.edu/data/amazon/productGraph{path}" in dead.err
        (place / path.rpartition("/")[2]).write_bytes(mirror.files[path])
    assert call(*GET, "--mirror", f"{mirror.url}nowhere").code == 0
    first = tree(Path("data/baby"))

    Path("mine").mkdir()
    for path in (RATINGS, META):
        (place / path.rpartition("/")[2]).rename(Path("mine") / path.rpartition("/")[2])
    assert call(*GET, "--mirror", f"{mirror.url}nowhere", "--from", "mine", "--force").code == 0
    assert tree(Path("data/baby")) == first


def test_the_same_command_again_changes_nothing_and_another_asks_for_force(mirror: Mirror) -> None:
    assert call(*GET, "--mirror", mirror.url).code == 0
    before, asked = tree(Path("data/baby")), len(mirror.asked)
    again = call(*GET, "--mirror", mirror.url)
    assert again.code == 0
    assert "data/baby is here already" in again.out
    other = call(*GET, "--mirror", mirror.url, "--core", 3)
    assert other.code == 2
    assert "--force" in other.err
    assert tree(Path("data/baby")) == before
    assert len(mirror.asked) == asked
    assert call(*GET, "--mirror", mirror.url, "--core", 3, "--force").code == 0


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["babby"], 2, "did you mean baby?; `data build`"),
        (["ml-1m", "--images"], 2, "--images: expected a data set with addresses of images, got ml-1m"),
        (["ml-1m", "--image-features"], 2, "--image-features: expected a data set that has some, got ml-1m"),
        (["baby", "--mirror", "/some/folder"], 2, "--mirror: expected an address that begins with http"),
        (["baby", "--from", "nowhere"], 4, "--from nowhere: no such folder"),
        (["baby", "--split", "randomly"], 2, "invalid choice"),
    ],
)
def test_what_cannot_be_got_is_said_before_anything_is_asked_for(
    arguments: list[str], code: int, message: str, mirror: Mirror
) -> None:
    answer = call("data", "get", *arguments, "--accept-terms")
    assert answer.code == code
    assert message in answer.err
    assert not Path("data").exists()


def test_a_damaged_archive_put_there_by_hand_is_named(mirror: Mirror) -> None:
    Path("mine").mkdir()
    Path("mine/ml-latest-small.zip").write_bytes(movielens()[:200])
    answer = call("data", "get", "ml-latest-small", "--accept-terms", "--from", "mine")
    assert answer.code == 4
    assert "mine/ml-latest-small.zip: expected a zip archive, got a damaged file" in answer.err


def test_the_help_names_every_data_set() -> None:
    text = " ".join(call("data", "get", "--help").out.split())
    assert all(name in text for name in DATASETS)


# Kills


def test_a_killed_get_continues_and_ends_with_the_same_bytes(mirror: Mirror) -> None:
    assert call(*GET, "--mirror", mirror.url, "--data-path", "whole").code == 0
    for path in (home() / "downloads" / "baby").iterdir():
        path.unlink()
    mirror.sent.clear()
    mirror.pause, mirror.block = 0.05, 256  # the ratings take a second
    process = start(*GET, "--mirror", mirror.url)
    part = home() / "downloads" / "baby" / "ratings_Baby.csv.part"
    deadline = time.monotonic() + 60
    while not (part.exists() and part.stat().st_size > 0) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    came = part.stat().st_size
    assert 0 < came < len(mirror.files[RATINGS])
    assert not Path("data/baby").exists()
    mirror.pause, mirror.block = 0.0, 1 << 16
    assert call(*GET, "--mirror", mirror.url).code == 0
    assert (RATINGS, f"bytes={came}-") in mirror.asked
    assert tree(Path("data/baby")) == tree(Path("whole/baby"))


@pytest.mark.slow
def test_a_get_that_is_killed_at_any_moment_continues(mirror: Mirror) -> None:
    assert call(*GET, "--image-features", "--mirror", mirror.url, "--data-path", "whole").code == 0
    for path in (home() / "downloads" / "baby").iterdir():
        path.unlink()
    mirror.pause, mirror.block = 0.01, 4096
    for moment in np.linspace(0.3, 3, 10):
        process = start(*GET, "--image-features", "--mirror", mirror.url)
        time.sleep(moment)
        process.kill()
        process.communicate()
    assert call(*GET, "--image-features", "--mirror", mirror.url).code == 0
    assert tree(Path("data/baby")) == tree(Path("whole/baby"))
    assert mirror.sent[FEATURES] < 3 * len(mirror.files[FEATURES]), "continued, not begun anew"

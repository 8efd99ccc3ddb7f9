"""`data get`: from a mirror on this machine, which behaves as servers do, to a data set; and what it says otherwise."""

import hashlib
import logging
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import mirror as served
import pytest
from mirror import (
    FEATURES,
    META,
    RATINGS,
    Fault,
    Mirror,
    amazon,
    chunked,
    cut,
    page,
    redirect,
    serving,
    stall,
    status,
    without_length,
    wrong_length,
)

from mmrec_lmm.cache import home
from mmrec_lmm.downloads import fetching
from mmrec_lmm.errors import DataError
from mmrec_lmm_data_tools import published
from mmrec_lmm_data_tools.getting import get_files, place_of
from mmrec_lmm_data_tools.published import DATASETS, IMAGE_FEATURES

BABY, FILMS = DATASETS["baby"], DATASETS["ml-latest-small"]


@pytest.fixture
def mirror(monkeypatch: pytest.MonkeyPatch) -> Iterator[Mirror]:
    monkeypatch.setattr(fetching, "PAUSES", (0.0, 0.0))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    for name in ("MMREC_LMM_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    with serving({**amazon(), served.FILMS: served.movielens()}) as server:
        yield server


def folder() -> Path:
    return home() / "downloads" / "baby"


def left() -> set[str]:
    """What lies in the folder of downloads, but for locks and recorded hashes."""
    return {path.name for path in folder().iterdir() if path.suffix not in (".lock", ".sha256")}


# Files


def test_the_files_are_brought_once_and_kept(mirror: Mirror) -> None:
    paths = get_files(BABY, mirror=mirror.url)
    assert [path.name for path in paths] == ["ratings_Baby.csv", "meta_Baby.json.gz"]
    assert [path.read_bytes() for path in paths] == [mirror.files[RATINGS], mirror.files[META]]
    assert get_files(BABY, mirror=mirror.url) == paths
    assert [path for path, _ in mirror.asked] == [RATINGS, META]
    assert left() == {path.name for path in paths}


def test_image_features_are_brought_on_request(mirror: Mirror) -> None:
    *_, features = get_files(BABY, parts={IMAGE_FEATURES}, mirror=mirror.url)
    assert features.read_bytes() == mirror.files[FEATURES]


@pytest.mark.parametrize(
    "faults",
    [
        [status(503), status(429, Retry_After="0")],
        [status(429, Retry_After="Wed, 21 Oct 2015 07:28:00 GMT")],
        [cut(100), cut(50)],
        [cut(0), cut(100), status(502), cut(10)],
        [wrong_length(10**6)],
        [redirect("/elsewhere.gz")],
        [chunked(200), chunked()],
    ],
    ids=["trouble", "a date in the past", "cuts", "all at once", "too long a length", "redirect", "chunks"],
)
@pytest.mark.parametrize("path", [RATINGS, META])
def test_trouble_that_passes_ends_in_the_right_files(path: str, faults: list[Fault], mirror: Mirror) -> None:
    mirror.files["/elsewhere.gz"] = mirror.files[path]
    mirror.faults[path] = list(faults)
    found = dict(zip((RATINGS, META), get_files(BABY, mirror=mirror.url), strict=True))
    assert {name: file.read_bytes() for name, file in found.items()} == {
        name: mirror.files[name] for name in (RATINGS, META)
    }
    assert not mirror.faults[path]
    assert left() == {"ratings_Baby.csv", "meta_Baby.json.gz"}


@pytest.mark.parametrize(
    ("path", "fault", "reason"),
    [
        (RATINGS, status(404), "404"),
        (RATINGS, status(403), "403"),
        (RATINGS, page(), "web page"),
        (RATINGS, page("text/csv"), "web page"),
        (META, page("application/x-gzip"), "web page"),
        (RATINGS, without_length(), "doesn't say how long"),
        (META, without_length(200), "cut or damaged"),
        (META, wrong_length(200), "cut or damaged"),
        (META, lambda handler, content: handler.give(b"\x1f\x8b" + content[:1] * 400), "cut or damaged"),
        (META, lambda handler, content: handler.give(b"plain text"), "cut or damaged"),
        (RATINGS, redirect(RATINGS), "redirect"),
        (RATINGS, redirect("file:///etc/hostname"), "not allowed"),
        (RATINGS, status(429, Retry_After="86400"), "the server asks to wait 86,400 s"),
    ],
)
def test_trouble_that_stays_is_a_message_with_all_addresses_and_the_place(
    path: str, fault: Fault, reason: str, mirror: Mirror
) -> None:
    mirror.faults[path] = [fault] * 20
    with pytest.raises(DataError) as refused:
        get_files(BABY, mirror=mirror.url)
    text = str(refused.value)
    name = path.rpartition("/")[2]
    assert text.startswith(f"baby: {name} isn't here and couldn't be downloaded (--mirror {mirror.url}): ")
    assert reason in text.partition("\n")[0]
    base = "https://snap.stanford.edu/data/amazon/productGraph"
    assert f"  {base}{path}\n" in text
    assert (f"  {base}{RATINGS}\n" in text) == (path == RATINGS), "only what is missing"
    assert f"by hand into {folder()}, or into a folder that you name by --from DIR" in text
    assert BABY.page in text
    assert name not in left()


def test_a_server_that_falls_silent_is_asked_for_the_rest(mirror: Mirror, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "TIMEOUT", 0.2)
    mirror.faults[RATINGS] = [stall(100, 0.6), stall(50, 0.6)]
    assert get_files(BABY, mirror=mirror.url)[0].read_bytes() == mirror.files[RATINGS]
    assert [asked for path, asked in mirror.asked if path == RATINGS] == [None, "bytes=100-", "bytes=150-"]


@pytest.mark.parametrize("after", [{"Retry_After": "7"}, {}])
def test_a_server_is_left_alone_as_long_as_it_asks(
    after: dict[str, str], mirror: Mirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    monkeypatch.setattr("time.sleep", slept.append)
    monkeypatch.setattr(fetching, "PAUSES", (1.0, 2.0))
    mirror.faults[RATINGS] = [status(429, **after), status(503)]
    get_files(BABY, mirror=mirror.url)
    assert [pause for pause in slept if pause] == ([7.0, 2.0] if after else [1.0, 2.0])


def test_a_whole_file_without_a_length_is_taken_if_its_format_shows_the_end(mirror: Mirror) -> None:
    mirror.faults[META] = [without_length()]
    assert get_files(BABY, mirror=mirror.url)[1].read_bytes() == mirror.files[META]


def test_the_addresses_are_tried_in_order_and_each_reason_is_told(mirror: Mirror) -> None:
    several = replace(BABY, addresses=(f"{mirror.url}gone/", f"{mirror.url}moved", mirror.url))
    assert len(get_files(several)) == 2
    assert [path for path, _ in mirror.asked][:3] == [f"/gone{RATINGS}", f"/moved{RATINGS}", RATINGS]
    for path in get_files(several):
        path.unlink()
    with pytest.raises(DataError) as refused:
        get_files(replace(several, addresses=several.addresses[:2]))
    told = str(refused.value).partition("\n")[0]
    assert told.count("404") == 2
    assert f"{mirror.url}gone{RATINGS}: " in told


def test_without_a_network_the_answer_comes_at_once(mirror: Mirror) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        nowhere = f"http://127.0.0.1:{closed.getsockname()[1]}/"
    with pytest.raises(DataError, match="refused"):
        get_files(BABY, mirror=nowhere)


@pytest.mark.parametrize("name", ["MMREC_LMM_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline_no_server_is_asked(name: str, mirror: Mirror, monkeypatch: pytest.MonkeyPatch) -> None:
    get_files(FILMS, mirror=mirror.url)
    monkeypatch.setenv(name, "1")
    asked = len(mirror.asked)
    with pytest.raises(DataError, match=rf"couldn't be downloaded .*: {name} is set"):
        get_files(BABY, mirror=mirror.url)
    get_files(FILMS, mirror=mirror.url)  # from the cache
    assert len(mirror.asked) == asked


# Put there by hand


def test_files_put_into_the_cache_by_hand_are_used_and_the_rest_is_brought(mirror: Mirror) -> None:
    folder().mkdir(parents=True)
    (folder() / "ratings_Baby.csv").write_bytes(mirror.files[RATINGS])
    get_files(BABY, mirror=mirror.url)
    assert [path for path, _ in mirror.asked] == [META]


def test_a_web_page_that_was_saved_as_a_file_is_refused_and_its_hash_is_not_kept(mirror: Mirror) -> None:
    folder().mkdir(parents=True)
    saved = folder() / "meta_Baby.json.gz"
    for content, reason in ((b"<!doctype html>gone", "it is a web page"), (mirror.files[META][:99], "it is cut")):
        saved.write_bytes(content)
        with pytest.raises(DataError, match=rf"{saved}: {reason}.*delete it and try again, or get it again from http"):
            get_files(BABY, mirror=mirror.url)
    saved.write_bytes(mirror.files[META])
    assert get_files(BABY, mirror=mirror.url)[1] == saved


def test_files_of_a_given_folder_come_first_and_may_be_unpacked(
    mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ratings_Baby.csv").write_bytes(b"mine")
    (tmp_path / "meta_Baby.json").write_bytes(b"{'asin': '1'}\n")
    monkeypatch.setenv("MMREC_LMM_OFFLINE", "1")
    assert get_files(BABY, given=tmp_path) == [tmp_path / "ratings_Baby.csv", tmp_path / "meta_Baby.json"]
    assert {path.name for path in tmp_path.iterdir()} == {"ratings_Baby.csv", "meta_Baby.json"}, "nothing is added"
    with pytest.raises(DataError, match=r"--from .*nowhere: no such folder"):
        get_files(BABY, given=tmp_path / "nowhere")


# Hashes


def test_another_content_than_the_authors_hash_names_is_refused_wherever_it_is(mirror: Mirror, tmp_path: Path) -> None:
    film = mirror.files[served.FILMS]
    pinned = replace(FILMS, files=(replace(FILMS.files[0], digest=hashlib.md5(film).hexdigest()),))
    assert get_files(pinned, mirror=mirror.url)[0].read_bytes() == film
    (tmp_path / "ml-latest-small.zip").write_bytes(b"other")
    with pytest.raises(DataError, match=r"expected md5 .* \(as published\), got .*get it again from http"):
        get_files(pinned, mirror=mirror.url, given=tmp_path)
    place = place_of(pinned, pinned.files[0])
    place.unlink()
    mirror.files[served.FILMS] = b"replaced"
    with pytest.raises(DataError, match=r"expected md5 .* \(as published\), got .*the download was deleted"):
        get_files(pinned, mirror=mirror.url)
    assert not place.exists()


def test_without_a_published_hash_the_first_is_recorded_and_enforced(
    mirror: Mirror, caplog: pytest.LogCaptureFixture
) -> None:
    ratings, _ = get_files(BABY, mirror=mirror.url)
    digest = hashlib.sha256(mirror.files[RATINGS]).hexdigest()
    assert f"sha256 {digest}, trusted at this first use" in caplog.text
    ratings.write_bytes(b"changed")
    with pytest.raises(DataError, match=rf"expected sha256 {digest} \(as at its first use\), got "):
        get_files(BABY, mirror=mirror.url)
    ratings.unlink()
    mirror.files[RATINGS] += b"more,than,before,1\n"
    with pytest.raises(DataError, match=rf"expected sha256 {digest} \(as .*ratings_Baby.csv.sha256 says\)"):
        get_files(BABY, mirror=mirror.url)


def test_a_hash_that_somebody_else_computed_is_reported_and_decides_nothing(
    mirror: Mirror, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        get_files(BABY, mirror=mirror.url)
    assert f"where omnirec found {BABY.files[0].sha256} (its authors publish none)" in caplog.text
    caplog.clear()
    get_files(
        replace(FILMS, files=(replace(FILMS.files[0], sha256="0" * 64, sha256_by="somebody"),)), mirror=mirror.url
    )
    assert "where somebody found 000" in caplog.text


# Resume


def test_a_stopped_download_is_continued_and_no_byte_comes_twice(mirror: Mirror) -> None:
    mirror.faults[META] = [cut(200), status(404)]
    with pytest.raises(DataError):
        get_files(BABY, mirror=mirror.url)
    assert left() == {"ratings_Baby.csv", "meta_Baby.json.gz.part", "meta_Baby.json.gz.part.origin"}
    get_files(BABY, mirror=mirror.url)
    assert (META, "bytes=200-") in mirror.asked
    assert mirror.sent[META] == len(mirror.files[META])


@pytest.mark.parametrize("how", ["changed", "no version", "another address", "ignores If-Range"])
def test_parts_of_two_files_are_never_joined(how: str, mirror: Mirror) -> None:
    mirror.versions = how != "no version"
    mirror.faults[RATINGS] = [cut(500), status(404)]
    with pytest.raises(DataError):
        get_files(BABY, mirror=mirror.url)
    url = mirror.url
    if how == "another address":
        mirror.files = {f"/new{path}": content.replace(b"A", b"B") for path, content in mirror.files.items()}
        mirror.files["/new" + META] = served.metadata()
        url += "new/"
    elif how in ("changed", "ignores If-Range"):
        mirror.files[RATINGS] = mirror.files[RATINGS].replace(b"A", b"B")
    if how == "ignores If-Range":

        def deaf(handler: served.Handler, content: bytes) -> None:
            del handler.headers["If-Range"]
            handler.give(content)

        mirror.faults[RATINGS] = [deaf]
    path = next(path for path in mirror.files if path.endswith(RATINGS))
    assert get_files(BABY, mirror=url)[0].read_bytes() == mirror.files[path]


def test_a_download_that_was_whole_when_it_stopped_is_not_asked_for_again(mirror: Mirror) -> None:
    ratings, _ = get_files(BABY, mirror=mirror.url)
    part = ratings.with_name(f"{ratings.name}.part")
    ratings.rename(part)
    origin = (
        f'{{"url": "{mirror.url}categoryFiles/ratings_Baby.csv", "version": "\\"1\\"", "total": {part.stat().st_size}}}'
    )
    part.with_name(f"{part.name}.origin").write_text(origin)
    asked = len(mirror.asked)
    assert get_files(BABY, mirror=mirror.url)[0] == ratings
    assert len(mirror.asked) == asked


# The table


def test_the_table_of_public_data_is_sound() -> None:
    assert set(DATASETS) == {"baby", "sports", "clothing", "elec", "ml-100k", "ml-1m", "ml-latest-small"}
    for name, dataset in DATASETS.items():
        assert dataset.name == name == name.lower()
        assert dataset.terms
        assert dataset.citation
        assert all(address.startswith("https://") and address.endswith("/") for address in dataset.addresses)
        for file in dataset.files:
            assert len(file.digest) in (0, 32, 64)
            assert len(file.sha256) in (0, 64)
            assert bool(file.sha256) == bool(file.sha256_by)
    assert published.published("BABY") is BABY

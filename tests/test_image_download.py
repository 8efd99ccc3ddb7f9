"""Images are downloaded from a server that does what servers do: each good one comes once, and images.tsv is true."""

import hashlib
import os
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from helpers import Answer, call, start, wait_until
from image_server import GIF, Server, picture, serve
from PIL import Image

from mmrec_lmm.config.settings import Settings
from mmrec_lmm.data.loading import load_dataset, read_catalog
from mmrec_lmm.data.tables import read_table
from mmrec_lmm.errors import ConfigError, DataError, RunBusy
from mmrec_lmm_data_tools.images import adding, fetching, requesting
from mmrec_lmm_data_tools.images.adding import ImagesReport, download_images
from mmrec_lmm_data_tools.images.addresses import candidates, is_public, literal_address
from mmrec_lmm_data_tools.images.manifest import Manifest, Row, read_manifest
from mmrec_lmm_data_tools.images.requesting import Limits
from mmrec_lmm_data_tools.importing import import_dataset

pytest.importorskip("aiohttp", reason="no aiohttp here: pip install 'mmrec-lmm[images]'")

QUICK = Limits(allow_private=True, pause=0.01, timeout=1.0)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "*")
    with serve() as world:
        yield world


@pytest.fixture
def shop(tmp_path: Path, server: Server) -> Callable[..., Path]:
    """Makes a data set whose items have these addresses: `shop("good/a.jpg", "")`."""

    def shop(*paths: str | Sequence[str]) -> Path:
        folder = tmp_path / "data" / "shop"
        folder.mkdir(parents=True, exist_ok=True)
        cells = [[path] if isinstance(path, str) else path for path in paths]
        urls = [" ".join(one if "://" in one or not one else server.url(one) for one in cell) for cell in cells]
        rows = [f"{place}\tI{place:03d}\tThing {place}\t{url}" for place, url in enumerate(urls)]
        (folder / "items.tsv").write_text("\n".join(["itemID\traw_id\ttitle\timage_url", *rows]) + "\n")
        pairs = [f"{user}\t{item}\t{item % 3}" for user in range(2) for item in range(max(3, len(paths)))]
        (folder / "shop.inter").write_text("\n".join(["userID\titemID\tx_label", *pairs]) + "\n")
        return folder

    return shop


def rows(folder: Path) -> dict[str, Row]:
    return read_manifest(folder / "images.tsv")


def images(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "images").iterdir()}


def named(folder: Path) -> list[str]:
    return read_table(folder / "items.tsv").columns["image"].tolist()


def fetch(folder: Path, **options: Any) -> ImagesReport:
    return download_images(folder, **{"limits": QUICK} | options)


def test_good_images_arrive_byte_for_byte_under_the_ids_of_their_items(
    server: Server, shop: Callable[..., Path]
) -> None:
    folder = shop("good/a.jpg", "good/b.jpg", "", "moved/c.jpg")
    report = fetch(folder)
    expected = {"I000.jpg": picture("a.jpg"), "I001.jpg": picture("b.jpg"), "I003.jpg": picture("c.jpg")}
    assert images(folder) == expected
    assert named(folder) == ["I000.jpg", "I001.jpg", "", "I003.jpg"]
    assert (report.new, report.kept, report.missing) == (3, 0, {"no address": 1})
    row = rows(folder)["I003"]
    assert (row.url, row.final_url) == (server.url("moved/c.jpg"), server.url("good/c.jpg"))
    assert (row.status, row.width, row.height, row.tries, row.reason) == (200, 40, 60, 1, "")
    assert (row.bytes, row.sha256) == (len(expected["I003.jpg"]), hashlib.sha256(expected["I003.jpg"]).hexdigest())
    assert server.agents == {"mmrec-lmm"}
    assert sorted(path.name for path in folder.iterdir() if path.name[0] != ".") == [
        "images", "images.tsv", "items.tsv", "shop.inter",
    ]  # fmt: skip


def test_a_run_reads_what_came(shop: Callable[..., Path]) -> None:
    folder = shop("good/a.jpg", "missing/b.jpg", "good/c.jpg")
    fetch(folder)
    catalog = load_dataset(folder, "shop", Settings()).catalog
    assert catalog is not None
    assert [path and path.name for path in catalog.images] == ["I000.jpg", None, "I002.jpg"]
    assert list(catalog.fields) == ["title"]  # addresses aren't text


@pytest.mark.parametrize(
    ("kind", "reason", "status", "requests"),
    [
        ("missing", "not found", 404, 1), ("broken", "server error", 500, 4), ("html", "web page", 200, 1),
        ("text", "not an image", 200, 1), ("empty", "empty", 200, 1), ("placeholder", "placeholder", 200, 1),
        ("circle", "redirect loop", 0, 6), ("loop", "redirect loop", 0, 1), ("huge", "too large", 200, 1),
        ("endless", "too large", 200, 1), ("bomb", "too many pixels", 200, 1), ("file", "bad address", 0, 1),
        ("always-busy", "too many requests", 429, 1),
    ],
)  # fmt: skip
def test_what_is_no_image_is_left_out_and_the_manifest_says_why(
    server: Server, shop: Callable[..., Path], kind: str, reason: str, status: int, requests: int
) -> None:
    folder = shop(f"{kind}/a.jpg", "")
    with pytest.raises(DataError, match=f"missing: {reason} 1, no address 1"):
        fetch(folder)
    row = rows(folder)["I000"]
    assert (row.reason, row.status, row.image) == (reason, status, "")
    assert server.asked[f"/{kind}/a.jpg"] == requests
    assert server.sent[f"/{kind}/a.jpg"] < 30_000_000
    assert not (folder / "images").exists()


@pytest.mark.parametrize("kind", ["flaky", "busy", "cut", "wrong-length", "reset", "slow"])
def test_what_fails_at_first_comes_in_the_end_once(server: Server, shop: Callable[..., Path], kind: str) -> None:
    server.wait = 0.05
    folder = shop(f"{kind}/a.jpg")
    fetch(folder)
    assert images(folder) == {"I000.jpg": picture("a.jpg")}
    assert server.asked[f"/{kind}/a.jpg"] == {"flaky": 3, "slow": 1}.get(kind, 2)
    if kind != "reset":  # which aiohttp answers by itself
        assert rows(folder)["I000"].tries == server.asked[f"/{kind}/a.jpg"]


@pytest.mark.parametrize("dates", [False, True])
def test_a_host_that_asks_for_patience_gets_it_from_all_downloads(
    server: Server, shop: Callable[..., Path], dates: bool
) -> None:
    server.dates, server.wait = dates, 2.0 if dates else 1.0  # a date has whole seconds
    folder = shop("busy/a.jpg", *(f"good/{n}.jpg" for n in range(4)))
    fetch(folder, limits=Limits(allow_private=True, per_host=1))
    first, second = server.times["/busy/a.jpg"]
    assert second - first >= 0.9
    assert all(min(times) >= first + 0.9 for path, times in server.times.items() if path.startswith("/good"))


def test_a_body_that_drips_for_ever_is_given_up(shop: Callable[..., Path]) -> None:
    folder = shop("drip/a.jpg")
    with pytest.raises(DataError, match="missing: timeout 1"):
        fetch(folder, limits=Limits(allow_private=True, timeout=0.1, tries=1))  # a second for a whole image


def test_few_connections_are_open_at_once(server: Server, shop: Callable[..., Path]) -> None:
    folder = shop(*(f"slow/{n}.jpg" for n in range(8)))
    fetch(folder, limits=Limits(allow_private=True, per_host=4))
    assert server.most == 4
    server.most = 0
    fetch(folder, again=True, limits=Limits(allow_private=True, connections=3))
    assert server.most == 3


def test_a_host_that_never_answers_is_given_up_and_the_others_go_on(shop: Callable[..., Path]) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        dead = f"http://127.0.0.1:{unused.getsockname()[1]}"
        folder = shop(*(f"{dead}/{n}.jpg" for n in range(50)), "good/a.jpg")
        report = fetch(folder)
    assert report.new == 1
    assert set(report.missing) == {"no connection", "host given up"}
    assert sum(row.tries for row in rows(folder).values()) < 60
    assert "4 times" in next(row.detail for row in rows(folder).values() if row.reason == "host given up")
    (folder / "images.tsv").unlink()
    lone = shop(f"{dead}/a.jpg")
    with pytest.raises(DataError, match=r"no item has an image: is this machine online\? A proxy is taken from"):
        fetch(lone)


def test_hosts_that_fail_all_the_time_are_given_up(
    server: Server, shop: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "FRUITLESS", 10)
    folder = shop(*(f"broken/{n}.jpg" for n in range(50)))
    with pytest.raises(DataError, match="host given up"):
        fetch(folder)
    assert sum(server.asked.values()) < 30


def test_several_addresses_are_tried_in_order(server: Server, shop: Callable[..., Path]) -> None:
    folder = shop(["missing/a.jpg", "html/b.jpg", "good/c.jpg", "good/d.jpg"], ["broken/e.jpg", "missing/f.jpg"])
    fetch(folder)
    assert images(folder) == {"I000.jpg": picture("c.jpg")}
    assert not server.asked["/good/d.jpg"]
    assert (rows(folder)["I000"].tries, rows(folder)["I000"].url) == (3, server.url("good/c.jpg"))
    assert (rows(folder)["I001"].reason, rows(folder)["I001"].tries) == ("server error", 5)  # the one that may pass


# Going on


def test_a_second_time_only_what_may_come_is_asked_for(server: Server, shop: Callable[..., Path]) -> None:
    folder = shop("good/a.jpg", "missing/b.jpg", "broken/c.jpg", "html/d.jpg")
    fetch(folder)
    content = {name: (folder / name).read_bytes() for name in ("items.tsv", "images.tsv")}
    server.asked.clear()
    report = fetch(folder)
    assert set(server.asked) == {"/broken/c.jpg"}
    assert (report.new, report.kept) == (0, 1)
    assert (folder / "items.tsv").read_bytes() == content["items.tsv"]
    server.asked.clear()
    fetch(folder, retry_failed=True)
    assert set(server.asked) == {"/broken/c.jpg", "/missing/b.jpg", "/html/d.jpg"}
    server.asked.clear()
    (folder / "images" / "I000.jpg").write_bytes(b"cut")
    fetch(folder)
    assert "/good/a.jpg" in server.asked
    assert (folder / "images" / named(folder)[0]).read_bytes() == picture("a.jpg")


def test_a_new_address_of_an_item_is_tried(server: Server, shop: Callable[..., Path]) -> None:
    fetch(shop("missing/a.jpg", "good/b.jpg"))
    folder = shop("good/a.jpg", "good/b.jpg")
    assert fetch(folder).new == 1
    assert server.asked["/good/b.jpg"] == 1
    assert named(folder) == ["I000.jpg", "I001.jpg"]


def test_images_that_a_data_set_has_stay(server: Server, shop: Callable[..., Path]) -> None:
    folder = shop("good/a.jpg", "good/b.jpg", "good/c.jpg")
    (folder / "images").mkdir()
    (folder / "images" / "old.png").write_bytes(picture("old", "PNG"))
    table = (folder / "items.tsv").read_text().splitlines()
    table = [f"{line}\t{image}" for line, image in zip(table, ["image", "old.png", "lost.png", ""], strict=True)]
    (folder / "items.tsv").write_text("\n".join(table) + "\n")
    report = fetch(folder)
    assert (report.new, report.kept) == (2, 1)
    assert named(folder) == ["old.png", "I001.jpg", "I002.jpg"]
    assert not server.asked["/good/a.jpg"]


def test_an_image_that_a_run_may_read_is_never_overwritten(server: Server, shop: Callable[..., Path]) -> None:
    folder = shop("good/a.jpg", "good/b.jpg")
    fetch(folder)
    before = images(folder)
    server.given = {"a.jpg": picture("another")}
    fetch(folder, again=True)
    assert {name: images(folder)[name] for name in before} == before
    assert named(folder)[0].startswith("I000-")
    assert (folder / "images" / named(folder)[0]).read_bytes() == picture("another")
    assert named(folder)[1] == "I001.jpg"


@pytest.mark.parametrize(
    "signal_number",
    [signal.SIGKILL, *(pytest.param(one, marks=pytest.mark.slow) for one in (signal.SIGINT, signal.SIGTERM))],
)
def test_after_an_end_at_any_moment_only_what_is_missing_is_fetched(
    server: Server, shop: Callable[..., Path], signal_number: int
) -> None:
    folder = shop(*(f"slow/{n}.jpg" for n in range(30)))
    arguments = ("data", "images", "shop", "--data-path", folder.parent, "--allow-private", "--per-host", 4)
    before = (folder / "items.tsv").read_bytes()
    process = start(*arguments)
    wait_until(lambda: len(list((folder / "images").glob("*.jpg"))) >= 12, process)
    os.kill(process.pid, signal_number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == (-9 if signal_number == signal.SIGKILL else 130), err
    assert "Traceback" not in err
    assert (folder / "items.tsv").read_bytes() == before  # a run in between sees what it saw
    came = read_manifest(folder / "images.tsv")
    assert len(came) >= 12 - 4
    for row in came.values():
        content = (folder / "images" / row.image).read_bytes()
        assert hashlib.sha256(content).hexdigest() == row.sha256
    server.asked.clear()
    assert call(*arguments).code == 0
    assert set(server.asked) == {f"/slow/{n}.jpg" for n in range(30)} - {f"/slow/{int(item[1:])}.jpg" for item in came}
    assert set(server.asked.values()) == {1}
    assert images(folder) == {f"I{n:03d}.jpg": picture(f"{n}.jpg") for n in range(30)}
    assert named(folder) == sorted(images(folder))


def test_a_line_that_was_cut_off_is_forgotten(shop: Callable[..., Path]) -> None:
    folder = shop("good/a.jpg", "good/b.jpg")
    fetch(folder)
    whole = (folder / "images.tsv").read_bytes()
    (folder / "images.tsv").write_bytes(whole + b"I000\tI0")
    fetch(folder)
    assert (folder / "images.tsv").read_bytes() == whole


def test_the_last_row_of_an_item_counts_and_odd_ids_survive(tmp_path: Path) -> None:
    odd = ['"quoted', "a\tb", "é", "=1+1", "x" * 300]
    with Manifest(tmp_path / "images.tsv") as manifest:
        for item in odd:
            manifest.add(Row(item, reason="timeout", detail='two\nlines, "quotes"'))
        appended = (tmp_path / "images.tsv").read_bytes()
        manifest.add(Row(odd[0], image="x.jpg"))
    assert appended.count(b"\n") == 1 + len(odd)
    read = read_manifest(tmp_path / "images.tsv")
    assert list(read) == odd
    assert (read[odd[0]].image, read[odd[0]].reason, read["é"].detail) == ("x.jpg", "", 'two lines, "quotes"')


def test_a_damaged_manifest_is_named(shop: Callable[..., Path]) -> None:
    folder = shop("good/a.jpg")
    fetch(folder)
    text = (folder / "images.tsv").read_text()
    (folder / "images.tsv").write_text(text.replace("\t200\t", "\tmany\t"))
    with pytest.raises(DataError, match=r"images\.tsv, line 2: expected whole numbers in status"):
        fetch(folder)
    (folder / "images.tsv").write_text("item\timage\nI000\tx.jpg\n")
    with pytest.raises(DataError, match=r"expected the column 'url', got item, image; delete the file"):
        fetch(folder)


def test_one_process_at_a_time_adds_images(shop: Callable[..., Path]) -> None:
    folder = shop("good/a.jpg")
    with adding._open_album(folder), pytest.raises(RunBusy, match="another process adds images"):
        fetch(folder)


# What is stored


def test_images_are_shrunk_only_where_asked_and_only_if_they_are_larger(
    server: Server, shop: Callable[..., Path]
) -> None:
    small, exact = picture("small", width=40, height=50), picture("exact", width=50, height=20)
    server.given = {
        "small": small, "exact": exact, "large": picture("large", width=300, height=200),
        "drawing": picture("drawing", "PNG", 30, 100),
    }  # fmt: skip
    folder = shop("good/small", "good/exact", "good/large", "good/drawing")
    fetch(folder, max_side=50)
    content = images(folder)
    assert (content["I000.jpg"], content["I001.jpg"]) == (small, exact)
    sizes = {name: Image.open(folder / "images" / name).size for name in content}
    assert sizes == {"I000.jpg": (40, 50), "I001.jpg": (50, 20), "I002.jpg": (50, 33), "I003.png": (15, 50)}
    row = rows(folder)["I002"]
    assert (row.width, row.height, row.bytes) == (50, 33, len(content["I002.jpg"]))


@pytest.mark.parametrize(("form", "suffix"), [("PNG", ".png"), ("GIF", ".gif"), ("WEBP", ".webp"), ("BMP", ".bmp")])
def test_a_file_is_named_by_what_it_is(server: Server, shop: Callable[..., Path], form: str, suffix: str) -> None:
    server.given = {"a.jpg": picture("a", form)}
    folder = shop("good/a.jpg")
    fetch(folder)
    assert list(images(folder)) == [f"I000{suffix}"]


def test_a_picture_that_many_items_share_is_pointed_out(server: Server, shop: Callable[..., Path]) -> None:
    server.given = {"none.jpg": picture("none")}
    report = fetch(shop(*["good/none.jpg"] * 12, "good/a.jpg"))
    assert "12 items have the same picture (I000.jpg): does it say that there is none?" in str(report)


def test_other_columns_of_the_catalog_stay_as_they_are(shop: Callable[..., Path]) -> None:
    folder = shop("good/a.jpg", "good/b.jpg", "good/c.jpg")
    table = (folder / "items.tsv").read_text().replace("Thing 0", '"5"" wide, ""quoted"""').replace("Thing 1", '"open')
    (folder / "items.tsv").write_text(table)
    before = read_catalog(folder).fields
    fetch(folder)
    assert read_catalog(folder).fields == before
    assert before["title"][:2] == ('5" wide, "quoted"', '"open')


# Addresses


def test_a_table_of_addresses_may_replace_those_of_the_catalog(
    server: Server, shop: Callable[..., Path], tmp_path: Path
) -> None:
    folder = shop("missing/a.jpg", "missing/b.jpg")
    table = tmp_path / "urls.csv"
    lines = [f"I000,{server.url('missing/x.jpg')}", f"I000,{server.url('good/y.jpg')}", f"other,{server.url('good/z')}"]
    for header in ([], ["asin,imUrl"]):
        table.write_text("\n".join([*header, *lines]) + "\n")
        report = fetch(folder, urls=table, again=True)
        assert images(folder) == {"I000.jpg": picture("y.jpg")}
        assert "1 items of" in str(report)
        assert "aren't in the data set: other" in str(report)
    table.write_text("sku,link\nI000,x\n")
    with pytest.raises(DataError, match=r"expected a column of items \(item, .*got sku, link; rename them"):
        fetch(folder, urls=table)
    table.write_text("nobody,http://x.org/a.jpg\n")
    with pytest.raises(DataError, match=r"items\.tsv: expected the items of .*urls\.csv, got 1 others"):
        fetch(folder, urls=table)


def test_a_data_set_without_addresses_or_catalog_says_what_to_do(shop: Callable[..., Path]) -> None:
    folder = shop("", "")
    with pytest.raises(DataError, match=r"expected addresses, got none in image_url, .*, or --from PATH"):
        fetch(folder)
    (folder / "items.tsv").write_text("itemID\ttitle\n0\tx\n")
    with pytest.raises(DataError, match=r"the columns are itemID, title; try --urls FILE, a table of item and url"):
        fetch(folder)
    (folder / "items.tsv").unlink()
    with pytest.raises(DataError, match=r"no such file; images need a catalog"):
        fetch(folder)
    with pytest.raises(DataError, match="no such data set; did you mean shop"):
        fetch(folder.with_name("shp"))


PATH = "/images/I/41Bb6wf%2BqUL"
NEW = f"https://m.media-amazon.com{PATH}.jpg"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["http://ecx.images-amazon.com{PATH}._SX300_.jpg"], ["http://ecx.images-amazon.com{PATH}.jpg", "=", NEW]),
        (["http://g-ecx.images-amazon.com{PATH}._SY300_QL70_.jpg"],
         ["http://g-ecx.images-amazon.com{PATH}.jpg", "=", NEW]),
        (["https://images-na.ssl-images-amazon.com{PATH}._SS40_.jpg"],
         ["https://images-na.ssl-images-amazon.com{PATH}.jpg", "=", NEW]),
        (["https://images-na.ssl-images-amazon.com{PATH}._AC_SR38,50_.jpg"],
         ["https://images-na.ssl-images-amazon.com{PATH}.jpg", "=", NEW]),
        (["https://m.media-amazon.com{PATH}._AC_SL1500_.jpg"], ["=", NEW]),  # larger than the stored one
        (["https://m.media-amazon.com{PATH}._AC_.jpg"], ["=", NEW]),
        (["https://m.media-amazon.com{PATH}.jpg"], ["="]),
        (["http://ecx.images-amazon.com{PATH}.jpg"], ["=", NEW]),
        (["https://shop.example/a._SX300_.jpg"], ["="]),
        (["https://shop.example/images/I/a._SX300_.jpg"], ["="]),
        (["https://evil-media-amazon.com.example{PATH}._SX300_.jpg"], ["="]),
    ],
)  # fmt: skip
def test_larger_versions_of_amazons_images_are_tried_first(given: list[str], expected: list[str]) -> None:
    given = [one.replace("{PATH}", PATH) for one in given]
    assert candidates(given) == [given[0] if one == "=" else one.replace("{PATH}", PATH) for one in expected]


def test_the_order_of_several_editions_is_kept() -> None:
    urls = [f"https://m.media-amazon.com{PATH}._SL1500_.jpg", f"http://ecx.images-amazon.com{PATH}._SX300_.jpg"]
    assert candidates(urls) == [urls[0], NEW, f"http://ecx.images-amazon.com{PATH}.jpg", urls[1]]


def test_addresses_are_requested_letter_by_letter(server: Server, shop: Callable[..., Path]) -> None:
    folder = shop("good/a%2Bb+c.jpg", "good/ä b.jpg")
    fetch(folder)
    assert set(server.asked) == {"/good/a%2Bb+c.jpg", "/good/%C3%A4%20b.jpg"}
    assert fetch(folder, as_given=True).kept == 2


@pytest.mark.parametrize("column", ["image", "Image_URL", "imUrl", "image_link"])
def test_addresses_in_an_items_table_that_is_imported_are_found(server: Server, tmp_path: Path, column: str) -> None:
    (tmp_path / "clicks.csv").write_text("user,item\nu,a\nu,b\n")
    (tmp_path / "items.csv").write_text(f"item,title,{column}\na,A,{server.url('good/a.jpg')}\nb,B,\n")
    folder = tmp_path / "data" / "shop"
    import_dataset(tmp_path / "clicks.csv", folder, items=tmp_path / "items.csv")
    assert fetch(folder).new == 1
    assert list(read_catalog(folder).fields) == ["title"]


# Private addresses


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.8.8.8", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0",
        "255.255.255.255", "224.0.0.1", "240.0.0.1", "192.0.2.1", "::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1",
        "fd00:ec2::254", "fec0::1", "ff02::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::127.0.0.1", "64:ff9b::a00:1",
        "2002:7f00:1::", "2001:db8::1",
    ],
)  # fmt: skip
def test_addresses_that_lead_inside_are_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"])
def test_addresses_of_the_internet_are_public(address: str) -> None:
    assert is_public(address)


def test_hosts_written_as_numbers_are_recognized() -> None:
    written = ["127.0.0.1", "127.1", "2130706433", "0x7f000001", "0177.0.0.1", "0x7f.1", "127.0.0.1."]
    assert {literal_address(host) for host in written} == {"127.0.0.1"}
    assert literal_address("[::1]") == "::1"
    assert [literal_address(host) for host in ("example.org", "face.be", "1.2.3.4.5", "cafe")] == [None] * 4


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "localhost", "127.1", "2130706433", "0177.0.0.1", "0x7f.1", "[::ffff:127.0.0.1]", "inside.test"],
)
def test_private_addresses_are_not_even_connected_to(
    server: Server, shop: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    look_up = socket.getaddrinfo

    def names(name: Any, *rest: Any, **more: Any) -> Any:
        return look_up("127.0.0.1" if name in ("inside.test", b"inside.test") else name, *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", names)
    folder = shop(server.url("good/a.jpg", host))
    with pytest.raises(DataError, match="missing: private address 1"):
        fetch(folder, limits=Limits(pause=0.01))
    assert not server.asked
    assert "see --allow-private" in rows(folder)["I000"].detail
    if host in ("127.0.0.1", "localhost", "inside.test"):
        assert fetch(folder).new == 1  # allowed now, and not held to be settled


def test_a_redirect_to_a_private_address_is_not_followed(
    server: Server, shop: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """127.0.0.2 stands for the internet here."""
    real = requesting.is_public
    monkeypatch.setattr(requesting, "is_public", lambda address: address == "127.0.0.2" or real(address))
    with serve("127.0.0.2") as outside:
        for target in (
            server.url("good/a.jpg"),
            f"http://localhost:{server.port}/good/a.jpg",
            "http://169.254.169.254/",
        ):
            outside.elsewhere = target
            folder = shop(outside.url("away/a.jpg", "127.0.0.2"), outside.url("good/b.jpg", "127.0.0.2"))
            report = fetch(folder, limits=Limits(pause=0.01), retry_failed=True)
            assert report.missing == {"private address": 1}
            assert rows(folder)["I000"].final_url == target
    assert not server.asked


def test_a_proxy_is_used_where_the_environment_names_one_and_private_addresses_stay_out(
    server: Server, shop: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("no_proxy")
    monkeypatch.setenv("http_proxy", server.url(""))
    folder = shop("http://shop.test/good/a.jpg", "http://10.0.0.1/good/b.jpg", "http://0x7f.1/good/c.jpg")
    report = fetch(folder, limits=Limits(pause=0.01))
    assert set(server.asked) == {"http://shop.test/good/a.jpg"}
    assert (report.new, report.missing) == (1, {"private address": 2})


# The command line


def ask(folder: Path, *more: object) -> Answer:
    return call("data", "images", "shop", "--data-path", folder.parent, "--allow-private", *more)


def test_the_command_counts_by_reason_and_says_what_is_next(shop: Callable[..., Path]) -> None:
    answer = ask(shop("good/a.jpg", "missing/b.jpg", "html/c.jpg", ""))
    assert answer.code == 0
    assert "1 of 4 items have an image: 1 new, 0 kept\nmissing: not found 1, web page 1, no address 1" in answer.out
    assert "next: mmrec-lmm data check -d shop" in answer.out
    assert "warning: 3 items have no image" in answer.err


def test_no_image_at_all_is_an_error_of_data(shop: Callable[..., Path]) -> None:
    answer = ask(shop("missing/b.jpg", "html/c.jpg"))
    assert answer.code == 4
    assert "no item has an image: look at the rows' reasons" in answer.err
    assert "Traceback" not in answer.err


def test_flags_of_downloads_are_refused_beside_from(shop: Callable[..., Path], tmp_path: Path) -> None:
    answer = ask(shop("good/a.jpg"), "--from", tmp_path, "--retry-failed")
    assert answer.code == 2
    assert "--retry-failed: expected without --from" in answer.err


def test_a_missing_library_is_named(shop: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "aiohttp", None)
    with pytest.raises(ConfigError, match=r"downloads need aiohttp, .*pip install 'mmrec-lmm\[images\]'"):
        fetch(shop("good/a.jpg"))


@pytest.mark.slow
def test_all_real_posters_come_from_a_server_that_misbehaves(
    server: Server, shop: Callable[..., Path], shared: Path
) -> None:
    posters = {path.name: path.read_bytes() for path in (shared / "data" / "ml100k" / "images").iterdir()}
    server.given, server.wait = posters, 0.2
    kinds = ("good", "flaky", "cut", "wrong-length", "reset", "moved", "good", "good")
    paths = [f"{kinds[place % len(kinds)]}/{name}" for place, name in enumerate(posters)]
    bad = ["missing/1.jpg", "html/2.jpg", "placeholder/3.jpg", "circle/4.jpg", "huge/5.jpg", "busy/6.jpg"]
    folder = shop(*paths, *bad)
    report = fetch(folder)
    assert report.new == len(posters) + 1  # the busy one comes
    assert report.missing == dict.fromkeys(("not found", "web page", "placeholder", "redirect loop", "too large"), 1)
    came = images(folder)
    assert all(came[f"I{place:03d}.jpg"] == content for place, content in enumerate(posters.values()))
    assert all(count <= 3 for path, count in server.asked.items() if not path.startswith("/circle"))
    assert len(GIF) == 43

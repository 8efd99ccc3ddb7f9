"""Which file of a folder or an archive becomes the image of which item: in `data images --from` and `data import`."""

import io
import json
import random
import tarfile
import unicodedata
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from helpers import Answer, call
from image_server import GIF, picture

from mmrec_lmm.data.tables import read_table
from mmrec_lmm.errors import DataError
from mmrec_lmm_data_tools.images import sources
from mmrec_lmm_data_tools.images.adding import collect_images
from mmrec_lmm_data_tools.images.collecting import by_id, collect, resolve, stems
from mmrec_lmm_data_tools.images.manifest import read_manifest
from mmrec_lmm_data_tools.images.sources import open_source
from mmrec_lmm_data_tools.importing import import_dataset

Files = Mapping[str, bytes]


def folder_of(place: Path, files: Files) -> Path:
    for name, content in files.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(content)
    return place


def zip_of(place: Path, files: Files) -> Path:
    with zipfile.ZipFile(place, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return place


def tar_of(place: Path, files: Files, mode: str = "w") -> Path:
    with tarfile.open(place, mode) as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return place


KINDS: Mapping[str, Callable[[Path, Files], Path]] = {
    "folder": lambda place, files: folder_of(place / "pictures", files),
    "zip": lambda place, files: zip_of(place / "pictures.zip", files),
    "tar": lambda place, files: tar_of(place / "pictures.tar", files),
    "tar.gz": lambda place, files: tar_of(place / "pictures.tar.gz", files, "w:gz"),
    "no suffix": lambda place, files: tar_of(place / "pictures", files, "w:xz"),
}


def data_set(place: Path, items: list[str], *, urls: list[str] | None = None) -> Path:
    folder = place / "data" / "shop"
    folder.mkdir(parents=True)
    columns = [[str(place) for place in range(len(items))], items, urls or ["" for _ in items]]
    rows = ["\t".join(row) for row in zip(*columns, strict=True)]
    (folder / "items.tsv").write_text("\n".join(["itemID\traw_id\timage_url", *rows]) + "\n", encoding="utf-8")
    return folder


def named(folder: Path) -> list[str]:
    return read_table(folder / "items.tsv").columns["image"].tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_images_of_any_depth_and_suffix_are_found_by_id(tmp_path: Path, kind: str) -> None:
    files = {
        "images/010/0108775015.jpg": picture("a"), "images/011/0110065001.JPG": picture("b"), "deep/er/x.WebP":
        picture("c", "WEBP"), "readme.txt": b"hello", "images/__MACOSX/._0108775015.jpg": b"notes of macOS",
        "unused.png": picture("d", "PNG"), "t.tif": picture("t", "TIFF"),
    }  # fmt: skip
    folder = data_set(tmp_path, ["0108775015", "0110065001", "x", "missing", "t"])
    report = collect_images(folder, KINDS[kind](tmp_path, files))
    assert named(folder) == ["0108775015.jpg", "0110065001.jpg", "x.webp", "", "t.tif"]
    assert (folder / "images" / "0108775015.jpg").read_bytes() == picture("a")
    assert (report.new, report.missing) == (4, {"not in the source": 1})
    assert read_manifest(folder / "images.tsv")["0108775015"].url == "images/010/0108775015.jpg"


def test_unicode_forms_and_letters_of_either_case_are_one(tmp_path: Path) -> None:
    names = [unicodedata.normalize("NFD", "Öl-café"), "b000x", "Both", "both"]
    source = open_source(folder_of(tmp_path / "p", {f"{name}.jpg": b"" for name in names}))
    items = [unicodedata.normalize("NFC", "Öl-café"), "B000X", "Both", "both", "BOTH"]
    found, _ = by_id(source, items)
    assert found == {items[0]: f"{names[0]}.jpg", "B000X": "b000x.jpg", "Both": "Both.jpg", "both": "both.jpg"}


def test_ids_may_be_file_names_or_have_points_and_slashes(tmp_path: Path) -> None:
    items = ["a.jpg", "1.5", "x/y", ".hidden", "z" * 200, ""]
    written = stems(items)
    source = open_source(folder_of(tmp_path / "p", {f"{name}.png": b"" for name in ("1.5", *written.values())}))
    (tmp_path / "p" / "a.jpg").write_bytes(b"")
    found, _ = by_id(open_source(tmp_path / "p"), items)
    assert found["a.jpg"] == "a.jpg"
    assert {item: found[item] for item in items[1:]} == {item: f"{written[item]}.png" for item in items[1:]}
    assert len(source.names) == len(items)


def test_names_of_files_differ_where_case_does_not_count_and_stay_in_their_folder() -> None:
    items = ["a", "A", "../b", "/c", "..", "d:e", "f\\g", " h"]
    chosen = stems(items)
    assert len({stem.casefold() for stem in chosen.values()}) == len(items)
    assert not any(set("/\\:") & set(stem) or stem.startswith((".", " ")) for stem in chosen.values())
    assert chosen["a"] == "a"


@pytest.mark.parametrize(
    ("file", "item", "message"),
    [
        ("0108.jpg", "108", "differ in leading zeros alone, which tables lose .* (item 108: 0108.jpg)"),
        ("108.jpg", "0108", "leading zeros alone"),
        ("x_1.jpg", "x", "have something after the id (item x: x_1.jpg)"),
        ("x.heic", "x", "have another suffix than .jpg, .* convert or rename them (item x: x.heic)"),
        ("x", "x", "have another suffix"),
    ],
)
def test_what_comes_near_is_named_and_not_taken(tmp_path: Path, file: str, item: str, message: str) -> None:
    found, notes = by_id(open_source(folder_of(tmp_path / "p", {file: b""})), [item])
    assert not found
    [note] = notes
    assert note.startswith("1 files come near ids and aren't taken: they ")
    for part in message.split(" .* "):
        assert part in note


def test_of_several_files_of_an_item_the_first_is_taken_and_that_is_said(tmp_path: Path) -> None:
    source = open_source(folder_of(tmp_path / "p", {"b/a.jpg": b"", "a.png": b"", "a.jpg": b""}))
    assert by_id(source, ["a"]) == ({"a": "a.jpg"}, ["1 items have several files; the first is taken (item a: a.jpg)"])


def test_a_named_file_is_found_though_case_form_or_first_folders_differ(tmp_path: Path) -> None:
    cafe = unicodedata.normalize("NFD", "café.jpg")
    files = {"010/a.JPG": b"", cafe: b"", "x/same.jpg": b"", "y/same.jpg": b"", "c/d.jpg": b"", ".h/e.jpg": b""}
    source = open_source(folder_of(tmp_path / "p", files))
    wanted = {
        "a": "images/010/a.jpg", "b": unicodedata.normalize("NFC", "café.jpg"), "c": "c/d.jpg", "d": "d.jpg",
        "e": ".h/e.jpg", "f": "same.jpg", "g": "z/same.jpg", "h": "lost.jpg", "i": "",
    }  # fmt: skip
    found, notes = resolve(source, wanted)
    assert found == {"a": "010/a.JPG", "b": cafe, "c": "c/d.jpg", "d": "c/d.jpg", "e": ".h/e.jpg"}
    [note] = notes
    assert "2 images lie in other folders than the table says, or in several: item f names same.jpg, got" in note


def test_what_is_no_image_is_left_out_and_the_rows_say_why(tmp_path: Path) -> None:
    files = {
        "a.jpg": picture("a"), "b.jpg": GIF, "c.jpg": b"<html>", "d.jpg": picture("d")[:400], "e.jpg": b"x" * 3000,
        "f.jpg": b"version https://git-lfs.github.com/spec/v1\noid sha256:12\n",
    }  # fmt: skip
    folder = data_set(tmp_path, list("abcdef"))
    report = collect_images(folder, folder_of(tmp_path / "p", files), max_bytes=2000)
    assert named(folder) == ["a.jpg", "", "", "", "", ""]
    assert {item: row.reason for item, row in read_manifest(folder / "images.tsv").items()} == {
        "a": "", "b": "placeholder", "c": "web page", "d": "damaged", "e": "too large", "f": "not an image",
    }  # fmt: skip
    assert sum(report.missing.values()) == 5


def test_images_go_from_one_data_set_to_the_next(tmp_path: Path) -> None:
    items = ["a/b", "Ä", "x"]
    first = data_set(tmp_path / "one", items)
    source = {f"{stem}.jpg": picture(stem) for stem in stems(items).values()}
    collect_images(first, folder_of(tmp_path / "p", source))
    second = data_set(tmp_path / "two", items[::-1])
    assert collect_images(second, first / "images").new == 3
    assert named(second) == named(first)[::-1]


def test_a_second_collection_takes_only_what_is_missing(tmp_path: Path) -> None:
    folder = data_set(tmp_path, ["a", "b"])
    collect_images(folder, folder_of(tmp_path / "p", {"a.jpg": picture("a")}))
    more = folder_of(tmp_path / "q", {"a.jpg": picture("other"), "b.jpg": picture("b")})
    report = collect_images(folder, more)
    assert (report.new, report.kept) == (1, 1)
    assert (folder / "images" / "a.jpg").read_bytes() == picture("a")
    collect_images(folder, more, again=True)
    assert (folder / "images" / named(folder)[0]).read_bytes() == picture("other")


# Archives that mean harm, or are damaged


def test_entries_that_lead_out_of_an_archive_are_ignored_and_counted(tmp_path: Path) -> None:
    files = {"../a.jpg": picture("a"), "/b.jpg": picture("b"), "x/../../c.jpg": picture("c"), "d.jpg": picture("d")}
    for path in (zip_of(tmp_path / "p.zip", files), tar_of(tmp_path / "p.tar", files)):
        found = collect(path, list("abcd"))
        assert found.names == {"d": "d.jpg"}
        assert "3 entries ignored: links, or names that lead out of it" in found.notes[0]


def test_links_and_devices_in_an_archive_are_ignored(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "p.tar", "w") as archive:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE):
            entry = tarfile.TarInfo(f"{kind!r}.jpg")
            entry.type, entry.linkname = kind, "/etc/passwd"
            archive.addfile(entry)
    assert open_source(tmp_path / "p.tar").names == []
    with zipfile.ZipFile(tmp_path / "p.zip", "w") as zipped:
        link = zipfile.ZipInfo("a.jpg")
        link.external_attr = 0o120777 << 16
        zipped.writestr(link, "/etc/passwd")
    assert open_source(tmp_path / "p.zip").names == []


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_a_bomb_is_refused_before_it_unpacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr(sources, "FLOOR", 10**6)
    path = KINDS[kind](tmp_path, {f"{n}.jpg": bytes(10**6) for n in range(5)})
    with pytest.raises(DataError, match="got one that unpacks to over 100 times its size; if that is right, unpack it"):
        open_source(path)


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz", "no suffix"])
@pytest.mark.parametrize("part", [0.3, 0.6])
def test_an_archive_that_is_cut_short_is_named(tmp_path: Path, kind: str, part: float) -> None:
    files = {f"{n}.jpg": random.Random(n).randbytes(512) for n in range(40)}
    path = KINDS[kind](tmp_path, files)
    # of a tar, between two entries
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * part) // 1024 * 1024])
    folder = data_set(tmp_path, ["1"])
    with pytest.raises(DataError, match=r"pictures.*(is it whole\?|expected a whole archive)"):
        collect_images(folder, path)
    assert not (folder / "images").exists()


def test_a_source_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere: no such file or folder"):
        open_source(tmp_path / "nowhere")
    (tmp_path / "list.csv").write_text("a,b\n")
    with pytest.raises(DataError, match=r"list\.csv: expected a folder or an archive \(\.tar, .*\), got another file"):
        open_source(tmp_path / "list.csv")


# img2dataset


def shards(url: Callable[[int], str], count: int = 4, **more: str) -> dict[str, bytes]:
    files = {}
    for n in range(count):
        key = f"{n:09d}"
        files[f"{key}.jpg"] = picture(key)
        files[f"{key}.txt"] = b""
        files[f"{key}.json"] = json.dumps({"key": key, "url": url(n), "status": "success"} | more).encode()
    return files


def address(n: int) -> str:
    return f"https://shop.example/{n}.jpg"


@pytest.mark.parametrize("layout", ["files", "webdataset"])
def test_img2datasets_output_is_matched_by_addresses_and_not_by_its_numbers(tmp_path: Path, layout: str) -> None:
    items = ["000000001", "x", "y", "z"]  # the first looks like a key of img2dataset
    folder = data_set(tmp_path, items, urls=[address(3), address(0), "https://shop.example/none.jpg", address(0)])
    output = tmp_path / "out"
    if layout == "files":
        folder_of(output / "00000", shards(address))
    else:
        output.mkdir()
        tar_of(output / "00000.tar", shards(address))
    (output / "00000_stats.json").write_text("{}")
    assert collect_images(folder, output).new == 3
    keys = ["000000003", "000000000", "", "000000000"]
    for item, name, key in zip(items, named(folder), keys, strict=True):
        assert name == (f"{item}.jpg" if key else "")
        assert not key or (folder / "images" / name).read_bytes() == picture(key)


def test_img2datasets_output_may_say_the_item_itself(tmp_path: Path) -> None:
    folder = data_set(tmp_path, ["x"])
    collect_images(folder, folder_of(tmp_path / "out", shards(address, 1, asin="x")))
    assert named(folder) == ["x.jpg"]


def test_img2datasets_output_of_other_addresses_is_refused(tmp_path: Path) -> None:
    folder = data_set(tmp_path, ["000000001"], urls=["https://elsewhere.example/1.jpg"])
    with pytest.raises(DataError, match=r"got 4 others \(https://shop\.example/0\.jpg\); try --urls FILE"):
        collect_images(folder, folder_of(tmp_path / "out", shards(address)))
    table = tmp_path / "urls.tsv"
    table.write_text(f"000000001\t{address(2)}\n")
    collect_images(folder, tmp_path / "out", urls=table)
    assert (folder / "images" / "000000001.jpg").read_bytes() == picture("000000002")


def test_img2datasets_metadata_may_be_in_parquet_alone(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="no pyarrow here: pip install pyarrow")
    import pandas as pd

    output = folder_of(
        tmp_path / "out" / "00000", {"000000000.jpg": picture("0"), "000000001.jpg": picture("1")}
    ).parent
    table = pd.DataFrame({"key": ["000000000", "000000001"], "url": [address(5), address(6)]})
    table.to_parquet(output / "00000.parquet")
    folder = data_set(tmp_path, ["a"], urls=[address(6)])
    collect_images(folder, output)
    assert (folder / "images" / "a.jpg").read_bytes() == picture("1")


# data import


@pytest.mark.parametrize("kind", KINDS)
def test_an_import_takes_images_by_id_from_any_source(tmp_path: Path, kind: str) -> None:
    """As H&M's data set lies: a folder for the first three digits of each article."""
    table = tmp_path / "clicks.csv"
    table.write_text("customer_id,article_id\nu,0108775015\nu,0110065001\n")
    files = {"images/010/0108775015.jpg": picture("a"), "images/011/0110065001.jpg": picture("b")}
    out = tmp_path / "data" / "hm"
    report = import_dataset(
        table, out, images=KINDS[kind](tmp_path, files), user_column="customer_id", item_column="article_id"
    )
    assert report.images == 2
    for item, name in zip(("0108775015", "0110065001"), named(out), strict=True):
        assert (out / "images" / name).read_bytes() == files[f"images/{item[:3]}/{item}.jpg"]


def test_an_import_names_what_comes_near(tmp_path: Path) -> None:
    table = tmp_path / "clicks.csv"
    table.write_text("user,item\nu,108775015\nu,2\n")
    source = folder_of(tmp_path / "images", {"010/0108775015.jpg": picture("a")})
    report = import_dataset(table, tmp_path / "data" / "hm", images=source)
    assert report.images == 0
    assert "(item 108775015: 010/0108775015.jpg)" in str(report)


def ask(*arguments: object) -> Answer:
    return call("data", "images", *arguments)


def test_the_command_takes_images_from_a_folder_without_a_network(tmp_path: Path) -> None:
    folder = data_set(tmp_path, ["a", "b"])
    (folder / "items.tsv").write_text("itemID\traw_id\n0\ta\n1\tb\n")
    source = folder_of(tmp_path / "p", {"a.jpg": picture("a")})
    answer = ask("shop", "--data-path", folder.parent, "--from", source)
    assert answer.code == 0
    assert "1 of 2 items have an image: 1 new, 0 kept\nmissing: not in the source 1" in answer.out
    empty = ask("shop", "--data-path", folder.parent, "--from", tmp_path / "none")
    assert (empty.code, "none: no such file or folder" in empty.err) == (4, True)

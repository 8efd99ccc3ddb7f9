"""Files that stand in catalogs as images: what is read, what is masked, and that no file starts a program."""

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import image_kinds
import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from mmrec_lmm.data.images import FORMATS, UnreadableImage, decode_image
from mmrec_lmm.data.items import source_of
from mmrec_lmm.types import ItemCatalog
from mmrec_lmm_data_tools.images import verifying


def test_the_table_of_the_documentation_says_what_becomes_of_each_kind_of_file() -> None:
    written = [line for line in (ROOT / "docs" / "data.md").read_text().splitlines() if line.startswith("| ")]
    measured = image_kinds.table()
    lacking = [line for line in measured if line.startswith("| ") and line not in written]
    assert not lacking, "run `python -m tests.image_kinds` and copy its table into docs/data.md"
    rows = {line.split(" | ")[0]: line for line in measured}
    assert len({kind.name for kind in image_kinds.kinds()}) == len(image_kinds.kinds()) >= 60
    assert sum("| masked: " in row for row in rows.values()) >= 40


@pytest.fixture
def called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that a stub of Ghostscript, first on PATH, writes when it is called."""
    stub = tmp_path / "bin" / "gs"
    stub.parent.mkdir()
    stub.write_text(f"#!/bin/sh\ntouch '{tmp_path / 'called'}'\n")
    stub.chmod(0o755)
    monkeypatch.setenv("PATH", f"{stub.parent}{os.pathsep}{os.environ['PATH']}")
    return tmp_path / "called"


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".eps", ".JPEG"])
def test_ghostscript_is_not_called_whatever_a_file_is_called(called: Path, tmp_path: Path, suffix: str) -> None:
    disguised = {kind.name: kind for kind in image_kinds.kinds()}
    paths = []
    for name in ("EPS", "EPS with a preview", "PostScript, called .png", "PDF", "Windows metafile"):
        paths.append(tmp_path / f"{len(paths)}{suffix}")
        disguised[name].make(paths[-1])
    catalog = ItemCatalog({}, tuple(paths), tuple("abcde"), "")
    for item, path in enumerate(paths):
        with pytest.raises(UnreadableImage, match=r"convert it|damaged|no image"):
            source_of(catalog, "image", ()).read(item)
        with pytest.raises(verifying.Unusable, match="not an image"):
            verifying.verify(path)
    assert not called.exists()


@pytest.mark.skipif(sys.platform == "win32", reason="the stub is a shell script")
def test_the_stub_is_called_when_pillow_may_open_every_format(called: Path, tmp_path: Path) -> None:
    code = """
        import sys
        from PIL import Image
        try:
            Image.open(sys.argv[1]).load()
        except Exception:
            pass
    """
    (tmp_path / "1.jpg").write_bytes(image_kinds.saved("EPS"))
    subprocess.run([sys.executable, "-c", textwrap.dedent(code), tmp_path / "1.jpg"], check=True)
    assert called.exists()


def test_images_are_opened_in_one_place_alone() -> None:
    """Tests may open the files that they made."""
    opening = re.compile(r"\bImage\.open\(|from PIL\.Image import|from PIL import .*\bImageFile\b|import PIL\b")
    found = {
        str(path.relative_to(ROOT)): path.read_text().count("Image.open(")
        for room in ("mmrec_lmm", "plugins", "data_tools", "benchmarks")
        for path in (ROOT / room).rglob("*.py")
        if opening.search(path.read_text())
    }
    assert found == {"mmrec_lmm/data/images.py": 1}
    assert "formats=_formats()" in (ROOT / "mmrec_lmm/data/images.py").read_text()


def test_downloads_are_kept_in_the_formats_that_are_read() -> None:
    assert set(verifying.FORMATS) == set(FORMATS)


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "1", "RGBA", "LA", "CMYK"])
@pytest.mark.parametrize("background", ["white", "black", "none"])
def test_an_opaque_image_has_the_pixels_that_pillow_reads(mode: str, background) -> None:
    form = "TIFF" if mode == "CMYK" else "PNG"
    content = image_kinds.saved(form, image_kinds.picture(mode))
    with Image.open(image_kinds.io.BytesIO(content)) as image:
        assert np.array_equal(decode_image(content, background), image.convert("RGB"))


@pytest.mark.parametrize(("bits", "level"), [(1, 1), (2, 3), (4, 15), (8, 255)])
def test_a_gray_level_that_a_png_calls_transparent_is(bits: int, level: int) -> None:
    row = b"\0" + bytes([255] * bits)  # 8 pixels, all of the largest level
    content = (
        image_kinds._head(8, 1, bits, 0)
        + image_kinds.chunk(b"tRNS", bytes([0, level]))
        + image_kinds.chunk(b"IDAT", image_kinds.zlib.compress(row))
        + image_kinds.chunk(b"IEND", b"")
    )
    assert np.array(decode_image(content, "black")).max() == 0
    assert np.array(decode_image(content, "none")).min() == 255


@pytest.mark.parametrize("how", [{}, {"progressive": True}, {"optimize": True}, {"restart_marker_rows": 1}])
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("quality", [50, 95])
def test_of_a_jpeg_cut_anywhere_it_is_read_only_if_no_pixel_is_lost(how, mode: str, quality: int) -> None:
    content = image_kinds.saved("JPEG", image_kinds.picture(mode), quality=quality, **how)
    whole = np.array(decode_image(content))
    for cut in (1, 2, 3, 4, 5, 7, 10, 20, 50, 200, 1000, len(content) // 2):
        try:
            image = decode_image(content[:-cut])
        except UnreadableImage:
            assert cut > 2
        else:
            assert np.array_equal(image, whole)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["palette", "alpha", "floats", "cut"])
def test_the_largest_image_that_is_read_takes_less_than_two_gigabytes(tmp_path: Path, kind: str) -> None:
    code = """
        import re, resource, sys
        from pathlib import Path
        from mmrec_lmm.data.images import read_image
        read_image(Path(sys.argv[1]))
        status = Path("/proc/self/status")  # the peak that the other function knows includes that of the parent
        peak = re.search(r"VmHWM:\\s+(\\d+)", status.read_text())[1] if status.exists() else 0
        print(int(peak) or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    """
    side, path = 9450, tmp_path / "large"
    if kind == "floats":
        Image.fromarray(np.full((side, side), 0.5, np.float32)).save(path, "TIFF")
    elif kind == "cut":
        path.write_bytes(image_kinds.saved("JPEG", Image.new("RGB", (side, side), "red"))[:-2])
    elif kind == "alpha":
        Image.new("RGBA", (side, side), (1, 2, 3, 4)).save(path, "PNG", compress_level=1)
    else:
        Image.new("P", (side, side)).save(path, "PNG", transparency=b"\x01\x80", compress_level=1)
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), path], check=True, text=True, capture_output=True
    )
    kilobytes = int(done.stdout) // (1024 if sys.platform == "darwin" else 1)
    assert kilobytes < 2_000_000

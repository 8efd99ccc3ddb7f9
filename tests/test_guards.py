"""What comes from strangers stays data: paths, names, cells of CSV, downloads, and formats that could hold code."""

import ast
import csv
import gzip
import hashlib
import http.server
import io
import logging
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mmrec_lmm.cli import main
from mmrec_lmm.config.resolve import Request, resolve_request
from mmrec_lmm.data.loading import read_catalog
from mmrec_lmm.downloads import fetching
from mmrec_lmm.downloads.fetching import shown
from mmrec_lmm.downloads.files import NotDownloaded, RemoteFile, bring
from mmrec_lmm.errors import ConfigError, DataError
from mmrec_lmm.formatting import csv_text, defused, printable
from mmrec_lmm.logs import CONSOLE_FORMAT
from mmrec_lmm.plugin.names import LONGEST, is_safe_name, is_within
from mmrec_lmm.plugin.registry import load_registry
from mmrec_lmm.report.writers import Line, Table, TableCell, as_html, as_latex, as_markdown
from mmrec_lmm.running.exports import pieces
from mmrec_lmm.studies.file import load_study
from mmrec_lmm_data_tools import getting
from mmrec_lmm_data_tools.images.manifest import COLUMNS, read_manifest
from mmrec_lmm_data_tools.images.sources import open_source
from mmrec_lmm_data_tools.published import DATASETS
from mmrec_lmm_data_tools.sources import lines

ROOT = Path(__file__).parents[1]
ESCAPE = "\x1b[31mred\x1b]0;title\x07"
OUTSIDE = [
    "/etc/passwd", "../x.jpg", "a/../../x.jpg", "a/..", "..", "C:\\x.jpg", "C:x.jpg", "a\\x.jpg", "a\0b", "a\nb",
    "\x1b[2J.jpg", "",
]  # fmt: skip
INSIDE = ["a.jpg", "a/b.jpg", "..a/b..jpg", "./a.jpg", "é/日本.png", "a b.jpg", "a..b", "con.jpg"]


# Paths


def test_a_path_within_a_folder_is_told_from_one_that_leads_out() -> None:
    assert not [path for path in OUTSIDE if is_within(path)]
    assert [path for path in INSIDE if is_within(path)] == INSIDE


@pytest.mark.parametrize("name", [name for name in OUTSIDE if name and name.isprintable()])
def test_an_image_of_a_table_stays_within_the_data_set_when_it_is_loaded(name: str, tmp_path: Path) -> None:
    (tmp_path / "items.tsv").write_text(f"itemID\ttitle\timage\n0\ta\t\n1\tb\t{name}\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"items\.tsv: image: item 1: expected a path that stays within its folder"):
        read_catalog(tmp_path)


def test_an_images_folder_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.jpg").write_bytes(b"picture")
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "images").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "toy" / "items.tsv").write_text("itemID\ttitle\timage\n0\ta\ta.jpg\n")
    path = read_catalog(tmp_path / "toy").images[0]
    assert path is not None
    assert path.read_bytes() == b"picture"


@pytest.mark.parametrize("key", ["inter_file_name", "vision_feature_file", "text_feature_file"])
def test_files_that_configuration_names_stay_within_the_data_set(key: str) -> None:
    registry = load_registry()
    for name in ("../other/x", "/etc/passwd", "a\\b"):
        with pytest.raises(ConfigError, match=f"{key} must be a path that stays within its folder"):
            resolve_request(Request("", "toy", overrides={key: name}), registry)
    assert resolve_request(Request("", "toy", overrides={key: "sub/x.npy"}), registry)


def test_a_manifest_of_images_stays_within_the_data_set(tmp_path: Path) -> None:
    row = dict.fromkeys(COLUMNS, "0") | {"item": "a", "image": "../../x.jpg"}
    (tmp_path / "images.tsv").write_text("\t".join(COLUMNS) + "\n" + "\t".join(row[name] for name in COLUMNS) + "\n")
    with pytest.raises(DataError, match=r"images\.tsv, line 2: image: expected a path that stays within"):
        read_manifest(tmp_path / "images.tsv")


def test_entries_of_an_archive_that_lead_out_are_ignored_in_images_and_refused_in_data(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("good.jpg", "../bad.jpg", "/abs.jpg", "a\\b.jpg", "C:/x.jpg"):
            archive.writestr(name, b"x")
    source = open_source(path)
    assert (source.names, source.ignored) == (["good.jpg"], 4)
    with pytest.raises(DataError, match=r"a\.zip: expected files within the archive, got '\.\./bad\.jpg'"):
        getting._unpacked([path], DATASETS["baby"])


def test_archives_and_compressed_lines_that_unpack_to_too_much_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmrec_lmm_data_tools.images.sources.FLOOR", 1000)
    monkeypatch.setattr(lines, "FLOOR", 1000)
    bomb = b"a line\n" * 2_000_000
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("u.data", bomb)
    with pytest.raises(DataError, match="unpacks to over 100 times its size"):
        getting._unpacked([tmp_path / "bomb.zip"], DATASETS["baby"])
    (tmp_path / "bomb.gz").write_bytes(gzip.compress(bomb))
    with pytest.raises(DataError, match=r"bomb\.gz, line \d+: expected a file that unpacks to at most 200 times"):
        list(lines.blocks_of(tmp_path / "bomb.gz"))
    (tmp_path / "fine.gz").write_bytes(gzip.compress(np.random.default_rng(0).bytes(2**16).hex().encode()))
    assert list(lines.blocks_of(tmp_path / "fine.gz"))


# Names

UNSAFE = [
    "", ".hidden", "-rf", "a/b", "a\\b", "a\tb", "a\nb", ESCAPE, "<b>x</b>", "a|b", "a`b", "..", "a..b", "a.", "a ",
    " a", "a\u202eb", "=1+1", "@x", "a:b", 'a"b', "a;b", "a$b", "[x](y)", "x" * (LONGEST + 1),
]  # fmt: skip
SAFE = [
    "baby",
    "Amazon Baby",
    "ml-1m",
    "a_b.c",
    "_old",
    "日本のデータ",
    "café",
    "cafe\u0301",
    "Men's & Women's",
    "v1(2)",
    "5core",
]


def test_names_keep_one_rule_and_harmless_ones_go_on_working() -> None:
    assert not [name for name in UNSAFE if is_safe_name(name)]
    assert [name for name in SAFE if is_safe_name(name)] == SAFE


@pytest.mark.parametrize("name", [name for name in UNSAFE if name])
def test_an_unsafe_name_of_a_data_set_is_refused_where_it_enters(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError, match="data set: expected a name of at most 100 letters"):
        resolve_request(Request("", name), load_registry())
    (tmp_path / "x.csv").write_text("user,item\na,b\n")
    with pytest.raises(SystemExit) as ended:
        main(["data", "import", f"--interactions={tmp_path / 'x.csv'}", f"--data-path={tmp_path}", "--", name])
    assert ended.value.code == 2
    assert "\x1b" not in capsys.readouterr().err


def test_a_study_names_its_data_sets_by_the_rule(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text('models: [BPR]\ndatasets: [demo, "<script>"]\n')
    with pytest.raises(ConfigError, match=r"mine\.yaml:2: datasets: expected a name of .*, got '<script>'"):
        load_study(path)


# Cells, tables, terminals

FORMULAS = ["=1+1", "+1+1", "-1+cmd|' /C calc'!A0", "@SUM(A1)", "\t=1", "\r=1", "  =1", "--x", "-", "+"]
HARMLESS = ["-0.5", "+3", "1e-4", "-1.5e+10", "a=b", "0", "", "text", "'x", ".5"]


def test_formulas_are_defused_in_csv_and_numbers_stay_numbers() -> None:
    assert [defused(cell) for cell in FORMULAS] == [f"'{cell}" for cell in FORMULAS]
    assert [defused(cell) for cell in HARMLESS] == HARMLESS
    text = csv_text([{"a": "=1", "b": -1, "c": -0.5}, {"a": "x", "d": None}])
    assert list(csv.reader(io.StringIO(text))) == [["a", "b", "c", "d"], ["'=1", "-1", "-0.5", ""], ["x", "", "", ""]]


@pytest.mark.parametrize("how", ["csv", "tsv"])
def test_recommendations_are_defused_too(how: str) -> None:
    rows = pd.DataFrame({"user": ["u"], "rank": [1], "item": ["-5"], "title": ['=HYPERLINK("http://x")']})
    text = "".join(pieces([rows], how))
    assert list(csv.reader(io.StringIO(text), delimiter="," if how == "csv" else "\t")) == [
        ["user", "rank", "item", "title"], ["u", "1", "-5", "'=HYPERLINK(\"http://x\")"],
    ]  # fmt: skip
    assert "".join(pieces([rows[:0]], how)).split() == [("," if how == "csv" else "\t").join(rows)] or how == "tsv"


def test_no_text_commands_a_terminal() -> None:
    assert printable(f"a{ESCAPE}\tb\r\nc\x9b31m\u202e") == "a?[31mred?]0;title?\tb?\nc?31m?"
    record = logging.LogRecord("x", logging.WARNING, "x", 1, "item %s", (ESCAPE,), None)
    assert "\x1b" not in CONSOLE_FORMAT.format(record)


def test_what_is_printed_of_names_and_titles_holds_no_escape(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / ESCAPE).mkdir()
    assert main(["list", "datasets", "--data-path", str(tmp_path)]) == 0
    printed = capsys.readouterr()
    assert "red" in printed.out
    assert "\x1b" not in printed.out + printed.err


@pytest.mark.parametrize(("write", "never"), [(as_markdown, "\x1b"), (as_latex, "\\input"), (as_html, "<script")])
def test_tables_escape_every_text(write: Callable[[Table], str], never: str) -> None:
    evil = f"<script>alert(1)</script> \\input{{/etc/passwd}} | {ESCAPE}\n| x"
    table = Table(evil, ("model",), ("recall",), (Line((evil,), (TableCell(evil),)),), {"a": evil}, (evil,))
    text = write(table)
    assert never not in text
    assert "alert(1)" in text


# Downloads


class Served:
    """A server that gives one raw answer, whatever it is asked."""

    def __init__(self) -> None:
        self.answer, self.asked = b"", list[dict[str, str]]()
        world = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                world.asked.append(dict(self.headers))
                self.wfile.write(world.answer)
                self.close_connection = True

            def log_message(self, *_: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.place = f"127.0.0.1:{self.server.server_port}/x.bin"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    monkeypatch.setattr(fetching, "PAUSES", (0.0,))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    world = Served()
    yield world
    world.server.shutdown()
    world.server.server_close()


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"HTTP/1.0 200 OK\r\n\r\nhalf", r"doesn't say how long it is.*SHA-256, write that to .*x\.bin\.sha256"),
        (CHUNKED, "IncompleteRead"),
        (b"HTTP/1.1 302 Found\r\nLocation: ftp://127.0.0.1/x\r\n\r\n", "redirects to 'ftp://127.0.0.1/x', which isn't"),
        (b"HTTP/1.1 302 Found\r\nLocation: file:///etc/passwd\r\n\r\n", "'file:///etc/passwd' is not allowed"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9000000000000000\r\n\r\nx", "announces 9,000,000,000,000,000 bytes"),
    ],
    ids=["no length", "cut chunks", "ftp", "file", "too large"],
)
def test_a_download_is_whole_and_from_the_web_or_refused(
    answer: bytes, message: str, served: Served, tmp_path: Path
) -> None:
    place, served.answer = tmp_path / "x.bin", answer
    with pytest.raises(NotDownloaded, match=message):
        bring(RemoteFile("x.bin", (f"http://{served.place}",)), place, who="toy", otherwise="stop")
    assert not place.exists()


def test_whole_chunks_are_taken_and_an_open_address_is_warned_of(
    served: Served, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    served.answer = CHUNKED + b"0\r\n\r\n"
    bring(RemoteFile("x.bin", (f"http://{served.place}",)), tmp_path / "x.bin", who="toy", otherwise="stop")
    assert (tmp_path / "x.bin").read_bytes() == b"hello"
    assert "whoever is on the way can change it" in caplog.text


def test_a_planted_part_is_never_the_file(served: Served, tmp_path: Path) -> None:
    """Even where it names its origin: the server is asked, and says what the file is."""
    served.answer = b'HTTP/1.1 200 OK\r\nContent-Length: 5\r\nETag: "2"\r\n\r\nhello'
    url = f"http://{served.place}"
    place = tmp_path / "x.bin"
    for origin in (None, f'{{"url": "{url}", "version": "\\"1\\"", "total": 4}}'):
        (tmp_path / "x.bin.part").write_bytes(b"evil")
        if origin:
            (tmp_path / "x.bin.part.origin").write_text(origin)
        bring(RemoteFile("x.bin", (url,)), place, who="toy", otherwise="stop")
        assert place.read_bytes() == b"hello"
        place.unlink()
    (tmp_path / "x.bin.part").write_bytes(b"evil!")
    digest = hashlib.sha256(b"hello").hexdigest()
    bring(RemoteFile("x.bin", (url,), digest), place, who="toy", otherwise="stop")
    assert place.read_bytes() == b"hello"


def test_a_password_in_an_address_is_sent_and_never_logged(
    served: Served, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    served.answer = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
    url = f"http://anne:geheim@{served.place}?token=geheim&id=3"
    with pytest.raises(NotDownloaded) as refused:
        bring(RemoteFile("x.bin", (url, url)), tmp_path / "x.bin", who="toy", otherwise="stop")
    assert served.asked[0]["Authorization"] == "Basic YW5uZTpnZWhlaW0="
    assert "geheim" not in caplog.text + str(refused.value)
    assert "geheim" not in "".join(path.read_text() for path in tmp_path.glob("*.origin"))
    assert shown(url).endswith("/x.bin?token=...&id=3")


# Formats that could hold code


#: Running the file that its user names is what the bridge is for, and it writes user_graph_dict.npy for such a file.
OF_BRIDGE = {"mmrec_lmm/bridge/imports.py: exec", "mmrec_lmm/bridge/data_folder.py: np.save"}


def test_nothing_is_read_by_a_way_that_could_run_it() -> None:
    """No pickle but torch's restricted reader, no YAML but safe loaders, no arrays of objects, no `eval`."""
    found = []
    for folder in ("mmrec_lmm", "plugins", "data_tools", "benchmarks"):
        for path in (ROOT / folder).rglob("*.py"):
            for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if not isinstance(call, ast.Call) or not _runs_code(call):
                    continue
                if f"{path.relative_to(ROOT).as_posix()}: {ast.unparse(call.func)}" not in OF_BRIDGE:
                    found.append(f"{path.relative_to(ROOT)}:{call.lineno}: {ast.unparse(call)[:60]}")
    assert not found


def _runs_code(call: ast.Call) -> bool:
    name, given = ast.unparse(call.func), {one.arg: ast.unparse(one.value) for one in call.keywords}
    return (
        (name == "torch.load" and given.get("weights_only") != "True")
        or given.get("allow_pickle", "False") != "False"
        or name in ("eval", "exec", "torch.jit.load", "yaml.load", "yaml.load_all", "yaml.full_load", "joblib.load")
        or name.startswith(("yaml.unsafe", "marshal.", "shelve.", "dill."))
        or name in ("pickle.load", "pickle.loads", "pd.read_pickle", "pandas.read_pickle", "pickle.Unpickler")
        or given.get("trust_remote_code", "False") != "False"
    )


@pytest.mark.parametrize(
    ("line", "runs"),
    [
        ("torch.load(p)", True), ("torch.load(p, weights_only=False)", True),
        ("torch.load(p, weights_only=True)", False),
        ("np.load(p, allow_pickle=True)", True), ("np.load(p)", False), ("yaml.load(t)", True),
        ("yaml.safe_load(t)", False), ("pickle.loads(b)", True), ("eval(x)", True),
    ],
)  # fmt: skip
def test_the_search_for_such_ways_finds_them(line: str, runs: bool) -> None:
    call = ast.parse(line, mode="eval").body
    assert isinstance(call, ast.Call)
    assert _runs_code(call) is runs


def test_the_command_line_prints_no_escape_in_a_process_of_its_own(tmp_path: Path) -> None:
    (tmp_path / ESCAPE).mkdir()
    command = [sys.executable, "-m", "mmrec_lmm", "list", "datasets", "--data-path", str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, check=True)
    assert b"\x1b" not in ended.stdout + ended.stderr

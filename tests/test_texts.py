"""Cleaning texts: each fault of real shops' pages, what must stay as it is, and time that grows with the text."""

import time
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmrec_lmm_data_tools.importing import import_dataset
from mmrec_lmm_data_tools.texts import ENCODING, ENTITIES, INVISIBLE, SCRIPT, STYLE, TAGS, clean

STYLES = "Dishwasher safe..caption { font-family: serif; font-size: 10px; } ul.indent { list-style: inside; }Blue."
SCRIPTS = "A chair. Portable.PositionX = 10; var AutoClose = true; function popImage(imageURL,t){ window.open(''); }"


@pytest.mark.parametrize(
    ("text", "cleaned", "kind"),
    [
        ("Baby Tracker&reg; 52&quot; &#34;x&#34; &#xe9;", 'Baby Tracker® 52" "x" é', ENTITIES),
        ("Fish &amp;amp; Chips", "Fish & Chips", ENTITIES),
        ("CafÃ© â€œokâ€\x9d", "Café “ok”", ENCODING),
        ("100 Â°C", "100 °C", ENCODING),
        ("CafÃƒÂ©", "Café", ENCODING),  # twice
        ("<b>Bold</b><br />next <a href='x'>link</a>", "Bold next link", TAGS),
        ("&lt;p&gt;Hat&lt;/p&gt;", "Hat", TAGS),
        ("Sleep\u200bSack\xad \x00now\ufeff", "SleepSack now", INVISIBLE),
        ("\u200b\u200d \x07", "", INVISIBLE),
        (STYLES, "Dishwasher safe. Blue.", STYLE),
        (SCRIPTS, "A chair. Portable.", SCRIPT),
        ("var aPageStart = (new Date()).getTime();", "", SCRIPT),
        ("<script>alert(1)</script>Hat<!-- old -->", "Hat", SCRIPT),
    ],
)
def test_a_fault_is_mended_and_counted(text: str, cleaned: str, kind: str) -> None:
    found: Counter[str] = Counter()
    assert clean(text, found) == cleaned
    assert found[kind] == 1


@pytest.mark.parametrize(
    "text",
    [
        "R&D, AT&T &copy 2", "5 < 6 and I <3 you", "List<String> for a<b", "Älg på Ö, Ünal, déjà vu", "Size {S; M}",
        "Ages 3-5: 2 pieces; {new}", "日本語 “quoted” – 20€", "👨\u200d👩\u200d👧",
        "var x", "a function (of time)", "NA",
        "What a document. Write it.", "http://a.b/?c=1&d=2",
    ],
)  # fmt: skip
def test_text_without_a_fault_stays_as_it_is(text: str) -> None:
    found: Counter[str] = Counter()
    assert clean(text, found) == text
    assert not any(found.values())


@given(st.text())
def test_clean_text_is_on_one_line_and_visible(text: str) -> None:
    cleaned = clean(text)
    assert cleaned == " ".join(cleaned.split())
    assert "\x00" not in cleaned


@given(st.text(alphabet=st.characters(max_codepoint=0x24F, min_codepoint=0xC0), min_size=2))
def test_text_read_in_the_wrong_encoding_comes_back(text: str) -> None:
    assert clean(text.encode().decode("latin-1")) == clean(text)


@pytest.mark.parametrize(
    "part",
    ["<!--", "<script", "<script>", "<script></script", "{a:b;", "{a:b;} .a ", ".a ", "a-", "<a ", "&#", "var ", "#a>",
     "function(", "function a(b,", "window.", "Ã", "x:y;", "}a ", ".a{b:c;", " "],
)  # fmt: skip
def test_hostile_text_takes_time_in_proportion_to_its_length(part: str) -> None:
    begin = time.process_time()
    clean(part * (200_000 // len(part)))
    assert time.process_time() - begin < 5  # quadratic patterns took minutes


def test_an_import_cleans_texts_unless_asked_not_to(tmp_path: Path) -> None:
    (tmp_path / "clicks.csv").write_text("user,item\n" + "".join(f"u,{item}\n" for item in "abc"))
    (tmp_path / "items.csv").write_text("item,title\na,<b>Mug</b> &amp; cup\nb,Lamp\nc,\n")
    titles = {}
    for raw_text in (False, True):
        report = import_dataset(
            tmp_path / "clicks.csv", tmp_path / f"{raw_text}", items=tmp_path / "items.csv", raw_text=raw_text
        )
        titles[raw_text] = pd.read_csv(tmp_path / f"{raw_text}" / "items.tsv", sep="\t")["title"][0]
        assert report.cleaned == ({} if raw_text else {ENTITIES: 1, TAGS: 1})
    assert titles == {False: "Mug & cup", True: "<b>Mug</b> &amp; cup"}

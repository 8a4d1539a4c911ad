"""What is found in captions, what only warns, and how tokens are counted."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import pixelkit
from pixelkit.dataset.captions.coordinates import is_coordinates
from pixelkit.dataset.captions.entries import find_entries
from pixelkit.dataset.captions.terms import find_spellings
from pixelkit.dataset.captions.tokens import Tokenizer, find_tokenizer, split_words
from pixelkit.dataset.captions.validate import Findings, validate
from pixelkit.errors import DataError

TINY = Path(pixelkit.__file__).parent / "tiny" / "weights" / "tokenizer"
GOOD = "a red dragon breathing fire, side view"
PORTRAIT = ", ".join(
    ["solid grey #808080 background", "black pupils at (8,12) and (13,12)", "lips at x=10-13 y=15-16"] * 8
)


def check(
    folder: Path, *captions: str | bytes | None, trigger: str = "", tokenizer: Tokenizer | None = None
) -> Findings:
    for number, caption in enumerate(captions):
        Image.new("RGB", (8, 8)).save(folder / f"{number}.png")
        if caption is not None:
            data = caption if isinstance(caption, bytes) else caption.encode()
            (folder / f"{number}.txt").write_bytes(data)
    return validate(folder, find_entries(folder), tokenizer or Tokenizer("none", None), trigger=trigger)


@pytest.mark.parametrize(
    ("caption", "what"),
    [
        (None, "has no caption"),
        ("", "is empty"),
        (" \n", "is empty"),
        ("Drache, grün".encode("latin-1"), "is not UTF-8 text (byte 11)"),
        ("a red dragon", "12 characters, 20 at least"),
        ("very " * 50 + "red dragon", "260 characters, 200 at most"),
        ("a red dragon\x00 breathing fire", "U+0000"),
        ("a red dr\ufffdgon breathing fire", "U+FFFD"),
    ],
)
def test_errors(tmp_path: Path, caption: str | bytes | None, what: str) -> None:
    findings = check(tmp_path, caption)
    assert [what in problem.what for problem in findings.errors] == [True]
    assert findings.errors[0].where == ("0.png" if caption is None else "0.txt")


@pytest.mark.parametrize(
    ("captions", "what"),
    [
        ((f"{GOOD}\nsecond line",), "several lines"),
        ((b"\xef\xbb\xbf" + GOOD.encode(),), "byte order mark"),
        ((GOOD, GOOD.upper()), "the same caption as 1.txt"),
        (("pixel art, a game sprite, 16-bit style",), "says nothing of this sprite"),
        ((f"{GOOD}, 16-bit", f"{GOOD}, wings, 16bit"), 'one term in 2 ways: "16-bit" (1), "16bit" (1)'),
        (("dragon " * 25,), ""),
    ],
)
def test_warnings(tmp_path: Path, captions: tuple[str | bytes, ...], what: str) -> None:
    findings = check(tmp_path, *captions)
    assert findings.errors == []
    assert any(what in problem.what for problem in findings.warnings) if what else not findings.warnings


def test_good_captions_pass(tmp_path: Path) -> None:
    findings = check(tmp_path, f"TOK, {GOOD}", "TOK, a green goblin with a wooden club", trigger="TOK")
    assert findings == Findings(captions=2)


def test_a_missing_trigger_is_an_error(tmp_path: Path) -> None:
    findings = check(tmp_path, f"TOK, {GOOD}", "a green goblin with a wooden club", trigger="TOK")
    assert [(problem.where, problem.what) for problem in findings.errors] == [("1.txt", "lacks the trigger TOK")]


def test_coordinates_may_be_long_but_what_is_cut_is_said(tmp_path: Path) -> None:
    assert len(PORTRAIT) > 520 and is_coordinates(PORTRAIT)
    findings = check(tmp_path, PORTRAIT)
    assert findings.errors == []
    (cut,) = [problem for problem in findings.warnings if "tokens" in problem.what]
    assert cut.what.startswith("at least ") and "75 are read" in cut.what


def test_a_phrase_that_all_captions_share_says_nothing(tmp_path: Path) -> None:
    style = "in the dark style of my game"
    findings = check(
        tmp_path, *(f"{style}, {subject}" for subject in ("orc", "elf", "imp", "bat", "cat", "white sprite"))
    )
    assert [problem.where for problem in findings.warnings] == ["5.txt"]


def test_terms_differ_in_hyphen_space_case_or_plural() -> None:
    captions = ["16-bit style", "16bit style", "16 bit style", "16-bit look", "NPC", "npc", "two swords", "a sword"]
    ways = [dict(term.ways) for term in find_spellings(captions)]
    assert {"16-bit": 2, "16bit": 1, "16 bit": 1} in ways
    assert {"NPC": 1, "npc": 1} in ways
    assert {"swords": 1, "sword": 1} in ways
    assert len(ways) == 3  # "16-bit style" is told once, as "16-bit"


def test_a_capital_at_the_beginning_is_no_other_way() -> None:
    assert find_spellings(["Dragon of fire", "a dragon, red"]) == []


def test_rare_ways_name_their_captions() -> None:
    (term,) = find_spellings(["hell hound", "a hellhound", "hell hound, red"])
    assert term.ways == (("hell hound", 2), ("hellhound", 1)) and term.rare == (1,)


def test_without_a_vocabulary_a_word_is_at_least_one_token() -> None:
    count = Tokenizer("none", None).count("one, two 34")
    assert (count.tokens, count.least) == (5, True)


def test_the_cut_begins_with_the_first_word_that_does_not_fit() -> None:
    counted = Tokenizer("none", None).count("word " * 74 + "kept, gone and gone")
    assert counted.cut == "gone and gone"
    assert Tokenizer("none", None).count("word " * 75).cut == ""
    assert Tokenizer("none", None).count("word " * 73 + "x=10-13, jaw").cut == "x=10-13, jaw"
    assert Tokenizer("none", None).count("word " * 74 + "kept, jaw").cut == "jaw"
    assert Tokenizer("none", None).count("x" + "-1" * 60).cut.startswith("x-1")


def test_a_tokenizer_of_a_base_model_counts() -> None:
    tokenizer = find_tokenizer(TINY.parent)
    assert tokenizer.exact and tokenizer.window == 30  # 32 less the marks at both ends
    assert tokenizer.encode("a red sword") == ["a</w>", "red</w>", "sword</w>"]


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no merges"):
        find_tokenizer(tmp_path)


def test_the_hubs_cache_is_looked_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = tmp_path / "models--openai--clip-vit-large-patch14" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "merges.txt").write_text("#version: 0.2\nr e\nre d</w>\n")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    tokenizer = find_tokenizer()
    assert "clip-vit-large-patch14" in tokenizer.name and tokenizer.window == 75
    assert tokenizer.encode("Red") == ["red</w>"]


@given(st.text())
def test_words_leave_out_nothing_but_blanks(text: str) -> None:
    words = list(split_words(text))
    assert "".join(word for _, word in words) in {
        "".join(text.lower().split()),
        "".join("".join(sign.lower() for sign in text).split()),
    }
    assert all(text[start].lower()[0] in word or word[0] == "ς" for start, word in words)


def test_a_range_is_no_number() -> None:
    assert find_spellings(["hair y=1-8", "hair y=18", "x=10-13", "x=1013"]) == []

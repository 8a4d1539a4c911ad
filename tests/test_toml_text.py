from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
import toml
from hypothesis import given, settings
from hypothesis import strategies as st

from pixelkit.errors import RenderError
from pixelkit.toml_text import format_key, format_value, is_same

NASTY = st.text(st.sampled_from(list("\"'\\,[]{}#=.uUnx0041dD \n\r\t\x00\x1b\x7f\x85\u2028é🎮")), max_size=14)
TEXT = NASTY | st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
INT = st.integers(-(2**63), 2**63 - 1)
FLOAT = st.floats(allow_nan=False, allow_infinity=False)
LIST = st.lists(TEXT, max_size=5) | st.lists(INT, max_size=5) | st.lists(FLOAT, max_size=5) | st.lists(st.booleans())
VALUE = TEXT | INT | FLOAT | st.booleans() | LIST
KEY = st.text("abcz_-09", min_size=1, max_size=8)


def assert_reads_back(document: str, expected: object) -> None:
    assert is_same(tomllib.loads(document), expected)
    assert is_same(toml.loads(document), expected)


@settings(max_examples=500, deadline=None)
@given(TEXT)
def test_any_string_survives_both_parsers(text: str) -> None:
    assert_reads_back(f"key = {format_value(text)}\n", {"key": text})


@settings(max_examples=500, deadline=None)
@given(LIST | st.lists(st.lists(TEXT, max_size=3), max_size=3))
def test_any_array_of_one_type_survives(items: list[object]) -> None:
    assert_reads_back(f"key = {format_value(items)}\n", {"key": items})


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(KEY, VALUE, max_size=6), st.dictionaries(KEY, VALUE, min_size=1, max_size=6))
def test_values_do_not_disturb_each_other_within_a_file(first: dict[str, object], second: dict[str, object]) -> None:
    def write(table: dict[str, object]) -> str:
        return "".join(f"{format_key(key)} = {format_value(value)}\n" for key, value in table.items())

    document = (
        f'{write(first)}\n[section]  # with [brackets] and "quotes"\n{write(second)}\n[[tables]]\n{write(second)}'
    )
    assert_reads_back(document, {**first, "section": second, "tables": [second]})


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(KEY, VALUE, max_size=4))
def test_a_table_survives_or_is_refused(table: dict[str, object]) -> None:
    try:
        text = format_value(table)
    except RenderError:
        return
    assert_reads_back(f"key = {text}\n", {"key": table})


@settings(max_examples=300, deadline=None)
@given(TEXT)
def test_a_key_survives_or_is_refused(key: str) -> None:
    try:
        text = format_key(key)
    except RenderError:
        return
    assert_reads_back(f"{text} = 1\n", {key: 1})


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("plain", '"plain"'),
        ('say "hi"', '"say \\"hi\\""'),
        ("C:\\sprites\\new", '"C:\\\\sprites\\\\new"'),
        ("one\ntwo", '"one\\ntwo"'),
        ("スプライト 🎮", '"スプライト 🎮"'),
        (Path("runs/hero"), '"runs/hero"'),
        (True, "true"),
        (3, "3"),
        (1e-4, "0.0001"),
        (1e-5, "1e-05"),
        (["conv_dim=8", "conv_alpha=4"], '["conv_dim=8", "conv_alpha=4"]'),
        ((1.0, 0.5), "[1.0, 0.5]"),
        ([], "[]"),
        ({"a": 1}, "{a = 1}"),
    ],
)
def test_ordinary_values_stay_readable(value: object, text: str) -> None:
    assert format_value(value) == text


@pytest.mark.parametrize(
    "text",
    ['""x', '"', "a, b", "[x]", "x = 1\n[evil]\ny = 2", "\x01\\u0041", "\\", "\\\\", "# no comment", '",', "', '", "]"],
)
def test_what_toml_misreads_when_written_the_common_way(text: str) -> None:
    assert_reads_back(f"a = {format_value([text, text])}\nb = {format_value(text)}\n", {"a": [text, text], "b": text})


@pytest.mark.parametrize(
    "value",
    [None, float("nan"), float("inf"), [1, 0.5], ["a", 1], [True, 1], "\ud800", 2**63, object(), b"x", [None], {1: 2}],
)
def test_what_no_text_can_carry_is_refused(value: object) -> None:
    with pytest.raises(RenderError):
        format_value(value)


def test_a_mixed_list_says_how_to_mend_it() -> None:
    with pytest.raises(RenderError, match=r"\[1\.0, 0\.5\]"):
        format_value([1, 0.5])


def test_keys() -> None:
    assert format_key("learning_rate") == "learning_rate"
    assert format_key("two words") == '"two words"'
    with pytest.raises(RenderError):
        format_key("nul\0")


def test_sameness_is_strict() -> None:
    assert not is_same(1, True)
    assert not is_same(1.0, 1)
    assert not is_same({"a": [1]}, {"a": [1, 2]})
    assert is_same({"a": [1, "x"]}, {"a": [1, "x"]})

"""All captions in one file and back; find and replace."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pixelkit.dataset.captions.edit import read_changes, write_table
from pixelkit.dataset.captions.entries import Entry
from pixelkit.dataset.captions.replace import find_changes
from pixelkit.errors import DataError

FORMS = pytest.mark.parametrize("form", ["toml", "csv"])
texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).map(str.strip).filter(bool)


def entry(name: str, text: str | None) -> Entry:
    return Entry(image=Path(f"{name}.png"), name=name, file=Path(f"{name}.txt"), text=text)


@FORMS
@given(captions=st.dictionaries(texts, st.tuples(texts, texts), min_size=1, max_size=4))
def test_any_caption_survives(
    tmp_path_factory: pytest.TempPathFactory, form: str, captions: dict[str, tuple[str, str]]
) -> None:
    """Written as a table and read back nothing changes; edited, just the edits do, to the letter."""
    folder = tmp_path_factory.mktemp("edit")
    before = [entry(name, old) for name, (old, _) in captions.items()]
    after = [entry(name, new) for name, (_, new) in captions.items()]
    file = folder / f"captions.{form}"
    file.write_bytes(write_table(before, form).encode())
    assert read_changes(file, before) == ()
    file.write_bytes(write_table(after, form).encode())
    changes = {change.entry.name: change.text for change in read_changes(file, before)}
    assert changes == {name: new for name, (old, new) in captions.items() if old != new}


@FORMS
def test_bad_rows_are_named_with_their_lines(tmp_path: Path, form: str) -> None:
    entries = [entry("mon/orc", "an orc"), entry("mon/elf", "an elf"), entry("mon/imp", None)]
    file = tmp_path / f"captions.{form}"
    file.write_text(write_table(entries, form).replace("mon/orc", "mon/ork").replace("an elf", ""))
    with pytest.raises(DataError, match="rows that cannot be used, 2") as refused:
        read_changes(file, entries)
    first, second = refused.value.problems
    assert (first.where, first.hint) == (f"{file.name}:2", "did you mean mon/orc?")
    assert second.where == f"{file.name}:3" and "empty" in second.what


def test_a_row_taken_out_or_left_empty_changes_nothing(tmp_path: Path) -> None:
    entries = [entry("a", "one"), entry("b", None), entry("c", "three")]
    file = tmp_path / "captions.toml"
    file.write_text('"b" = ""\nc = "drei"\n')
    assert [(change.entry.name, change.text) for change in read_changes(file, entries)] == [("c", "drei")]


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("a.toml", b'"a" = "one\n', "is no TOML"),
        ("a.toml", b'"a" = 3\n', "text in quotes"),
        ("a.toml", b'"a" = "\xff"\n', "not UTF-8"),
        ("a.csv", b"image,caption\na,red, small\n", "3 columns"),
        ("a.csv", b'image,caption\na,"red\n', "no CSV"),
        ("a.csv", b"image,caption\na,red\na,blue\n", "twice"),
    ],
)
def test_what_is_no_table_is_refused(tmp_path: Path, name: str, content: bytes, what: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as refused:
        read_changes(tmp_path / name, [entry("a", "one")])
    assert what in str(refused.value)


def replaced(text: str, find: str, replacement: str, *, regex: bool = False) -> list[str]:
    return [change.text for change in find_changes(Path(), [entry("a", text)], find, replacement, regex=regex)]


def test_replace_is_literal_unless_told() -> None:
    assert replaced("16bit style (16bit)", "16bit", "16-bit") == ["16-bit style (16-bit)"]
    assert replaced("a.b", ".", r"\1") == [r"a\1b"]
    assert replaced("abc", "x", "y") == []
    assert replaced("red orc, blue orc", r"(\w+) orc", r"\1 ogre", regex=True) == ["red ogre, blue ogre"]


@pytest.mark.parametrize(("find", "replacement"), [("(", "x"), ("orc", r"\2"), ("orc", r"\g<x>"), ("(?P<a", "")])
def test_an_expression_that_is_none_is_refused(find: str, replacement: str) -> None:
    with pytest.raises(DataError, match="no regular expression"):
        replaced("red orc", find, replacement, regex=True)


def test_replace_leaves_no_caption_empty() -> None:
    with pytest.raises(DataError, match="would be empty"):
        replaced("orc", "orc", " ")

from __future__ import annotations

import tomllib
from typing import TYPE_CHECKING

import pytest
import toml
from hypothesis import given, settings
from hypothesis import strategies as st

from pixelkit.errors import RenderError
from pixelkit.render import render

if TYPE_CHECKING:
    from pathlib import Path


def write(folder: Path, text: str, name: str = "config.toml.j2") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text, "utf-8")
    return folder


def test_an_own_template_takes_the_place_of_the_shipped_one(tmp_path: Path) -> None:
    own = write(tmp_path / "t", "a = {{ value | toml }}\n")
    rendered = render("kohya", {"config.toml": {"value": 'x"y'}}, tmp_path / "out", templates=own)
    assert tomllib.loads(rendered.files["config.toml"].read_text()) == {"a": 'x"y'}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a = 1\nb = {{ missing }}\n", r"config\.toml\.j2:2 'missing' is undefined"),
        ("a = 1\n{% if %}\n", r"config\.toml\.j2:2"),
        ("{{ value.__class__.__mro__ }}", r"config\.toml\.j2:1 .*unsafe"),
        ("{{ none_value | toml }}", "has no TOML form"),
        ("{{ 1 // 0 }}", r"config\.toml\.j2:1"),
    ],
)
def test_a_template_that_fails_says_where(tmp_path: Path, text: str, said: str) -> None:
    own = write(tmp_path / "t", text)
    with pytest.raises(RenderError, match=said):
        render("kohya", {"config.toml": {"value": "x", "none_value": None}}, tmp_path / "out", templates=own)
    assert not (tmp_path / "out" / "config.toml").exists()


def test_a_templates_folder_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(RenderError, match="is not a folder"):
        render("kohya", {}, tmp_path, templates=tmp_path / "no")


@settings(max_examples=150, deadline=None)
@given(st.text(st.characters(codec="utf-8"), max_size=40), st.text(st.characters(codec="utf-8"), max_size=40))
def test_no_text_can_break_out_of_its_value(tmp_path_factory: pytest.TempPathFactory, first: str, second: str) -> None:
    folder = tmp_path_factory.mktemp("render")
    own = write(folder / "t", "[s]\na = {{ a | toml }}\nb = {{ [a, b] | toml }}\nc = 1\n")
    text = (
        render("kohya", {"config.toml": {"a": first, "b": second}}, folder, templates=own)
        .files["config.toml"]
        .read_text("utf-8")
    )
    assert toml.loads(text) == tomllib.loads(text) == {"s": {"a": first, "b": [first, second], "c": 1}}

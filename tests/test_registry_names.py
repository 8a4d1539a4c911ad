"""The grammar of names and versions."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pixelkit.errors import PresetError
from pixelkit.registry.names import ModelName, Version, check_style, make_style, next_version, parse_name, parse_version

NUMBERS = st.integers(0, 999_999)
VERSIONS = st.builds(Version, NUMBERS, NUMBERS, st.none() | st.integers(1, 999_999))


@given(st.text(), VERSIONS)
def test_every_name_is_read_back(text: str, version: Version) -> None:
    name = ModelName(make_style(text), version)
    assert parse_name(str(name)) == parse_name(name.file) == name
    assert parse_version(str(version)) == version


@pytest.mark.parametrize(
    "text",
    [
        "hero",
        "hero_v1",
        "hero_v01.0",
        "hero_v1.0_rc0",
        "hero_v1.0rc1",
        "hero_v1.0_rc1.ckpt",
        "a/b_v1.0",
        "_v1.0",
        ".a_v1.0",
    ],
)
def test_what_is_no_name(text: str) -> None:
    assert parse_name(text) is None


def test_versions_are_in_their_natural_order() -> None:
    texts = ["0.9", "1.0_rc1", "1.0_rc2", "1.0_rc10", "1.0", "1.1", "1.9", "1.10_rc1", "1.10", "2.0", "10.0"]
    versions = [parse_version(text) for text in texts]
    assert sorted(random.Random(1).sample(versions, len(versions))) == versions


@pytest.mark.parametrize("text", ["1", "1.2.3", "1.2_rc", "a.b", "1.-2", "", "1.2_rc01", "\u0661.\u0662"])
def test_what_is_no_version(text: str) -> None:
    with pytest.raises(PresetError, match="is no version"):
        parse_version(text)


@pytest.mark.parametrize(
    ("taken", "options", "expected"),
    [
        ([], {}, "1.0"),
        ([], {"candidate": True}, "1.0_rc1"),
        (["1.0", "1.9", "1.10"], {}, "1.11"),
        (["1.3"], {"bump": "major"}, "2.0"),
        (["1.3"], {"candidate": True}, "1.4_rc1"),
        (["1.3", "1.4_rc1"], {"candidate": True}, "1.4_rc2"),
        (["1.3", "1.4_rc1"], {}, "1.5"),
        (["1.3", "2.0_rc1"], {"candidate": True}, "2.0_rc2"),
        (["1.3", "2.0_rc1"], {"candidate": True, "bump": "minor"}, "1.4_rc1"),
        (["1.3", "1.2_rc7"], {"candidate": True}, "1.4_rc1"),
    ],
)
def test_the_next_version(taken: list[str], options: dict[str, object], expected: str) -> None:
    assert str(next_version([parse_version(text) for text in taken], **options)) == expected  # type: ignore[arg-type]


def test_names_made_safe() -> None:
    assert make_style("My Hero (v2)!") == "My-Hero--v2"
    assert make_style("../../etc/passwd") == "etc-passwd"
    assert make_style("hero_v1.0") == "hero"
    assert make_style("...") == "style"
    assert len(make_style("ü" * 500).encode()) <= 100
    for bad in ("hero_v1.0", "a/b", "", ".hidden", "x" * 200):
        with pytest.raises(PresetError, match="cannot be the name of a style"):
            check_style(bad)

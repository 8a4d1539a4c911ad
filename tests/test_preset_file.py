from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pixelkit.errors import PresetError
from pixelkit.preset_file import load_preset

if TYPE_CHECKING:
    from pathlib import Path

GOOD = """\
name = "hero"
base = "sdxl"

[dataset]
path = "sprites"

[network]
rank = 16
"""


def write(folder: Path, text: str, name: str = "hero.toml") -> str:
    (folder / name).write_text(text, "utf-8")
    return str(folder / name)


def problems(folder: Path, text: str, *overrides: str) -> list[str]:
    with pytest.raises(PresetError) as caught:
        load_preset(write(folder, text), overrides)
    return [str(problem) for problem in caught.value.problems]


def test_values_and_their_lines(tmp_path: Path) -> None:
    loaded = load_preset(write(tmp_path, GOOD))
    assert loaded.preset.network.rank == 16
    assert str(loaded.origin("network", "rank")) == "hero.toml:8"
    assert loaded.resolve_path("sprites", "dataset", "path") == tmp_path / "sprites"


def test_a_mistyped_key_is_named_with_its_line_and_neighbour(tmp_path: Path) -> None:
    text = GOOD.replace("rank", "rnak")
    assert problems(tmp_path, text) == ["hero.toml:8 [network] rnak: no such key; did you mean rank?"]


def test_every_problem_is_told_at_once(tmp_path: Path) -> None:
    text = (
        GOOD.replace('name = "hero"', 'nmae = "hero"')
        + 'alpha = "16"\n[train]\nsteps = 10.0\nlearning_rate = 3\n[kohya]\na = { b = 1 }\n'
    )
    found = problems(tmp_path, text)
    assert "hero.toml:1 nmae: no such key; did you mean name?" in found
    assert any("name is missing" in line for line in found)
    assert 'hero.toml:9 [network] alpha = "16": must be a number; remove the quotes: 16' in found
    assert "hero.toml:11 [train] steps = 10.0: must be a whole number; write 10" in found
    assert any(line.startswith("hero.toml:12 [train] learning_rate = 3: must be at most 1") for line in found)
    assert any(line.startswith("hero.toml:14 [kohya] a") for line in found)
    assert len(found) == 6


def test_a_quoted_number_is_an_error_that_says_so(tmp_path: Path) -> None:
    assert problems(tmp_path, GOOD + '[train]\nlearning_rate = "1e-4"\n') == [
        'hero.toml:10 [train] learning_rate = "1e-4": must be a number; remove the quotes: 1e-4'
    ]


def test_a_key_in_the_wrong_table_is_sent_to_its_own(tmp_path: Path) -> None:
    assert problems(tmp_path, GOOD + 'trigger = "x"\n') == [
        "hero.toml:9 [network] trigger: no such key; it belongs into [dataset]"
    ]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("steps = 0", "at least 1"),
        ("steps = true", "whole number"),
        ("learning_rate = 0", "above 0"),
        ("learning_rate = inf", "finite"),
        ("learning_rate = nan", ""),
        ('optimizer = "adamw8bits"', "did you mean adamw8bit?"),
        ("text_encoder = 1", "true or false"),
        ("steps = 5\nepochs = 5", "keep the one you mean"),
        ("effective_batch = 8\nbatch_size = 3", "no multiple"),
    ],
)
def test_impossible_values_fail(tmp_path: Path, line: str, said: str) -> None:
    assert said in "\n".join(problems(tmp_path, GOOD + "[train]\n" + line + "\n"))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b" \n\n", "is empty"),
        (b"\x89PNG\r\n\x1a\n\xff\xfe", "not a text file"),
        (b"name = hero\n", "not valid TOML"),
        (b"[a\n", "not valid TOML"),
        (b"x" * 1_000_001, "small text file"),
    ],
)
def test_files_that_are_no_preset(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "hero.toml").write_bytes(content)
    with pytest.raises(PresetError, match=said):
        load_preset(str(tmp_path / "hero.toml"))


def test_a_byte_order_mark_loses_no_key(tmp_path: Path) -> None:
    (tmp_path / "hero.toml").write_bytes(b"\xef\xbb\xbf" + GOOD.encode())
    assert load_preset(str(tmp_path / "hero.toml")).preset.name == "hero"


def test_extends_merges_tables_and_keeps_origins(tmp_path: Path) -> None:
    write(tmp_path, GOOD + "alpha = 8\n[train]\nsteps = 100\n", "parent.toml")
    loaded = load_preset(
        write(
            tmp_path,
            'extends = "parent.toml"\nname = "child"\n[network]\nrank = 4\n[train]\nepochs = 3\n',
            "child.toml",
        )
    )
    assert (loaded.preset.name, loaded.preset.network.rank, loaded.preset.network.alpha) == ("child", 4, 8)
    assert (loaded.preset.train.steps, loaded.preset.train.epochs) == (None, 3)
    assert str(loaded.origin("network", "alpha")) == "parent.toml:9"
    assert str(loaded.origin("network", "rank")) == "child.toml:4"


def test_extends_in_a_circle(tmp_path: Path) -> None:
    write(tmp_path, 'extends = "b.toml"\n' + GOOD, "a.toml")
    write(tmp_path, 'extends = "a.toml"\n' + GOOD, "b.toml")
    with pytest.raises(PresetError, match=r"circle: a\.toml -> b\.toml -> a\.toml"):
        load_preset(str(tmp_path / "a.toml"))


def test_extends_something_unknown(tmp_path: Path) -> None:
    assert "hero.toml:1 extends sdxl-fats" in problems(tmp_path, 'extends = "sdxl-fats"\n' + GOOD)[0]
    assert "did you mean sdxl-fast?" in problems(tmp_path, 'extends = "sdxl-fats"\n' + GOOD)[0]


def test_overrides(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD + "[train]\nepochs = 3\n")
    loaded = load_preset(path, ["train.steps=100", "dataset.trigger=my hero", "train.learning_rate=2e-4"])
    assert (loaded.preset.train.steps, loaded.preset.train.epochs) == (100, None)
    assert loaded.preset.dataset.trigger == "my hero"
    assert str(loaded.origin("train", "steps")) == "--set"
    assert "did you mean steps?" in problems(tmp_path, GOOD, "train.stesp=1")[0]
    for bad in ("train.steps", "=1", "name.x=1"):
        with pytest.raises(PresetError):
            load_preset(path, [bad])


def test_no_such_preset_names_the_nearest(tmp_path: Path) -> None:
    write(tmp_path, GOOD)
    with pytest.raises(PresetError) as caught:
        load_preset(str(tmp_path / "hreo.toml"))
    assert "did you mean hero.toml?" in str(caught.value)
    with pytest.raises(PresetError, match="is a folder"):
        load_preset(str(tmp_path))


@pytest.mark.parametrize("name", ["../x", "a b", "", ".hidden", "a/b", "x\n"])
def test_names_that_are_no_file_names(tmp_path: Path, name: str) -> None:
    assert problems(tmp_path, GOOD.replace('"hero"', repr(name).replace("'", '"')))

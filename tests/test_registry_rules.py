"""Rules: what keeps a model from production, and rules that are themselves wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from pixelkit.errors import PresetError
from pixelkit.registry.index import Entry
from pixelkit.registry.names import ModelName, Version
from pixelkit.registry.rules import Rules, find_breaches, read_rules


def entry(minor: int, **metadata: object) -> Entry:
    return Entry(name=ModelName("hero", Version(1, minor)), stage="staging", metadata=metadata)


def breaches(rules: Rules, new: Entry, current: Entry | None = None) -> list[str]:
    return [str(problem) for problem in find_breaches(rules, new, current, Path("/nowhere"))]


def test_least_and_most() -> None:
    rules = Rules(minimum={"clip": 0.25}, maximum={"fid": 40})
    assert breaches(rules, entry(1, metrics={"clip": 0.25, "fid": 40})) == []
    assert breaches(rules, entry(1, metrics={"clip": 0.2, "fid": 41})) == [
        "hero_v1.1 clip is 0.2, it must be at least 0.25",
        "hero_v1.1 fid is 41, it must be at most 40",
    ]


def test_scores_that_nobody_measured_refuse() -> None:
    rules = Rules(minimum={"clip": 0.25})
    (said,) = breaches(rules, entry(1, metrics={"clip": None, "clip_score": 0.3}))
    assert said == "hero_v1.1 has no score clip; it has clip_score; did you mean clip_score?"
    (said,) = breaches(rules, entry(1))
    assert said.endswith("measure it and write it down: `pixelkit models score hero_v1.1 clip=VALUE`")


def test_regressions() -> None:
    rules = Rules(no_regressions=("palette", "loss"), tolerance={"palette": 0.1})
    before = entry(0, metrics={"palette": 0.3, "loss": 0.08})
    assert breaches(rules, entry(1, metrics={"palette": 0.2, "loss": 0.08}), before) == [], "0.1 worse is allowed"
    assert breaches(rules, entry(1, metrics={"palette": 0.9, "loss": 0.05}), before) == [], "of loss, less is better"
    assert breaches(rules, entry(1, metrics={"palette": 0.19, "loss": 0.09}), before) == [
        "hero_v1.1 palette is 0.19, worse by 0.11 than 0.3 of hero_v1.0, 0.1 is allowed",
        "hero_v1.1 loss is 0.09, worse by 0.01 than 0.08 of hero_v1.0",
    ]
    (said,) = breaches(rules, entry(1, metrics={"palette": 1, "loss": 0}), entry(0, metrics={"palette": 1}))
    assert said.startswith("hero_v1.0 has no score loss"), "what cannot be compared is not known to be as good"
    assert breaches(rules, entry(1)) == [], "the first of its style has nothing to be worse than"


def test_what_must_be_there(tmp_path: Path) -> None:
    rules = Rules(require=("license", "base_license", "trigger_words", "dataset", "training_date", "preview", "sheet"))
    assert len(find_breaches(rules, entry(1), None, tmp_path)) == 7
    for name in ("hero.preview.png", "hero-sheet.png"):
        (tmp_path / name).touch()
    whole = entry(
        1,
        license="CC0",
        base={"licence": "x"},
        trigger_words=["a"],
        dataset={"version": "f1"},
        training_date="2026-01-01",
    )
    assert find_breaches(rules, whole, None, tmp_path) == []


def test_no_file_no_rules(tmp_path: Path) -> None:
    assert read_rules(tmp_path / "rules.toml", must_exist=False) == Rules()
    with pytest.raises(PresetError, match="no such file"):
        read_rules(tmp_path / "rules.toml", must_exist=True)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("\nminimun = { clip = 0.25 }", "rules.toml:2 minimun: no such rule; did you mean minimum?"),
        ('minimum = { clip = "0.25" }', 'rules.toml:1 [minimum] clip = "0.25": must be a number'),
        ("# a\n[minimum]\nclip = true", "rules.toml:3 [minimum] clip = True: must be a number"),
        ('no_regressions = "palette"', 'no_regressions = "palette": must be a list'),
        ('require = ["licence"]', "did you mean license?"),
        ("minimum = { clip = nan }", "must be a finite number"),
        ("[tolerance]\npalette = 0.1", "rules.toml:2 [tolerance] palette is not in no_regressions"),
        ('no_regressions = ["a"]\ntolerance = { a = -1 }', "must be at least 0"),
        ("minimum = 3", "rules.toml:1 minimum = 3: must be a table of scores"),
        ("minimum = ", "is not valid TOML"),
    ],
)
def test_wrong_rules_say_where(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "rules.toml").write_text(text)
    with pytest.raises(PresetError) as caught:
        read_rules(tmp_path / "rules.toml", must_exist=True)
    assert said in str(caught.value)


def test_all_that_is_wrong_at_once(tmp_path: Path) -> None:
    (tmp_path / "rules.toml").write_text("minimum = 3\nmaximum = 4\nrequired = []\n")
    with pytest.raises(PresetError) as caught:
        read_rules(tmp_path / "rules.toml", must_exist=True)
    assert len(caught.value.problems) == 3

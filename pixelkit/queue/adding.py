"""From presets, overrides and matrices to jobs. Everything is looked at first, so that a slip is told now and not at night.

A job keeps what the preset says at this moment: a copy of its text and of what it extends, and the paths in it made
absolute. The sprites, the base and the shipped presets are read when the job runs.
"""

from __future__ import annotations

import hashlib
import itertools
import re
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import tomlkit

from pixelkit.catalog import find_base, list_bases
from pixelkit.errors import PixelkitError, PresetError, Problem
from pixelkit.paths import read_settings, user_path, write_atomically
from pixelkit.plan.terms import KOHYA_PATHS, absorb_kohya
from pixelkit.preset_file import LoadedPreset, find_preset, load_preset, shipped_presets
from pixelkit.queue.changes import NewJob
from pixelkit.toml_text import format_value

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pixelkit.preset import Family

LONGEST_NAME: Final = 100
MOST_JOBS: Final = 100_000


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What one `queue add` asks for. `after`: ids. `matrix`: "table.key=a,b,c", one job for each combination."""

    presets: tuple[str, ...]
    overrides: tuple[str, ...] = ()
    matrix: tuple[str, ...] = ()
    priority: int = 0
    after: tuple[int, ...] = ()
    memory_gib: float | None = None
    retries: int = 0
    registry: str = ""


def plan_jobs(wish: Wish, store: Path) -> list[NewJob]:
    """The jobs of a wish, each checked; copies of their presets are put into `store`.

    Raises PresetError whose problems name all that is wrong, in all presets and at all points; then nothing is stored.
    """
    axes = [read_axis(text) for text in wish.matrix]
    _check_axes(axes, wish.overrides)
    points = list(itertools.product(*axes))
    if len(points) * len(wish.presets) > MOST_JOBS:
        raise PresetError(f"that is {len(points) * len(wish.presets)} jobs; at most {MOST_JOBS} can be added at once")
    suffixes = _name_points(points)
    found: list[tuple[str, LoadedPreset, tuple[str, ...]]] = []
    problems: dict[Problem, None] = {}
    check = _Check(later=bool(wish.after))
    for preset in dict.fromkeys(wish.presets):
        for point, suffix in zip(points, suffixes, strict=True):
            overrides = (*wish.overrides, *(f"{one.key}={one.text}" for one in point))
            try:
                loaded = load_preset(preset, overrides)
                check(loaded)
            except PixelkitError as error:
                found_here = error.problems or (Problem(what=error.message, hint=error.hint),)
                problems.update(dict.fromkeys(found_here))
                continue
            found.append((_fit_name(loaded.preset.name, suffix), loaded, overrides))
    if problems:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise PresetError(f"{count}; nothing was added", problems=tuple(problems))
    copies = {
        loaded.file: store_preset(loaded.file, store) for loaded in {one.file: one for _, one, _ in found}.values()
    }
    return [
        NewJob(
            name=name,
            preset=str(loaded.file),
            stored=str(copies[loaded.file]),
            overrides=(*overrides, *absolute_paths(loaded), *_renamed(name, loaded)),
            priority=wish.priority,
            gpus=loaded.preset.train.gpus,
            memory_gib=wish.memory_gib,
            retries=wish.retries,
            registry=wish.registry,
            after=wish.after,
        )
        for name, loaded, overrides in found
    ]


@dataclass(frozen=True, kw_only=True)
class Value:
    """One value of one axis: `text` is TOML, `shown` what it adds to a name."""

    key: str
    text: str
    shown: str


def read_axis(text: str) -> tuple[Value, ...]:
    """`network.rank=16,32,64`: values as in TOML, or plain words. Raises PresetError."""
    key, equals, listed = text.partition("=")
    key = key.strip()
    if not equals or not key or not listed.strip():
        raise PresetError(f"--matrix {text}: write it as table.key=a,b,c, for example --matrix network.rank=16,32")
    try:
        values: list[Any] = tomllib.loads(f"values = [{listed}]")["values"]
    except ValueError:
        values = [word.strip() for word in listed.split(",")]
        if "" in values:
            raise PresetError(f"--matrix {text}: a value between two commas is missing") from None
    texts = [format_value(value) for value in values]
    if twice := sorted({one for one in texts if texts.count(one) > 1}):
        raise PresetError(f"--matrix {key}: {', '.join(twice)} is given twice")
    return tuple(
        Value(key=key, text=one, shown=value if isinstance(value, str) else one)
        for one, value in zip(texts, values, strict=True)
    )


def _check_axes(axes: Sequence[Sequence[Value]], overrides: Sequence[str]) -> None:
    keys = [axis[0].key for axis in axes]
    for key in keys:
        if keys.count(key) > 1:
            raise PresetError(f"--matrix {key} is given twice", hint=f"write one: --matrix {key}=a,b,c")
        if any(override.partition("=")[0].strip() == key for override in overrides):
            raise PresetError(f"{key} is given by --set and by --matrix", hint="keep the one you mean")


def _name_points(points: Sequence[Sequence[Value]]) -> list[str]:
    """A readable ending for each point: rank16-seed2. Points that would read alike are numbered."""
    keys = [value.key for value in points[0]] if points else []
    last = [key.rpartition(".")[2] for key in keys]
    labels = {
        key: word if last.count(word) == 1 else key.replace(".", "-") for key, word in zip(keys, last, strict=True)
    }
    endings = ["-".join(_name_value(labels[one.key], one) for one in point if one.key != "name") for point in points]
    return [
        f"{ending}-{number}" if endings.count(ending) > 1 and ending else ending
        for number, ending in enumerate(endings, 1)
    ]


def _name_value(label: str, value: Value) -> str:
    shown = re.sub("[^A-Za-z0-9.+-]+", "-", value.shown).strip("-")[:24]
    return f"{label}-{shown}" if shown[:1].isalpha() else f"{label}{shown}"


def _fit_name(name: str, ending: str) -> str:
    if not ending:
        return name
    ending = f"-{ending}"
    if len(ending) > LONGEST_NAME // 2:
        ending = f"{ending[:40]}-{hashlib.sha256(ending.encode()).hexdigest()[:8]}"
    return f"{name[: LONGEST_NAME - len(ending)]}{ending}"


def _renamed(name: str, loaded: LoadedPreset) -> tuple[str, ...]:
    return () if name == loaded.preset.name else (f"name={format_value(name)}",)


class _Check:
    """What a preset names is there: base, sprites, class images. Each is looked for once.

    `later`: the job comes after another, which may be what makes them.
    """

    def __init__(self, *, later: bool) -> None:
        models = read_settings().get("models")
        self._models = user_path(models) if models else None
        self._later = later
        self._find = cache(self._find_base)
        self._is_there = cache(Path.exists)

    def __call__(self, loaded: LoadedPreset) -> None:
        preset = loaded.preset
        if preset.kohya:
            absorb_kohya(loaded)
        if self._later:
            return
        try:
            self._find(preset.base, preset.family, loaded.origin("base").folder)
        except PixelkitError as error:
            raise PresetError(f"{loaded.where('base')} {error.message}", hint=error.hint) from None
        for key, value in (("path", preset.dataset.path), ("class_path", preset.dataset.class_path)):
            if value is None or self._is_there(place := loaded.resolve_path(value, "dataset", key)):
                continue
            file = loaded.origin("dataset", key).file
            shipped = file in shipped_presets().values()
            raise PresetError(
                f"{loaded.where('dataset', key)} {key} = {value}: there is no {place}",
                hint=f"--set dataset.{key}=FOLDER names your own" if shipped else "",
            )

    def _find_base(self, name: str, family: Family | None, folder: Path) -> None:
        find_base(name, family, folder=folder, models=self._models)


def absolute_paths(loaded: LoadedPreset) -> list[str]:
    """Overrides that say where the preset's relative paths lead, for its text is to be read from another folder."""
    preset = loaded.preset
    found: dict[str, object] = {}
    for table, key, value in (
        ("dataset", "path", preset.dataset.path),
        ("dataset", "class_path", preset.dataset.class_path),
        ("network", "start_from", preset.network.start_from),
    ):
        if value is not None:
            found[f"{table}.{key}"] = str(loaded.resolve_path(value, table, key))
    if preset.base not in _base_names() and (place := loaded.resolve_path(preset.base, "base")).exists():
        found["base"] = str(place)
    if preset.base_loras:
        found["base_loras"] = [_absolute_lora(loaded, text) for text in preset.base_loras]
    for name in KOHYA_PATHS:
        given = preset.kohya.get(name)
        if isinstance(given, str):
            place = loaded.resolve_path(given, "kohya", name)
            found[f"kohya.{name}"] = str(place) if place.exists() or name == "logging_dir" else given
    return [f"{key}={format_value(value)}" for key, value in found.items()]


def _absolute_lora(loaded: LoadedPreset, text: str) -> str:
    name, _, strength = text.rpartition(":")
    if name and re.fullmatch(r"-?\d*\.?\d+", strength):
        return f"{loaded.resolve_path(name, 'base_loras')}:{strength}"
    return str(loaded.resolve_path(text, "base_loras"))


@cache
def _base_names() -> frozenset[str]:
    return frozenset(list_bases())


def store_preset(file: Path, store: Path) -> Path:
    """A copy of a preset, and of what it extends, that later edits do not reach. The same text is stored once."""
    text = file.read_text("utf-8-sig")
    parent = tomllib.loads(text).get("extends")
    if isinstance(parent, str):
        extended = find_preset(parent, file.parent)
        if extended not in shipped_presets().values():
            document = tomlkit.parse(text)
            document["extends"] = str(store_preset(extended, store))
            text = tomlkit.dumps(document)
    copy = store / hashlib.sha256(text.encode()).hexdigest()[:16] / file.name
    if copy.is_file():
        copy.touch()
    else:
        write_atomically(copy, text)
    return copy.resolve()

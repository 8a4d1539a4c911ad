"""The options of the pinned sd-scripts, and what a configuration file says held against them.

sd-scripts takes any key and any type from its configuration file (library/train_util.py:4700): a mistyped option
trains with the default, `"false"` is true. Here every key must exist for the very script, with its type and choices.
"""

from __future__ import annotations

import functools
import json
import math
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import toml

from pixelkit.engines.kohya.extract import hash_source, read_git_head
from pixelkit.errors import EngineError, Problem, RenderError, StorageError, did_you_mean
from pixelkit.toml_lines import locate
from pixelkit.toml_text import format_value, is_same

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

TABLE_FILE = Path(__file__).with_name("kohya_options.json")
LEVELS = {"general": "[general]", "datasets": "[[datasets]]", "subsets": "[[datasets.subsets]]"}
# nargs="*", yet one plain number serves: the network modules take it for both encoders (train_network.py:737)
SCALAR_OR_LIST = frozenset({"text_encoder_lr"})


@dataclass(frozen=True, kw_only=True)
class Option:
    """One option of one script. `type`: bool, int, float, int_or_float or str; `many`: a list of that type."""

    name: str
    type: str
    default: object = None
    choices: tuple[object, ...] = ()
    many: bool = False
    help: str = ""


@dataclass(frozen=True, kw_only=True)
class DatasetKey:
    """One key of a dataset file: its strict type, and the levels (general, datasets, subsets) that take it."""

    type: str
    levels: tuple[str, ...]
    required: bool = False
    dropout: bool = False


@dataclass(frozen=True, kw_only=True)
class OptionTable:
    """What kohya_options.json holds, by script."""

    commit: str
    version: str
    files: Mapping[str, str]
    scripts: Mapping[str, Mapping[str, Option]]
    dataset: Mapping[str, DatasetKey]
    no_dropout: frozenset[str] = field(default_factory=frozenset)

    def options_of(self, script: str) -> Mapping[str, Option]:
        """Option name -> Option. Raises EngineError for a script that has no table."""
        if script not in self.scripts:
            raise EngineError(f"{script} is no script that pixelkit knows", hint=f"there are {', '.join(self.scripts)}")
        return self.scripts[script]


@functools.cache
def load_table() -> OptionTable:
    """The stored table of the pinned commit."""
    stored: dict[str, Any] = json.loads(TABLE_FILE.read_text("utf-8"))
    scripts: dict[str, dict[str, Option]] = {script: {} for script in stored["scripts"]}
    for name, variants in stored["options"].items():
        for variant in variants:
            option = Option(
                name=name,
                type=variant["type"],
                default=variant.get("default", False if variant["type"] == "bool" else None),
                choices=tuple(choice for choice in variant.get("choices", ()) if choice is not None),
                many="nargs" in variant,
                help=variant.get("help", ""),
            )
            for script in scripts if variant["scripts"] == ["*"] else variant["scripts"]:
                scripts[script][name] = option
    dataset = {
        key: DatasetKey(**{**entry, "levels": tuple(entry["levels"])}) for key, entry in stored["dataset"].items()
    }
    return OptionTable(
        commit=stored["commit"],
        version=stored["version"],
        files=stored["files"],
        scripts=scripts,
        dataset=dataset,
        no_dropout=frozenset(script for script, entry in stored["scripts"].items() if not entry["dropout"]),
    )


def verify_config(path: Path, script: str) -> list[Problem]:
    """Everything in a rendered configuration file that `script` would misread, drop or crash on.

    Raises StorageError where the file cannot be read, EngineError for an unknown script.
    """
    options = load_table().options_of(script)
    data, lines, problems = _read(path)
    given: dict[str, str] = {}

    def check(section: str | None, key: str, value: object) -> None:
        where = _where(path, lines.get((section, key) if section else (key,)), f"[{section}]" if section else "")
        if key in given:
            problems.append(
                Problem(where=where, what=f"{key} is given twice and this one wins", hint=f"see {given[key]}")
            )
        given.setdefault(key, where)
        problems.extend(_check_option(options, script, key, value, where))

    for name, content in data.items():
        if isinstance(content, dict):
            for key, value in content.items():
                check(name, key, value)
        else:
            check(None, name, content)
    return problems


def check_kohya_table(table: Mapping[str, object], script: str, locate_key: Callable[[str], str]) -> list[Problem]:
    """A preset's [kohya] table against `script`, before anything is rendered; `locate_key` gives a key's `where`."""
    options = load_table().options_of(script)
    return [
        problem
        for key, value in table.items()
        for problem in _check_option(options, script, key, value, locate_key(key))
    ]


def verify_dataset_config(path: Path, script: str = "train_network") -> list[Problem]:
    """The same for a dataset file with DreamBooth-style subsets: levels, keys, strict types, required keys."""
    table = load_table()
    table.options_of(script)
    data, lines, problems = _read(path)
    without = (
        set() if script not in table.no_dropout else {key for key, entry in table.dataset.items() if entry.dropout}
    )

    def check(level: str, content: object, at: tuple[str | int, ...]) -> None:
        header = _where(path, lines.get(at), LEVELS[level])
        if not isinstance(content, dict):
            problems.append(Problem(where=header, what=f"{_show(content)} where a table is due"))
            return
        for key, value in content.items():
            if level == "datasets" and key == "subsets":
                continue
            where = _where(path, lines.get((*at, key)), LEVELS[level])
            if key in without:
                problems.append(Problem(where=where, what=f"{key} is not supported by {script}"))
            else:
                problems.extend(_check_dataset_key(level, key, value, where))
        if level == "subsets":
            missing = [key for key, entry in table.dataset.items() if entry.required and key not in content]
            problems.extend(Problem(where=header, what=f"{key} is missing") for key in missing)

    for name in sorted(data.keys() - {"general", "datasets"}):
        where = _where(path, lines.get((name,)), "")
        hint = did_you_mean(name, ("general", "datasets")) or "only [general] and [[datasets]] are read"
        problems.append(Problem(where=where, what=f"{name}: no such table of a dataset file", hint=hint))
    if "general" in data:
        check("general", data["general"], ("general",))
    for index, dataset in enumerate(_tables(data.get("datasets"), problems, _where(path, None, "[[datasets]]"))):
        check("datasets", dataset, ("datasets", index))
        where = _where(path, lines.get(("datasets", index)), "[[datasets]]")
        subsets = dataset.get("subsets") if isinstance(dataset, dict) else ()
        for number, subset in enumerate(_tables(subsets, problems, f"{where} subsets")):
            check("subsets", subset, ("datasets", index, "subsets", number))
    return problems


def recognise_commit(checkout: Path) -> str | None:
    """The commit of a checkout, from its .git; else the pinned one, marked ` (by its files)`, where the files match.

    None: neither a .git that can be read nor the files of the pinned commit.
    """
    if commit := read_git_head(checkout):
        return commit
    return None if list_changed_files(checkout) else f"{load_table().commit} (by its files)"


def list_changed_files(checkout: Path) -> list[str]:
    """The engine's key files that are missing in a checkout or differ from the pinned commit, line ends aside."""
    files = load_table().files
    return [name for name in files if not (checkout / name).is_file() or hash_source(checkout / name) != files[name]]


def _read(path: Path) -> tuple[dict[str, Any], dict[tuple[str | int, ...], int], list[Problem]]:
    """The file as the engine's parser reads it, the lines of its keys, and where the parsers fail or disagree."""
    problems: list[Problem] = []
    try:
        text = path.read_bytes().decode("utf-8")
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        return {}, {}, [Problem(where=_where(path, line, ""), what="is not UTF-8", hint="save it as UTF-8 without BOM")]
    if text.startswith("\ufeff"):
        what = "starts with a byte order mark, which loses the first key"
        problems.append(Problem(where=_where(path, 1, ""), what=what, hint="save it as UTF-8 without BOM"))
    text = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    try:
        expected = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        return {}, {}, [*problems, Problem(where=str(path), what=f"is not valid TOML: {error}")]
    lines = locate(text)
    try:
        found: dict[str, Any] = toml.loads(text)
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, RecursionError) as error:
        where = _where(path, getattr(error, "lineno", None), "")
        what = f"is valid TOML that the engine's parser (toml 0.10.2) cannot read: {str(error).partition(' (line')[0]}"
        return expected, lines, [*problems, Problem(where=where, what=what, hint=_PARSER_HINT)]
    for key in sorted(_list_differences(found, expected), key=str):
        what = f"{'.'.join(map(str, key))} is misread by the engine's parser (toml 0.10.2)"
        problems.append(Problem(where=_where(path, lines.get(key), ""), what=what, hint=_PARSER_HINT))
    return expected, lines, problems


_PARSER_HINT = "in a template, write values with the `toml` filter"


def _list_differences(found: object, expected: object, at: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """The innermost key paths at which two readings of one file differ."""
    if isinstance(found, dict) and isinstance(expected, dict):
        pairs = [((*at, key), found.get(key), expected.get(key)) for key in {**found, **expected}]
    elif isinstance(found, list) and isinstance(expected, list) and len(found) == len(expected):
        pairs = [((*at, index), *both) for index, both in enumerate(zip(found, expected, strict=True))]
    else:
        both_nan = found != found and expected != expected  # noqa: PLR0124
        return [] if both_nan or is_same(found, expected) else [at]
    if pairs and all(isinstance(path[-1], int) and not isinstance(item, dict) for path, item, _ in pairs):
        return [] if is_same(found, expected) else [at]  # a plain array is one value
    return [path for pair in pairs for path in _list_differences(pair[1], pair[2], pair[0])]


def _where(path: Path, line: int | None, section: str) -> str:
    return f"{path}{f':{line}' if line else ''}{f' {section}' if section else ''}"


def _tables(value: object, problems: list[Problem], where: str) -> list[object]:
    if isinstance(value, list) and value:
        return value
    if value != ():
        problems.append(Problem(where=where, what="an array of tables is due here, with at least one entry"))
    return []


def _check_option(options: Mapping[str, Option], script: str, key: str, value: object, where: str) -> list[Problem]:
    option = options.get(key)
    if option is None:
        return [
            Problem(
                where=where, what=f"{key}: {_describe_unknown(key, value, script)}", hint=_suggest(key, value, options)
            )
        ]
    if option.many and not (key in SCALAR_OR_LIST and not isinstance(value, list)):
        if not isinstance(value, list):
            return [
                Problem(where=where, what=f"{key}: {_show(value)} where a list is due", hint=f"write [{_show(value)}]")
            ]
        found = [_check_value(option.type, option.choices, item) for item in value]
    else:
        found = [_check_value(option.type, option.choices, value)]
    return [Problem(where=where, what=f"{key}: {what}", hint=hint) for what, hint in filter(None, found)]


def _describe_unknown(key: str, value: object, script: str) -> str:
    if isinstance(value, dict):
        return "tables within tables are dropped"
    return "keys with a dash are dropped" if "-" in key else f"no such option of {script}"


def _suggest(key: str, value: object, options: Mapping[str, Option]) -> str:
    if isinstance(value, dict):
        return "give options in a table of one level"
    plain = key.strip().lower().replace("-", "_")
    if plain in options:
        return f"did you mean {plain}?"
    table = load_table()
    if scripts := [script for script, theirs in table.scripts.items() if plain in theirs]:
        return f"it exists only in {', '.join(scripts)}"
    if plain in table.dataset:
        return (
            f"it belongs in the dataset file, in {' or '.join(LEVELS[level] for level in table.dataset[plain].levels)}"
        )
    return did_you_mean(plain, options)


def _check_dataset_key(level: str, key: str, value: object, where: str) -> list[Problem]:
    keys = load_table().dataset
    if key not in keys:
        legal = [name for name, entry in keys.items() if level in entry.levels]
        hint = did_you_mean(key, legal) or did_you_mean(key, keys)
        return [Problem(where=where, what=f"{key}: no such key of a dataset file", hint=hint)]
    entry = keys[key]
    if level not in entry.levels:
        due = " or ".join(LEVELS[level] for level in entry.levels)
        return [Problem(where=where, what=f"{key} is not allowed here", hint=f"it belongs in {due}")]
    one, _, pair = entry.type.partition("pair of ")
    choices = load_table().options_of("train_network")[key].choices if key == "resize_interpolation" else ()
    if pair and (isinstance(value, list) or not one):
        found = [_check_value(pair, (), item, strict=True) for item in value] if isinstance(value, list) else []
        if len(found) != 2:
            found = [(f"{_show(value)} where a list of two is due", "")]
    else:
        found = [_check_value(one.removesuffix(" or ") or entry.type, choices, value, strict=True)]
    return [Problem(where=where, what=f"{key}: {what}", hint=hint) for what, hint in filter(None, found)]


_DUE = {
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "int_or_float": "a number",
    "float or int": "a number",
    "str": "text in quotes",
    "dict": "a table",
}
_NUMBERS: Mapping[str, tuple[type, ...]] = {
    "int": (int,),
    "float": (int, float),
    "int_or_float": (int, float),
    "float or int": (int, float),
}


def _check_value(
    kind: str, choices: tuple[object, ...], value: object, *, strict: bool = False
) -> tuple[str, str] | None:
    """(what is wrong, what to do), or None. `strict`: the dataset schema's `float` takes no whole number."""
    due = _DUE[kind]
    if kind in _NUMBERS:
        legal = isinstance(value, _NUMBERS[kind]) and not isinstance(value, bool)
        if legal and not math.isfinite(value):  # type: ignore[arg-type]
            return f"{_show(value)} is no number to train with", ""
        if strict and kind == "float" and legal and not isinstance(value, float):
            return f"{_show(value)} without a point is refused by the engine", f"write {value}.0"
    else:
        legal = isinstance(value, {"bool": bool, "str": str, "dict": dict}[kind])
    if not legal:
        return f"{_show(value)} where {due} is due", _mend(kind, value)
    if choices and value not in choices:
        return (
            f"{_show(value)} is none of {', '.join(map(str, choices))}",
            did_you_mean(str(value), map(str, choices)),
        )
    return None


def _mend(kind: str, value: object) -> str:
    """How to write the value so that it has the type, where that can be told."""
    if kind == "str":
        return f'write "{value}"' if isinstance(value, int | float) and not isinstance(value, bool) else ""
    if isinstance(value, str):
        try:
            meant = tomllib.loads(f"v = {value.strip().lower()}")["v"]
        except tomllib.TOMLDecodeError:
            return ""
        return "" if _check_value(kind, (), meant) else f"write {value.strip().lower()} without quotes"
    if kind == "int" and isinstance(value, float) and value.is_integer():
        return f"write {int(value)}"
    if kind == "bool" and value in (0, 1):
        return f"write {'true' if value else 'false'}"
    return ""


def _show(value: object) -> str:
    """A value as TOML writes it, shortened."""
    try:
        text = format_value(value)
    except RenderError:
        text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."

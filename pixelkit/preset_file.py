"""From a preset's file to a Preset: `extends`, overrides, and every problem at once with file and line."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from pydantic import ValidationError

from pixelkit.errors import PresetError, Problem, did_you_mean
from pixelkit.paths import data_dir, user_path
from pixelkit.preset import Preset
from pixelkit.toml_lines import KeyPath, locate

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from pydantic_core import ErrorDetails

MAX_BYTES = 1_000_000
ALTERNATIVES = (
    ("steps", "epochs"),
    ("gradient_accumulation", "effective_batch"),
    ("save_every_steps", "save_every_epochs"),
    ("every_steps", "every_epochs"),
)


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where a value was written: a file's line, or the command line (`file` None, counted from the working folder)."""

    file: Path | None
    line: int = 0

    def __str__(self) -> str:
        line = f":{self.line}" if self.line else ""
        return f"{self.file.name}{line}" if self.file else "--set"

    @property
    def folder(self) -> Path:
        """The folder that relative paths of this value start from."""
        return self.file.parent if self.file else Path.cwd()


@dataclass(frozen=True, kw_only=True)
class LoadedPreset:
    """A valid preset, its file, its text as the artist wrote it, and each written value's origin by key path."""

    preset: Preset
    file: Path
    text: str
    origins: Mapping[KeyPath, Origin]

    def is_written(self, *path: str) -> bool:
        """Whether the preset, what it extends, or the command line gives this value."""
        table: Any = self.preset
        for part in path[:-1]:
            table = getattr(table, part)
        return path[-1] in (table if isinstance(table, dict) else table.model_fields_set)

    def origin(self, *path: str) -> Origin:
        """Where a value (or the table that holds it) was written; for one that was not, the preset file itself."""
        return _find_origin(self.origins, self.file, path)

    def where(self, *path: str) -> str:
        """`hero.toml:12 [network]`, for messages."""
        return _where(self.origin(*path), path)

    def resolve_path(self, value: str, *path: str) -> Path:
        """A path value, from the folder of the file that it was written in. Raises PresetError for what is no path."""
        try:
            return (self.origin(*path).folder / user_path(value)).resolve()
        except PresetError as error:
            raise PresetError(f"{self.where(*path)} {path[-1]} = {error.message}") from None


def shipped_presets() -> dict[str, Path]:
    """The presets that come with pixelkit, by name."""
    return {path.stem: path for path in sorted(data_dir("presets").glob("*.toml"))}


def find_preset(name: str, folder: Path | None = None) -> Path:
    """A file as it is (relative to `folder`), or a shipped preset by its name. Raises PresetError with the nearest name."""
    path = (folder or Path.cwd()) / user_path(name)
    if path.is_file():
        return path.resolve()
    shipped = shipped_presets()
    if name in shipped:
        return shipped[name]
    if path.is_dir():
        raise PresetError(f"{name} is a folder, not a preset", hint="give the .toml file")
    hint = (
        did_you_mean(name, shipped)
        or did_you_mean(Path(name).name, _neighbours(path))
        or "`pixelkit presets list` shows the shipped ones"
    )
    raise PresetError(f"{name}: no such file, and no shipped preset is called so", hint=hint)


def load_preset(name: str, overrides: Sequence[str] = ()) -> LoadedPreset:
    """Read, extend, override (`train.steps=100`, the value as TOML or plain text) and validate.

    Raises PresetError; its problems name everything that is wrong, each with file:line and the nearest legal key.
    """
    file = find_preset(name)
    values, origins, text = _read_chain(file, ())
    for override in overrides:
        _apply_override(override, values, origins)
    return validate(values, origins, file, text)


def validate(
    values: Mapping[str, Any],
    origins: Mapping[KeyPath, Origin],
    file: Path,
    text: str,
    *,
    names: Mapping[KeyPath, KeyPath] | None = None,
) -> LoadedPreset:
    """Values as a preset. `names` says under which other key a value was written.

    Raises PresetError; its problems name everything that is wrong.
    """
    try:
        preset = Preset.model_validate(values)
    except ValidationError as error:
        problems = _describe(error, values, lambda path: _find_origin(origins, file, path), names or {})
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise PresetError(f"{file.name}: {count}", problems=problems) from None
    return LoadedPreset(preset=preset, file=file, text=text, origins=origins)


def _neighbours(path: Path) -> list[str]:
    return [found.name for found in path.parent.glob("*.toml")] if path.parent.is_dir() else []


def _read_text(file: Path) -> str:
    try:
        if file.stat().st_size > MAX_BYTES:
            raise PresetError(f"{file.name} is {file.stat().st_size} bytes long; a preset is a small text file")
        text = file.read_text("utf-8-sig")
    except UnicodeDecodeError:
        raise PresetError(
            f"{file.name} is not a text file (UTF-8)",
            hint="a preset is TOML; `pixelkit presets copy style my.toml` makes one",
        ) from None
    except OSError as error:
        raise PresetError(f"cannot read {file}: {error.strerror}") from None
    if not text.strip():
        raise PresetError(f"{file.name} is empty", hint="`pixelkit presets copy style my.toml` makes one to edit")
    return text


def _read_chain(file: Path, below: tuple[Path, ...]) -> tuple[dict[str, Any], dict[KeyPath, Origin], str]:
    """A file's values over those of what it extends."""
    text = _read_text(file)
    try:
        values = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # a number of 5000 digits, a list in a list in a list ...
        hint = (
            "strings need quotes, tables look like [train]; a Windows path goes into 'single quotes'"
            if isinstance(error, tomllib.TOMLDecodeError)
            else ""
        )
        raise PresetError(f"{file.name} is not valid TOML: {error}", hint=hint) from None
    lines = locate(text)
    origins = {path: Origin(file=file, line=line) for path, line in lines.items()}
    parent_name = values.get("extends")
    if not isinstance(parent_name, str):
        return values, origins, text
    try:
        parent = find_preset(parent_name, file.parent)
    except PresetError as error:
        where = _where(origins[("extends",)], ("extends",))
        raise PresetError(
            f"{file.name}: 1 problem", problems=[Problem(where=where, what=f"extends {error.message}", hint=error.hint)]
        ) from None
    if parent in (*below, file):
        chain = " -> ".join(step.name for step in (*below, file, parent))
        raise PresetError(
            f"{file.name}:{lines[('extends',)]} extends in a circle: {chain}", hint="remove one of these extends"
        )
    base_values, base_origins, _ = _read_chain(parent, (*below, file))
    return _merge(base_values, values), {**base_origins, **origins}, text


def _merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Tables merge key by key, everything else is replaced."""
    merged = dict(below)
    for key, value in above.items():
        if isinstance(value, dict) and isinstance(below.get(key), dict):
            merged[key] = {**without_alternatives(below[key], value), **value}
        else:
            merged[key] = value
    return merged


def without_alternatives(below: dict[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """What stays of a parent's table: `epochs` in the child drops the parent's `steps`, and so on."""
    dropped = {
        other for pair in ALTERNATIVES for own, other in (pair, pair[::-1]) if own in above and other not in above
    }
    return {key: value for key, value in below.items() if key not in dropped}


def _apply_override(override: str, values: dict[str, Any], origins: dict[KeyPath, Origin]) -> None:
    key, equals, text = override.partition("=")
    path = tuple(part.strip() for part in key.split("."))
    if not equals or not all(path):
        raise PresetError(f"--set {override}: write it as table.key=value, for example --set train.steps=100")
    if path == ("extends",):
        raise PresetError(f"--set {override}: a preset's file says what it extends", hint="write it there")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        value = text
    above: dict[str, Any] = {path[-1]: value}
    for part in reversed(path[:-1]):
        above = {part: above}
    values.update(_merge(values, above))
    origins[path[:2]] = origins[path] = Origin(file=None)


def _find_origin(origins: Mapping[KeyPath, Origin], file: Path, path: KeyPath) -> Origin:
    """Where a key was written, or the table that holds it, or the file."""
    return origins.get(path) or origins.get(path[:1]) or Origin(file=file)


def _where(origin: Origin, path: Sequence[str | int]) -> str:
    table = f" [{path[0]}]" if len(path) > 1 else ""
    return f"{origin}{table}"


def _describe(
    error: ValidationError,
    values: Mapping[str, Any],
    find: Callable[[KeyPath], Origin],
    names: Mapping[KeyPath, KeyPath],
) -> list[Problem]:
    details = [detail for detail in error.errors() if detail["loc"][:1] != ("kohya",)]
    problems = dict.fromkeys(_describe_one(detail, values, find, names) for detail in details)
    for key in dict.fromkeys(
        detail["loc"][1] for detail in error.errors() if detail["loc"][:1] == ("kohya",) and len(detail["loc"]) > 1
    ):
        what = f"{key} = {_show(values['kohya'][key])}: must be true or false, a number, text in quotes, or a list of these"
        problems[Problem(where=_where(find(("kohya", key)), ("kohya", key)), what=what)] = None
    return sorted(problems, key=lambda problem: (problem.where.split(":")[0], _line_of(problem.where)))


def _line_of(where: str) -> int:
    number = where.partition(":")[2].split(" ")[0]
    return int(number) if number.isdigit() else 0


def _describe_one(
    detail: ErrorDetails,
    values: Mapping[str, Any],
    find: Callable[[KeyPath], Origin],
    names: Mapping[KeyPath, KeyPath],
) -> Problem:
    location: KeyPath = detail["loc"]
    path = location[:2] if location and isinstance(values.get(str(location[0])), dict) else location[:1]
    written = names.get(path, path)
    key = str(written[-1]) if path else ""
    where = _where(find(written), written)
    given = detail["input"]
    match detail["type"]:
        case "extra_forbidden":
            legal = _legal_keys(path)
            return Problem(
                where=where,
                what=f"{key}: no such key",
                hint=did_you_mean(key, legal) or _other_place(key) or f"there are {', '.join(legal)}",
            )
        case "value_error" if isinstance(given, dict):  # two keys of a table that do not go together
            return Problem(where=where, what=str(detail["ctx"]["error"]))
        case "missing":
            return Problem(
                where=str(find(path)).partition(":")[0],
                what=f"{'.'.join(map(str, path))} is missing",
                hint=_meaning(path),
            )
        case "model_type" | "dict_type":
            return Problem(where=where, what=f"{key} is a table", hint=f"write it as [{key}]")
        case _:
            meaning = "" if detail["type"] == "value_error" else _meaning(path)  # that says what to do itself
            return Problem(
                where=where, what=f"{key} = {_show(given)}: {_say(detail)}", hint=_mend(detail, given) or meaning
            )


def _say(detail: ErrorDetails) -> str:
    context = detail.get("ctx", {})
    expected = {
        "int_type": "must be a whole number",
        "float_type": "must be a number",
        "string_type": "must be text in quotes",
        "bool_type": "must be true or false",
        "tuple_type": 'must be a list, like ["a", "b"]',
        "finite_number": "must be a finite number",
        "greater_than": f"must be above {context.get('gt')}",
        "greater_than_equal": f"must be at least {context.get('ge')}",
        "less_than": f"must be below {context.get('lt')}",
        "less_than_equal": f"must be at most {context.get('le')}",
        "literal_error": f"must be one of {context.get('expected')}",
        "multiple_of": f"must be a multiple of {context.get('multiple_of')}",
        "string_too_short": "must not be empty",
        "value_error": str(context.get("error")),
    }
    return expected.get(detail["type"], detail["msg"][:1].lower() + detail["msg"][1:])


def _mend(detail: ErrorDetails, given: object) -> str:
    if detail["type"] in {"int_type", "float_type", "bool_type"} and isinstance(given, str):
        return f"remove the quotes: {given}" if given else "give a value"
    if detail["type"] == "int_type" and isinstance(given, float) and given.is_integer():
        return f"write {int(given)}"
    if detail["type"] == "literal_error" and isinstance(given, str):
        legal = [choice.strip("'") for choice in str(detail["ctx"]["expected"]).replace(" or ", ", ").split(", ")]
        return did_you_mean(given, legal)
    return ""


def _show(given: object) -> str:
    text = {True: "true", False: "false"}.get(given) if isinstance(given, bool) else None
    shown = text or (f'"{given}"' if isinstance(given, str) else str(given))
    return shown if len(shown) <= 60 else f"{shown[:57]}..."


def _table_model(table: str) -> Any:
    field = Preset.model_fields.get(table)
    return field.annotation if field and hasattr(field.annotation, "model_fields") else None


def _legal_keys(path: KeyPath) -> list[str]:
    model = _table_model(str(path[0])) if len(path) > 1 else Preset
    return list(model.model_fields) if model else []


def _other_place(key: str) -> str:
    """Where a key belongs that was written into the wrong table."""
    for table in Preset.model_fields:
        model = _table_model(table)
        if model and key in model.model_fields:
            return f"it belongs into [{table}]"
    return f"{key} belongs to the top of the file, above the first [table]" if key in Preset.model_fields else ""


def _meaning(path: KeyPath) -> str:
    model = _table_model(str(path[0])) if len(path) > 1 else Preset
    field = model.model_fields.get(str(path[-1])) if model else None
    if field is None:
        return ""
    if field.description:
        return str(field.description)
    return "" if not get_args(field.annotation) else "see `pixelkit presets schema`"

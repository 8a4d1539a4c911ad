"""What a model must meet to reach production: `rules.toml` in the registry's folder."""

from __future__ import annotations

import tomllib
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pixelkit.errors import PresetError, Problem, did_you_mean
from pixelkit.toml_lines import locate

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from pixelkit.registry.index import Entry
    from pixelkit.toml_lines import KeyPath

Needed = Literal["license", "base_license", "trigger_words", "dataset", "training_date", "preview", "sheet"]


class Rules(BaseModel):
    """The rules; none by default. A score's name is that in the model's metadata, as `models show` prints it."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    minimum: Annotated[dict[str, float], Field(description="lowest scores, { clip_score = 0.25 }")] = {}
    maximum: Annotated[dict[str, float], Field(description="highest scores, { fid = 40 }")] = {}
    no_regressions: Annotated[
        tuple[str, ...],
        Field(strict=False, description="scores that may not be worse than those of the style's current model"),
    ] = ()
    tolerance: Annotated[
        dict[str, Annotated[float, Field(ge=0)]],
        Field(description="how much worse is no regression, { palette_share_lora = 0.01 }; default: 0"),
    ] = {}
    lower_is_better: Annotated[tuple[str, ...], Field(strict=False, description="scores of which less is better")] = (
        "fid",
        "loss",
    )
    require: Annotated[tuple[Needed, ...], Field(strict=False, description="what must be there")] = ()


def read_rules(path: Path, *, must_exist: bool) -> Rules:
    """The rules in a file; none where there is no file. Raises PresetError that names all faults with file:line."""
    try:
        text = path.read_text("utf-8-sig")
        values = tomllib.loads(text)
    except FileNotFoundError:
        if must_exist:
            raise PresetError(f"{path}: no such file") from None
        return Rules()
    except OSError as error:
        raise PresetError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise PresetError(f"{path} is not valid TOML: {error}") from None
    try:
        rules = Rules.model_validate(values)
    except ValidationError as error:
        lines = locate(text)
        problems = [_describe(detail, path, lines) for detail in error.errors()]
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise PresetError(f"{path.name}: {count}", problems=list(dict.fromkeys(problems))) from None
    if idle := [name for name in rules.tolerance if name not in rules.no_regressions]:
        where = f"{path.name}:{locate(text).get(('tolerance', idle[0]), 1)} [tolerance]"
        raise PresetError(f"{where} {idle[0]} is not in no_regressions", hint="add it there, or remove it here")
    return rules


def find_breaches(rules: Rules, new: Entry, current: Entry | None, beside: Path) -> list[Problem]:
    """What keeps a model from production, and what to do about each. `beside`: the folder of what came with it."""
    scores = new.metadata.get("metrics", {})
    found = [_find_missing(name, new, beside) for name in rules.require]
    for name, least in rules.minimum.items():
        found.append(_find_score(name, scores, new) or _compare(name, scores[name], least, "at least", new))
    for name, most in rules.maximum.items():
        found.append(_find_score(name, scores, new) or _compare(name, scores[name], most, "at most", new))
    for name in rules.no_regressions if current else ():
        assert current is not None
        found.append(_find_regression(rules, name, new, current))
    return list(dict.fromkeys(problem for problem in found if problem))


def _find_score(name: str, scores: Mapping[str, Any], entry: Entry) -> Problem | None:
    if scores.get(name) is not None:
        return None
    known = [other for other, value in scores.items() if value is not None]
    alike = [other for other in known if name in other or other in name]
    hint = f"did you mean {alike[0]}?" if alike else did_you_mean(name, known)
    has = f"; it has {', '.join(known)}" if known else "; it has none at all"
    measure = f"measure it and write it down: `pixelkit models score {entry.name} {name}=VALUE`"
    return Problem(where=str(entry.name), what=f"has no score {name}{has}", hint=hint or measure)


def _compare(name: str, value: float, limit: float, words: str, entry: Entry) -> Problem | None:
    if value >= limit if words == "at least" else value <= limit:
        return None
    return Problem(where=str(entry.name), what=f"{name} is {value:g}, it must be {words} {limit:g}")


def _find_regression(rules: Rules, name: str, new: Entry, current: Entry) -> Problem | None:
    scores, before = new.metadata.get("metrics", {}), current.metadata.get("metrics", {})
    if problem := _find_score(name, scores, new) or _find_score(name, before, current):
        return problem
    worse = scores[name] - before[name] if name in rules.lower_is_better else before[name] - scores[name]
    allowed = rules.tolerance.get(name, 0.0)
    if worse <= allowed + 1e-12:  # 0.3 - 0.2 is above 0.1 for a computer
        return None
    more = f", {allowed:g} is allowed" if allowed else ""
    what = f"{name} is {scores[name]:g}, worse by {worse:.4g} than {before[name]:g} of {current.name}{more}"
    return Problem(where=str(new.name), what=what)


def _find_missing(name: Needed, entry: Entry, beside: Path) -> Problem | None:
    about = entry.metadata
    there: Mapping[Needed, object] = {
        "license": about.get("license"),
        "base_license": (about.get("base") or {}).get("licence"),
        "trigger_words": about.get("trigger_words"),
        "dataset": (about.get("dataset") or {}).get("version") or (about.get("dataset") or {}).get("name"),
        "training_date": about.get("training_date"),
        "preview": list(beside.glob("*preview*")),
        "sheet": list(beside.glob("*-sheet.png")),
    }
    if there[name]:
        return None
    hints: Mapping[Needed, str] = {
        "license": "set export.license in the preset and ship again",
        "base_license": "train on a base of presets/bases, or write its licence down in a base of your own",
        "preview": "a run with sample.prompts makes one",
        "sheet": "a run with sample.prompts makes one",
        "trigger_words": "set dataset.trigger in the preset",
    }
    return Problem(where=str(entry.name), what=f"has no {name.replace('_', ' ')}", hint=hints.get(name, ""))


def _describe(detail: Any, path: Path, lines: Mapping[KeyPath, int]) -> Problem:
    location: KeyPath = detail["loc"]
    line = next((lines[location[:end]] for end in range(len(location), 0, -1) if location[:end] in lines), 1)
    where = f"{path.name}:{line}" + (f" [{location[0]}]" if len(location) > 1 else "")
    key = str(location[-1] if len(location) > 1 and isinstance(location[-1], str) else location[0])
    if detail["type"] == "extra_forbidden":
        legal = list(Rules.model_fields)
        return Problem(
            where=where,
            what=f"{key}: no such rule",
            hint=did_you_mean(key, legal) or f"there are {', '.join(legal)}",
        )
    meaning = Rules.model_fields[str(location[0])].description or ""
    said = {
        "float_type": "must be a number",
        "dict_type": "must be a table of scores",
        "tuple_type": 'must be a list, like ["a", "b"]',
        "string_type": "must be text in quotes",
        "literal_error": f"must be one of {detail.get('ctx', {}).get('expected')}",
        "finite_number": "must be a finite number",
        "greater_than_equal": "must be at least 0",
    }.get(detail["type"], detail["msg"])
    hint = meaning
    if detail["type"] == "literal_error":
        hint = did_you_mean(str(detail["input"]), Needed.__args__) or meaning  # type: ignore[attr-defined]
    return Problem(where=where, what=f"{key} = {_show(detail['input'])}: {said}", hint=hint)


def _show(value: object) -> str:
    text = f'"{value}"' if isinstance(value, str) else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."

"""Jinja templates to the files that the engine reads: sandboxed, nothing undefined, every value through a TOML filter."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import ChoiceLoader, FileSystemLoader, StrictUndefined, TemplateError, TemplateSyntaxError
from jinja2.sandbox import SandboxedEnvironment

from pixelkit.errors import PixelkitError, RenderError
from pixelkit.paths import data_dir, write_atomically
from pixelkit.toml_text import format_key, format_value

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, kw_only=True)
class Rendered:
    """The rendered files, by the name of their template without `.j2`."""

    folder: Path
    files: Mapping[str, Path]


def render(
    engine: str, contexts: Mapping[str, Mapping[str, object]], folder: Path, *, templates: Path | None = None
) -> Rendered:
    """Render templates/ENGINE/NAME.j2 (or templates/NAME.j2, which engines share) into folder/NAME for each of `contexts`.

    Templates of the same name in `templates` (or `templates`/ENGINE) take the place of the shipped ones. Raises
    RenderError with the template's file and line.
    """
    if templates is not None and not templates.is_dir():
        raise RenderError(f"--templates {templates} is not a folder")
    own = [FileSystemLoader([templates / engine, templates])] if templates else []
    environment = SandboxedEnvironment(
        loader=ChoiceLoader([*own, FileSystemLoader([data_dir("templates") / engine, data_dir("templates")])]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["toml"] = format_value
    environment.filters["toml_key"] = format_key
    files: dict[str, Path] = {}
    for name, variables in contexts.items():
        try:
            template = environment.get_template(f"{name}.j2")
            text = template.render(variables)
        except TemplateSyntaxError as error:
            raise RenderError(f"{error.filename or error.name}:{error.lineno} {error.message}") from None
        except PixelkitError as error:
            raise RenderError(f"{name}.j2: {error}") from None
        except (TemplateError, ArithmeticError, LookupError, TypeError, ValueError) as error:
            raise RenderError(f"{_place(error, name)} {error}", hint="compare with the shipped template") from None
        files[name] = folder / name
        write_atomically(files[name], text)
    return Rendered(folder=folder, files=files)


def _place(error: BaseException, name: str) -> str:
    """The template's line in a traceback, where Jinja left one."""
    trace, place = error.__traceback__, f"{name}.j2"
    while trace is not None:
        if trace.tb_frame.f_code.co_filename.endswith(".j2"):
            place = f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}"
        trace = trace.tb_next
    return place

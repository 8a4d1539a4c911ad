"""Where things are: shipped data folders, the engine, the user's settings."""

from __future__ import annotations

import os
import shlex
import tempfile
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

import platformdirs

from pixelkit.errors import PresetError, StorageError, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Mapping

PACKAGE = Path(__file__).resolve().parent
ENGINE_COMMIT = "48d368fa557731ad0488c07304dfeba8c07910eb"
ENGINE_VARIABLE = "PIXELKIT_SD_SCRIPTS"


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One of the user's settings. A folder is kept as an absolute path, a command as it is, a webhook must be http(s)."""

    meaning: str
    kind: Literal["folder", "command", "webhook"] = "folder"


SETTINGS: Mapping[str, Setting] = {
    "sd_scripts": Setting(meaning="folder of a kohya sd-scripts checkout"),
    "models": Setting(meaning="folder that holds base models, searched by file name"),
    "runs": Setting(meaning="folder for run directories (default: runs)"),
    "registry": Setting(meaning="folder of the model registry (default: models)"),
    "notify_command": Setting(meaning="command to start when a run ends; it gets JSON", kind="command"),
    "notify_webhook": Setting(meaning="http(s) address that gets the same JSON by POST", kind="webhook"),
}


def data_dir(name: Literal["presets", "templates"]) -> Path:
    """The shipped data folder: beside the package in a checkout, inside it in an installed wheel."""
    beside = PACKAGE.parent / name
    return beside if beside.is_dir() else PACKAGE / f"_{name}"


def user_path(text: str) -> Path:
    """A path that a person wrote, `~` expanded. Raises PresetError for what can be none."""
    try:
        path = Path(text).expanduser()
        path.is_dir()
    except (OSError, RuntimeError, ValueError) as error:
        shown = text if len(text) <= 60 else f"{text[:57]}..."
        raise PresetError(f"{shown} cannot be a path here: {getattr(error, 'strerror', None) or error}") from None
    if "\0" in text:
        raise PresetError(f"{text!r} cannot be a path")
    return path


def settings_file() -> Path:
    """The user's settings, `config.toml` in the platform's configuration folder."""
    return Path(platformdirs.user_config_dir("pixelkit", appauthor=False)) / "config.toml"


def read_settings() -> dict[str, str]:
    """All settings of the user; empty if there is no file. Raises PresetError if the file is no TOML."""
    path = settings_file()
    try:
        document = tomllib.loads(path.read_text("utf-8-sig"))
    except FileNotFoundError:
        return {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise PresetError(f"{path} is not valid TOML: {error}", hint="mend or delete it") from error
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror}") from error
    for key in document.keys() - SETTINGS.keys():
        raise PresetError(
            f"{path}: no setting is called {key}",
            hint=did_you_mean(key, SETTINGS) or f"there are {', '.join(SETTINGS)}",
        )
    return {key: str(value) for key, value in document.items()}


def write_setting(key: str, value: str) -> Path:
    """Set one setting and return the file; an empty value removes it. Raises PresetError for a value of another kind."""
    if key not in SETTINGS:
        raise PresetError(
            f"no setting is called {key}", hint=did_you_mean(key, SETTINGS) or f"there are {', '.join(SETTINGS)}"
        )
    settings = read_settings()
    if value.strip():
        settings[key] = _as_kind(key, value)
    else:
        settings.pop(key, None)
    import tomlkit  # noqa: PLC0415 - a twentieth of a second that only this needs

    # A webhook's address is as good as a password.
    write_atomically(settings_file(), tomlkit.dumps(settings), mode=0o600)
    return settings_file()


def _as_kind(key: str, value: str) -> str:
    kind = SETTINGS[key].kind
    if kind == "folder":
        return str(user_path(value).resolve())
    if kind == "command":
        try:
            words = shlex.split(value)
        except ValueError as error:
            raise PresetError(f"{key}: {error}", hint="close every quotation mark") from None
        if not words:
            raise PresetError(f"{key}: no command")
    elif not is_web_address(value):
        raise PresetError(f"{key}: no http(s) address", hint="write it whole, as https://chat.example/hooks/1")
    return value.strip()


def is_web_address(text: str) -> bool:
    """Whether this is an http(s) address with a host."""
    try:
        parts = urlsplit(text.strip())
        return parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def show_setting(key: str, value: str) -> str:
    """A setting as it may be printed: of an address only the host."""
    if SETTINGS[key].kind != "webhook":
        return value
    return (
        f"{urlsplit(value).scheme}://{urlsplit(value).hostname}/..." if is_web_address(value) else "no http(s) address"
    )


def write_atomically(path: Path, content: str | bytes, mode: int = 0o644) -> None:
    """Write a file whole or not at all: a temporary name in the same folder, fsync, rename."""
    data = content.encode() if isinstance(content, str) else content
    temporary = ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        Path(temporary).chmod(mode)
        Path(temporary).replace(path)
    except OSError as error:
        if temporary:
            Path(temporary).unlink(missing_ok=True)
        raise StorageError(
            f"cannot write {path}: {error.strerror}", hint="is the folder writable, is the disk full?"
        ) from error


@dataclass(frozen=True, kw_only=True)
class EngineLocation:
    """A checkout of sd-scripts and what named it."""

    path: Path
    named_by: str


def locate_sd_scripts(explicit: Path | None = None) -> EngineLocation | None:
    """The first that is named: `--sd-scripts`, the environment, the user's settings; else third_party/sd-scripts if filled.

    A named folder that holds no train_network.py is returned as it is: the engine's check says so.
    """
    named = (
        (str(explicit) if explicit else "", "--sd-scripts"),
        (os.environ.get(ENGINE_VARIABLE, ""), ENGINE_VARIABLE),
        (read_settings().get("sd_scripts", ""), str(settings_file())),
    )
    for value, name in named:
        if value:
            return EngineLocation(path=user_path(value).resolve(), named_by=name)
    submodule = PACKAGE.parent / "third_party" / "sd-scripts"
    if (submodule / "train_network.py").is_file():
        return EngineLocation(path=submodule, named_by="third_party/sd-scripts")
    return None

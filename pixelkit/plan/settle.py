"""Where each value of a plan comes from: the preset first, then what suits base and machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pixelkit.catalog import Base
    from pixelkit.preset_file import LoadedPreset


class Resolver:
    """Collects sources and warnings while values are settled."""

    def __init__(self, loaded: LoadedPreset, base: Base, profile_name: str) -> None:
        self.loaded = loaded
        self.base_name = f"base {base.name}"
        self.hardware_name = f"hardware {profile_name}"
        self.sources: dict[str, str] = {}
        self.warnings: list[str] = []

    def settle(self, name: str, *candidates: tuple[Any, str]) -> Any:
        """The preset's value if it was written, else the first candidate that is not None."""
        table, _, key = name.partition(".")
        written = getattr(getattr(self.loaded.preset, table), key)
        if self.loaded.is_written(table, key) and written is not None and written != "auto":
            self.sources[name] = str(self.loaded.origin(table, key))
            return written
        for value, source in (*candidates, (written, "default")):
            if value is not None:
                self.sources[name] = source
                return value
        raise AssertionError(f"{name} has no value")

    def overrule(self, name: str, option: str, value: str) -> str:
        """What sd-scripts' own `option` in [kohya] says instead of a settled value, where it is given."""
        given = self.loaded.preset.kohya.get(option)
        if given is None:
            return value
        self.sources[name] = f"{self.loaded.where('kohya', option)} {option}"
        return str(given)

"""The one error of the converters."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


class ConversionError(Exception):
    """A file cannot be read, or the target cannot hold what it holds.

    `keys` lists every tensor name concerned; the message names the first few of them and how many there are.
    """

    def __init__(self, message: str, *, keys: Iterable[str] = ()) -> None:
        self.keys = tuple(sorted(keys))
        self.message = message
        super().__init__(message)

    def __str__(self) -> str:
        if not self.keys:
            return self.message
        shown = "\n".join(f"  {key}" for key in self.keys[:10])
        more = len(self.keys) - 10
        return f"{self.message}\n{shown}" + (f"\n  ... and {more} more" if more > 0 else "")

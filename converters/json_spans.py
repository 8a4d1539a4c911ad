"""A JSON document of named layers, read without ever holding it whole: big values stay where they are in the file.

An array of numbers ends before the next quote or brace, a text without escapes at the next quote: both are found by
searching, not by parsing. Everything else is left to the json module.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from converters.errors import ConversionError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from converters.tensors import Float64

_SPACE = re.compile(rb"[ \t\r\n]*")
_DECODER = json.JSONDecoder()
_NO_NUMBERS = re.compile(rb"[^0-9eE+\-.,\[\] \t\r\n]")


@dataclass(frozen=True, kw_only=True)
class Span:
    """A text (base64) or a list of numbers in a file."""

    data: mmap.mmap
    start: int
    end: int
    is_text: bool

    @property
    def raw(self) -> bytes:
        """The bytes between the quotes, or with the brackets."""
        return self.data[self.start : self.end]

    def read_numbers(self) -> Float64:
        """Nested lists of numbers as an array. Raises ValueError: not rectangular, or no numbers."""
        text = self.raw
        if strange := _NO_NUMBERS.search(text):
            raise ValueError(f"{strange.group()!r} in a list of numbers")
        compact = text.translate(None, b" \t\r\n")
        if not compact.startswith(b"[[") or compact.startswith(b"[[["):
            return np.array(json.loads(compact), np.float64)
        rows = compact[2:-2].split(b"],[")
        columns = rows[0].count(b",") + 1
        if not compact.endswith(b"]]") or any(row.count(b",") + 1 != columns for row in rows):
            raise ValueError("rows of different lengths")
        found = np.fromstring(b",".join(rows).decode(), np.float64, sep=",")
        return found.reshape(len(rows), columns)


@dataclass(kw_only=True)
class Document:
    """The places of a document's values: `layers` by name, each with its fields; `metadata` and others are read."""

    path: Path
    data: mmap.mmap
    keys: dict[str, Any]
    layers: dict[str, dict[str, Any]]

    @property
    def metadata(self) -> dict[str, Any]:
        """The object under `metadata`, or an empty one."""
        found = self.keys.get("metadata")
        return found if isinstance(found, dict) else {}

    def has_text(self, field: str) -> bool:
        """Whether that field of the first layer is a text."""
        first = next(iter(self.layers.values()), {}).get(field)
        return isinstance(first, Span) and first.is_text

    def read_layer(self, name: str, *, big: tuple[str, ...]) -> dict[str, Any]:
        """A layer's fields, those of `big` as spans; the memory that layers before it took is let go."""
        fields = self.layers[name]
        starts = [span.start for span in fields.values() if isinstance(span, Span)]
        before = min(starts, default=0) // mmap.PAGESIZE * mmap.PAGESIZE
        if before and hasattr(self.data, "madvise"):
            self.data.madvise(mmap.MADV_DONTNEED, 0, before)
        return {key: value if key in big else _read_small(value) for key, value in fields.items()}


def _read_small(value: Any) -> Any:
    if not isinstance(value, Span):
        return value
    return value.raw.decode() if value.is_text else json.loads(value.raw)


@contextlib.contextmanager
def read_document(path: Path) -> Iterator[Document]:
    """Open a document `{..., "layers": {name: {...}}}`. Raises ConversionError where it is broken or cut short."""
    try:
        with path.open("rb") as handle, mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as data:
            scanner = _Scanner(data)
            try:
                document = Document(path=path, data=data, keys={}, layers={})
                for key in scanner.walk_object():
                    document.keys[key] = _read_layers(scanner) if key == "layers" else scanner.read_value()
                document.layers = document.keys.get("layers", {})
                scanner.expect_end()
            except (ValueError, IndexError, RecursionError) as error:
                raise ConversionError(f"{path}: broken or cut short at byte {scanner.position}: {error}") from error
            yield document
    except (OSError, ValueError) as error:
        raise ConversionError(f"{path}: cannot be read: {error}") from error


def _read_layers(scanner: _Scanner) -> dict[str, dict[str, Any]]:
    layers: dict[str, dict[str, Any]] = {}
    for name in scanner.walk_object():
        if name in layers:
            raise ValueError(f"two layers {name}")
        layers[name] = {field: scanner.read_span() for field in scanner.walk_object()}
    return layers


class _Scanner:
    def __init__(self, data: mmap.mmap) -> None:
        self.data = data
        self.position = 0

    def walk_object(self) -> Iterator[str]:
        """The keys of the object at this place; whoever takes one reads its value before the next."""
        self._expect(b"{")
        if self._peek() == b"}":
            self.position += 1
            return
        while True:
            key = self.read_value()
            if not isinstance(key, str):
                raise ValueError("a key that is no text")  # noqa: TRY004 broken input, not a wrong call
            self._expect(b":")
            yield key
            if self._peek() == b"}":
                self.position += 1
                return
            self._expect(b",")

    def read_value(self) -> Any:
        """Any value, by the json module: from a stretch of the file that is doubled until the value fits into it."""
        self._peek()
        size = 1 << 12
        while True:
            text = self.data[self.position : self.position + size].decode(errors="ignore")
            try:
                value, end = _DECODER.raw_decode(text)
            except ValueError:
                if self.position + size >= len(self.data):
                    raise
            else:
                # A number at the end of the stretch may go on behind it.
                if end < len(text) or self.position + size >= len(self.data):
                    self.position += len(text[:end].encode())
                    return value
            size *= 8

    def read_span(self) -> Any:
        """A list of numbers or a text as a span; any other value read."""
        first = self._peek()
        if first == b'"':
            end = self.data.find(b'"', self.position + 1)
            if end < 0:
                raise ValueError("a text without an end")
            span = Span(data=self.data, start=self.position + 1, end=end, is_text=True)
            if self.data.find(b"\\", self.position, end) >= 0:
                return self.read_value()
            self.position = end + 1
            return span
        if first != b"[":
            return self.read_value()
        ends = [end for end in (self.data.find(sign, self.position) for sign in (b'"', b"}")) if end >= 0]
        end = self.data.rfind(b"]", self.position, min(ends, default=len(self.data))) + 1
        if end <= self.position:
            raise ValueError("a list without an end")
        span = Span(data=self.data, start=self.position, end=end, is_text=False)
        self.position = end
        return span

    def expect_end(self) -> None:
        """Nothing but space is left."""
        if self._peek():
            raise ValueError("something behind the end")

    def _peek(self) -> bytes:
        match = _SPACE.match(self.data, self.position)
        assert match
        self.position = match.end()
        return self.data[self.position : self.position + 1]

    def _expect(self, sign: bytes) -> None:
        if self._peek() != sign:
            raise ValueError(f"{sign.decode()} is missing")
        self.position += 1

"""The records of a set on disk: appended while it is made, put in order when it is done."""

from __future__ import annotations

import json
from typing import IO, TYPE_CHECKING, Any

from pixelkit.errors import StorageError
from pixelkit.paths import write_atomically
from pixelkit.sources.prepared import MANIFEST, RECORDS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from pixelkit.dataset.make import Record


class Journal:
    """What a folder already holds, and what is added. In memory only a place in a file for each sprite."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.begun = folder / f"{RECORDS}.part"
        self._places: dict[str, tuple[Path, int]] = {}
        self._open: dict[Path, IO[bytes]] = {}
        for file in (folder / RECORDS, self.begun):
            if file.is_file():
                self._index(file)

    def known(self, sprite: str) -> list[Record]:
        """The records of a sprite, none if there are none or not all of them."""
        if sprite not in self._places:
            return []
        file, place = self._places[sprite]
        stream = self._stream(file)
        stream.seek(place)
        found: list[Record] = []
        while not found or len(found) < found[0]["variants"]:
            record = _parse(stream.readline())
            if record is None or record["sprite"] != sprite:
                return []
            found.append(record)
        return found

    def add(self, records: Sequence[Record]) -> None:
        """Append a sprite's records."""
        text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()
        try:
            with self.begun.open("ab") as stream:
                self._places[records[0]["sprite"]] = (self.begun, stream.tell())
                stream.write(text)
        except OSError as error:
            raise StorageError(f"cannot write {self.begun}: {error.strerror}") from error

    def finish(self, sprites: Iterable[str], manifest: dict[str, Any]) -> set[str]:
        """Write the records in the sprites' order and the manifest, which makes the set complete; the files they name."""
        files: set[str] = set()
        final = self.folder / f".{RECORDS}.new"
        with final.open("w", encoding="utf-8") as stream:
            for sprite in sprites:
                for record in self.known(sprite):
                    files.add(record["file"])
                    stream.write(json.dumps(record, ensure_ascii=False) + "\n")
        self.close()
        final.replace(self.folder / RECORDS)
        self.begun.unlink(missing_ok=True)
        write_atomically(self.folder / MANIFEST, json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")
        return files

    def close(self) -> None:
        """Close what was opened for reading."""
        for stream in self._open.values():
            stream.close()
        self._open.clear()

    def _index(self, file: Path) -> None:
        stream, place, before = self._stream(file), 0, ""
        for line in stream:
            record = _parse(line)
            if record and record["sprite"] != before:
                self._places[record["sprite"]] = (file, place)
            before = record["sprite"] if record else ""
            place += len(line)
        if file == self.begun and place and not line.endswith(b"\n"):
            with file.open("ab") as torn:  # what was being written when the work was interrupted
                torn.write(b"\n")

    def _stream(self, file: Path) -> IO[bytes]:
        if file not in self._open:
            self._open[file] = file.open("rb")
        return self._open[file]


def _parse(line: bytes) -> Record | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and {"sprite", "variants", "key", "file"} <= record.keys() else None

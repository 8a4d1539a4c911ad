"""Files that cannot be used: each is named, in one error, and the rest comes through where that is asked for."""

from __future__ import annotations

import errno
import os
import struct
import zlib
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_files import chunk, encode, png, random_pixels, read, save
from PIL import Image

from pixelkit.errors import DataError
from pixelkit.sources import Reading, Survey, survey
from pixelkit.sources.pixels import read_pixels

if TYPE_CHECKING:
    from collections.abc import Iterator

FRAMES = [Image.fromarray(random_pixels(24, 16, seed)) for seed in range(3)]
WHOLE = {
    "still.png": encode(FRAMES[0], "PNG"),
    "interlaced.png": png(random_pixels(24, 16), interlaced=True),
    "deep.png": png(random_pixels(24, 16).astype(int) * 257, depth=16),
    "moving.png": encode(FRAMES[0], "PNG", save_all=True, append_images=FRAMES[1:]),
    "still.gif": encode(FRAMES[0], "GIF"),
    "moving.gif": encode(FRAMES[0], "GIF", save_all=True, append_images=FRAMES[1:]),
    "lossless.webp": encode(FRAMES[0], "WEBP", lossless=True),
    "lossy.webp": encode(FRAMES[0], "WEBP"),
    "moving.webp": encode(FRAMES[0], "WEBP", save_all=True, append_images=FRAMES[1:], lossless=True),
    "plain.bmp": encode(FRAMES[0].convert("RGB"), "BMP"),
    "photo.jpg": encode(FRAMES[0].convert("RGB"), "JPEG"),
}
GOOD = ["good1.png", "good2.png"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, name in enumerate(GOOD):
        save(tmp_path / name, random_pixels(9 + number, 7, number))
    return tmp_path


def find_bad(folder: Path) -> dict[str, str]:
    """Everything that is refused, by the survey or where pixels are read; what comes through must be readable."""
    found = survey(folder, what="path", reading=Reading(keep_going=True))
    refused = {problem.where: problem.what for problem in found.skipped}
    for one in found.sprites:
        try:
            pixels = read_pixels(one)
        except DataError as error:
            refused[one.path.relative_to(folder).as_posix()] = error.message
        else:
            assert pixels.shape == (one.height, one.width, 4)
    assert not refused.keys() & set(GOOD)
    if found.skipped:
        with pytest.raises(DataError) as caught:
            survey(folder, what="path")
        assert {problem.where for problem in caught.value.problems} == {problem.where for problem in found.skipped}
    return refused


def test_whole_files_are_not_refused(folder: Path) -> None:
    for name, data in WHOLE.items():
        (folder / name).write_bytes(data)
    assert find_bad(folder) == {}


@pytest.mark.parametrize("name", WHOLE)
def test_cut_off_anywhere(folder: Path, name: str) -> None:
    data = WHOLE[name]
    stem, suffix = name.split(".")
    cuts = {*(len(data) * quarter // 4 for quarter in range(4)), len(data) - 1, 5, 20}
    for cut in cuts:
        (folder / f"{stem}{cut}.{suffix}").write_bytes(data[:cut])
    assert set(find_bad(folder)) == {f"{stem}{cut}.{suffix}" for cut in cuts}


@given(name=st.sampled_from(sorted(WHOLE)), place=st.floats(0, 0.9999), flip=st.integers(1, 255))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_changed_byte_never_ends_in_a_traceback(tmp_path: Path, name: str, place: float, flip: int) -> None:
    data = bytearray(WHOLE[name])
    data[int(place * len(data))] ^= flip
    (tmp_path / name).write_bytes(data)
    with suppress(DataError):
        for one in survey(tmp_path, what="path").sprites:
            read_pixels(one)
    (tmp_path / name).unlink()


@given(
    place=st.floats(0, 0.9999),
    flip=st.integers(1, 255),
    name=st.sampled_from(["still.png", "interlaced.png", "deep.png"]),
)
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_changed_byte_of_a_png_is_noticed_or_does_no_harm(tmp_path: Path, name: str, place: float, flip: int) -> None:
    file = tmp_path / "x.png"
    file.write_bytes(WHOLE[name])
    whole = read(file)
    data = bytearray(WHOLE[name])
    data[int(place * len(data))] ^= flip
    file.write_bytes(data)
    with suppress(DataError):
        assert np.array_equal(read(file), whole)


def with_idat(data: bytes, packed: bytes) -> bytes:
    start = data.index(b"IDAT") - 4
    end = data.index(b"IEND") - 4
    return data[:start] + chunk(b"IDAT", packed) + data[end:]


def bad_files() -> Iterator[tuple[str, bytes, str]]:
    whole, pixels = WHOLE["still.png"], random_pixels(24, 16)
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    place = whole.index(b"IDAT") + 10
    yield "empty.png", b"", "0 bytes"
    yield "text.png", b"I am no image at all", "no image that can be read"
    yield "tiff.png", encode(FRAMES[0], "TIFF"), "no image that can be read"
    yield "header.png", whole[:8], "no image"
    yield "wider.png", png(pixels, size=(25, 16)), "fewer pixels than its header says"
    yield "taller.png", png(pixels, size=(24, 17)), "fewer pixels"
    yield "smaller.png", png(pixels, size=(24, 15)), "more pixels than its header says"
    yield "interlaced.png", png(pixels, size=(24, 20), interlaced=True), "fewer pixels"
    yield "nothing.png", png(pixels, size=(0, 16)), ""
    yield "bomb.png", png(pixels, size=(60000, 60000)), "far too"
    yield "large.png", png(pixels, size=(9000, 9000)), "9000x9000 pixels are far too many"
    yield "bomb.gif", WHOLE["still.gif"][:6] + struct.pack("<HH", 65000, 65000) + WHOLE["still.gif"][10:], "far too"
    yield "zlib.png", with_idat(whole, zlib.compress(rows)[:-4] + b"\0\0\0\0"), "cannot be unpacked"
    yield "noise.png", with_idat(whole, b"\x78\x9c" + bytes(40)), ""
    yield "crc.png", whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :], "checksum of its part 'IDAT'"
    yield "tail.gif", WHOLE["moving.gif"][:-1], "cut off"


@pytest.mark.parametrize(("name", "data", "what"), list(bad_files()), ids=[name for name, _, _ in bad_files()])
def test_damage_of_every_kind(folder: Path, name: str, data: bytes, what: str) -> None:
    (folder / name).write_bytes(data)
    refused = find_bad(folder)
    assert list(refused) == [name] and what in refused[name], refused


def test_all_of_it_in_one_error(folder: Path) -> None:
    expected = set()
    for name, data, _ in bad_files():
        if name not in {"crc.png", "zlib.png", "noise.png"} and not name.startswith(
            ("wider", "taller", "smaller", "interlaced")
        ):
            (folder / name).write_bytes(data)
            expected.add(name)
    (folder / "nowhere.png").symlink_to(folder / "gone.png")
    (folder / "loop.png").symlink_to(folder / "loop.png")
    (folder / "folder.png").mkdir()
    os.mkfifo(folder / "pipe.png")
    odd = os.fsencode(folder) + b"/gr\xf6sse.png"
    Path(os.fsdecode(odd)).write_bytes(WHOLE["still.png"])
    expected |= {"nowhere.png", "loop.png", "folder.png", "pipe.png", "gr?sse.png"}
    with pytest.raises(DataError) as caught:
        survey(folder, what="path")
    told = {problem.where: problem.what for problem in caught.value.problems}
    assert set(told) == expected
    assert "leads nowhere" in told["nowhere.png"] and "leads nowhere" in told["loop.png"]
    assert "empty folder" in told["folder.png"] and "no file" in told["pipe.png"] and "Unicode" in told["gr?sse.png"]
    str(caught.value).encode()
    found = survey(folder, what="path", reading=Reading(keep_going=True))
    assert [one.path.name for one in found.sprites] == GOOD


def test_a_folder_with_an_images_name_is_a_folder(folder: Path) -> None:
    save(folder / "deep.png" / "a.png", random_pixels(8, 8))
    assert [one.name for one in survey(folder, what="path").sprites] == ["deep.png/a", "good1", "good2"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_files_that_may_not_be_read(folder: Path) -> None:
    (folder / "locked.png").write_bytes(WHOLE["still.png"])
    (folder / "locked.png").chmod(0)
    assert find_bad(folder) == {"locked.png": "Permission denied"}


def test_files_and_folders_that_may_not_be_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As root has to test it."""
    save(folder / "locked.png", random_pixels(8, 8))
    save(folder / "closed" / "a.png", random_pixels(8, 8))
    real_open, real_scan = Path.open, os.scandir

    def refuse_open(path: Path, *args: object, **kwargs: object) -> object:
        if path.name == "locked.png":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return real_open(path, *args, **kwargs)

    def refuse_scan(path: object) -> object:
        if str(path).endswith("closed"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return real_scan(path)

    monkeypatch.setattr(Path, "open", refuse_open)
    monkeypatch.setattr(os, "scandir", refuse_scan)
    assert find_bad(folder) == {
        "locked.png": "Permission denied",
        "closed": "the folder cannot be read: Permission denied",
    }


def test_nothing_but_bad_files_is_an_error_even_with_keep_going(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    with pytest.raises(DataError, match="1 of 1 images"):
        survey(tmp_path, what="path", reading=Reading(keep_going=True))


def test_a_damaged_file_does_not_hide_behind_its_group(tmp_path: Path) -> None:
    """Grids are measured on a few images of each size; a damaged one among them is named where its pixels are read."""
    for number in range(6):
        save(tmp_path / f"{number}.png", random_pixels(12, 12, number))
    (tmp_path / "2.png").write_bytes((tmp_path / "2.png").read_bytes()[:-30])
    found: Survey = survey(tmp_path, what="path")
    assert len(found.sprites) == 6
    with pytest.raises(DataError, match="cut off"):
        read_pixels(found.sprites[2])

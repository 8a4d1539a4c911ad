"""A zip as a source: read, not unpacked."""

from __future__ import annotations

import io
import zipfile
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import pytest
from made_files import encode, random_pixels, read
from PIL import Image

from pixelkit.errors import DataError
from pixelkit.sources import Reading, survey
from pixelkit.sources import files as source_files
from pixelkit.sources.pixels import read_pixels

if TYPE_CHECKING:
    from pathlib import Path


def picture(seed: int = 0, size: int = 8) -> bytes:
    return encode(Image.fromarray(random_pixels(size, size, seed)), "PNG")


def pack(path: Path, members: dict[str, bytes], **options: int) -> Path:
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name), data, compress_type=options.get("compression"))
    return path


def names(source: Path, **reading: bool) -> list[str]:
    return [one.name for one in survey(source, what="path", reading=Reading(**reading)).sprites]


def test_pictures_and_captions(tmp_path: Path) -> None:
    members = {"a.png": picture(1), "a.txt": b"a sword", "deep/er/b.png": picture(2), "10_hero/c.png": picture(3)}
    source = pack(tmp_path / "set.zip", members, compression=zipfile.ZIP_DEFLATED)
    found = {one.name: one for one in survey(source, what="path").sprites}
    assert {name: one.caption for name, one in found.items()} == {
        "a": "a sword",
        "deep/er/b": None,
        "10_hero/c": "hero",
    }
    assert found["10_hero/c"].repeats == 10
    assert np.array_equal(read_pixels(found["deep/er/b"]), random_pixels(8, 8, 2))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set.zip"]


def test_names_begin_below_a_single_folder(tmp_path: Path) -> None:
    members = {
        "set/": b"",
        "set/a.png": picture(1),
        "set/mon/b.png": picture(2),
        "__MACOSX/set/._a.png": b"x",
        "set/.DS_Store": b"",
    }
    assert names(pack(tmp_path / "a.zip", members)) == ["a", "mon/b"]
    assert names(pack(tmp_path / "b.zip", {"10_hero/a.png": picture()})) == ["a"]
    assert names(pack(tmp_path / "c.zip", {"only.png": picture()})) == ["only"]


def test_names_as_windows_writes_them(tmp_path: Path) -> None:
    assert names(
        pack(tmp_path / "a.zip", {"mon\\orc.png": picture(), "mon\\orc.txt": b"an orc", "b.PNG": picture(1)})
    ) == ["b", "mon/orc"]


def test_a_set_of_catsith_in_a_zip(tmp_path: Path) -> None:
    metadata = b'{"version": "1.0", "entities": [{"id": "a", "category": "item", "kind": "sword", "directions": 1,'
    metadata += b'"base_color": [255, 0, 0], "files": ["a.png"]}]}'
    members = {
        "set/images/a.png": picture(),
        "set/metadata.json": metadata,
        "set/images/b.png": picture(1),
        "set/captions/b.txt": b"x",
    }
    found = survey(pack(tmp_path / "a.zip", members), what="path").sprites
    assert [one.caption for one in found] == ["red sword item", "x"]


def test_names_that_lead_out_are_refused(tmp_path: Path) -> None:
    source = pack(
        tmp_path / "a.zip",
        {"../evil.png": picture(), "/etc/evil.png": picture(), "a/../b.png": picture(), "good.png": picture()},
    )
    with pytest.raises(DataError) as caught:
        names(source)
    assert {problem.where for problem in caught.value.problems} == {"../evil.png", "/etc/evil.png", "a/../b.png"}
    assert all("leads out of the zip" in problem.what for problem in caught.value.problems)
    assert names(source, keep_going=True) == ["good"]


def test_members_that_cannot_be_read_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = pack(
        tmp_path / "a.zip",
        {"good.png": picture(), "locked.png": picture(1), "bad.png": picture(2), "odd.png": picture(3)},
    )
    data = bytearray(source.read_bytes())
    with zipfile.ZipFile(source) as archive:
        offsets = {info.filename: info.header_offset for info in archive.infolist()}
    directory = {name: data.rindex(name.encode()) - 46 for name in offsets}  # the last mention is in the directory
    data[directory["locked.png"] + 8] |= 1  # encrypted
    data[offsets["bad.png"] + 30 + len("bad.png") + 40] ^= 0xFF  # its checksum no longer agrees
    data[directory["odd.png"] + 10] = 99  # a compression that nobody knows
    source.write_bytes(data)
    with pytest.raises(DataError) as caught:
        names(source)
    told = {problem.where: problem.what for problem in caught.value.problems}
    assert set(told) == {"locked.png", "bad.png", "odd.png"}
    assert "unpack the zip first" in told["locked.png"] and "CRC" in told["bad.png"]
    assert names(source, keep_going=True) == ["good"]


def test_members_that_are_far_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_files, "LARGEST_FILE", 1000)
    members = {"bomb.png": bytes(1_000_000), "good.png": picture()}
    source = pack(tmp_path / "a.zip", members, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(DataError, match=r"bomb\.png the file is far too large"):
        names(source)


@pytest.mark.parametrize("share", [0, 0.25, 0.5, 0.75, 0.99])
def test_a_zip_that_is_cut_off(tmp_path: Path, share: float) -> None:
    whole = pack(tmp_path / "a.zip", {"a.png": picture(), "b.png": picture(1)}).read_bytes()
    (tmp_path / "a.zip").write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(DataError, match=r"a\.zip: the zip is broken"):
        names(tmp_path / "a.zip")


def test_many_threads_read_one_zip(tmp_path: Path) -> None:
    source = pack(tmp_path / "a.zip", {f"{n}.png": picture(n, 32) for n in range(40)}, compression=zipfile.ZIP_DEFLATED)
    with ThreadPoolExecutor(8) as pool:
        found = list(
            pool.map(
                lambda n: np.array_equal(read(source / f"{n % 40}.png"), random_pixels(32, 32, n % 40)), range(400)
            )
        )
    assert all(found)


def test_a_zip_that_was_written_anew_is_read_anew(tmp_path: Path) -> None:
    source = pack(tmp_path / "a.zip", {"a.png": picture()})
    assert names(source) == ["a"]
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("b.png", picture())
    source.write_bytes(stream.getvalue())
    assert names(source) == ["b"]


def test_a_folder_may_be_called_like_a_zip(tmp_path: Path) -> None:
    (tmp_path / "unpacked.zip").mkdir()
    (tmp_path / "unpacked.zip" / "a.png").write_bytes(picture())
    assert names(tmp_path / "unpacked.zip") == ["a"]

"""Every mode and format to RGBA, to the bit."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_files import chunk, png, random_pixels, read, same_where_seen, save
from PIL import Image, ImageFile

from pixelkit.errors import DataError
from pixelkit.sources import survey
from pixelkit.sources.files import read_header

if TYPE_CHECKING:
    from pathlib import Path

sizes = st.tuples(st.integers(1, 19), st.integers(1, 19))
often = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def grey(values: np.ndarray, alpha: np.ndarray | int = 255) -> np.ndarray:
    return np.dstack([values, values, values, np.broadcast_to(alpha, values.shape)]).astype(np.uint8)


@given(size=sizes, depth=st.sampled_from([1, 2, 4, 8, 16]), kind=st.sampled_from([0, 2, 3, 4, 6]),
       keyed=st.booleans(), interlaced=st.booleans(), seed=st.integers(0, 99))  # fmt: skip
@settings(often, max_examples=250)
def test_png_of_every_kind(
    tmp_path: Path, size: tuple[int, int], depth: int, kind: int, keyed: bool, interlaced: bool, seed: int
) -> None:
    """What the specification says: samples scaled to 8 bits and rounded, the transparent colour where all samples equal it."""
    if (depth == 16 and kind == 3) or (depth < 8 and kind not in {0, 3}):
        return
    random, channels = np.random.default_rng(seed), {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[kind]
    samples = random.integers(0, 2**depth, (size[1], size[0], channels))
    extra: list[tuple[bytes, bytes]] = []
    if kind == 3:
        palette = random.integers(0, 256, (2**depth, 4))
        extra.append((b"PLTE", palette[:, :3].astype(np.uint8).tobytes()))
        if keyed:
            extra.append((b"tRNS", palette[: 2**depth // 2 + 1, 3].astype(np.uint8).tobytes()))
            palette[2**depth // 2 + 1 :, 3] = 255
        else:
            palette[:, 3] = 255
        expected = palette[samples[..., 0]]
    else:
        scaled = np.floor(samples * 255 / (2**depth - 1) + 0.5).astype(np.int64)
        alpha = scaled[..., -1] if kind in {4, 6} else np.full(size[::-1], 255)
        if keyed and kind in {0, 2}:
            key = samples[-1, -1]
            extra.append((b"tRNS", struct.pack(f">{channels}H", *key)))
            alpha = np.where((samples == key).all(axis=2), 0, 255)
        colours = scaled[..., :3] if kind in {2, 6} else np.repeat(scaled[..., :1], 3, axis=2)
        expected = np.dstack([colours, alpha])
    file = tmp_path / "x.png"
    file.write_bytes(png(samples, depth=depth, kind=kind, extra=extra, interlaced=interlaced))
    assert (read_header(file).width, read_header(file).height) == size
    assert same_where_seen(read(file), expected.astype(np.uint8))


def test_every_16_bit_value_is_rounded_to_the_nearest(tmp_path: Path) -> None:
    values = np.arange(65536).reshape(256, 256)
    rounded = np.floor(values / 257 + 0.5).astype(np.uint8)
    file = tmp_path / "x.png"
    file.write_bytes(png(values, depth=16, kind=0))
    assert np.array_equal(read(file), grey(rounded))
    file.write_bytes(png(np.dstack([values, values[::-1], values.T, values]), depth=16, kind=6))
    assert np.array_equal(read(file), np.dstack([rounded, rounded[::-1], rounded.T, rounded]))
    file.write_bytes(png(np.dstack([values, values.T]), depth=16, kind=4))
    assert np.array_equal(read(file), grey(rounded, rounded.T))


def test_a_transparent_16_bit_colour_counts_only_where_both_bytes_agree(tmp_path: Path) -> None:
    file = tmp_path / "x.png"
    samples = np.array([[[0x1234, 0x5678, 0x9ABC], [0x1235, 0x5678, 0x9ABC]]])
    file.write_bytes(png(samples, depth=16, kind=2, extra=[(b"tRNS", struct.pack(">3H", *samples[0, 0]))]))
    assert read(file)[..., 3].tolist() == [[0, 255]]


@given(size=sizes, seed=st.integers(0, 99))
@often
def test_formats_that_lose_nothing(tmp_path: Path, size: tuple[int, int], seed: int) -> None:
    pixels = random_pixels(*size, seed=seed)
    for name, options in (("x.png", {}), ("x.webp", {"lossless": True, "exact": True})):
        assert np.array_equal(read(save(tmp_path / name, pixels, **options)), pixels)
    plain = save(tmp_path / "plain.webp", pixels, lossless=True)  # libwebp drops colours that nobody sees
    assert same_where_seen(read(plain), pixels)
    opaque = pixels.copy()
    opaque[..., 3] = 255
    assert np.array_equal(read(save(tmp_path / "x.bmp", Image.fromarray(opaque).convert("RGB"))), opaque)


def test_colour_profiles_and_gamma_are_left_alone(tmp_path: Path) -> None:
    from PIL import ImageCms

    pixels = random_pixels(7, 5)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    assert np.array_equal(read(save(tmp_path / "icc.png", pixels, icc_profile=profile)), pixels)
    gamma = tmp_path / "gamma.png"
    gamma.write_bytes(png(pixels, extra=[(b"gAMA", struct.pack(">I", 22222)), (b"sRGB", b"\1")]))
    assert np.array_equal(read(gamma), pixels)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA"])
def test_bmp(tmp_path: Path, mode: str) -> None:
    image = Image.fromarray(random_pixels(9, 7)).convert("RGB")
    image = image.quantize(200) if mode == "P" else image.convert(mode)
    assert np.array_equal(read(save(tmp_path / "x.bmp", image)), np.asarray(image.convert("RGBA")))


def test_bmp_of_4_bits_and_bmp_with_alpha(tmp_path: Path) -> None:
    palette = random_pixels(16, 1)[0]
    colours = b"".join(bytes([b, g, r, 0]) for r, g, b, _ in palette.tolist())
    head = struct.pack("<IiiHHIIiiII", 40, 4, -2, 1, 4, 0, 0, 0, 0, 16, 0)
    rows = b"\x01\x23\0\0\xfe\xdc\0\0"
    file = tmp_path / "four.bmp"
    file.write_bytes(b"BM" + struct.pack("<IHHI", 54 + 64 + 8, 0, 0, 54 + 64) + head + colours + rows)
    assert read(file)[..., :3].tolist() == palette[[[0, 1, 2, 3], [15, 14, 13, 12]], :3].tolist()
    pixels = random_pixels(3, 2)
    masks = struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    head = struct.pack("<IiiHHIIiiII", 108, 3, -2, 1, 32, 3, 0, 0, 0, 0, 0) + masks + b"sRGB" + bytes(48)
    file = tmp_path / "alpha.bmp"
    file.write_bytes(
        b"BM" + struct.pack("<IHHI", 14 + 108 + 24, 0, 0, 122) + head + pixels[..., [2, 1, 0, 3]].tobytes()
    )
    assert np.array_equal(read(file), pixels)


def test_jpeg_of_cmyk_and_turned_photos(tmp_path: Path) -> None:
    cmyk = Image.new("CMYK", (16, 8), (0, 255, 255, 0))
    red = read(save(tmp_path / "cmyk.jpg", cmyk, quality=100))
    assert red.shape == (8, 16, 4) and np.abs(red[0, 0].astype(int) - [255, 0, 0, 255]).max() < 4
    upright = Image.new("RGB", (32, 16), "white")
    upright.paste("black", (0, 0, 16, 8))  # top left is dark
    reference = np.asarray(upright.convert("L"), dtype=int)
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # how the camera held it: Image.Transpose
    for orientation, turn in undo.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        file = save(tmp_path / f"{orientation}.jpg", upright.transpose(Image.Transpose(turn)), exif=exif, quality=100)
        header = read_header(file)
        assert (header.width, header.height, header.lossy) == (32, 16, True)
        assert np.abs(read(file)[..., 0].astype(int) - reference).max() < 40, orientation


def gif_frames(tmp_path: Path, frames: list[np.ndarray], **options: object) -> list[np.ndarray]:
    images = [Image.fromarray(frame) for frame in frames]
    file = save(tmp_path / "x.gif", images[0], save_all=True, append_images=images[1:], duration=50, **options)
    return [read(file, frame=number) for number in range(read_header(file).frames)]


@pytest.mark.parametrize("disposal", [0, 1, 2])
def test_gif_frames_are_what_a_viewer_shows(tmp_path: Path, disposal: int) -> None:
    colours = np.array([[255, 0, 0, 255], [0, 255, 0, 255], [0, 0, 255, 255], [0, 0, 0, 0]], dtype=np.uint8)
    random = np.random.default_rng(disposal)
    frames = [colours[random.integers(0, 4 if disposal == 2 else 3, (6, 9))] for _ in range(4)]
    read_back = gif_frames(tmp_path, frames, disposal=disposal)
    assert len(read_back) == 4
    for frame, back in zip(frames, read_back, strict=True):
        assert same_where_seen(back, frame)


def test_gif_disposal_byte_by_byte(tmp_path: Path) -> None:
    """3x1; a red row; then a green pixel at 0 to be restored; then a blue pixel at 1 to be cleared; then red at 2 again."""

    def frame(left: int, width: int, codes: bytes, disposal: int) -> bytes:
        control = b"\x21\xf9\x04" + bytes([disposal << 2 | 1, 0, 0, 3, 0])
        return (
            control
            + b"\x2c"
            + struct.pack("<HHHHB", left, 0, width, 1, 0)
            + b"\x02"
            + bytes([len(codes)])
            + codes
            + b"\0"
        )

    def lzw(*indices: int) -> bytes:  # clear, each index in 3 bits, end: too short for the code width to grow
        bits = [4, *indices, 5]
        value = sum(code << 3 * place for place, code in enumerate(bits))
        return value.to_bytes((3 * len(bits) + 7) // 8, "little")

    palette = bytes([255, 0, 0, 0, 255, 0, 0, 0, 255, 9, 9, 9])
    data = b"GIF89a" + struct.pack("<HHBBB", 3, 1, 0x81, 0, 0) + palette
    data += frame(0, 2, lzw(0, 0), 1) + frame(0, 1, lzw(1), 3) + frame(1, 1, lzw(2), 2) + frame(2, 1, lzw(0), 1) + b";"
    file = tmp_path / "x.gif"
    file.write_bytes(data)
    red, green, blue, none = [255, 0, 0, 255], [0, 255, 0, 255], [0, 0, 255, 255], [0] * 4
    shown = [read(file, frame=number) for number in range(4)]
    expected = [[red, red, none], [green, red, none], [red, blue, none], [red, none, red]]
    for number, (row, wanted) in enumerate(zip(shown, expected, strict=True)):
        assert same_where_seen(row, np.array([wanted], dtype=np.uint8)), (number, row.tolist())


@pytest.mark.parametrize("kind", ["png", "webp"])
def test_animations_without_loss(tmp_path: Path, kind: str) -> None:
    frames = [random_pixels(11, 6, seed) for seed in range(4)]
    images = [Image.fromarray(frame) for frame in frames]
    options: dict[str, object] = {"lossless": True, "exact": True} if kind == "webp" else {"disposal": 1, "blend": 0}
    file = save(tmp_path / f"x.{kind}", images[0], save_all=True, append_images=images[1:], duration=40, **options)
    assert read_header(file).frames == 4 and not read_header(file).lossy
    for number in (3, 0, 2, 1):
        assert same_where_seen(read(file, frame=number), frames[number]), number


def test_lossy_webp_is_told_from_lossless(tmp_path: Path) -> None:
    pixels = random_pixels(16, 16)
    opaque = Image.fromarray(pixels).convert("RGB")
    lossless, lossy = save(tmp_path / "a.webp", pixels, lossless=True), save(tmp_path / "b.webp", pixels, quality=80)
    both = opaque, Image.fromarray(255 - pixels).convert("RGB")
    moving = save(tmp_path / "c.webp", both[0], save_all=True, append_images=[both[1]], quality=70)
    named_png = save(tmp_path / "d.jpg", opaque).rename(tmp_path / "d.png")
    assert not read_header(lossless).lossy
    assert [read_header(file).lossy for file in (lossy, save(tmp_path / "o.webp", opaque), moving, named_png)] == [
        True
    ] * 4


def test_regions_turns_and_canvases(tmp_path: Path) -> None:
    pixels = random_pixels(9, 7)
    file = save(tmp_path / "x.png", pixels)
    assert np.array_equal(read(file, box=(2, 1, 6, 4)), pixels[1:4, 2:6])
    turned = save(tmp_path / "turned.png", np.ascontiguousarray(np.rot90(pixels, -1)))
    assert np.array_equal(read(turned, turned=True), pixels)
    whole = read(file, box=(2, 1, 6, 4), canvas=(3, 2, 10, 8))
    assert whole.shape == (8, 10, 4) and np.array_equal(whole[2:5, 3:7], pixels[1:4, 2:6])
    assert whole.sum() == pixels[1:4, 2:6].sum()
    with pytest.raises(DataError, match="outside of the image"):
        read(file, box=(2, 1, 10, 4))


def test_of_a_transparent_colour_only_the_bits_of_the_depth_count(tmp_path: Path) -> None:
    file = tmp_path / "x.png"
    file.write_bytes(
        png(np.array([[[5, 6, 7], [5, 6, 8]]]), kind=2, extra=[(b"tRNS", struct.pack(">3H", 0x105, 6, 0xFF07))])
    )
    assert read(file)[..., 3].tolist() == [[0, 255]]
    file.write_bytes(png(np.array([[[1], [2]]]), depth=2, kind=0, extra=[(b"tRNS", struct.pack(">H", 0xFD))]))
    assert read(file)[..., 3].tolist() == [[0, 255]]


def test_an_animation_of_16_bits_is_refused_and_not_cut(tmp_path: Path) -> None:
    samples = random_pixels(4, 3).astype(int) * 256 + 77
    control = [struct.pack(">IIIIIHHBB", number, 4, 3, 0, 0, 1, 10, 0, 0) for number in (0, 1)]
    data = png(samples, depth=16, extra=[(b"acTL", struct.pack(">II", 2, 0)), (b"fcTL", control[0])])
    place = data.index(b"IDAT") - 4
    length = struct.unpack_from(">I", data, place)[0]
    packed, end = data[place + 8 : place + 8 + length], data[place + 12 + length :]
    frame = chunk(b"fcTL", control[1]) + chunk(b"fdAT", struct.pack(">I", 2) + packed)
    (tmp_path / "x.png").write_bytes(data[: place + 12 + length] + frame + end)
    with pytest.raises(DataError) as caught:
        survey(tmp_path, what="path")
    assert "16 bits a channel" in caught.value.problems[0].what


def test_broken_notes_are_no_reason_to_refuse(tmp_path: Path) -> None:
    pixels = random_pixels(5, 4)
    (tmp_path / "x.png").write_bytes(png(pixels, extra=[(b"eXIf", b"MM\0*\0\0")]))
    assert np.array_equal(read(tmp_path / "x.png"), pixels)


def test_headers_are_as_pillow_reads_them(crawl_tiles: Path) -> None:
    for file in sorted(crawl_tiles.rglob("*.png"))[::7]:
        with Image.open(file) as image:
            header = read_header(file)
            assert (header.width, header.height, header.frames) == (*image.size, 1), file.name


def test_pillow_is_not_told_to_fill_in_what_is_missing(tmp_path: Path) -> None:
    assert not ImageFile.LOAD_TRUNCATED_IMAGES


def test_every_crawl_tile_as_pillow_reads_it(crawl_tiles: Path) -> None:
    for file in sorted(crawl_tiles.rglob("*.png"))[::13]:
        with Image.open(file) as image:
            assert np.array_equal(read(file), np.asarray(image.convert("RGBA"))), file.name

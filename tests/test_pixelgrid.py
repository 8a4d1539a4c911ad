"""The native grid: exact blocks lose nothing, a set decides together, damaged art is found, and chance is not."""

from __future__ import annotations

import ast
import io
import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFilter

import pixelkit.pixelgrid
from pixelkit.errors import DataError
from pixelkit.pixelgrid import Block, Decision, Grid, decide_blocks, is_exact, measure_block, reduce_block
from pixelkit.pixelgrid.comb import detect_grid
from pixelkit.pixelgrid.exact import ENOUGH_BOUNDARIES, NATIVE_LEAD, SMALLEST_SIDE
from pixelkit.pixelgrid.repair import snap
from pixelkit.tiny.painter import paint

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

# Bytes a pixel of modes that files come in.
MODES = {"L": 1, "LA": 2, "P": 1, "PA": 2, "RGB": 3, "RGBA": 4, "CMYK": 4, "I;16": 2, "I;16B": 2, "I": 4, "1": 0}
KINDS = ("sword", "knight", "tree", "house", "wizard", "flower")


def enlarge(image: Image.Image, block: int) -> Image.Image:
    return image.resize((image.width * block, image.height * block), Image.Resampling.NEAREST)


def sprite(number: int = 0, background: str = "white") -> Image.Image:
    painted = paint(KINDS[number % len(KINDS)], "red", "blue", np.random.default_rng(number)).convert("RGBA")
    ground = Image.new("RGBA", painted.size, background)
    ground.alpha_composite(painted)
    return ground.convert("RGB")


@st.composite
def art(draw: st.DrawFn) -> Image.Image:
    mode = draw(st.sampled_from(sorted(MODES)))
    width, height = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    if mode == "1":
        dots = draw(st.lists(st.booleans(), min_size=width * height, max_size=width * height))
        return Image.fromarray(np.array(dots).reshape(height, width))
    size = width * height * MODES[mode]
    image = Image.frombytes(
        "P" if mode == "P" else mode, (width, height), draw(st.binary(min_size=size, max_size=size))
    )
    if mode in {"P", "PA"}:
        image.putpalette(bytes(range(256)) * 3)
    return image


@given(art(), st.integers(1, 5))
def test_reduction_gives_back_every_pixel(native: Image.Image, block: int) -> None:
    large = enlarge(native, block)
    assert measure_block(large).size % block == 0
    assert is_exact(large, block)
    small = reduce_block(large, block)
    assert (small.mode, small.size, small.tobytes()) == (native.mode, native.size, native.tobytes())
    assert small.getpalette() == native.getpalette()


@given(art(), st.integers(2, 4))
def test_no_larger_block_is_exact(native: Image.Image, block: int) -> None:
    """What measure_block says, against a look at every pixel."""
    large = enlarge(native, block)
    measured = measure_block(large).size
    values = np.asarray(large if large.mode in {"I;16", "I;16B", "I", "CMYK", "1"} else large.convert("RGBA")).astype(
        np.int64
    )
    if values.ndim == 2:
        values = values[..., None]
    if large.has_transparency_data:
        values = np.where(values[..., 3:] > 0, values, 0)

    def survives(size: int) -> bool:
        if large.width % size or large.height % size:
            return False
        return bool((values[::size, ::size].repeat(size, axis=0).repeat(size, axis=1) == values).all())

    assert measured == max(size for size in range(1, min(large.size) + 1) if survives(size))


def test_true_values_of_16_bits_count() -> None:
    native = np.array([[1000, 1001], [1002, 1003]], dtype=np.uint16)  # all alike in 8 bits
    image = Image.fromarray(native.repeat(3, axis=0).repeat(3, axis=1))
    assert image.mode == "I;16"
    assert measure_block(image) == Block(size=3, boundaries=2)


def test_a_change_of_any_band_is_a_boundary() -> None:
    for band in range(4):
        pixels = np.full((6, 6, 4), 255, dtype=np.uint8)
        pixels[2, 3, band] = 254
        assert measure_block(Image.fromarray(pixels)) == Block(size=1, boundaries=4), band


def test_hidden_colour_is_no_boundary() -> None:
    pixels = np.zeros((8, 8, 4), dtype=np.uint8)
    pixels[..., :3] = np.random.default_rng(0).integers(0, 256, (8, 8, 3))
    pixels[4:, :4] = (10, 20, 30, 255)
    image = Image.fromarray(pixels)
    assert measure_block(image) == Block(size=4, boundaries=2)
    assert measure_block(image.convert("LA")) == Block(size=4, boundaries=2)
    assert reduce_block(image, 4).getpixel((0, 1)) == (10, 20, 30, 255)
    indexed = Image.fromarray(np.arange(16, dtype=np.uint8).reshape(4, 4), mode="P")
    indexed.putpalette(bytes(range(48)))
    indexed.info["transparency"] = bytes(16)
    assert measure_block(indexed) == Block(size=4, boundaries=0)


def test_one_colour_is_no_evidence() -> None:
    assert measure_block(Image.new("RGB", (32, 48), "red")) == Block(size=16, boundaries=0)
    assert measure_block(Image.new("L", (1, 1))) == Block(size=1, boundaries=0)


@pytest.mark.parametrize("block", [0, 2, 3])
def test_a_reduction_that_loses_is_refused(block: int) -> None:
    with pytest.raises(DataError, match=f"blocks of {block}x{block}"):
        reduce_block(sprite(), block)


def sure(size: int) -> Block:
    return Block(size=size, boundaries=ENOUGH_BOUNDARIES)


def thin(size: int) -> Block:
    return Block(size=size, boundaries=ENOUGH_BOUNDARIES - 1)


def flat(size: int) -> Block:
    return Block(size=size, boundaries=0)


def test_flat_pictures_follow_their_neighbours() -> None:
    decided = decide_blocks(
        {(256, 256): [flat(256), sure(8), thin(16), sure(8), sure(24)], (128, 192): [flat(64)], (100, 100): [thin(20)]}
    )
    assert decided[256, 256] == Decision(block=8)
    assert decided[128, 192] == Decision(block=8)
    assert decided[100, 100] == Decision(block=4)
    assert decide_blocks({(32, 32): [flat(32), thin(4)], (8, 8): []}) == {
        (32, 32): Decision(block=1),
        (8, 8): Decision(block=1),
    }


def test_native_and_enlarged_art_of_different_sizes() -> None:
    decided = decide_blocks({(32, 32): [sure(1)] * 9, (256, 256): [sure(8)] * 9, (64, 64): [flat(64)]})
    assert {size: each.block for size, each in decided.items()} == {(32, 32): 1, (256, 256): 8, (64, 64): 1}


def test_a_flat_picture_keeps_the_smallest_side() -> None:
    assert decide_blocks({(256, 256): [sure(8)], (32, 16): [flat(16)]})[32, 16].block == 16 // SMALLEST_SIDE


def test_outliers_keep_their_own_block_and_spoil_nothing() -> None:
    blocks = [sure(8)] * 100 + [sure(1), sure(12), thin(12)] + [sure(8)] * 97
    decided = decide_blocks({(192, 192): blocks})[192, 192]
    assert decided == Decision(block=8, outliers={100: 1, 101: 12, 102: 4})


def test_of_two_the_smaller_block_decides() -> None:
    assert decide_blocks({(64, 64): [sure(16), sure(8)]})[64, 64] == Decision(block=8)


def test_a_native_set_is_hardly_read() -> None:
    read = 0

    def blocks() -> Iterator[Block]:
        nonlocal read
        for _ in range(1000):
            read += 1
            yield sure(1)

    assert decide_blocks({(32, 32): blocks()})[32, 32] == Decision(block=1)
    assert read == NATIVE_LEAD


@given(st.lists(st.builds(Block, size=st.sampled_from([1, 2, 3, 4, 6, 8, 12, 24]), boundaries=st.integers(0, 20))))
def test_every_picture_is_reduced_by_what_it_allows(blocks: list[Block]) -> None:
    decided = decide_blocks({(96, 96): blocks})[96, 96]
    for place, block in enumerate(blocks):
        assert block.size % decided.outliers.get(place, decided.block) == 0


def damage(kind: str, image: Image.Image, scale: float) -> NDArray[np.uint8]:
    large = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.NEAREST)
    if kind == "blur":
        large = large.filter(ImageFilter.GaussianBlur(1))
    if kind == "jpeg":
        stored = io.BytesIO()
        large.save(stored, "JPEG", quality=75)
        large = Image.open(stored).convert("RGB")
    pixels = np.asarray(large)
    if kind == "noise":
        noise = np.random.default_rng(0).normal(0, 10, pixels.shape)
        pixels = np.clip(np.round(pixels + noise), 0, 255).astype(np.uint8)
    return pixels


@pytest.mark.parametrize("scale", [4, 7.6, 8, 11])
@pytest.mark.parametrize("kind", ["clean", "blur", "jpeg", "noise"])
def test_damaged_art_comes_back(kind: str, scale: float) -> None:
    for number in range(3):
        native = sprite(number)
        pixels = damage(kind, native, scale)
        grid = detect_grid(pixels)
        assert grid is not None, number
        assert grid.step == pytest.approx((scale, scale), rel=0.01)
        snapped = snap(pixels, grid)
        assert snapped.shape == (native.height, native.width, 4)
        away = np.abs(snapped[..., :3].astype(int) - np.asarray(native)).max(axis=2)
        assert (away <= 24).mean() > 0.95, number
        if kind == "clean":
            assert away.max() == 0


def test_a_cropped_grid_has_an_offset() -> None:
    large = np.asarray(enlarge(sprite(), 9).filter(ImageFilter.GaussianBlur(1)))[4:, 2:]
    grid = detect_grid(large)
    assert grid is not None
    assert grid.step == pytest.approx((9, 9), rel=0.005)
    assert grid.offset == pytest.approx((7, 5), abs=0.75)


def test_hidden_colour_draws_no_comb() -> None:
    pixels = np.zeros((200, 200, 4), dtype=np.uint8)
    pixels[..., :3] = np.asarray(
        enlarge(Image.fromarray(np.random.default_rng(0).integers(0, 256, (25, 25, 3), np.uint8)), 8)
    )
    assert detect_grid(pixels) is None
    pixels[..., 3] = 255
    found = detect_grid(pixels)
    assert found is not None and found.step == (8, 8)


def no_grids() -> Iterator[tuple[str, NDArray[np.uint8]]]:
    rng = np.random.default_rng(0)
    for number in range(8):
        yield "noise", rng.integers(0, 256, (200 + number, 256, 3), dtype=np.uint8)
        soft = np.asarray(
            sprite(number).resize((256, 256), Image.Resampling.BICUBIC).filter(ImageFilter.GaussianBlur(8))
        )
        yield "gradient", soft
        yield "gradient as JPEG", damage("jpeg", Image.fromarray(soft), 1)
        sheet = Image.new("RGB", (256, 256))
        for place in range(64):
            sheet.paste(sprite(int(rng.integers(99))), (place % 8 * 32, place // 8 * 32))
        yield "sheet", np.asarray(sheet)
        yield "native", np.asarray(sprite(number))
        padded = Image.new("RGB", (64, 64), "white")
        padded.paste(sprite(number), (16, 16))
        yield "padded", np.asarray(padded)
    yield "one colour", np.full((256, 256, 3), 7, dtype=np.uint8)
    yield "dot", np.zeros((1, 1, 4), dtype=np.uint8)


def test_chance_gives_no_grid() -> None:
    found = [name for name, pixels in no_grids() if detect_grid(pixels) is not None]
    assert found == []


@given(st.integers(1, 400), st.floats(1.9, 50), st.floats(0, 0.999))
def test_cells_are_those_whose_centre_is_inside(length: int, step: float, share: float) -> None:
    centers = Grid(step=(step, 1.0), offset=(share * step, 0.0)).find_centers(length, axis=0)
    assert all(-1e-6 <= center <= length + 1e-6 for center in centers)
    assert abs(len(centers) - length / step) <= 1 + 1e-6
    assert len(Grid(step=(step, 1.0)).find_centers(length, axis=0)) == math.ceil(length / step - 0.5)


def test_opacity_comes_back_too() -> None:
    native = np.zeros((16, 16, 4), dtype=np.uint8)
    native[4:12, 4:12] = (200, 40, 60, 255)
    native[12:14, 4:12] = (0, 0, 0, 120)
    large = native.repeat(8, axis=0).repeat(8, axis=1)
    large[::8, ::8, 3] ^= 3
    large[..., :3][large[..., 3] == 0] = 99
    assert (snap(large, Grid(step=(8, 8))) == native).all()


def test_repair_leaves_few_colours() -> None:
    native = sprite(1)
    snapped = snap(damage("jpeg", native, 8), Grid(step=(8, 8)))
    centers = damage("jpeg", native, 8)[4::8, 4::8]
    after, picked = (len(np.unique(each[..., :3].reshape(-1, 3), axis=0)) for each in (snapped, centers))
    assert after < picked * 2 / 3


def test_the_exact_part_needs_no_numpy() -> None:
    folder = Path(pixelkit.pixelgrid.__file__).parent
    for name in ("__init__", "exact", "grid"):
        for node in ast.walk(ast.parse((folder / f"{name}.py").read_text("utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not [each for each in names if each.split(".")[0] == "numpy" or "comb" in each or "repair" in each]

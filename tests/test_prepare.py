from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pixelkit.canvas import Canvas, count_buckets, fit_canvas
from pixelkit.dataset import prepare
from pixelkit.dataset.prepare import BACKGROUNDS, flatten, place, read_pixels
from pixelkit.errors import DataError
from pixelkit.plan import DatasetPlan, PlannedSprite

if TYPE_CHECKING:
    from numpy.typing import NDArray


def plan_for(folder: Path, files: list[Path], *, background: str = "auto", canvas: Canvas | None = None) -> DatasetPlan:
    planned = []
    for file in files:
        with Image.open(file) as image:
            fitted = canvas or fit_canvas(*image.size, resolution=128, step=32, latent_scale=8)
        planned.append(PlannedSprite(path=file, canvas=fitted, caption=f"pix, {file.stem}"))
    return DatasetPlan(
        source=folder,
        sprites=tuple(planned),
        class_sprites=(),
        background=background,
        trigger="pix",
        resolution=128,
        repeats=1,
        prior_weight=1.0,
        buckets=count_buckets(Counter(sprite.canvas for sprite in planned)),
    )


def tree_hash(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        digest.update(
            str(path).encode() + (path.read_bytes() if path.is_file() else b"") + str(path.stat().st_mtime_ns).encode()
        )
    return digest.hexdigest()


@given(st.integers(1, 24), st.integers(1, 24), st.randoms(use_true_random=False))
@settings(max_examples=40)
def test_every_source_pixel_is_one_exact_block(width: int, height: int, random: object) -> None:
    pixels = np.random.default_rng(random.getrandbits(32)).integers(0, 256, (height, width, 3), dtype=np.uint8)  # type: ignore[attr-defined]
    canvas = fit_canvas(width, height, resolution=256, step=64, latent_scale=8)
    placed = place(pixels, canvas, (1, 2, 3))
    left, top = canvas.offset
    inner = placed[top : top + height * canvas.scale, left : left + width * canvas.scale]
    blocks = inner.reshape(height, canvas.scale, width, canvas.scale, 3)
    assert (blocks == pixels[:, None, :, None, :]).all()
    outside = np.ones(placed.shape[:2], dtype=bool)
    outside[top : top + height * canvas.scale, left : left + width * canvas.scale] = False
    assert (placed[outside] == (1, 2, 3)).all()


def test_hidden_colour_never_shows(tmp_path: Path) -> None:
    pixels = np.zeros((8, 8, 4), dtype=np.uint8)
    pixels[..., :3] = (255, 0, 255)
    pixels[2:6, 2:6] = (10, 20, 30, 255)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    out = tmp_path / "out"
    prepared = prepare(plan_for(tmp_path, [tmp_path / "a.png"]), out)
    colors = {tuple(color) for color in np.asarray(Image.open(out / "sprites" / "a.png")).reshape(-1, 3)}
    assert colors == {(10, 20, 30), prepared.background}
    assert prepared.background != (255, 0, 255)
    assert (out / "sprites" / "a.txt").read_text() == "pix, a\n"
    assert set(prepared.palette) == colors


def test_the_automatic_background_occurs_in_no_sprite(tmp_path: Path) -> None:
    pixels: NDArray[np.uint8] = np.full((8, 8, 4), 128, dtype=np.uint8)
    pixels[..., 3] = 255
    Image.fromarray(pixels).save(tmp_path / "grey.png")
    assert prepare(plan_for(tmp_path, [tmp_path / "grey.png"]), tmp_path / "out").background != (128, 128, 128)


@pytest.mark.parametrize(("wanted", "color"), [("#102030", (16, 32, 48)), ("white", (255, 255, 255))])
def test_a_chosen_background(tmp_path: Path, wanted: str, color: tuple[int, int, int]) -> None:
    Image.new("RGBA", (4, 4)).save(tmp_path / "a.png")
    assert prepare(plan_for(tmp_path, [tmp_path / "a.png"], background=wanted), tmp_path / "out").background == color


@pytest.mark.parametrize("mode", ["P", "RGBA", "RGB", "L", "LA", "1", "I;16"])
def test_modes_are_read_exactly(tmp_path: Path, mode: str) -> None:
    ramp = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
    image = Image.fromarray(ramp)
    if mode == "I;16":
        Image.fromarray(ramp.astype(np.uint16) * 257).save(tmp_path / "a.png")
        expected = np.dstack([ramp] * 3)
    else:
        image = image.convert(mode)
        image.save(tmp_path / "a.png")
        expected = np.asarray(image.convert("RGB"))
    pixels = read_pixels(tmp_path / "a.png")
    assert (pixels[..., :3] == expected).all() and (pixels[..., 3] == 255).all()


def test_palette_transparency(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 1], [1, 0]], dtype=np.uint8), mode="P")
    image.putpalette([255, 0, 255, 9, 8, 7])
    image.save(tmp_path / "a.png", transparency=0)
    pixels = read_pixels(tmp_path / "a.png")
    assert pixels[..., 3].tolist() == [[0, 255], [255, 0]]
    assert flatten(pixels, (1, 1, 1)).tolist() == [[[1, 1, 1], [9, 8, 7]], [[9, 8, 7], [1, 1, 1]]]


def test_truncated_images_are_all_named(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        noise = np.random.default_rng(0).integers(0, 256, (64, 64, 4), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / f"{name}.png")
    for name in ("a", "c"):
        file = tmp_path / f"{name}.png"
        file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(DataError) as caught:
        prepare(plan_for(tmp_path, sorted(tmp_path.glob("*.png"))), tmp_path / "out")
    assert [Path(problem.where).name for problem in caught.value.problems] == ["a.png", "c.png"]


def test_the_last_free_grey_is_found(tmp_path: Path) -> None:
    used = sorted({(level, level, level) for level in range(1, 256)} | set(BACKGROUNDS))
    pixels = np.array([used + used[: 16 * 17 - len(used)]], dtype=np.uint8).reshape(16, 17, 3)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert prepare(plan_for(tmp_path, [tmp_path / "a.png"]), tmp_path / "out").background == (0, 0, 0)


def test_long_names_fit_the_file_system(tmp_path: Path) -> None:
    files = [tmp_path / ("d" * 200) / f"{'ö' * 100}{number}.png" for number in range(2)]
    files[0].parent.mkdir()
    for file in files:
        Image.new("RGB", (4, 4)).save(file)
    prepared = prepare(plan_for(tmp_path, files), tmp_path / "out")
    assert len(list(prepared.images.glob("*.png"))) == 2


def test_same_names_in_different_folders_stay_apart(tmp_path: Path) -> None:
    files = [tmp_path / "x" / "a.png", tmp_path / "y" / "a.png", tmp_path / "x__a.png"]
    for number, file in enumerate(files):
        file.parent.mkdir(exist_ok=True)
        Image.new("RGB", (4, 4), (number, 0, 0)).save(file)
    before = tree_hash(tmp_path)
    out = tmp_path.with_name("prepared")
    prepared = prepare(plan_for(tmp_path, files), out)
    assert len(list((out / "sprites").glob("*.png"))) == 3
    assert tree_hash(tmp_path) == before, "sources are only read"
    again = prepare(plan_for(tmp_path, files), out.with_name("again"))
    assert again.fingerprint == prepared.fingerprint


def test_real_tiles_survive_to_the_pixel(crawl_tiles: Path, tmp_path: Path) -> None:
    files = sorted(crawl_tiles.rglob("*.png"))[::40]
    plan = plan_for(crawl_tiles, files)
    prepared = prepare(plan, tmp_path)
    for sprite, out in zip(plan.sprites, sorted((tmp_path / "sprites").glob("*.png")), strict=True):
        expected = flatten(read_pixels(sprite.path), prepared.background)
        left, top = sprite.canvas.offset
        scale = sprite.canvas.scale
        shown = np.asarray(Image.open(out))
        native = shown[top : top + expected.shape[0] * scale : scale, left : left + expected.shape[1] * scale : scale]
        assert (native == expected).all(), sprite.path

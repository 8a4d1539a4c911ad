from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from test_prepare import make, noise

from pixelkit.canvas import Canvas, View, choose_canvases, foresee
from pixelkit.dataset.check import Proof, list_candidates
from pixelkit.dataset.make import Making

if TYPE_CHECKING:
    from pathlib import Path


def judge(folder: Path) -> dict[str, str]:
    proof = Proof.of(folder)
    found = {}
    for image in list_candidates(folder):
        verdict = proof.judge(image, foresee(image.width, image.height, resolution=128, step=64))
        found[image.path.name] = verdict.problem.what if verdict.problem else verdict.proved
    return found


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    noise(tmp_path / "in" / "a.png", (8, 8), 1)
    noise(tmp_path / "in" / "b.png", (7, 5), 2)
    make(tmp_path / "in", tmp_path / "out")
    return tmp_path / "out"


@pytest.mark.parametrize("alpha", ["flatten", "mask"])
def test_a_prepared_set_is_proved_against_its_sources(tmp_path: Path, alpha: str) -> None:
    noise(tmp_path / "in" / "a.png", (8, 8), 1)
    noise(tmp_path / "in" / "b.png", (7, 5), 2)
    make(tmp_path / "in", tmp_path / "out", Making(alpha=alpha))  # type: ignore[arg-type]
    assert judge(tmp_path / "out") == {"a.png": "source", "b.png": "source"}


def test_without_its_source_by_what_was_written_down(prepared: Path) -> None:
    (prepared.parent / "in" / "a.png").unlink()
    assert judge(prepared) == {"a.png": "hash", "b.png": "source"}


def test_a_changed_source_is_seen(prepared: Path) -> None:
    noise(prepared.parent / "in" / "a.png", (8, 8), 3)
    assert "source was changed" in judge(prepared)["a.png"]


@pytest.mark.parametrize(
    ("place", "what"), [((20, 20), "not blocks of"), ((slice(0, 16), slice(0, 16)), "not those that were prepared")]
)
def test_one_wrong_pixel_is_seen(prepared: Path, place: tuple[object, object], what: str) -> None:
    pixels = np.array(Image.open(prepared / "images" / "a.png").convert("RGB"))
    pixels[place] = (1, 2, 3)
    Image.fromarray(pixels).save(prepared / "images" / "a.png")
    assert what in judge(prepared)["a.png"]


def test_a_dirty_border_and_another_size_are_seen(prepared: Path) -> None:
    pixels = np.array(Image.open(prepared / "images" / "b.png").convert("RGB"))
    pixels[0, 0] = (1, 2, 3)
    pixels[-1, -1] = (1, 2, 4)
    Image.fromarray(pixels).save(prepared / "images" / "b.png")
    Image.fromarray(pixels[:64, :64]).save(prepared / "images" / "a.png")
    found = judge(prepared)
    assert "surrounds it" in found["b.png"] and "not the size" in found["a.png"]


def test_any_folder_is_told_what_a_trainer_would_do(tmp_path: Path) -> None:
    for width, height in ((128, 128), (130, 64), (200, 200), (24, 24)):
        Image.new("RGB", (width, height)).save(tmp_path / f"{width}x{height}.png")
    found = judge(tmp_path)
    assert found["128x128.png"] == ""
    assert "cut to 128x64" in found["130x64.png"]
    assert "resampled to 128x128" in found["200x200.png"]
    assert "crashes" in found["24x24.png"]


@given(st.integers(1, 300), st.integers(1, 300), st.sampled_from([8, 32, 64]))
def test_what_is_foreseen_is_consistent(width: int, height: int, step: int) -> None:
    view = foresee(width, height, resolution=128, step=step)
    assert view.bucket[0] % step == view.bucket[1] % step == 0
    assert view.keeps(width, height) == (width % step == height % step == 0 and width * height <= 128 * 128)


def test_a_view_whose_pixels_differ_keeps_nothing() -> None:
    assert not View(resized=(64, 64), bucket=(64, 64), same=False).keeps(64, 64)


sizes = st.dictionaries(st.tuples(st.integers(4, 64), st.integers(4, 64)), st.integers(1, 60), min_size=1, max_size=12)


@given(sizes, st.sampled_from([(512, 64), (1024, 32)]))
def test_canvases_of_a_set_are_legal_and_few(counts: dict[tuple[int, int], int], model: tuple[int, int]) -> None:
    resolution, step = model
    canvases, unfit = choose_canvases(counts, resolution=resolution, step=step, latent_scale=8)
    assert not unfit and canvases.keys() == counts.keys()
    alone = {
        size: choose_canvases({size: 1}, resolution=resolution, step=step, latent_scale=8)[0][size] for size in counts
    }
    for size, canvas in canvases.items():
        assert foresee(canvas.width, canvas.height, resolution=resolution, step=step).keeps(canvas.width, canvas.height)
        assert size[0] * canvas.scale <= canvas.width and size[1] * canvas.scale <= canvas.height
        assert canvas.scale * 10 >= alone[size].scale * 6
    assert len(buckets(canvases)) <= len(buckets(alone))


def buckets(canvases: dict[tuple[int, int], Canvas]) -> set[tuple[int, int]]:
    return {(canvas.width, canvas.height) for canvas in canvases.values()}


def test_a_rare_size_joins_a_bucket_and_a_frequent_one_has_its_own() -> None:
    crawl = {(32, 32): 3038, (32, 48): 72, (8, 14): 8, (6, 14): 1, (27, 27): 1}
    canvases, _ = choose_canvases(crawl, resolution=1024, step=32, latent_scale=8)
    assert buckets(canvases) == {(1024, 1024), (768, 1152)}
    assert canvases[32, 48].scale == 24 and canvases[32, 48].padding == 0

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pixelkit.canvas import Bucket, Canvas, batches_per_epoch, count_buckets, fit_canvas
from pixelkit.errors import DataError

SDXL = {"resolution": 1024, "step": 32, "latent_scale": 8}


def test_24_pixels_for_sdxl_are_960_never_1024() -> None:
    canvas = fit_canvas(24, 24, **SDXL)
    assert (canvas.scale, canvas.width, canvas.height, canvas.padding) == (40, 960, 960, 0)


def test_fixed_scale() -> None:
    assert fit_canvas(24, 24, **SDXL, scale=32).width == 768
    with pytest.raises(DataError, match="scale 50"):
        fit_canvas(24, 24, **SDXL, scale=50)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(DataError, match="without being resampled"):
        fit_canvas(1100, 1000, **SDXL)


@given(
    st.integers(1, 256), st.integers(1, 256), st.sampled_from([(512, 64, 8), (1024, 32, 8), (32, 8, 2), (768, 64, 8)])
)
def test_the_trainer_will_not_touch_it(width: int, height: int, base: tuple[int, int, int]) -> None:
    resolution, step, latent_scale = base
    try:
        canvas = fit_canvas(width, height, resolution=resolution, step=step, latent_scale=latent_scale)
    except DataError:
        assert -(-width // step) * step * (-(-height // step) * step) > resolution**2
        return
    assert canvas.width % step == canvas.height % step == 0
    assert canvas.width * canvas.height <= resolution**2
    left, top = canvas.offset
    assert left % canvas.scale == top % canvas.scale == 0
    assert 0 <= left <= canvas.width - width * canvas.scale
    assert 0 <= top <= canvas.height - height * canvas.scale


def test_batches_round_up_in_each_bucket() -> None:
    buckets = [Bucket(width=64, height=64, images=5), Bucket(width=64, height=128, images=1)]
    assert batches_per_epoch(buckets, batch_size=4) == 3
    canvas = Canvas(sprite_width=1, sprite_height=1, scale=64, width=64, height=64)
    assert count_buckets({canvas: 5}) == (buckets[0],)

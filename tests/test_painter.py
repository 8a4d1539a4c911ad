import numpy as np
import pytest

from pixelkit.tiny.painter import HANDHELD, KINDS, STYLES, caption, paint
from pixelkit.tiny.palettes import BACKGROUNDS, COLOURS, make_ramp
from pixelkit.tiny.quickstart import COUNT, HELD_OUT, draw_quickstart


def generator(seed=0):
    return np.random.default_rng(seed)


def test_same_seed_same_pixels():
    first = paint("wizard", "purple", "grey", generator(3), style=STYLES["dithered"])
    again = paint("wizard", "purple", "grey", generator(3), style=STYLES["dithered"])
    other = paint("wizard", "purple", "grey", generator(4), style=STYLES["dithered"])
    assert first.tobytes() == again.tobytes()
    assert first.tobytes() != other.tobytes()


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_fills_a_sensible_part_of_the_canvas(kind):
    for seed in range(4):
        sprite = paint(kind, "red", None, generator(seed))
        alpha = np.asarray(sprite)[..., 3]
        assert sprite.mode == "RGBA"
        assert sprite.size == (32, 32)
        assert set(np.unique(alpha)) == {0, 255}
        assert 0.06 < (alpha > 0).mean() < 0.85


@pytest.mark.parametrize("style", STYLES)
def test_colours_are_few_and_the_ground_is_flat(style):
    for kind in KINDS:
        sprite = paint(kind, "teal", "brown", generator(1), style=STYLES[style])
        assert sprite.mode == "RGB"
        colours = sprite.getcolors(1024)
        assert colours is not None
        # materials x shades; the soft outline mixes each pixel's neighbours
        assert len(colours) <= (100 if style == "soft" else 40)
    corners = {sprite.getpixel(place) for place in ((0, 0), (31, 0))}
    assert len(corners) == 1


def test_the_named_colour_prevails():
    for colour, base in COLOURS.items():
        pixels = np.asarray(paint("slime", colour, None, generator(5), style=STYLES["plain"]))
        mean = pixels[pixels[..., 3] > 0][:, :3].mean(axis=0)
        nearest = min(COLOURS, key=lambda name: np.abs(make_ramp(COLOURS[name])[2] - mean).sum())
        assert nearest == colour or np.abs(mean - base).max() < 90


def test_a_ramp_climbs():
    for base in COLOURS.values():
        lightness = make_ramp(base).astype(float) @ (0.299, 0.587, 0.114)
        assert (np.diff(lightness) > 0).all()


def test_steady_sprites_stand_in_one_place():
    boxes = {paint("crystal", "red", None, generator(seed), steady=True).getbbox()[2:] for seed in range(6)}
    assert len(boxes) == 1


def test_captions():
    assert caption("sword", "red", "blue") == "a red sword, blue background"
    assert caption("apple", None, None) == "an apple"
    assert caption("bat", "orange", "white") == "an orange bat, white background"
    assert "black" in BACKGROUNDS


def test_the_handheld_style_keeps_to_its_palette():
    for kind in KINDS:
        pixels = np.asarray(paint(kind, "white", None, generator(2), style=HANDHELD))
        used = {tuple(int(channel) for channel in colour) for colour in pixels[pixels[..., 3] > 0][:, :3]}
        assert used <= set(HANDHELD.palette)


def test_quickstart_set(tmp_path):
    paths = draw_quickstart(tmp_path / "a")
    again = draw_quickstart(tmp_path / "b")
    assert len(paths) == COUNT
    assert [path.read_bytes() for path in paths] == [path.read_bytes() for path in again]
    for path in paths:
        text = path.with_suffix(".txt").read_text(encoding="utf-8").strip()
        assert text.startswith(("a ", "an "))
        assert not any(kind in text for kind in HELD_OUT)

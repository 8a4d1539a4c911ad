from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pixelkit.canvas import fit_canvas
from pixelkit.catalog import find_spec
from pixelkit.dataset.augment import Augmentation
from pixelkit.dataset.background import CANDIDATES, Outlines
from pixelkit.dataset.blocks import cover, flatten, index_colors, place
from pixelkit.dataset.make import Making
from pixelkit.dataset.prepare import flat_names, prepare
from pixelkit.errors import DataError, StorageError
from pixelkit.plan.data import Layout, lay_out
from pixelkit.sources import survey
from pixelkit.sources.pixels import read_pixels
from pixelkit.sources.prepared import read_records, source_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pixelkit.dataset.prepare import Prepared
    from pixelkit.plan import PlannedSprite


def noise(path: Path, size: tuple[int, int] = (8, 8), seed: int = 0, colors: int = 5) -> Path:
    """A sprite of a few colours, some of it transparent with loud colours hidden beneath."""
    generator = np.random.default_rng(seed)
    table = generator.integers(0, 256, (colors, 4), dtype=np.uint8)
    table[:, 3] = 255
    table[0] = (255, 0, 255, 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(table[generator.integers(0, colors, (size[1], size[0]))]).save(path)
    return path


def planned(
    folder: Path, *, base: str = "sd15", resolution: int = 128, trigger: str = "pix"
) -> tuple[PlannedSprite, ...]:
    layout = Layout(resolution=resolution, trigger=trigger)
    return lay_out(survey(folder, what="path").sprites, find_spec(base), layout, what="path")


def make(folder: Path, out: Path, making: Making | None = None) -> Prepared:
    return prepare(planned(folder), out, making)


def tree_hash(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        digest.update(
            str(path).encode() + (path.read_bytes() if path.is_file() else b"") + str(path.stat().st_mtime_ns).encode()
        )
    return digest.hexdigest()


@given(st.integers(1, 24), st.integers(1, 24), st.integers(1, 400), st.integers(0, 2**32 - 1), st.booleans())
@settings(max_examples=60, deadline=None)
def test_every_source_pixel_is_one_exact_block(width: int, height: int, colors: int, seed: int, mask: bool) -> None:
    generator = np.random.default_rng(seed)
    table = generator.integers(0, 256, (colors, 4), dtype=np.uint8)
    pixels = table[generator.integers(0, colors, (height, width))]
    covered = cover(pixels, (1, 2, 3), keep_alpha=mask)
    canvas = fit_canvas(width, height, resolution=256, step=64, latent_scale=8)
    placed = np.asarray(place(index_colors(covered, (1, 2, 3, 0 if mask else 255)), canvas).convert("RGBA"))
    left, top = canvas.offset
    inside = np.zeros(placed.shape[:2], dtype=bool)
    inside[top : top + height * canvas.scale, left : left + width * canvas.scale] = True
    blocks = placed[inside].reshape(height, canvas.scale, width, canvas.scale, 4)
    assert (blocks == covered[:, None, :, None, :]).all()
    assert (placed[~inside] == (1, 2, 3, 0 if mask else 255)).all()
    assert left % canvas.scale == top % canvas.scale == 0


def test_hidden_colour_never_shows(tmp_path: Path) -> None:
    pixels = np.zeros((8, 8, 4), dtype=np.uint8)
    pixels[..., :3] = (255, 0, 255)
    pixels[2:6, 2:6] = (10, 20, 30, 255)
    (tmp_path / "in").mkdir()
    Image.fromarray(pixels).save(tmp_path / "in" / "a.png")
    out = tmp_path / "out"
    prepared = make(tmp_path / "in", out)
    shown = np.asarray(Image.open(out / "images" / "a.png").convert("RGB"))
    assert {tuple(color) for color in shown.reshape(-1, 3).tolist()} == {(10, 20, 30), prepared.background}
    assert (out / "images" / "a.txt").read_text() == "pix, a\n"
    assert set(prepared.palette) == {(10, 20, 30), prepared.background}


def test_a_mask_keeps_alpha_and_hides_colour(tmp_path: Path) -> None:
    noise(tmp_path / "in" / "a.png")
    make(tmp_path / "in", tmp_path / "out", Making(alpha="mask", background="#102030"))
    shown = np.asarray(Image.open(tmp_path / "out" / "images" / "a.png").convert("RGBA"))
    see_through = shown[shown[..., 3] == 0]
    assert see_through.size and (see_through[:, :3] == (16, 32, 48)).all()
    assert set(np.unique(shown[..., 3])) == {0, 255}


def test_the_automatic_background_occurs_in_no_sprite_and_leaves_outlines_readable() -> None:
    grey: NDArray[np.uint8] = np.full((8, 8, 4), 128, dtype=np.uint8)
    grey[..., 3] = 255
    outlines = Outlines()
    outlines.add(grey)
    assert outlines.choose() not in {(128, 128, 128), (160, 160, 160)}, "too near to tell apart"
    used = sorted({(level, level, level) for level in range(1, 256)} | set(CANDIDATES))
    outlines = Outlines()
    outlines.add(np.array([[(*color, 255) for color in used]], dtype=np.uint8))
    assert outlines.choose() == (0, 0, 0)


@pytest.mark.parametrize(("wanted", "color"), [("#102030", (16, 32, 48)), ("white", (255, 255, 255))])
def test_a_chosen_background(tmp_path: Path, wanted: str, color: tuple[int, int, int]) -> None:
    noise(tmp_path / "in" / "a.png")
    assert make(tmp_path / "in", tmp_path / "out", Making(background=wanted)).background == color


def test_flattening_is_exact_at_both_ends() -> None:
    pixels = np.array([[[255, 0, 255, 0], [9, 8, 7, 255], [200, 100, 0, 128]]], dtype=np.uint8)
    assert flatten(pixels, (1, 1, 1)).tolist() == [[[1, 1, 1], [9, 8, 7], [101, 51, 0]]]


def test_truncated_images_are_all_named_or_left_out(tmp_path: Path) -> None:
    for number, name in enumerate("abc"):
        noise(tmp_path / "in" / f"{name}.png", (64, 64), number, colors=4000)
    for name in ("a", "c"):
        file = tmp_path / "in" / f"{name}.png"
        file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(DataError) as caught:
        make(tmp_path / "in", tmp_path / "out")
    assert [Path(problem.where).name for problem in caught.value.problems] == ["a.png", "c.png"]
    assert not (tmp_path / "out" / "pixelkit-dataset.json").exists(), "no set is complete without all of it"
    prepared = make(tmp_path / "in", tmp_path / "out", Making(keep_going=True))
    assert prepared.images == 1 and len(prepared.skipped) == 2
    assert [path.name for path in sorted((tmp_path / "out" / "images").iterdir())] == ["b.png", "b.txt"]


def test_names_fit_the_file_system_and_stay_apart(tmp_path: Path) -> None:
    names = flat_names(["d/" + "ö" * 200 + "1", "d/" + "ö" * 200 + "2", "x/a", "x__a", "X/A", 'w?<>|"*#03'])
    assert len({name.casefold() for name in names}) == 6
    for name in names:
        (tmp_path / f"{name}.png").touch()


def test_sources_are_only_read_and_the_fingerprint_is_of_pixels(tmp_path: Path) -> None:
    for number in range(3):
        noise(tmp_path / "in" / str(number) / "a.png", seed=number)
    before = tree_hash(tmp_path / "in")
    first = make(tmp_path / "in", tmp_path / "1")
    assert tree_hash(tmp_path / "in") == before
    again = make(tmp_path / "in", tmp_path / "2")
    assert (again.fingerprint, again.captions) == (first.fingerprint, first.captions)
    other = prepare(planned(tmp_path / "in", trigger="other"), tmp_path / "3")
    assert other.fingerprint == first.fingerprint and other.captions != first.captions
    for change in (Making(background="#010203"), Making(alpha="mask")):
        assert make(tmp_path / "in", tmp_path / f"4{change.alpha}", change).fingerprint != first.fingerprint
    bigger = prepare(planned(tmp_path / "in", resolution=256), tmp_path / "5")
    assert bigger.fingerprint != first.fingerprint


def test_a_second_time_makes_only_what_changed(tmp_path: Path) -> None:
    for number in range(4):
        noise(tmp_path / "in" / f"{number}.png", seed=number)
    out = tmp_path / "out"
    assert make(tmp_path / "in", out).reused == 0
    times = {path.name: path.stat().st_mtime_ns for path in (out / "images").iterdir()}
    assert make(tmp_path / "in", out).reused == 4
    assert {path.name: path.stat().st_mtime_ns for path in (out / "images").iterdir()} == times
    noise(tmp_path / "in" / "2.png", seed=77)
    (tmp_path / "in" / "3.png").unlink()
    assert make(tmp_path / "in", out).reused == 2
    assert sorted(path.name for path in (out / "images").glob("*.png")) == ["0.png", "1.png", "2.png"]
    assert [record["sprite"] for record in read_records(out)] == ["0", "1", "2"]
    assert (out / "images" / "0.png").stat().st_mtime_ns == times["0.png"]


def test_interrupted_anywhere_it_goes_on(tmp_path: Path) -> None:
    for number in range(6):
        noise(tmp_path / "in" / f"{number}.png", seed=number)
    straight = make(tmp_path / "in", tmp_path / "straight")
    out = tmp_path / "out"

    def stop(done: int, _total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(planned(tmp_path / "in"), out, on_progress=stop)
    begun = out / "images.jsonl.part"
    begun.write_bytes(begun.read_bytes()[:-20])  # torn in the middle of a record
    prepared = make(tmp_path / "in", out)
    assert prepared.reused == 2 and prepared.fingerprint == straight.fingerprint
    assert [record["file"] for record in read_records(out)] == [f"images/{number}.png" for number in range(6)]
    assert not begun.exists() and not list(out.rglob(".*"))


def test_an_edited_caption_is_kept(tmp_path: Path) -> None:
    noise(tmp_path / "in" / "a.png")
    make(tmp_path / "in", tmp_path / "out")
    caption = tmp_path / "out" / "images" / "a.txt"
    caption.write_text("pix, what the artist wrote\n")
    prepare(planned(tmp_path / "in", trigger="new"), tmp_path / "out")
    assert caption.read_text() == "pix, what the artist wrote\n"
    caption.write_text("pix, a\n")
    prepare(planned(tmp_path / "in", trigger="newer"), tmp_path / "out")
    assert caption.read_text() != "newer, a\n", "still the artist's word"


def test_a_prepared_set_is_a_source(tmp_path: Path) -> None:
    for number, size in enumerate([(8, 8), (8, 6), (5, 7)]):
        noise(tmp_path / "in" / f"{number}.png", size, number)
    first = make(tmp_path / "in", tmp_path / "out", Making(background="#123456"))
    found = survey(tmp_path / "out", what="path")
    assert found.background == "#123456"
    assert [(sprite.width, sprite.height) for sprite in found.sprites] == [(8, 8), (8, 6), (5, 7)]
    again = prepare(planned(tmp_path / "out"), tmp_path / "again", Making(background=found.background))
    assert again.fingerprint == first.fingerprint


def test_variants_masks_and_a_holdout(tmp_path: Path) -> None:
    for number in range(40):
        noise(tmp_path / "in" / f"{number:02}.png", seed=number)
    making = Making(masks=True, augment=Augmentation(mirror=True), holdout=0.3)
    make(tmp_path / "in", tmp_path / "out", making)
    records = list(read_records(tmp_path / "out"))
    held = [record for record in records if record["split"] == "holdout"]
    assert 4 <= len(held) <= 20 and all(record["variants"] == 1 for record in held)
    assert {record["file"].split("/")[0] for record in held} == {"holdout"}
    mirrored = [record for record in records if record["variant"] == "mirror"]
    assert len(mirrored) == 40 - len(held) and mirrored[0]["name"].endswith("+mirror")
    assert len(survey(tmp_path / "out", what="path").sprites) == 2 * (40 - len(held))
    assert len(list((tmp_path / "out" / "masks").glob("*.png"))) == len(records)
    for record in records:
        assert (tmp_path / "out" / record["file"]).is_file()


def test_kohya_folders_keep_their_repeats(tmp_path: Path) -> None:
    noise(tmp_path / "in" / "10_hero" / "a.png")
    noise(tmp_path / "in" / "2_orc" / "b.png", seed=1)
    make(tmp_path / "in", tmp_path / "out")
    assert sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.png")) == [
        "images-x10/10_hero__a.png",
        "images-x2/2_orc__b.png",
    ]
    assert (tmp_path / "out" / "images-x10" / "10_hero__a.txt").read_text() == "pix, hero\n"


def test_a_folder_of_other_things_is_left_alone(tmp_path: Path) -> None:
    noise(tmp_path / "in" / "a.png")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "novel.txt").write_text("Once")
    with pytest.raises(StorageError, match="holds other files"):
        make(tmp_path / "in", tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["novel.txt"]


def test_records_lead_back_to_the_source(tmp_path: Path) -> None:
    noise(tmp_path / "in" / "a.png", (24, 24), colors=3)
    big = Image.open(tmp_path / "in" / "a.png").resize((96, 96), Image.Resampling.NEAREST)
    big.save(tmp_path / "in" / "a.png")
    make(tmp_path / "in", tmp_path / "out")
    record = json.loads((tmp_path / "out" / "images.jsonl").read_text())
    assert (record["size"], record["source"]["block"]) == ([24, 24], 4)
    assert read_pixels(source_of(record)).shape == (24, 24, 4)

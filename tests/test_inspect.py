"""A set looked at: findings, checklist, counts, page and sheet, from files on disk."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from pixelkit.catalog import find_spec
from pixelkit.cli.main import main
from pixelkit.dataset.inspect import Purpose, contact, inspect, page
from pixelkit.dataset.inspect.outliers import score_values
from pixelkit.dataset.inspect.report import KINDS, Report
from pixelkit.dataset.inspect.wanted import WANTED, list_wanted

SPRITES = Path(__file__).parent.parent / "presets" / "quickstart"


def open_sprite(name: str) -> Image.Image:
    return Image.open(SPRITES / f"{name}.png").convert("RGBA")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The quickstart's sprites, and each fault once."""
    folder = tmp_path_factory.mktemp("set") / "sprites"
    folder.mkdir()
    for path in SPRITES.glob("*.png"):
        (folder / path.name).write_bytes(path.read_bytes())
    open_sprite("16_ghost").save(folder / "copy.png")
    open_sprite("17_goblin").transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(folder / "mirrored.png")
    open_sprite("32_sword").rotate(20, Image.Resampling.BICUBIC).save(folder / "soft.png")
    open_sprite("24_ring").convert("RGB").resize((128, 128), Image.Resampling.NEAREST).save(
        folder / "ring.jpg", quality=80
    )
    Image.new("RGBA", (32, 32)).save(folder / "nothing.png")
    (folder / "broken <b>.png").write_bytes((SPRITES / "01_apple.png").read_bytes()[:200])
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(
        folder / "photo <i>.png"
    )
    return folder


@pytest.fixture(scope="module")
def report(folder: Path) -> Report:
    return inspect(folder, Purpose())


def kinds_of(report: Report, name: str) -> set[str]:
    place = [one.name for one in report.sprites].index(name)
    return {finding.kind for finding in report.findings.get(place, ())}


def test_each_fault_is_found_where_it_is(report: Report) -> None:
    assert kinds_of(report, "copy") == kinds_of(report, "16_ghost") == {"identical"}
    assert kinds_of(report, "mirrored") == {"mirrored"}
    assert "soft" in kinds_of(report, "soft")
    assert {"damaged", "lossy"} <= kinds_of(report, "ring")
    assert "empty" in kinds_of(report, "nothing")
    assert "apart" in kinds_of(report, "photo <i>")
    assert not kinds_of(report, "01_apple")
    assert [problem.where for problem in report.left_out] == ["broken <b>"]


def test_outliers_are_explained_with_what_the_others_have(report: Report) -> None:
    texts = [one.text for found in report.findings.values() for one in found if one.kind == "apart"]
    assert any(re.fullmatch(r"\d{3,4} colours, nine of ten have \d+ to \d+", text) for text in texts), texts


def test_damaged_art_is_measured_as_repaired(report: Report) -> None:
    ring = next(one for one in report.sprites if one.name == "ring")
    assert (ring.features.width, ring.features.height) == (32, 32)


def test_a_clean_set_passes_all_six() -> None:
    found = inspect(SPRITES, Purpose(spec=find_spec("sdxl")))
    assert [check.verdict for check in found.checks] == ["pass"] * 6
    assert (found.findings, found.drawings, len(found.palette)) == ({}, 40, 4)
    assert "each pixel becomes 32 pixels" in found.checks[2].text


def test_art_enlarged_exactly_is_fine(tmp_path: Path) -> None:
    for path in SPRITES.glob("*.png"):
        Image.open(path).resize((128, 128), Image.Resampling.NEAREST).save(tmp_path / path.name)
    found = inspect(tmp_path, Purpose())
    assert found.count("damaged") == 0 and {one.features.width for one in found.sprites} == {32}
    assert "40 enlarged exactly by 4" in found.checks[1].text


def test_what_does_not_fit_the_base_fails(tmp_path: Path) -> None:
    chance = np.random.default_rng(0)
    Image.fromarray(chance.integers(0, 256, (900, 900, 3), dtype=np.uint8)).save(tmp_path / "huge.png")
    assert inspect(tmp_path, Purpose(spec=find_spec("sd15"))).checks[2].verdict == "fail"


def test_scenery_is_told_from_tiles(tmp_path: Path) -> None:
    chance = np.random.default_rng(0)
    for name in ("tiles/a", "tiles/b", "mon/scene"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(chance.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(tmp_path / f"{name}.png")
    for path in SPRITES.glob("*.png"):
        (tmp_path / "mon" / path.name).write_bytes(path.read_bytes())
    found = inspect(tmp_path, Purpose())
    assert [found.sprites[place].name for place in found.checks[3].worst] == ["mon/scene"]


def test_repeats_fail_variety(tmp_path: Path) -> None:
    for number in range(30):
        open_sprite(f"0{number % 3 + 1}_{('apple', 'axe', 'barrel')[number % 3]}").save(tmp_path / f"{number}.png")
    found = inspect(tmp_path, Purpose())
    assert (found.drawings, found.checks[5].verdict) == (3, "fail")


def test_robust_scores_ignore_what_they_look_for() -> None:
    values = np.array([10.0] * 20 + [11.0] * 20 + [1000.0])
    assert abs(score_values(values, floor=0.4))[:40].max() < 3.5 < score_values(values, floor=0.4)[40]
    assert score_values(np.full(9, 7.0), floor=1).tolist() == [0.0] * 9


def test_progress_counts_every_sprite(folder: Path) -> None:
    seen: list[tuple[int, int]] = []
    inspect(folder, Purpose(), lambda done, total: seen.append((done, total)))
    assert seen == [(number, len(seen)) for number in range(1, len(seen) + 1)]


def test_wanted_numbers() -> None:
    style = next(one for one in WANTED if one.use == "a style")
    assert [style.judge(number) for number in (44, 50, 100, 101)] == [
        "6 more are wanted", "enough", "enough", "more than asked for",
    ]  # fmt: skip
    assert {one.method for one in list_wanted("dreambooth")} == {"dreambooth"}
    assert list_wanted() == list(WANTED)


def test_the_page_stands_alone_and_escapes_names(report: Report, tmp_path: Path) -> None:
    text = page.write_page(report, tmp_path).read_text("utf-8")
    assert "<i>.png" not in text and "photo &lt;i&gt;" in text and "broken &lt;b&gt;" in text
    assert not re.search(r"https?://|src=|<link|@import", text)
    assert text.count("background-image:url(data:image/png;base64,") == len(report.sprites)


def test_the_page_of_a_large_set_is_a_sample_that_says_so(
    report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page, "MOST_SPRITES", 12)
    text = page.write_page(report, tmp_path).read_text("utf-8")
    assert text.count("background-image:url(") == 12
    assert "a sample, 12 sprites in all" in text and "16_ghost" in text


def test_sheets_have_pages_and_frames(report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contact, "PER_PAGE", 30)
    files = contact.write_pages(report, tmp_path)
    assert [file.name for file in files] == ["sheet.png", "sheet-2.png"]
    colors = [{color for _, color in Image.open(file).getcolors(1 << 24) or ()} for file in files]
    assert KINDS["mirrored"][1] in colors[0] | colors[1]
    monkeypatch.setattr(contact, "MOST_PAGES", 1)
    assert len(list(contact.draw_pages(report))) == 1


def test_sprites_on_the_sheet_are_enlarged_by_whole_numbers(tmp_path: Path) -> None:
    chance = np.random.default_rng(1)
    Image.fromarray(chance.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    found = inspect(tmp_path, Purpose())
    sheet = np.asarray(next(contact.draw_pages(found)))
    drawn = sheet[-contact._MARGIN - contact._LABEL - 96 :][:96, contact._MARGIN :][:, :96]
    blocks = drawn.reshape(8, 12, 8, 12, 3)
    assert (blocks == blocks[:, :1, :, :1]).all()


def test_command(folder: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in folder.iterdir()}
    result = CliRunner().invoke(
        main, ["data", "inspect", str(folder), "--out", str(tmp_path / "out"), "--preset", "hero-dreambooth"]
    )
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-2:] == [
        str(tmp_path / "out" / "inspect.html"),
        str(tmp_path / "out" / "sheet.png"),
    ]
    assert "one character" in result.stdout and "a style" not in result.stdout
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_command_refuses(folder: Path, tmp_path: Path) -> None:
    def call(*arguments: str | Path) -> tuple[int, str]:
        result = CliRunner().invoke(main, ["data", "inspect", *map(str, arguments)])
        return result.exit_code, result.output

    assert call(folder, "--preset", "style", "--base", "sdxl")[0] == 2
    code, said = call(folder, "--out", folder / "out")
    assert code == 4 and "lie in each other" in said and not (folder / "out").exists()
    (tmp_path / "a.png").write_bytes(b"no picture")
    code, said = call(tmp_path, "--out", tmp_path.parent / "out-broken")
    assert code == 4 and "a.png this is no image" in said

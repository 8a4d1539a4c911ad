"""`pixelkit data` as an artist types it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from test_prepare import noise, tree_hash

from pixelkit.cli.main import main

if TYPE_CHECKING:
    from pathlib import Path


def call(*arguments: str | Path) -> tuple[int, str, str]:
    result = CliRunner().invoke(main, ["data", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(4):
        noise(tmp_path / "in" / f"orc_{number}.png", (8, 8), number)
    (tmp_path / "in" / "orc_0.txt").write_text("an orc, facing left\n")
    return tmp_path / "in"


def test_prepare_then_check(folder: Path, tmp_path: Path) -> None:
    before = tree_hash(folder)
    out = tmp_path / "set"
    code, stdout, stderr = call(
        "prepare", folder, "--base", "sd15", "--resolution", "128", "--out", out, "--mirror", "--masks"
    )
    assert (code, stdout) == (0, f"{out}\n"), stderr
    assert "8 images of 4 sprites" in stderr and "3 of 4 sprites have no .txt caption" in stderr
    assert (out / "images" / "orc_0+mirror.txt").read_text() == "an orc, facing right\n"
    assert len(list((out / "masks").iterdir())) == 8
    assert (out / "palette.gpl").read_text().startswith("GIMP Palette\n")
    assert tree_hash(folder) == before
    code, stdout, _ = call("check", out, "--base", "sd15", "--view", tmp_path / "view")
    assert code == 0 and "8 of 8 images reach the VAE untouched" in stdout
    assert "4 are equal to their source" in stdout and "4 are equal to what was prepared" in stdout
    for image in (out / "images").glob("*.png"):
        seen = np.asarray(Image.open(tmp_path / "view" / "images" / image.name))
        assert (seen == np.asarray(Image.open(image).convert("RGB"))).all()


def test_check_fails_on_what_a_trainer_would_change(folder: Path) -> None:
    code, stdout, stderr = call("check", folder, "--base", "sdxl")
    assert code == 4 and "0 of 4 images reach the VAE untouched" in stdout
    assert "orc_0.png 8x8 is smaller than one step" in stderr and "data prepare" in stderr


def test_buckets_table_and_picture(folder: Path, tmp_path: Path) -> None:
    noise(folder / "tall.png", (8, 16))
    picture = tmp_path / "buckets.png"
    code, stdout, _ = call("buckets", folder, "--base", "sdxl", "--batch-size", "4", "--picture", picture)
    assert code == 0 and stdout.splitlines()[1].split() == ["8x8", "4", "1024x1024", "128", "0%", "2"]
    assert "2 batches per epoch at batch size 4" in stdout
    assert Image.open(picture).size[0] > 600


def test_a_sheet(tmp_path: Path) -> None:
    cells = Image.new("RGBA", (32, 16))
    cells.paste((200, 10, 10, 255), (2, 2, 6, 6))
    cells.paste((10, 200, 10, 255), (17, 9, 23, 15))
    (tmp_path / "in").mkdir()
    cells.save(tmp_path / "in" / "beasts.png")
    code, stdout, _ = call("buckets", tmp_path / "in", "--base", "sd15", "--sheet", "8x8")
    assert code == 0 and stdout.splitlines()[1].split()[:2] == ["8x8", "2"]


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (("--base", "sdxxl"), 3, "did you mean sdxl?"),
        (("--base", "sdxl", "--sheet", "32"), 3, "width x height"),
        (("--base", "sdxl", "--background", "gray-ish"), 3, "no colour"),
        (("--base", "sdxl", "--grid", "3"), 4, "not made of exact blocks of 3x3"),
        (("--base", "sdxl", "--scale", "200"), 4, "does not fit"),
    ],
)
def test_bad_options_are_one_clear_error(
    folder: Path, tmp_path: Path, options: tuple[str, ...], code: int, said: str
) -> None:
    found, _, stderr = call("prepare", folder, "--out", tmp_path / "set", *options)
    assert found == code and said in stderr and "Traceback" not in stderr
    assert not (tmp_path / "set").exists()


def test_the_output_may_not_lie_in_the_source(folder: Path) -> None:
    for out in (folder, folder / "set", folder.parent):
        code, _, stderr = call("prepare", folder, "--base", "sdxl", "--out", out)
        assert code == 4 and "lie in each other" in stderr


def test_keep_going_names_what_is_left_out(folder: Path, tmp_path: Path) -> None:
    (folder / "broken.png").write_text("no image")
    code, _, stderr = call("prepare", folder, "--base", "sd15", "--out", tmp_path / "set", "--resolution", "64")
    assert code == 4 and "broken.png this is no image" in stderr
    arguments = ("prepare", folder, "--base", "sd15", "--out", tmp_path / "set", "--resolution", "64", "--keep-going")
    code, _, stderr = call(*arguments)
    assert code == 0 and "left out" in stderr and "broken.png" in stderr and "4 images of 4 sprites" in stderr

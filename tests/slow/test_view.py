"""sd-scripts' own bucket and resize functions, beside what pixelkit foresees and prepares."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pixelkit.canvas import foresee
from pixelkit.dataset.build import Wish, plan_set
from pixelkit.dataset.check import Proof, list_candidates
from pixelkit.dataset.looking import Looking
from pixelkit.dataset.prepare import prepare
from pixelkit.engines.kohya.viewer import Viewer

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("resolution", "step"), [(128, 64), (128, 32), (512, 64)])
def test_foreseen_is_what_happens(sd_scripts: Path, tmp_path: Path, resolution: int, step: int) -> None:
    """Three hundred shapes, around and above the area and the steps."""
    generator = random.Random(step * resolution)
    with Viewer(sd_scripts, resolution=resolution, step=step) as viewer:
        for _ in range(300):
            size = tuple(
                generator.choice((generator.randint(1, 2 * resolution), step * generator.randint(1, 4))) for _ in "wh"
            )
            path = tmp_path / "a.png"
            Image.new("L", size).save(path)  # type: ignore[arg-type]
            seen, expected = viewer.look(path), foresee(*size, resolution=resolution, step=step)
            if 0 in seen.bucket:
                assert 0 in expected.bucket, size
            else:
                assert (seen.resized, seen.bucket) == (expected.resized, expected.bucket), size
                assert seen.keeps(*size) == expected.keeps(*size)


@pytest.mark.parametrize("base", ["sd15", "sdxl", "flux"])
def test_tiles_reach_the_vae_untouched(crawl_tiles: Path, sd_scripts: Path, tmp_path: Path, base: str) -> None:
    """Every 40th real sprite through the engine's functions, and back to its source's pixels."""
    planned = plan_set(crawl_tiles, Wish(base=base))
    assert len(planned.sprites) == sum(1 for _ in crawl_tiles.rglob("*.png"))
    prepare(planned.sprites[::40], tmp_path / "set")
    proof = Proof.of(tmp_path / "set")
    looking = Looking(
        sd_scripts, resolution=planned.resolution, step=planned.spec.bucket_step, folder=tmp_path / "view"
    )
    with looking as look:
        for image in list_candidates(tmp_path / "set"):
            verdict = proof.judge(image, look.at(image))
            assert (verdict.proved, verdict.problem) == ("source", None)
            seen = np.asarray(Image.open(tmp_path / "view" / image.record["file"]))  # type: ignore[index]
            assert (seen == np.asarray(Image.open(image.path).convert("RGB"))).all()


def test_a_second_run_reuses_latents_and_changed_pixels_do_not(sd_scripts: Path, tmp_path: Path) -> None:
    def train(*options: str) -> set[Path]:
        command = [
            sys.executable,
            "-m",
            "pixelkit",
            "run",
            str(ROOT / "presets" / "quickstart.toml"),
            "--engine",
            "kohya",
        ]
        command += ["--sd-scripts", str(sd_scripts), "--runs", str(tmp_path / "runs"), *options]
        command += ["--set", "train.steps=1", "--set", "sample.prompts=[]"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == 0, done.stderr
        return set((tmp_path / "runs" / ".latents").rglob("*.npz"))

    first = train()
    times = {path: path.stat().st_mtime_ns for path in first}
    assert len(first) == 40
    assert train("--set", 'dataset.trigger="other"') == first
    assert {path: path.stat().st_mtime_ns for path in first} == times, "captions change no latents"
    both = train("--set", 'dataset.background="#204060"')
    assert len(both) == 80
    assert {path: path.stat().st_mtime_ns for path in first} == times
    assert not list((tmp_path / "runs").glob("quickstart*/**/*.npz"))

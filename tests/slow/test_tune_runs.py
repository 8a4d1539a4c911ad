"""`pixelkit tune` as a person types it: real trainings of the base that comes along, a few probes of a few steps."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import psutil
import pytest
from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
PRESET = """\
name = "small"
base = "pixelkit-tiny"
engine = "diffusers"
[dataset]
path = "sprites"
trigger = "pixelboy style"
[network]
rank = 4
[train]
steps = 500
effective_batch = 2
{more}
[sample]
prompts = ["a potion"]
"""


@pytest.fixture
def preset(tmp_path: Path) -> Path:
    sprites = sorted((ROOT / "presets" / "quickstart").glob("0[1-8]_*"))
    (tmp_path / "sprites").mkdir()
    for path in sprites:
        shutil.copy(path, tmp_path / "sprites")
    file = tmp_path / "small.toml"
    file.write_text(PRESET.format(more=""), encoding="utf-8")
    return file


def start(tmp_path: Path, *arguments: str | Path) -> subprocess.Popen[str]:
    environment = {
        **os.environ,
        "XDG_CONFIG_HOME": str(tmp_path / "settings"),
        "OMP_NUM_THREADS": "1",
        "TMPDIR": str(tmp_path),
    }
    command = [sys.executable, "-m", "pixelkit", *map(str, arguments)]
    return subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(process: subprocess.Popen[str], code: int = 0) -> tuple[str, str]:
    try:
        out, err = process.communicate(timeout=600)
    finally:
        process.kill()
    assert process.returncode == code, f"exit {process.returncode}\n{out}\n{err}"
    assert "Traceback" not in err
    return out, err


def entries(tmp_path: Path) -> list[dict[str, Any]]:
    document = tomllib.loads((tmp_path / "settings" / "pixelkit" / "tuned.toml").read_text("utf-8"))
    found: list[dict[str, Any]] = document["tuned"]
    return found


def test_a_tune_from_probe_to_profile(tmp_path: Path, preset: Path) -> None:
    """Stopped after the first probe, and done on the second call. Checkpointing is held, so few probes are needed."""
    preset.write_text(PRESET.format(more="gradient_checkpointing = false"), encoding="utf-8")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "sprites").iterdir()}
    quick = ("--steps", "2", "--runs", tmp_path / "runs")
    process = start(tmp_path, "tune", preset, *quick)
    assert process.stderr is not None
    told = "".join(iter_until(process.stderr, "  1  as it is: "))
    assert "held      gradient_checkpointing, as the preset says (small.toml:12)" in told
    assert "a probe takes " in told
    process.send_signal(signal.SIGINT)
    out, err = finish(process, code=130)
    assert "goes on from there" in err
    assert "the preset's plan" in out
    assert entries(tmp_path)[0].keys().isdisjoint({"batch_size", "gradient_checkpointing"}), "nothing was tried yet"

    out, err = finish(start(tmp_path, "tune", preset, *quick, "--picture", tmp_path / "probes.png"))
    (first,) = (line for line in err.splitlines() if line.endswith("measured before"))
    assert first.startswith("  1  as it is: ")
    assert "the preset's plan" in out and "batch 2" in out
    (entry,) = entries(tmp_path)
    assert (entry["base"], entry["engine"], entry["resolution"]) == ("pixelkit-tiny", "diffusers", 32)
    assert entry["batch_size"] in {1, 2} and "gradient_checkpointing" not in entry
    assert entry["images_per_second"] > 0
    with Image.open(tmp_path / "probes.png") as picture:
        assert picture.width > 400 and picture.height > 100

    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "sprites").iterdir()} == before
    assert not list((tmp_path / "runs").glob("small*"))
    assert not list(tmp_path.glob("pixelkit-tune-*"))
    assert not [process for process in psutil.process_iter() if str(tmp_path) in " ".join(command_of(process))]
    out, _ = finish(start(tmp_path, "hardware"))
    assert "tuned    sd15 lora on pixelkit-tiny at 32 px with diffusers: batch_size = " in out
    out, _ = finish(start(tmp_path, "tune", "--forget"))
    assert out.startswith("removed ")
    assert not (tmp_path / "settings" / "pixelkit" / "tuned.toml").exists()


def iter_until(stream: IO[str], beginning: str) -> Iterator[str]:
    for line in stream:
        yield line
        if line.startswith(beginning):
            return
    pytest.fail(f"no line begins with {beginning!r}")


def command_of(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def test_a_preset_that_cannot_be_trained_is_an_error(tmp_path: Path, preset: Path) -> None:
    preset.write_text(preset.read_text().replace("effective_batch = 2", 'optimizer = "adamw8bit"'), encoding="utf-8")
    _, err = finish(start(tmp_path, "tune", preset), code=3)
    assert "bitsandbytes needs a GPU" in err

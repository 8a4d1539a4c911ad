"""pixelkit, as a person calls it: within this process, or in one of its own with sd-scripts."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
from click.testing import CliRunner, Result
from safetensors.numpy import load_file, save_file
from test_every_key_arrives import make_plan

from pixelkit.cli import main
from pixelkit.engines.kohya import adapter as kohya

ROOT = Path(__file__).parents[2]
QUICKSTART = ROOT / "presets" / "quickstart.toml"
TOP = 'name = "h"\nbase = "pixelkit-tiny"\n'
DATA = '[dataset]\npath = "sprites"\n'


def call(*arguments: object) -> Result:
    """`pixelkit ARGUMENTS`; a traceback fails the test."""
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
    return result


def check(text: str) -> tuple[int, str]:
    """`pixelkit check` of a preset: exit code, all that it says. Never sees sd-scripts."""
    Path("p.toml").write_text(text, "utf-8")
    result = call("check", "p.toml", "--engine", "diffusers")
    return result.exit_code, result.output


def refuse(folder: Path, line: str) -> str:
    """What stands in the way of a preset with `line` under [kohya]."""
    return "\n".join(map(str, kohya.check(make_plan(folder, f"kohya.{line}\n", base="sd15"), None)))


def start_pixelkit(*arguments: object, runs: Path) -> subprocess.Popen[str]:
    """`pixelkit ARGUMENTS` as a person types it, on sd-scripts."""
    command = [sys.executable, "-m", "pixelkit", *map(str, arguments), "--runs", str(runs)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XDG_CONFIG_HOME": str(runs.parent / "settings")}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit code and all that was said."""
    said = process.communicate(timeout=300)[1]
    return process.returncode, said


def run_poisoned(folder: Path, part: str, name: str) -> tuple[int, str]:
    """`pixelkit run` on a base of which one tensor is NaN."""
    shutil.copytree(ROOT / "pixelkit" / "tiny" / "weights", folder / "base")
    file = folder / "base" / part / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors[name] = np.full_like(tensors[name], np.nan)
    save_file(tensors, file, {"format": "pt"})
    settings = (f"base={folder / 'base'}", "family=sd15", "engine=kohya", "dataset.resolution=64", "train.steps=3")
    overrides = [word for value in (*settings, "sample.prompts=[]") for word in ("--set", value)]
    return finish(start_pixelkit("run", QUICKSTART, *overrides, runs=folder / "runs"))

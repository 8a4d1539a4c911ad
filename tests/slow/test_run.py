"""`pixelkit run` as a person types it: real trainings of the base that comes along, on both engines, and how they end."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from pixelkit.rundir import RunDir

ROOT = Path(__file__).parents[2]
QUICKSTART = ROOT / "presets" / "quickstart.toml"
PLAIN = ("--set", "sample.prompts=[]")  # pictures take time, and one test makes them
Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start `pixelkit ARGUMENTS` with runs below tmp_path; whatever is left at the test's end is killed."""
    started: list[subprocess.Popen[str]] = []

    def run(*arguments: str | Path, sd_scripts: Path | None = None) -> subprocess.Popen[str]:
        environment = {key: value for key, value in os.environ.items() if key != "PIXELKIT_SD_SCRIPTS"}
        environment["XDG_CONFIG_HOME"] = str(tmp_path / "settings")
        command = [sys.executable, "-m", "pixelkit", *map(str, arguments), "--runs", str(tmp_path / "runs")]
        if sd_scripts:
            environment["PIXELKIT_SD_SCRIPTS"] = str(sd_scripts)
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.communicate()


def finish(process: subprocess.Popen[str], code: int = 0, timeout: float = 420) -> tuple[str, str]:
    out, err = process.communicate(timeout=timeout)
    assert process.returncode == code, f"exit {process.returncode}\n{out}\n{err}"
    assert "Traceback" not in err.replace("the log's end", "\0").split("\0")[0]
    return out, err


def only_run(tmp_path: Path) -> Path:
    (run,) = (path for path in (tmp_path / "runs").iterdir() if path.name != ".latents")
    return run


def manifest(run: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run / "manifest.json").read_text())
    return content


def steps(run: Path) -> list[int]:
    return [event["step"] for event in RunDir(path=run).read_metrics() if event["event"] == "step"]


def wait_for_step(run_root: Path, step: int, timeout: float = 240) -> Path:
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        for metrics in run_root.glob("*/metrics.jsonl"):
            if f'"step","step":{step},' in metrics.read_text():
                return metrics.parent
        time.sleep(0.1)
    pytest.fail(f"step {step} did not come")


def trainers(tmp_path: Path) -> list[psutil.Process]:
    """Processes of this test's runs."""
    runs = str(tmp_path / "runs")
    return [process for process in psutil.process_iter(["cmdline"]) if runs in " ".join(process.info["cmdline"] or [])]


def copy_base(folder: Path) -> Path:
    shutil.copytree(ROOT / "pixelkit" / "tiny" / "weights", folder)
    return folder


def poison(file: Path, name: str) -> None:
    tensors = load_file(file)
    tensors[name] = np.full_like(tensors[name], np.nan)
    save_file(tensors, file, {"format": "pt"})


def on_base(base: Path, *settings: str) -> list[str]:
    every = (f"base={base}", "family=sd15", "dataset.resolution=64", "train.steps=3", *settings)
    return [part for value in every for part in ("--set", value)]


@pytest.mark.parametrize("engine", ["diffusers", "kohya"])
def test_quickstart_from_preset_to_picture(
    engine: str, start: Start, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    checkout = request.getfixturevalue("sd_scripts") if engine == "kohya" else None
    short = ("--set", "train.steps=4", "--set", 'sample.prompts=["{trigger}, a potion"]', "--set", "sample.steps=4")
    out, err = finish(start("run", QUICKSTART, *short, sd_scripts=checkout))
    model = Path(out.splitlines()[-1])
    run = only_run(tmp_path)
    assert model == run / "export" / "quickstart.safetensors"
    with safe_open(model, "numpy") as weights:
        names, metadata = list(weights.keys()), weights.metadata()
    assert all(name.startswith(("lora_unet_", "lora_te_")) for name in names)
    assert metadata["modelspec.trigger_phrase"] == "pixelboy style"
    assert metadata["ss_network_dim"] == "8"
    assert manifest(run)["state"] == "done"
    assert manifest(run)["engine"] == engine
    assert steps(run) == [1, 2, 3, 4]
    assert "4/4" in err
    names = {path.name for path in (run / "export").iterdir()}
    assert names >= {"peft", "pytorch_lora_weights.safetensors", "quickstart-sheet.png", "quickstart-loss.png"}
    samples = sorted(path for path in (run / "output" / "sample").glob("*.png"))
    assert len(samples) == 2, "one before, one after"
    first, last = (np.asarray(Image.open(path).convert("RGB")) for path in samples)
    assert first.shape == last.shape == (32, 32, 3)
    sidecar = json.loads((run / "export" / "quickstart.pixelkit.json").read_text())
    assert sidecar["dataset"]["size"] == 40
    assert sidecar["trigger_words"] == ["pixelboy style"]


def test_stopped_and_resumed_ends_as_a_straight_run(start: Start, tmp_path: Path) -> None:
    arguments = ("run", QUICKSTART, "--set", "train.steps=12", *PLAIN)
    finish(start(*arguments))
    straight = only_run(tmp_path)
    weights = load_file(straight / "output" / "quickstart.safetensors")
    shutil.rmtree(tmp_path / "runs")

    process = start(*arguments)
    run = wait_for_step(tmp_path / "runs", 3)
    process.send_signal(signal.SIGINT)
    _, err = finish(process, code=130)
    assert "pixelkit resume" in err
    assert manifest(run)["state"] == "interrupted"
    assert not trainers(tmp_path)
    stopped_at = steps(run)[-1]
    assert 3 <= stopped_at < 12

    out, _ = finish(start("resume", "latest"))
    assert Path(out.splitlines()[-1]).is_file()
    assert steps(run) == list(range(1, 13)), "the resumed run's curve is that of one run"
    resumed = load_file(run / "output" / "quickstart.safetensors")
    assert resumed.keys() == weights.keys()
    assert all((resumed[name] == weights[name]).all() for name in weights), "same bytes as the straight run"
    _, err = finish(start("resume", run), code=9)
    assert "is done" in err


def test_a_killed_trainer_is_told_for_what_it_is(start: Start, tmp_path: Path) -> None:
    process = start("run", QUICKSTART, "--set", "train.steps=5000", *PLAIN)
    run = wait_for_step(tmp_path / "runs", 1)
    pid = next(
        json.loads(line)["pid"] for line in (run / "metrics.jsonl").read_text().splitlines() if '"begin"' in line
    )
    os.kill(pid, signal.SIGKILL)
    _, err = finish(process, code=7)
    assert re.search("kill", err, re.IGNORECASE), err
    assert manifest(run)["state"] == "failed"


def test_killing_pixelkit_itself_leaves_no_trainer(start: Start, tmp_path: Path) -> None:
    process = start("run", QUICKSTART, "--set", "train.steps=5000", *PLAIN)
    run = wait_for_step(tmp_path / "runs", 1)
    process.kill()
    end = time.monotonic() + 60
    while trainers(tmp_path) and time.monotonic() < end:
        time.sleep(0.2)
    assert not trainers(tmp_path)
    assert list((run / "output").glob("*-state")), "what was trained is saved"


def test_a_loss_that_is_no_number_is_told(start: Start, tmp_path: Path) -> None:
    base = copy_base(tmp_path / "poisoned")
    poison(base / "unet" / "diffusion_pytorch_model.safetensors", "conv_in.bias")
    _, err = finish(start("run", QUICKSTART, *on_base(base, "engine=diffusers"), *PLAIN), code=7)
    assert "error (nonfinite)" in err, err
    assert "the base's file is damaged" in err
    assert not (only_run(tmp_path) / "export").exists()
    assert not (only_run(tmp_path) / "mended.toml").exists(), "no setting mends a damaged base"


def test_poisoned_latents_are_not_kept(sd_scripts: Path, start: Start, tmp_path: Path) -> None:
    base = copy_base(tmp_path / "poisoned")
    vae = base / "vae" / "diffusion_pytorch_model.safetensors"
    poison(vae, min(name for name in load_file(vae) if name.startswith("encoder") and name.endswith("bias")))
    _, err = finish(start("run", QUICKSTART, *on_base(base, "engine=kohya"), *PLAIN, sd_scripts=sd_scripts), code=7)
    assert "error (nonfinite)" in err, err
    assert not list((tmp_path / "runs" / ".latents").rglob("*.npz")), "the next run would read them"


def test_a_base_that_is_cut_off_is_told(start: Start, tmp_path: Path) -> None:
    base = copy_base(tmp_path / "short")
    file = base / "unet" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    process = start("run", QUICKSTART, *on_base(base, "engine=diffusers"), *PLAIN)
    _, err = process.communicate(timeout=420)
    assert process.returncode in {3, 7}, err
    assert re.search("cut off|incomplete", err), err


def test_no_data_found_is_an_error_though_kohya_ends_well(sd_scripts: Path, start: Start, tmp_path: Path) -> None:
    own = tmp_path / "templates"
    own.mkdir()
    shipped = (ROOT / "templates" / "kohya" / "dataset.toml.j2").read_text()
    (own / "dataset.toml.j2").write_text(shipped.replace("{{ subset.folder | toml }}", '"/nowhere"'))
    settings = ("--set", "train.steps=2", "--templates", own, *PLAIN)
    _, err = finish(start("run", QUICKSTART, *settings, sd_scripts=sd_scripts), code=7)
    assert re.search("no (data|image)", err, re.IGNORECASE), err


@pytest.mark.parametrize("place", ["kohya", "template"])
def test_a_mistyped_option_never_reaches_kohya(place: str, sd_scripts: Path, start: Start, tmp_path: Path) -> None:
    if place == "kohya":
        arguments: tuple[str | Path, ...] = ("--set", "kohya.learning_ratee=1e-4")
        code, where = 5, "--set [kohya]"
    else:
        own = tmp_path / "templates"
        own.mkdir()
        shipped = (ROOT / "templates" / "kohya" / "config.toml.j2").read_text()
        (own / "config.toml.j2").write_text(shipped.replace('option("learning_rate"', 'option("learning_ratee"'))
        arguments, code, where = ("--templates", own), 6, "config.toml:"
    _, err = finish(start("run", QUICKSTART, *arguments, *PLAIN, sd_scripts=sd_scripts), code=code)
    assert "learning_ratee" in err
    assert "did you mean learning_rate?" in err
    assert where in err

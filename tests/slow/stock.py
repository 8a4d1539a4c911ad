"""sd-scripts as it stands: its own functions asked (sd_scripts_facts.py), its own trainings on a toy base (stock_trainer.py)."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import kohya_bases
from sd_scripts_facts import CONFIGS

__all__ = ["CONFIGS", "Run", "Trainer", "ask", "hash_file", "read_steps"]
HERE = Path(__file__).parent
LAUNCH = "--num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no --num_cpu_threads_per_process 1"


def environment() -> dict[str, str]:
    """Without what crashes sd-scripts (TQDM_*), and with this folder's modules."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("TQDM_")}
    return kept | {"PYTHONPATH": str(HERE), "OMP_NUM_THREADS": "2"}


def ask(sd_scripts: Path, folder: Path) -> Any:
    """The answers of sd_scripts_facts.py, by topic."""
    answers = folder / "answers.json"
    command = [sys.executable, HERE / "sd_scripts_facts.py", folder, answers]
    done = subprocess.run(
        command, cwd=sd_scripts, env=environment(), capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(answers.read_text("utf-8"))


@dataclass(frozen=True, kw_only=True)
class Run:
    """A training that ended."""

    out: Path
    code: int
    log: str

    @property
    def files(self) -> list[str]:
        """The weights files, by name."""
        return sorted(path.name for path in self.out.glob("*.safetensors"))

    def read_steps(self, name: str) -> tuple[int, int]:
        """Of a state folder: the steps that it says, and those that its optimizer has really done."""
        return read_steps(self.out / name)


def hash_file(path: Path) -> str:
    """Of the content."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def read_steps(state: Path) -> tuple[int, int]:
    """The step in a state's train_state.json, and the optimizer's own count."""
    import torch

    said = json.loads((state / "train_state.json").read_text("utf-8"))["current_step"]
    optimizer = torch.load(state / "optimizer.bin", weights_only=True)
    (done,) = {int(value["step"]) for value in optimizer["state"].values()}
    return said, done


class Trainer:
    """train_network.py on the toy base: 8 images at batch 4, so 2 steps an epoch."""

    def __init__(self, sd_scripts: Path, folder: Path) -> None:
        self._sd_scripts = sd_scripts
        self._folder = folder
        self._base = kohya_bases.make_toy(folder / "toy")
        self._images = kohya_bases.make_images(folder / "images", size=64, count=8)
        kohya_bases.make_tokenizer(folder / "tokenizers" / "openai_clip-vit-large-patch14")

    def start(self, name: str, *, images: Path | None = None, **changes: object) -> subprocess.Popen[bytes]:
        """Begin a training of 6 steps in a folder of its own; `changes` are sd-scripts' options, None leaves one out."""
        folder = self._folder / name
        folder.mkdir()
        dataset = folder / "dataset.toml"
        shape = (
            "resolution = 64\nbatch_size = 4\nenable_bucket = true\nbucket_no_upscale = true\nmin_bucket_reso = 64\n"
        )
        subset = f'image_dir = "{images or self._images}"\ncaption_extension = ".txt"\nnum_repeats = 1\n'
        dataset.write_text(f"[[datasets]]\n{shape}[[datasets.subsets]]\n{subset}", encoding="utf-8")
        settings: dict[str, object] = {
            "pretrained_model_name_or_path": str(self._base),
            "tokenizer_cache_dir": str(self._folder / "tokenizers"),
            "output_dir": str(folder / "out"),
            "output_name": "hero",
            "network_module": "networks.lora",
            "network_dim": 4,
            "network_alpha": 4,
            "resolution": "64,64",
            "learning_rate": 1e-3,
            "max_train_steps": 6,
            "cache_latents": True,
            "mixed_precision": "no",
            "seed": 1,
            "max_data_loader_n_workers": 0,
        } | changes
        config = folder / "config.toml"
        lines = [f"{key} = {json.dumps(value)}\n" for key, value in settings.items() if value is not None]
        config.write_text("".join(lines), encoding="utf-8")
        command = [sys.executable, "-m", "accelerate.commands.launch", *LAUNCH.split(), HERE / "stock_trainer.py"]
        command += ["--config_file", config, "--dataset_config", dataset]
        with self.log(name).open("wb") as log:
            return subprocess.Popen(
                command, cwd=self._sd_scripts, env=environment(), stdout=log, stderr=log, start_new_session=True
            )

    def log(self, name: str) -> Path:
        """What a training says."""
        return self._folder / name / "log.txt"

    def out(self, name: str) -> Path:
        """Where a training saves."""
        return self._folder / name / "out"

    def run(self, name: str, **changes: Any) -> Run:
        """A whole training."""
        code = self.start(name, **changes).wait(timeout=300)
        return Run(out=self.out(name), code=code, log=self.log(name).read_text("utf-8", "replace"))

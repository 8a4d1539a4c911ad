"""A bench for trainings through our entry, the real launcher and the pinned sd-scripts."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import kohya_bases
from safetensors import safe_open
from safetensors.numpy import load_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).parents[2]
LIMIT = 420.0
ENTRY = "pixelkit.engines.kohya.entry"


def find_port() -> int:
    """A free TCP port."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


class Training:
    """One entry at work, as pixelkit starts it: an own session, orders through a pipe, events read as they come."""

    def __init__(self, sd_scripts: Path, log: Path, arguments: list[str], *, module: str, processes: int) -> None:
        launch = f"--num_processes {processes} --num_machines 1 --mixed_precision no --dynamo_backend no"
        launch += f" --multi_gpu --main_process_port {find_port()}" if processes > 1 else ""
        launch += f" --num_cpu_threads_per_process 1 -m {module}"
        path = os.pathsep.join((str(ROOT), str(Path(__file__).parent)))
        environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        if module == ENTRY:
            environment["TQDM_ASCII"] = "1"  # which crashes sd-scripts, unless our entry comes first
        self.log = log
        with log.open("wb") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "accelerate.commands.launch", *launch.split(), *arguments],
                cwd=sd_scripts,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,
            )
        self.events: list[dict[str, Any]] = []
        self._coming: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if b"\x1e" in line:
                self._coming.put(json.loads(line.partition(b"\x1e")[2]))
        self._coming.put(None)

    def wait_for(self, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The next event that is `wanted`."""
        while True:
            event = self._coming.get(timeout=LIMIT)
            assert event is not None, self.log.read_text(errors="replace")[-3000:]
            self.events.append(event)
            if wanted(event):
                return event

    def order(self, text: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(text.encode())
        self.process.stdin.flush()

    def finish(self) -> int:
        """The launcher's exit code, once everything has ended by itself."""
        while (event := self._coming.get(timeout=LIMIT)) is not None:
            self.events.append(event)
        self._reader.join()
        return self.process.wait(timeout=60)

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._reader.join()

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["event"] == kind]


class Bench:
    """A folder with a data set, where trainings start."""

    def __init__(self, sd_scripts: Path, folder: Path) -> None:
        self.sd_scripts = sd_scripts
        self.folder = folder
        self.out = folder / "out"
        self.trainings: list[Training] = []

    def start(
        self,
        base: Path,
        *options: str,
        script: str = "train_network",
        size: int = 64,
        batch: int = 4,
        images: Path | None = None,
        module: str = ENTRY,
        processes: int = 1,
        captions: dict[str, object] | None = None,
        **changes: object,
    ) -> Training:
        """A rank 4 LoRA of 20 images, at batch 4 of 5 batches an epoch, one prompt. `changes` are sd-scripts' options."""
        images = images or kohya_bases.make_images(self.folder / "images", size=size)
        dataset = self.folder / "dataset.toml"
        subset = f'[[datasets.subsets]]\nimage_dir = "{images}"\ncaption_extension = ".txt"\nnum_repeats = 1\n'
        subset += "".join(f"{name} = {json.dumps(value)}\n" for name, value in (captions or {}).items())
        shape = f"resolution = {size}\nbatch_size = {batch}\nenable_bucket = true\nbucket_no_upscale = true\n"
        steps = f"min_bucket_reso = {size}\nbucket_reso_steps = {min(64, size)}\n"
        dataset.write_text(f"[[datasets]]\n{shape}{steps}{subset}", encoding="utf-8")
        prompts = self.folder / "prompts.txt"
        prompts.write_text(f"pxl sprite, knight --w {size} --h {size} --d 7 --s 2 --l 4\n", encoding="utf-8")
        settings: dict[str, object] = {
            "pretrained_model_name_or_path": str(base),
            "output_dir": str(self.out),
            "output_name": "hero",
            "network_module": "networks.lora",
            "network_dim": 4,
            "network_alpha": 4,
            "resolution": f"{size},{size}",
            "learning_rate": 1e-3,
            "max_train_steps": 7,
            "cache_latents": True,
            "mixed_precision": "no",
            "save_precision": "fp16",
            "sample_prompts": str(prompts),
            "sample_sampler": "ddim",
            "seed": 1,
            "max_data_loader_n_workers": 0,
            "console_log_simple": True,
            "sdpa": True,
        } | changes
        config = self.folder / "config.toml"
        lines = [f"{name} = {json.dumps(value)}\n" for name, value in settings.items() if value is not None]
        config.write_text("".join(lines), encoding="utf-8")
        files = ["--config_file", str(config), "--dataset_config", str(dataset)]
        arguments = ["--script", script, *options, "--", *files]
        log = self.folder / "log.txt"
        training = Training(self.sd_scripts, log, arguments, module=module, processes=processes)
        self.trainings.append(training)
        return training


def open_bench(sd_scripts: Path, folder: Path) -> Iterator[Bench]:
    """A bench, its trainings killed at the end: the body of a fixture."""
    bench = Bench(sd_scripts, folder)
    yield bench
    for training in bench.trainings:
        training.kill()


def read_metadata(path: Path) -> dict[str, str]:
    with safe_open(path, framework="numpy") as file:
        return dict(file.metadata())


def assert_lora(path: Path, *, unet_modules: int, moved: bool = True) -> None:
    """All finite, kohya's names, and trained: an untrained LoRA's up weights are zero."""
    tensors = load_file(path)
    assert all((abs(tensor) < 1e4).all() for tensor in tensors.values())
    names = {name.split(".")[0] for name in tensors}
    assert {name.split(".", 1)[1] for name in tensors} == {"alpha", "lora_down.weight", "lora_up.weight"}
    assert len([name for name in names if name.startswith("lora_unet_")]) == unet_modules
    assert "lora_te_text_model_encoder_layers_0_self_attn_q_proj" in names
    assert any(tensor.any() for name, tensor in tensors.items() if "lora_up" in name) == moved

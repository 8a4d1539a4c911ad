"""What `accelerate launch` runs in place of a script of sd-scripts: the same trainer, watched.

Started in the folder of sd-scripts (its `library` package is found there):

    python -m accelerate.commands.launch ... -m pixelkit.engines.kohya.entry --script train_network \
        [--layout diffusers] [--images DIR --latents DIR] [--resume-step N] [--load-timeout SECONDS] \
        -- --config_file X/config.toml ...

Everything after `--` goes to the script's own parser. The LoRA scripts (TRAINERS) and the plain ones (PLAIN)
are watched: each step is reported, `stop`, `save` and `sample` are obeyed, NaN is never trained on nor saved, and a run
goes on exactly where its state was saved. Any other script runs as it is, and `stop` ends it without saving.

Exit code 0: done, or stopped on request (event "stopped"). 65: not finite (event "nonfinite"). Otherwise 1.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import importlib.metadata
import logging
import os
import runpy
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pixelkit.engines.control import Control

if TYPE_CHECKING:
    from collections.abc import Callable

    from pixelkit.engines.kohya.watch import Watch

TRAINERS: Final = {
    "train_network": "NetworkTrainer",
    "sdxl_train_network": "SdxlNetworkTrainer",
    "flux_train_network": "FluxNetworkTrainer",
    "sd3_train_network": "Sd3NetworkTrainer",
}
PLAIN: Final = (
    "train_db",
    "sdxl_train",
    "flux_train",
    "sd3_train",
    "train_textual_inversion",
    "sdxl_train_textual_inversion",
)
NONFINITE_EXIT: Final = 65
EXIT_GRACE: Final = 20.0


def main(argv: list[str]) -> int:
    """Run what `argv` names and return the process's exit code. Called once, from the main thread."""
    control = Control()
    control.start()
    scrub_environment()
    options, rest = parse_options(argv)
    if options.script not in (*TRAINERS, *PLAIN):
        return run_script(options, rest, control)
    start = Start()
    threading.Thread(target=watch_start, args=(start, control, options.load_timeout), daemon=True).start()
    return train(options, rest, control, start)


class Start:
    """How far the start has come: `imported`, then `loaded` (everything is ready for the first step)."""

    def __init__(self) -> None:
        self.imported = threading.Event()
        self.loaded = threading.Event()


def parse_options(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Our options, and the script's own command line."""
    parser = argparse.ArgumentParser(prog="pixelkit.engines.kohya.entry", allow_abbrev=False)
    parser.add_argument("--script", required=True, help="a script of sd-scripts, without .py")
    parser.add_argument("--layout", choices=("stock", "diffusers"), default="stock")
    parser.add_argument("--images", type=Path, help="the set that is trained on")
    parser.add_argument("--latents", type=Path, help="where its encoded images are kept for other runs")
    parser.add_argument("--resume-step", type=int, help="optimizer steps behind what is gone on from")
    parser.add_argument("--load-timeout", type=float, default=0.0, help="seconds until the first step may begin")
    cut = argv.index("--") if "--" in argv else len(argv)
    options = parser.parse_args(argv[:cut])
    if options.layout == "diffusers" and options.script != "train_network":
        parser.error(f"--layout diffusers is for train_network, not for {options.script}")
    return options, argv[cut + 1 :]


def scrub_environment() -> None:
    """Take out what breaks sd-scripts: tqdm reads TQDM_* as arguments, and TQDM_ASCII=1 crashes it."""
    for name in [name for name in os.environ if name.startswith("TQDM_")]:
        del os.environ[name]
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")


def train(options: argparse.Namespace, rest: list[str], control: Control, start: Start) -> int:
    """Run a script under watch."""
    sys.argv = [f"{options.script}.py", *rest]
    module = importlib.import_module(options.script)

    # Imported here: these import torch.
    from pixelkit.engines.kohya import resume
    from pixelkit.engines.kohya.endings import NonFiniteError, Refusal, Stopped
    from pixelkit.engines.kohya.watch import Watch

    start.imported.set()
    # Out of the collector's sight, what the imports made costs nothing more: sd-scripts collects garbage after every
    # batch of latents (strategy_sd.py:171), which otherwise takes 0.3 s each time.
    gc.freeze()
    args = read_arguments(module)
    try:
        check_arguments(args, options.script)
        first_step = resume.find_first_step(args, options.resume_step)
        watch = Watch(control, first_step=first_step, versions=read_versions(), loaded=start.loaded)
        watch.attach()
        keep_latents(options)
        run = (
            watch_trainer(watch, module, options) if options.script in TRAINERS else watch_plain(watch, module, options)
        )
        run(args)
    except Stopped as stopped:
        watch.end()
        control.emit("stopped", step=stopped.step, reason=control.stop_requested or "control")
        return 0
    except NonFiniteError as problem:
        watch.end()
        say(str(problem))
        control.emit("nonfinite", step=problem.step, what=problem.what)
        return NONFINITE_EXIT
    except Refusal as refusal:
        say(str(refusal))
        return 1
    if watch.step == first_step or (control.rank == 0 and watch.final_path is None):
        say("the trainer ended without training; its last lines say why (No data found: the data set is empty)")
        return 1
    control.emit("end", step=watch.step, path=str(watch.final_path))
    return 0


def watch_trainer(watch: Watch, module: Any, options: argparse.Namespace) -> Callable[[Any], None]:
    """The `train` of a LoRA script's trainer, watched."""
    from pixelkit.engines.kohya import hooks, resume

    base: type[Any] = getattr(module, TRAINERS[options.script])
    layers: list[type[Any]] = [hooks.WatchedNetwork]
    if options.layout == "diffusers":
        from pixelkit.engines.kohya.diffusers_base import DiffusersBase

        layers.append(DiffusersBase)
    if watch.first_step:
        base = type("ResumedTrainer", (base,), {"train": resume.continue_train(base.train, watch.first_step)})
    trainer = type("WatchedTrainer", (*layers, base), {"watch": watch})()

    def run(args: Any) -> None:
        args.skip_until_initial_step = watch.first_step > 0
        trainer.train(args)

    return run


def watch_plain(watch: Watch, module: Any, options: argparse.Namespace) -> Callable[[Any], None]:
    """The `train` of a plain script, watched."""
    from pixelkit.engines.kohya import scripts

    return scripts.watch_script(watch, module, scripts.SCRIPTS[options.script])


def read_arguments(module: Any) -> Any:
    """The script's arguments, read as its own main block does (train_network.py:1905-1913)."""
    parser = module.setup_parser()
    args = parser.parse_args()
    module.train_util.verify_command_line_training_args(args)
    return module.train_util.read_config_from_file(args, parser)


def check_arguments(args: Any, script: str) -> None:
    """Refuse what sd-scripts finds out late: after loading the model, or after the whole training."""
    from pixelkit.engines.kohya.endings import Refusal

    needed = ["output_dir", "pretrained_model_name_or_path"]
    needed += ["network_module"] * (script in TRAINERS) + ["token_string"] * ("textual_inversion" in script)
    for name in needed:
        if not getattr(args, name):
            raise Refusal(f"{name} is not set")
    if args.resume and not Path(args.resume).is_dir() and not args.resume_from_huggingface:
        raise Refusal(f"no state to resume from: {args.resume} is not a folder")
    if args.seed is None:
        args.seed = 0  # or the order of batches could not be found again, nor agreed on by several processes
    Path(args.output_dir).mkdir(parents=True, exist_ok=True)


def read_versions() -> dict[str, str]:
    """What runs here, by package; sd-scripts by its commit, where that is known."""
    from pixelkit.engines.kohya.options import recognise_commit

    versions = {"python": ".".join(str(part) for part in sys.version_info[:3])}
    for package in ("torch", "diffusers", "transformers", "accelerate"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    if commit := recognise_commit(Path.cwd()):
        versions["sd-scripts"] = commit.split()[0]
    return versions


def keep_latents(options: argparse.Namespace) -> None:
    """Let the latents lie where `--latents` says; after all strategies are imported."""
    if options.latents:
        from pixelkit.engines.kohya.latents import redirect_latents

        redirect_latents(options.images.resolve(), options.latents.resolve())


def run_script(options: argparse.Namespace, rest: list[str], control: Control) -> int:
    """Run a script that is not watched. Its progress is its tqdm bar; a stop ends it, saving nothing."""

    def obey() -> None:
        while control.stop_requested is None:
            time.sleep(0.2)
        control.emit("stopped", step=0, reason=control.stop_requested)
        os._exit(0)

    threading.Thread(target=obey, daemon=True).start()
    keep_latents(options)
    sys.argv = [f"{options.script}.py", *rest]
    runpy.run_path(f"{options.script}.py", run_name="__main__")
    return 0


def watch_start(start: Start, control: Control, timeout: float) -> None:
    """Until all is loaded: obey a stop while nothing but imports goes on, and keep to `timeout` seconds (0: none)."""
    deadline = time.monotonic() + timeout
    while not start.loaded.wait(0.2):
        if control.stop_requested is not None and control.alone and not start.imported.is_set():
            control.emit("stopped", step=0, reason=control.stop_requested)
            os._exit(0)
        if timeout and time.monotonic() > deadline:
            say(f"loading took more than {timeout:g} s (a hub that does not answer? use a local base and tokenizers)")
            os._exit(1)


def say(text: str) -> None:
    """One line on standard error, apart from a progress bar that may stand there."""
    sys.stderr.write(f"\npixelkit: {text}\n")
    sys.stderr.flush()


def end_process(code: int) -> None:
    """End with `code`, also when a thread or a data loader's worker would keep the interpreter waiting."""
    logging.shutdown()
    watchdog = threading.Timer(EXIT_GRACE, os._exit, args=(code,))
    watchdog.daemon = True
    watchdog.start()
    sys.exit(code)


if __name__ == "__main__":
    end_process(main(sys.argv[1:]))

"""The trainer's process. Start it through accelerate:

python -m accelerate.commands.launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no \
    -m pixelkit.engines.diffusers.entry --config RUN/config/config.toml [--resume RUN/output/NAME-step00000100-state]

Exit codes: 0 done or stopped (the events say which), 65 a number stopped being finite, else the error's own.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from pixelkit.engines.control import Control
from pixelkit.engines.diffusers.settings import Settings, load_settings
from pixelkit.errors import PixelkitError

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(argv: Sequence[str] | None = None, control: Control | None = None) -> int:
    """Train as the config says; the exit code."""
    parser = argparse.ArgumentParser(prog="pixelkit.engines.diffusers.entry", allow_abbrev=False)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--resume", type=Path, metavar="STATE_DIR")
    if control is None:
        control = Control()
        control.start()
    try:
        arguments = parser.parse_args(argv)
        settings = load_settings(arguments.config)
        prepare_imports(settings)
        from pixelkit.engines.diffusers.training import train

        return train(settings, control, resume=arguments.resume)
    except PixelkitError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return error.exit_code


def prepare_imports(settings: Settings) -> None:
    """What must be so before torch and peft are imported."""
    if settings.train.optimizer != "adamw8bit":
        # peft imports it wherever it is installed: two seconds, and a failure where its CUDA libraries do not fit.
        sys.modules.setdefault("bitsandbytes", None)  # type: ignore[arg-type]


if __name__ == "__main__":
    sys.exit(main())

"""Sample images drawn when the watch wants them, by sd-scripts' own code. TU is library/train_util.py (pinned commit)."""

from __future__ import annotations

import re
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pixelkit.engines.kohya.order import keep_random

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# output_dir/sample/NAME_{000002|e000001}_{index}_{time}[_{seed}].png (TU:6576)
SAMPLE_NAME: Final = re.compile(r"_e?\d{6,}_(?P<index>\d{2,})_\d{14}(?:_(?P<seed>\d+))?\.png$")


def draw_samples(accelerator: Any, args: Any, epoch: int | None, draw: Callable[[], None]) -> list[dict[str, Any]]:
    """Call `draw`, a script's sampling, so that it samples. Returns index, seed, prompt and path of each new image.

    The models are in evaluation mode meanwhile: dropout is for training only, and the scripts leave it on. The random
    state afterwards is what it was.
    """
    from library import train_util

    folder = Path(args.output_dir) / "sample"
    before = set(folder.glob("*.png"))
    modes = [(model, model.training) for model in accelerator._models]  # noqa: SLF001
    # TU:6380 decides by these whether to sample.
    every_epoch = None if epoch is None else 1
    forced = {"sample_at_first": True, "sample_every_n_steps": 1, "sample_every_n_epochs": every_epoch}
    with change(args, forced), keep_random(device=accelerator.device):
        for model, _ in modes:
            model.eval()
        draw()
        for model, training in modes:
            model.train(training)
    accelerator.wait_for_everyone()
    drawn = []
    prompts = train_util.load_prompts(args.sample_prompts)
    for path in sorted(set(folder.glob("*.png")) - before):
        if found := SAMPLE_NAME.search(path.name):
            index = int(found["index"])
            seed = int(found["seed"]) if found["seed"] else None
            drawn.append({"index": index, "seed": seed, "prompt": prompts[index].get("prompt", ""), "path": str(path)})
    return drawn


@contextmanager
def change(args: Any, values: dict[str, Any]) -> Iterator[None]:
    """`args` with other `values`, for a while."""
    before = {name: getattr(args, name) for name in values}
    for name, value in values.items():
        setattr(args, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(args, name, value)

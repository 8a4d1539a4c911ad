"""The pictures a run made on its way: which there are, what they measure, the sheet that shows them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from pixelkit.evaluate.palette import Color, measure_adherence
from pixelkit.evaluate.sheet import Column, Row, draw_sheet

TOLERANCE = 5.0  # CIEDE2000: a sampled picture is never exact to the colour; within 5 it is plainly the same one
_SAMPLE_NAME = re.compile(r"_(?P<epoch>e?)(?P<number>\d{6,})_(?P<index>\d{2,})_\d{14}(?:_\d+)?\.png$")
SMALL = 256  # pictures up to this width leave room for a third column


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One sample: its prompt, its seed, its file."""

    prompt: str
    seed: int | None
    path: Path


Samples = Mapping[int, Mapping[int, Picture]]
"""Step -> index of the prompt -> picture. Step 0 is the base."""


def collect_samples(events: Iterable[Mapping[str, object]]) -> Samples:
    """The samples of a run's events whose files are there."""
    found: dict[int, dict[int, Picture]] = {}
    for event in events:
        step, index, path, seed = (event.get(key) for key in ("step", "index", "path", "seed"))
        if event.get("event") != "sample" or not isinstance(step, int) or not isinstance(index, int):
            continue
        if isinstance(path, str) and Path(path).is_file():
            prompt = str(event.get("prompt") or "")
            picture = Picture(prompt=prompt, seed=seed if isinstance(seed, int) else None, path=Path(path))
            found.setdefault(step, {})[index] = picture
    return found


def find_samples(folder: Path, prompts: Sequence[str], first_seed: int) -> Samples:
    """The samples that a script without events left in its folder, named NAME_{step|eEPOCH}_{index}_{time}_{seed}.png.

    Source: sd-scripts, library/train_util.py:6576. Of those named by epochs only epoch 0, the base, is taken.
    """
    found: dict[int, dict[int, Picture]] = {}
    for path in sorted(folder.glob("*.png")):
        name = _SAMPLE_NAME.search(path.name)
        if not name or (name["epoch"] and int(name["number"])) or int(name["index"]) >= len(prompts):
            continue
        index = int(name["index"])
        found.setdefault(int(name["number"]), {})[index] = Picture(
            prompt=prompts[index], seed=first_seed + index, path=path
        )
    return found


def measure_samples(samples: Samples, palette: Sequence[Color]) -> tuple[float, float] | None:
    """The share of pixels in the palette with the base and at the last step: means over the prompts that both show.

    In the palette is what lies within TOLERANCE of one of its colours. None where there is nothing to
    compare, or a picture cannot be read.
    """
    if not palette or 0 not in samples or len(samples) < 2:
        return None
    last = samples[max(samples)]
    both = sorted(set(samples[0]) & set(last))
    try:
        base, lora = ([_measure(pictures[index].path, palette) for index in both] for pictures in (samples[0], last))
    except (OSError, SyntaxError, ValueError):
        return None
    shares = float(np.mean(base)), float(np.mean(lora))
    return shares if both and all(np.isfinite(shares)) else None


def draw_samples(
    samples: Samples, *, title: str, subtitle: str, palette: Sequence[Color], shares: tuple[float, float] | None
) -> Image.Image | None:
    """The contact sheet: base, last step, and one between them where pictures are small. None without two steps."""
    steps = sorted(samples)
    if len(steps) < 2:
        return None
    last = samples[steps[-1]]
    middle = steps[len(steps) // 2] if len(steps) > 2 and _is_small(last) else None
    shown = [step for step in (steps[0], middle, steps[-1]) if step is not None]
    known = dict(zip((0, steps[-1]), shares or (None, None), strict=True))
    columns = [Column(title=f"step {step:,}" if step else "base", share=known.get(step)) for step in shown]
    rows = [
        Row(
            prompt=picture.prompt,
            seed=picture.seed,
            pictures=tuple(samples[step][index].path if index in samples[step] else None for step in shown),
        )
        for index, picture in sorted(last.items())
    ]
    return draw_sheet(title=title, subtitle=subtitle, columns=columns, rows=rows, palette=palette)


def _measure(path: Path, palette: Sequence[Color]) -> float:
    with Image.open(path) as picture:
        return measure_adherence(picture, palette, TOLERANCE)


def _is_small(pictures: Mapping[int, Picture]) -> bool:
    try:
        with Image.open(next(iter(pictures.values())).path) as picture:
            return picture.width <= SMALL
    except (OSError, SyntaxError, ValueError):
        return False

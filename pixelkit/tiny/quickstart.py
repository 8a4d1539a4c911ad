"""Draws the data set of the quickstart: forty sprites in the look of a handheld console of 1989.

    python -m pixelkit.tiny.quickstart --out presets/quickstart

Four greens, a thick outline, dithered shading: a look that the base model was not trained on. Captions lie beside the
images and hold no trigger word; the preset adds it. The kinds in HELD_OUT are left out, to be asked for in samples.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from pixelkit.tiny.painter import HANDHELD, KINDS, caption, paint
from pixelkit.tiny.palettes import COLOURS

HELD_OUT = ("crown", "fish", "potion", "knight", "skull", "tree")
COUNT = 40


def draw_quickstart(out: Path, seed: int = 1989) -> list[Path]:
    """Writes the sprites (RGBA, transparent background) and their captions; returns the images' paths."""
    out.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    kinds = [kind for kind in KINDS if kind not in HELD_OUT]
    written = []
    for number in range(COUNT):
        kind = kinds[number % len(kinds)]
        colour = list(COLOURS)[int(rng.integers(len(COLOURS)))]
        path = out / f"{number + 1:02d}_{kind}.png"
        paint(kind, colour, None, rng, style=HANDHELD).save(path, optimize=True)
        path.with_suffix(".txt").write_text(caption(kind, None, None) + "\n", encoding="utf-8")
        written.append(path)
    return written


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m pixelkit.tiny.quickstart", description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="directory of the data set")
    parser.add_argument("--seed", type=int, default=1989)
    given = parser.parse_args()
    print(f"{len(draw_quickstart(given.out, given.seed))} sprites in {given.out}")


if __name__ == "__main__":
    main()

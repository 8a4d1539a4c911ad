"""The training roadmap's curation checklist: six questions, each answered with numbers and the sprites to look at."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from pixelkit.canvas import choose_canvases

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pixelkit.catalog import BaseSpec
    from pixelkit.dataset.inspect.colors import SetColors
    from pixelkit.dataset.inspect.duplicates import Group
    from pixelkit.dataset.inspect.measure import Measured
    from pixelkit.dataset.inspect.outliers import Outlier

Verdict = Literal["pass", "look", "fail"]
MOST_WORST = 10

# A sprite is soft from so many blends on, or with so many opacities between clear and opaque. Of native crawl tiles 13% are
# (clouds, glows, painted floors), of the same ones rotated or resized with a filter 80 to 85%.
SOFT_BLENDS = 0.08
SOFT_LEVELS = 16
# Sides that pixel art has; beyond, a grid was perhaps not found.
SMALLEST, LARGEST = 8, 256
ODD_FOLDER = 0.2  # filled pictures are odd in a folder where fewer are
MANY_COLORS, PHOTO_COLORS = 64, 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One answer. `worst`: places of the sprites to look at first."""

    question: str
    verdict: Verdict
    text: str
    worst: tuple[int, ...] = ()


def is_soft(one: Measured) -> bool:
    """Whether a filter has probably smoothed its edges."""
    return one.features.blends > SOFT_BLENDS or one.features.levels >= SOFT_LEVELS


def check_style(sprites: Sequence[Measured], outliers: Sequence[Outlier]) -> Check:
    """One style: how many stand apart, and whether hard and soft edges are mixed."""
    apart = list(dict.fromkeys(one.place for one in outliers))
    share = len(apart) / len(sprites)
    soft = np.mean([is_soft(one) for one in sprites])
    mixed = 0.1 < soft < 0.9
    text = f"{_of(apart, sprites)} stand apart in colours, size or density"
    text += f"; edges are mixed: {soft:.0%} soft, the others hard" if mixed else ""
    verdict: Verdict = "fail" if share > 0.25 else "look" if share > 0.05 or mixed else "pass"
    return Check(question="one style", verdict=verdict, text=text, worst=_first(apart))


def check_sharpness(sprites: Sequence[Measured]) -> Check:
    """Sharp pixels: damaged grids, lossy files, anti-aliasing."""
    damaged = [place for place, one in enumerate(sprites) if one.sprite.repair]
    lossy = [place for place, one in enumerate(sprites) if one.sprite.lossy and not one.sprite.repair]
    soft = [place for place, one in enumerate(sprites) if is_soft(one) and not one.sprite.repair]
    soft.sort(key=lambda place: -sprites[place].features.blends)
    found = list(dict.fromkeys([*damaged, *lossy, *soft]))
    parts = [
        f"{_of(damaged, sprites)} enlarged off their grid or damaged (prepare with --repair)" if damaged else "",
        f"{_of(lossy, sprites)} saved with loss (JPEG)" if lossy else "",
        f"{_of(soft, sprites)} with soft edges" if soft else "",
    ]
    blocks = Counter(one.sprite.block for one in sprites if one.sprite.block > 1)
    parts += [f"{count} enlarged exactly by {block}: they are reduced" for block, count in blocks.most_common(3)]
    text = "; ".join(part for part in parts if part) or "every edge is hard"
    hurt = (len(damaged) + len(lossy)) / len(sprites)
    verdict: Verdict = "fail" if hurt > 0.1 else "look" if hurt > 0 or len(soft) > 0.02 * len(sprites) else "pass"
    return Check(question="sharp pixels", verdict=verdict, text=text, worst=_first(found))


def check_resolution(
    sprites: Sequence[Measured], spec: BaseSpec | None, *, resolution: int | None = None, scale: int | None = None
) -> Check:
    """Native sizes; with a base, whether they fit its canvases."""
    sizes = Counter((one.features.width, one.features.height) for one in sprites)
    usual = sizes.most_common(1)[0][0]
    odd = [
        place
        for place, one in enumerate(sprites)
        if min(one.features.width, one.features.height) < SMALLEST
        or max(one.features.width, one.features.height) > LARGEST
    ]
    listed = ", ".join(f"{w}x{h} ({count:,})" for (w, h), count in sizes.most_common(4))
    text = f"{listed}{f' and {len(sizes) - 4} more' if len(sizes) > 4 else ''}"
    if odd:
        text += f"; {_of(odd, sprites)} below {SMALLEST} or above {LARGEST} pixels"
    unfit: Iterable[tuple[int, int]] = ()
    if spec:
        side = resolution or spec.resolution
        canvases, unfit = choose_canvases(
            sizes, resolution=side, step=spec.bucket_step, latent_scale=spec.latent_scale, scale=scale
        )
        scales = sorted({canvas.scale for canvas in canvases.values()})
        if scales:
            text += f"; for {spec.title} at {side} each pixel becomes {_span(scales)} pixels"
        if unfit:
            odd = [p for p, one in enumerate(sprites) if (one.features.width, one.features.height) in unfit]
            text += f"; {_of(odd, sprites)} do not fit"
    same = sizes[usual] / len(sprites)
    verdict: Verdict = "fail" if unfit else "look" if len(odd) > 0.01 * len(sprites) or same < 0.5 else "pass"
    return Check(question="resolution", verdict=verdict, text=text, worst=_first(odd))


def check_background(sprites: Sequence[Measured]) -> Check:
    """Clean or transparent backgrounds; filled pictures where others of their folder are not."""
    kinds = Counter(one.features.background for one in sprites)
    folders: dict[str, list[int]] = defaultdict(list)
    for place, one in enumerate(sprites):
        folders[one.name.rpartition("/")[0]].append(place)
    odd: list[int] = []
    for places in folders.values():
        filled = [place for place in places if sprites[place].features.background == "filled"]
        if len(filled) < ODD_FOLDER * len(places):
            odd += filled
    hidden = sum(one.features.hidden > 1 for one in sprites)
    text = f"{kinds['transparent']:,} transparent, {kinds['plain']:,} on one colour, {kinds['filled']:,} filled to the border"
    if odd:
        text += f", {len(odd):,} of them in folders where others are not: scenery behind the subject?"
    elif kinds["filled"]:
        text += " (right for tiles)"
    text += f"; {hidden:,} hide a picture under transparency (pixelkit covers it)" if hidden else ""
    return Check(question="background", verdict="look" if odd else "pass", text=text, worst=_first(odd))


def check_palette(sprites: Sequence[Measured], colors: SetColors) -> Check:
    """How many colours a sprite has, and how much of it keeps to what the set has in common."""
    counts = np.array([one.features.colors for one in sprites])
    low, middle, high = np.quantile(counts, [0.05, 0.5, 0.95])
    kept = float(colors.kept.mean())
    many = [int(place) for place in np.argsort(-counts, kind="stable") if counts[place] > PHOTO_COLORS]
    text = (
        f"{middle:.0f} colours a sprite ({low:.0f} to {high:.0f} in nine of ten), {colors.number:,} in all; "
        f"{kept:.0%} of the art keeps to {len(colors.palette)} main colours"
    )
    text += f"; {_of(many, sprites)} have more than {PHOTO_COLORS} colours" if many else ""
    verdict: Verdict = (
        "fail"
        if middle > PHOTO_COLORS
        else "look"
        if middle > MANY_COLORS or kept < 0.6 or len(many) > 0.02 * len(sprites)
        else "pass"
    )
    return Check(question="palette", verdict=verdict, text=text, worst=_first(many))


def check_variety(sprites: Sequence[Measured], groups: Sequence[Group], drawings: int) -> Check:
    """Representative: how much repeats, and whether one folder outweighs the others."""
    repeats = 1 - drawings / len(sprites)
    folders = Counter(one.folder for one in sprites)
    name, largest = folders.most_common(1)[0]
    heavy = len(folders) >= 3 and largest > 0.6 * len(sprites)
    text = f"{drawings:,} different drawings, {repeats:.0%} repeat one of them"
    if len(folders) > 1:
        text += "; " + ", ".join(
            f"{folder or 'top'} {count / len(sprites):.0%}" for folder, count in folders.most_common(6)
        )
    text += f": {name or 'the top folder'} outweighs the others" if heavy else ""
    verdict: Verdict = "fail" if repeats > 0.5 else "look" if repeats > 0.15 or heavy else "pass"
    return Check(
        question="representative", verdict=verdict, text=text, worst=_first([group.members[0] for group in groups])
    )


def _of(places: Sequence[int], sprites: Sequence[Measured]) -> str:
    return f"{len(places):,} of {len(sprites):,}"


def _span(values: Sequence[int]) -> str:
    return f"{values[0]}" if len(values) == 1 else f"{values[0]} to {values[-1]}"


def _first(places: Sequence[int]) -> tuple[int, ...]:
    return tuple(places[:MOST_WORST])

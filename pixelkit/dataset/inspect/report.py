"""All that is found in a set of sprites."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pixelkit.dataset.inspect import checklist
from pixelkit.dataset.inspect.colors import find_set_colors
from pixelkit.dataset.inspect.duplicates import count_drawings, find_groups
from pixelkit.dataset.inspect.measure import measure_source
from pixelkit.dataset.inspect.outliers import find_outliers
from pixelkit.dataset.inspect.wanted import list_wanted
from pixelkit.sources import Reading

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from pixelkit.catalog import BaseSpec
    from pixelkit.dataset.inspect.checklist import Check
    from pixelkit.dataset.inspect.duplicates import Group
    from pixelkit.dataset.inspect.measure import Measured
    from pixelkit.dataset.inspect.wanted import Wanted
    from pixelkit.errors import Problem
    from pixelkit.evaluate.palette import Color


@dataclass(frozen=True, kw_only=True)
class Purpose:
    """What the set is for: how it is read, the base it is trained on, at which resolution and scale, the method."""

    reading: Reading = field(default_factory=Reading)
    spec: BaseSpec | None = None
    resolution: int | None = None
    scale: int | None = None
    method: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """`kind`: a key of KINDS; `text`: what is the matter with this sprite."""

    kind: str
    text: str


# What a sprite can be marked with, the gravest first: label and colour of the frame.
KINDS: Mapping[str, tuple[str, Color]] = {
    "damaged": ("off its grid", (255, 70, 85)),
    "lossy": ("saved with loss", (255, 120, 60)),
    "empty": ("nothing visible", (235, 235, 235)),
    "apart": ("stands apart", (255, 215, 70)),
    "soft": ("soft edges", (255, 150, 190)),
    "identical": ("identical", (60, 125, 255)),
    "mirrored": ("mirrored", (150, 110, 255)),
    "recoloured": ("recoloured", (60, 200, 120)),
    "near": ("nearly the same", (70, 205, 225)),
}


@dataclass(frozen=True, kw_only=True)
class Report:
    """`sprites` in the order of the source; groups, findings and checks name them by their place. `findings`: only of
    sprites that have any. `drawings`: sprites that show something of their own. `palette`: the set's main colours.
    """

    name: str
    sprites: tuple[Measured, ...]
    left_out: tuple[Problem, ...]
    remarks: tuple[str, ...]
    groups: tuple[Group, ...]
    drawings: int
    findings: Mapping[int, tuple[Finding, ...]]
    checks: tuple[Check, ...]
    wanted: tuple[Wanted, ...]
    palette: tuple[Color, ...]

    def count(self, kind: str) -> int:
        """How many sprites are marked with it."""
        return sum(any(one.kind == kind for one in found) for found in self.findings.values())


def inspect(source: Path, purpose: Purpose, on_progress: Callable[[int, int], None] | None = None) -> Report:
    """Look at every sprite of a folder, a zip or a prepared set. What cannot be read is in the report.

    Keeps less than 2 KB a sprite. Raises DataError only where there is no image that can be read.
    """
    found = measure_source(source, purpose.reading, on_progress)
    sprites = found.sprites
    features = [one.features for one in sprites]
    colors = find_set_colors(features)
    groups = find_groups(features)
    outliers = find_outliers(features, colors.distances)
    drawings = count_drawings(len(sprites), groups)
    findings: dict[int, list[Finding]] = defaultdict(list)
    for place, one in enumerate(sprites):
        for finding in _judge(one):
            findings[place].append(finding)
    for outlier in outliers:
        findings[outlier.place].append(Finding(kind="apart", text=outlier.text))
    for group in groups:
        for place in group.members:
            others = [sprites[other].name for other in group.members if other != place]
            more = f" and {len(others) - 1} more" if len(others) > 1 else ""
            findings[place].append(Finding(kind=group.kind, text=f"{KINDS[group.kind][0]}: {others[0]}{more}"))
    return Report(
        name=source.resolve().name,
        sprites=sprites,
        left_out=found.left_out,
        remarks=found.remarks,
        groups=groups,
        drawings=drawings,
        findings={place: tuple(each) for place, each in sorted(findings.items())},
        checks=(
            checklist.check_style(sprites, outliers),
            checklist.check_sharpness(sprites),
            checklist.check_resolution(sprites, purpose.spec, resolution=purpose.resolution, scale=purpose.scale),
            checklist.check_background(sprites),
            checklist.check_palette(sprites, colors),
            checklist.check_variety(sprites, groups, drawings),
        ),
        wanted=tuple(list_wanted(purpose.method)),
        palette=colors.palette,
    )


def _judge(one: Measured) -> list[Finding]:
    sprite, features = one.sprite, one.features
    found = []
    if sprite.repair:
        step = sprite.repair.step[0]
        found.append(
            Finding(kind="damaged", text=f"enlarged by {step:.3g}, off its grid or damaged: --repair snaps it")
        )
    if sprite.lossy:
        found.append(Finding(kind="lossy", text="the file's compression has changed its pixels"))
    if not features.colors:
        found.append(Finding(kind="empty", text="nothing in it is visible"))
    if checklist.is_soft(one) and not sprite.repair:
        parts = [f"{features.blends:.0%} of it are blends of neighbours"] * (features.blends > checklist.SOFT_BLENDS)
        parts += [f"{features.levels} opacities"] * (features.levels >= checklist.SOFT_LEVELS)
        found.append(Finding(kind="soft", text=f"soft edges: {', '.join(parts)}"))
    return found

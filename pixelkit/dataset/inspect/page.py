"""The page: one HTML file that needs nothing else, not even scripts, to be read."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pixelkit.dataset.inspect.pictures import draw_sprite, encode_picture
from pixelkit.dataset.inspect.report import KINDS
from pixelkit.evaluate import drawing
from pixelkit.evaluate.palette import arrange_colors
from pixelkit.render import render

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from pixelkit.dataset.inspect.report import Report
    from pixelkit.evaluate.palette import Color

PAGE = "inspect.html"
MOST_BYTES = 11_000_000  # of pictures; with the text around them a page stays below 15 MB
MOST_SPRITES = 5000
MOST_GROUPS = 150  # of a kind
MOST_MEMBERS = 24
MOST_APART = 200
MOST_LEFT_OUT = 500
_SIDE = 96  # larger sprites are shown by each n-th pixel,
_SHOWN = 64  # smaller ones enlarged by a whole number up to this

_MEANINGS = {
    "identical": "the same pixels: one of them is enough",
    "mirrored": "the same pixels, the other way round: keep both only where direction matters",
    "recoloured": "the same drawing in other colours",
    "near": "one drawing with a small change, at most an eighth of it: frames, variants, copies with a new detail",
}


def write_page(report: Report, folder: Path) -> Path:
    """Write folder/inspect.html. Findings come first; of very many sprites the rest is a sample, and the page says so."""
    apart = _list_apart(report)
    groups = _list_groups(report)
    pictures = _Pictures(report=report)
    for place in _by_importance(report, apart, groups):
        if not pictures.add(place):
            break
    shown = sorted(pictures.styles)
    context: dict[str, Any] = {
        "paint": {name.lower(): _hex(getattr(drawing, name)) for name in _PAINTS},
        "kinds": [
            {"key": key, "label": label, "color": _hex(color), "count": report.count(key)}
            for key, (label, color) in KINDS.items()
        ],
        "report": report,
        "left_out": report.left_out[:MOST_LEFT_OUT],
        "groups": groups,
        "apart": [(place, [f.text for f in report.findings[place] if f.kind == "apart"]) for place in apart],
        "palette": [_hex(color) for color in arrange_colors(report.palette)],
        "styles": [pictures.styles[place] for place in shown],
        "drawn": pictures.styles,
        "cards": [_card(report, place) for place in shown],
        "folders": len({one.name.rpartition("/")[0] for one in report.sprites}),
    }
    return render("data", {PAGE: context}, folder).files[PAGE]


_PAINTS = ("PAGE", "PANEL", "RULE", "BRIGHT", "TEXT", "FAINT", "ACCENT", "SECOND")


@dataclass(kw_only=True)
class _Pictures:
    """The pictures as CSS rules, each sprite once however often it is shown: place -> rule."""

    report: Report
    styles: dict[int, str] = field(default_factory=dict)
    size: int = 0

    def add(self, place: int) -> bool:
        """False where the page is full."""
        if place in self.styles:
            return True
        if len(self.styles) == MOST_SPRITES or self.size > MOST_BYTES:
            return False
        if picture := draw_sprite(self.report.sprites[place], scale=1, side=_SIDE):
            data = encode_picture(picture)
            zoom = max(1, _SHOWN // max(picture.size))
            size = f"width:{picture.width * zoom}px;height:{picture.height * zoom}px"
            self.styles[place] = f".s{place}{{{size};background-image:url({data})}}"
            self.size += len(data)
        return True


def _by_importance(report: Report, apart: Sequence[int], groups: Sequence[dict[str, Any]]) -> Iterable[int]:
    """What the findings show, then the sprites that have any, then a sample of the rest, evenly spread."""
    for check in report.checks:
        yield from check.worst
    yield from apart
    for kind in groups:
        for group in kind["shown"]:
            yield from group["members"]
    number = len(report.sprites)
    if number <= MOST_SPRITES:
        yield from range(number)
        return
    room = MOST_SPRITES // 4
    yield from list(report.findings)[:: max(1, len(report.findings) // room)]
    yield from range(0, number, max(1, number // MOST_SPRITES))


def _list_apart(report: Report) -> list[int]:
    return [place for place, found in report.findings.items() if any(one.kind == "apart" for one in found)][:MOST_APART]


def _list_groups(report: Report) -> list[dict[str, Any]]:
    listed = []
    for kind, meaning in _MEANINGS.items():
        groups = [group for group in report.groups if group.kind == kind]
        shown = [
            {
                "members": group.members[:MOST_MEMBERS],
                "more": len(group.members) - MOST_MEMBERS,
                "difference": round(group.difference * 100),
            }
            for group in groups[:MOST_GROUPS]
        ]
        listed.append({"kind": kind, "meaning": meaning, "number": len(groups), "shown": shown})
    return [kind for kind in listed if kind["number"]]


def _card(report: Report, place: int) -> dict[str, Any]:
    one, found = report.sprites[place], report.findings.get(place, ())
    kinds = {finding.kind for finding in found}
    features = one.features
    return {
        "place": place,
        "name": one.name,
        "kinds": [kind for kind in KINDS if kind in kinds],
        "texts": [finding.text for finding in found],
        "size": features.width * features.height,
        "line": f"{features.width}x{features.height}, {features.colors} colours",
        "colors": features.colors,
        "density": round(features.density * 100),
        "blends": round(features.blends * 1000),
        "orphans": round(features.orphans * 1000),
    }


def _hex(color: Color) -> str:
    return "#{:02x}{:02x}{:02x}".format(*color)

"""Shapes of things: weapons, treasure, tools. Each draws itself on a canvas, upright, about 26 pixels tall."""

from __future__ import annotations

import numpy as np

from pixelkit.tiny.canvas import Canvas, Kind


def _sword(c: Canvas) -> None:
    width = c.between(1.7, 2.7)
    blade = c.polygon((-width, 4), (-width, -10), (0, -14), (width, -10), (width, 4))
    c.add(blade, "main", "flat")
    c.shade(blade & (c.x < 0), 1)
    c.shade(blade & (c.x >= 0), -1.2)
    guard = c.between(4.5, 6.5)
    c.add(c.box(-guard, 4, guard, 6.2), c.pick("gold", "steel", "second"), "bevel")
    c.add(c.box(-1.2, 6, 1.2, 11), "leather", "flat")
    c.add(c.ellipse(0, 12, 2.1), "gold")


def _axe(c: Canvas) -> None:
    c.add(c.stroke([(0, -11), (0, 13)], 2.6), "wood", "tube")
    heads = (1, -1) if c.chance(0.35) else (1,)
    reach = c.between(8.5, 10.5) if len(heads) == 1 else c.between(7.5, 9)
    for side in heads:
        head = c.polygon(
            (0, -9.5),
            (4 * side, -11),
            (reach * side, -13),
            ((reach + 1.5) * side, -7),
            (reach * side, -1),
            (4 * side, -3),
            (0, -4.5),
        )
        c.add(head, "main", "fall")
        c.shade(head & (c.x * side > reach - 2.2), 1.2)
    if len(heads) == 1:
        c.add(c.box(-3, -9.5, 0, -4.5), "main", "flat", level=-1.5)


def _bow(c: Canvas) -> None:
    bend = c.between(8.5, 11)
    c.add(c.stroke([(-3, -12), (-3, 12)], 1.1), "snow", "flat")
    angles = np.linspace(-np.pi / 2, np.pi / 2, 13)
    c.add(c.stroke([(-3 + bend * np.cos(a), 12.5 * np.sin(a)) for a in angles], 2.8), "main")
    c.add(c.stroke([(bend - 3, -2), (bend - 3, 2)], 3.4), "leather", "flat")
    if c.chance(0.6):
        c.add(c.stroke([(-10, 0), (11, 0)], 1.3), "wood", "flat")
        c.add(c.polygon((10, -2.6), (14.5, 0), (10, 2.6)), "steel", "flat")


def _potion(c: Canvas) -> None:
    if c.chance(0.6):
        radius = c.between(7.6, 9.2)
        body, liquid = c.ellipse(0, 4, radius), c.ellipse(0, 4, radius - 1.5)
        fill = c.between(-1.5, 2)
    else:
        wide = c.between(8.5, 10.5)
        body = c.polygon((-2.5, -5), (2.5, -5), (wide, 12.5), (-wide, 12.5))
        liquid = c.polygon((-1.5, -4), (1.5, -4), (wide - 2, 11.2), (2 - wide, 11.2))
        fill = c.between(1, 4)
    c.add(c.box(-2.7, -9, 2.7, 0), "glass", "tube")
    c.add(body, "glass")
    c.add(liquid & (c.y > fill), "main", shadow=False)
    c.shade(liquid & (np.abs(c.y - fill) < 1), 0.8)
    c.add(c.ellipse(-4, 4, 1.3, 2.4) & liquid, "spark", "flat", level=1, shadow=False)
    c.add(c.box(-2.2, -13, 2.2, -9), "wood", "bevel")
    c.add(c.box(-3.6, -9.6, 3.6, -8), "glass", "flat")


def _chest(c: Canvas) -> None:
    trim = c.pick("gold", "steel", "gold")
    c.add(c.box(-12, 0, 12, 11), "main", "fall", level=-0.4)
    c.shade(c.box(-12, 3, 12, 4) | c.box(-12, 7, 12, 8), -1)
    lid = c.ellipse(0, 0, 12, c.between(8.5, 11.5)) & (c.y < 0) if c.chance(0.6) else c.box(-12, -8, 12, 0)
    c.add(lid, "main", "fall")
    for left in (-12, 9.2):
        c.add(c.box(left, -12, left + 2.8, 11) & c.filled, trim, "fall")
    c.add(c.box(-12, -1.6, 12, 0.6), trim, "flat")
    c.add(c.box(-2.6, -3, 2.6, 4), trim, "bevel")
    c.add(c.box(-0.6, -0.6, 0.6, 2), "ink", "flat", shadow=False)


def _key(c: Canvas) -> None:
    radius = c.between(4.8, 6)
    c.add(c.hoop(0, -7, radius, radius, 2.6), "main")
    if c.chance(0.4):
        c.add(c.ellipse(0, -7 - radius, 1.8) | c.ellipse(-radius, -7, 1.8) | c.ellipse(radius, -7, 1.8), "main")
    c.add(c.box(-1.5, radius - 8, 1.5, 13), "main", "tube")
    c.add(c.box(1.2, 6, 5.5, 8.2), "main", "bevel")
    c.add(c.box(1.2, 10.4, c.between(5.5, 7), 13), "main", "bevel")


def _coin(c: Canvas) -> None:
    rx = c.pick("11", "11", "7.5")
    wide = float(rx)
    c.add(c.ellipse(0, 0, wide, 11), "main")
    c.shade(c.hoop(0, 0, wide, 11, 2.0), 0.7)
    c.shade(c.hoop(0, 0, wide - 2.0, 9.0, 1.2), -1.4)
    mark = c.pick("bar", "star", "square", "cross")
    slim = wide / 11
    if mark == "bar":
        symbol = c.box(-1.6 * slim, -5.5, 1.6 * slim, 5.5)
    elif mark == "star":
        symbol = c.polygon(*((5.5 * slim * x, 5.5 * y) for x, y in star_points(5, 0.45)))
    elif mark == "square":
        symbol = c.box(-3.4 * slim, -3.4, 3.4 * slim, 3.4)
    else:
        symbol = c.box(-1.5 * slim, -5, 1.5 * slim, 5) | c.box(-5 * slim, -1.5, 5 * slim, 1.5)
    c.shade(symbol, -1.6)


def _gem(c: Canvas) -> None:
    wide, top, brow = c.between(10, 13), c.between(-10, -8), c.between(-4, -2)
    table, tip = wide * 0.55, c.between(10, 13)
    c.add(c.polygon((-wide, brow), (-table, top), (0, brow), (0, brow)), "main", "flat", level=0.8)
    c.add(c.polygon((-table, top), (table, top), (0, brow)), "main", "flat", level=1.6, shadow=False)
    c.add(c.polygon((table, top), (wide, brow), (0, brow)), "main", "flat", level=0.2, shadow=False)
    c.add(c.polygon((-wide, brow), (-wide * 0.4, brow), (0, tip)), "main", "flat", level=0.2, shadow=False)
    c.add(c.polygon((-wide * 0.4, brow), (wide * 0.4, brow), (0, tip)), "main", "flat", level=-0.8, shadow=False)
    c.add(c.polygon((wide * 0.4, brow), (wide, brow), (0, tip)), "main", "flat", level=-2, shadow=False)
    c.add(c.ellipse(-table * 0.8, (top + brow) / 2, 1.1), "spark", "flat", level=1, shadow=False)


def _ring(c: Canvas) -> None:
    c.add(c.hoop(0, 4.5, 8.6, 8.6, c.between(2.4, 3.2)), c.pick("gold", "steel"))
    size = c.between(4.6, 5.8)
    c.add(c.box(-size + 1.4, -6, size - 1.4, -2.5), "gold", "flat")
    stone = (
        c.ellipse(0, -7.5, size, size)
        if c.chance(0.5)
        else c.polygon((-size, -8), (-size / 2, -12.5), (size / 2, -12.5), (size, -8), (0, -2.5))
    )
    c.add(stone, "main")
    c.add(c.ellipse(-1.8, -9.4, 1.2) & stone, "spark", "flat", level=1, shadow=False)


def _shield(c: Canvas) -> None:
    kind = c.pick("heater", "heater", "round", "tower")
    if kind == "round":
        rim, face = c.ellipse(0, 0, 12), c.ellipse(0, 0, 10)
    elif kind == "heater":
        rim = c.polygon((-11, -12), (11, -12), (11, 0), (7, 8), (0, 13), (-7, 8), (-11, 0))
        face = c.polygon((-9, -10), (9, -10), (9, 0), (5.6, 6.6), (0, 10.6), (-5.6, 6.6), (-9, 0))
    else:
        rim, face = c.box(-9, -13, 9, 13), c.box(-7, -11, 7, 11)
    c.add(rim, c.pick("steel", "gold", "steel"), "bevel")
    c.add(face, "main")
    mark = c.pick("cross", "boss", "split", "none")
    if mark == "cross":
        c.add(
            (c.box(-1.6, -11, 1.6, 13) | c.box(-10, -4, 10, -0.8)) & face, c.pick("snow", "gold"), "flat", shadow=False
        )
    elif mark == "boss":
        c.add(c.ellipse(0, -1, 3.4), "gold")
    elif mark == "split":
        c.add(face & (c.x > 0), "second", shadow=False)


def _helmet(c: Canvas) -> None:
    if c.chance(0.55):
        sway = c.between(-2, 3)
        c.add(c.stroke([(0, -9), (3 + sway, -12.5), (8 + sway, -11), (10 + sway, -6)], 3.6), "second")
    dome = (c.ellipse(0, 0, 10.5, 11) & (c.y < 2)) | c.polygon((-10.5, 1), (10.5, 1), (9, 12), (-9, 12))
    c.add(dome, "main")
    c.shade(c.box(-1, -11, 1, 1), 1)
    if c.chance(0.5):
        c.add(c.box(-8.5, 1, 8.5, 4), "ink", "flat", shadow=False)
        c.add(c.box(-1.1, 1, 1.1, 4), "main", "flat", shadow=False)
        for x in (-5, 0, 5):
            c.add(c.box(x - 0.6, 7, x + 0.6, 10), "ink", "flat", shadow=False)
    else:
        c.add(c.box(-7.5, 1, -1.8, 5) | c.box(1.8, 1, 7.5, 5) | c.box(-1.8, 7, 1.8, 12), "ink", "flat", shadow=False)
    c.add(c.box(-10.8, -2, 10.8, 0.4) & dome, "gold", "flat", shadow=False)


def _scroll(c: Canvas) -> None:
    c.add(c.box(-8, -9, 8, 9), "main", "flat", level=0.5)
    for row in (-5.5, -2.5, 0.5, 3.5, 6.5):
        c.shade(c.box(-5.5, row - 0.5, c.between(2, 6), row + 0.5), -2.4)
    for y in (-10.5, 10.5):
        c.add(c.box(-10, y - 2.4, 10, y + 2.4), "main", "fall")
        c.add(c.box(-12.4, y - 1.4, -10, y + 1.4) | c.box(10, y - 1.4, 12.4, y + 1.4), "wood", "flat")


def _book(c: Canvas) -> None:
    c.add(c.box(-8, -10, 11, 13), "cream", "flat")
    c.shade(c.box(-8, 11, 11, 11.9) | c.box(10, -10, 10.9, 13), -1.5)
    cover = c.box(-10, -13, 9, 10.5)
    c.add(cover, "main", "bevel")
    c.shade(c.box(-10, -13, -6.5, 10.5), -1.4)
    mark = c.pick("gem", "lines", "frame")
    if mark == "gem":
        c.add(c.ellipse(1, -1.5, 3.6), c.pick("gold", "second"))
    elif mark == "lines":
        c.add(c.box(-3.5, -7, 6, -5.2) | c.box(-3.5, -3.4, 4, -1.6), "gold", "flat", shadow=False)
    else:
        c.add((c.box(-4.5, -10.5, 7, 8) & ~c.box(-3.1, -9.1, 5.6, 6.6)), "gold", "flat", shadow=False)


def _bomb(c: Canvas) -> None:
    radius = c.between(8.8, 10.4)
    c.add(c.stroke([(2, -7), (4, -10), (8, -11)], 1.8), "cream", "flat")
    c.add(c.box(-0.5, -9, 5.5, -4), "steel", "flat", level=-1)
    c.add(c.ellipse(0, 3, radius), "main")
    c.add(c.ellipse(-3.6, -0.8, 1.8), "spark", "flat", level=0.5, shadow=False)
    c.add(c.polygon(*((9 + 4 * x, -11 + 4 * y) for x, y in star_points(5, 0.5))), "flame", "flat", level=0.6)


def _torch(c: Canvas) -> None:
    c.add(c.polygon((-2.6, -1), (2.6, -1), (1.5, 14), (-1.5, 14)), "wood", "tube")
    lean = c.between(-2, 2)
    flame = c.ellipse(0, -5, 5.8, 5) | c.polygon((-5.8, -5), (lean, -15), (5.8, -5))
    c.add(flame, "main", "flat", level=-0.4)
    c.add(
        c.ellipse(0, -4, 3.6, 3.2) | c.polygon((-3.6, -4), (lean * 0.6, -10.5), (3.6, -4)),
        "main",
        "flat",
        level=1.2,
        shadow=False,
    )
    c.add(c.ellipse(0, -3, 1.6, 1.8), "spark", "flat", shadow=False)
    c.add(c.box(-3.8, -1, 3.8, 1.8), "steel", "bevel", level=-0.6)


def _boot(c: Canvas) -> None:
    toe = c.between(9, 11)
    c.add(c.box(-6, -11, 3.5, 8) | c.ellipse(3, 6.5, toe - 2, 5) | c.box(-6, 4, 3, 11), "main")
    c.add(c.box(-7, 9.5, toe + 1, 12.5), "ink", "flat", level=1.5)
    c.add(c.box(-7.2, -13, 4.7, -8.6), c.pick("second", "cream", "main"), "bevel", level=0.6)
    if c.chance(0.6):
        c.add(c.box(-6, 0.6, 4, 2.8), "gold", "flat", shadow=False)


def _crown(c: Canvas) -> None:
    tall = c.between(9, 12)
    band = c.box(-11, 3, 11, 10)
    c.add(
        c.polygon((-11, 4), (-12, -tall + 3), (-6, -1), (0, -tall), (6, -1), (12, -tall + 3), (11, 4)),
        "main",
        "fall",
        level=0.3,
    )
    c.add(band, "main", "tube")
    c.shade(c.box(-11, 3, 11, 4.2), 1)
    for x, y in ((-12.0, -tall + 2), (0.0, -tall - 1), (12.0, -tall + 2)):
        c.add(c.ellipse(x, y, 1.9), "second")
    for x in (-6.5, 0.0, 6.5):
        c.add(c.ellipse(x, 6.5, 1.8), "second", shadow=False)


def _heart(c: Canvas) -> None:
    lobe = c.between(6, 7)
    heart = c.ellipse(-5.6, -4, lobe) | c.ellipse(5.6, -4, lobe)
    heart |= c.polygon((-5.6 - lobe * 0.9, -1), (5.6 + lobe * 0.9, -1), (0, 12.5)) | c.box(-4, -4, 4, 0)
    c.add(heart, "main")
    c.add(c.ellipse(-6.4, -6, 2.2, 1.8), "spark", "flat", level=0.6, shadow=False)


def _star(c: Canvas) -> None:
    c.add(c.polygon(*((14 * x, 14 * y + 1) for x, y in star_points(5, c.between(0.42, 0.56)))), "main")
    if c.chance(0.4):
        c.add(c.box(-3.4, -1.5, -1.6, 2) | c.box(1.6, -1.5, 3.4, 2), "ink", "flat", shadow=False)


def _barrel(c: Canvas) -> None:
    bulge = c.between(10, 11.5)
    c.add((c.ellipse(0, 0, bulge, 20) & c.box(-12, -12.5, 12, 12.5)), "main", "tube")
    for x in (-6, -2, 2, 6):
        c.shade(c.box(x - 0.5, -12.5, x + 0.5, 12.5), -1.1)
    for y in (-7.5, 7.5):
        c.add(c.box(-14, y - 1.4, 14, y + 1.4) & c.filled, "steel", "tube", level=-0.4)
    c.shade(c.box(-14, -12.5, 14, -11.2) & c.filled, 1.2)


def star_points(tips: int, inner: float) -> list[tuple[float, float]]:
    """The corners of a star of radius 1, a tip at the top; `inner` is the radius of its notches."""
    angles = np.arange(2 * tips) * np.pi / tips
    return [
        (float(np.sin(a) * (1 if i % 2 == 0 else inner)), float(-np.cos(a) * (1 if i % 2 == 0 else inner)))
        for i, a in enumerate(angles)
    ]


_SLANTED = (45.0, 45.0, 0.0)

THINGS: dict[str, Kind] = {
    "axe": Kind(draw=_axe, angles=_SLANTED),
    "barrel": Kind(draw=_barrel),
    "bomb": Kind(draw=_bomb),
    "book": Kind(draw=_book),
    "boot": Kind(draw=_boot),
    "bow": Kind(draw=_bow, angles=(0.0, -45.0, 0.0)),
    "chest": Kind(draw=_chest),
    "coin": Kind(draw=_coin),
    "crown": Kind(draw=_crown),
    "gem": Kind(draw=_gem),
    "heart": Kind(draw=_heart),
    "helmet": Kind(draw=_helmet),
    "key": Kind(draw=_key, angles=(0.0, 45.0, 90.0)),
    "potion": Kind(draw=_potion),
    "ring": Kind(draw=_ring),
    "scroll": Kind(draw=_scroll),
    "shield": Kind(draw=_shield),
    "star": Kind(draw=_star),
    "sword": Kind(draw=_sword, angles=_SLANTED),
    "torch": Kind(draw=_torch, angles=(0.0, 0.0, 20.0)),
}

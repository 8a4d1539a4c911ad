"""Shapes of what lives: creatures, people, plants; and of places. About 26 pixels tall, facing the viewer."""

from __future__ import annotations

import numpy as np

from pixelkit.tiny.canvas import Canvas, Kind


def _eyes(c: Canvas, y: float, apart: float, size: float = 1.5, *, white: bool = True) -> None:
    """Two eyes; with `white`, a white with a pupil in it."""
    for x in (-apart, apart):
        if white:
            c.add(c.ellipse(x, y, size + 0.7, size + 1), "snow", "flat", shadow=False)
        c.add(
            c.ellipse(x + (0.4 if white else 0), y + (0.4 if white else 0), size * (0.7 if white else 1)),
            "ink",
            "flat",
            shadow=False,
        )


def _slime(c: Canvas) -> None:
    wide, top = c.between(10.5, 13), c.between(-8, -2)
    body = (c.ellipse(0, 10, wide, 10 - top) & (c.y < 10)) | c.ellipse(0, 9, wide, 2.6)
    c.add(body, "main")
    c.add(c.ellipse(-wide * 0.42, top * 0.45 + 1.2, 2.4, 1.6) & body, "spark", "flat", level=0.6, shadow=False)
    _eyes(c, 3.6, c.between(3.2, 4.6), 1.5, white=c.chance(0.5))
    c.add(c.box(-1.8, 7, 1.8, 8), "ink", "flat", shadow=False)


def _skull(c: Canvas) -> None:
    c.add(c.box(-5.4, 5, 5.4, 12), "main", "fall", level=-0.4)
    c.add(c.ellipse(0, -2, 11.5, 10.5), "main")
    for x in (-4.6, 4.6):
        c.add(c.ellipse(x, -0.5, 3.3, 3.5), "ink", "flat", shadow=False)
    c.add(c.polygon((0, 2.4), (2, 6.4), (-2, 6.4)), "ink", "flat", shadow=False)
    for x in (-2.8, 0, 2.8):
        c.add(c.box(x - 0.5, 8.6, x + 0.5, 12), "ink", "flat", shadow=False)


def _ghost(c: Canvas) -> None:
    wide = c.between(8.8, 10.4)
    body = (c.ellipse(0, -3, wide, 10)) | c.box(-wide, -3, wide, 9)
    body |= np.logical_or.reduce([c.ellipse(x * wide * 0.68, 9, wide * 0.33, 4) for x in (-1, 0, 1)])
    c.add(body, "main", "tube", level=0.5)
    for x in (-3.8, 3.8):
        c.add(c.ellipse(x, -3, 1.9, 2.7), "ink", "flat", shadow=False)
    c.add(c.ellipse(0, 3, 2.0, 2.4), "ink", "flat", shadow=False)


def _bat(c: Canvas) -> None:
    lift = c.between(-9, -4)
    for side in (-1, 1):
        wing = c.polygon(
            (2 * side, -2),
            (8 * side, lift),
            (15 * side, lift + 2),
            (14 * side, 7),
            (10.5 * side, 3),
            (7.5 * side, 8),
            (5 * side, 4),
            (2 * side, 5),
        )
        c.add(wing, "main", "fall", level=-0.9)
        c.shade(c.stroke([(3 * side, 0), (14 * side, lift + 2)], 1.2) & wing, 1.3)
        c.add(c.polygon((1 * side, -4), (4.4 * side, -10.5), (5 * side, -3)), "main", "flat")
    c.add(c.ellipse(0, 1, 5.2, 6), "main")
    for x in (-2, 2):
        c.add(c.ellipse(x, -0.6, 1.2), c.pick("flame", "blood"), "flat", level=0.6, shadow=False)
        c.add(c.polygon((x - 1, 3), (x + 1, 3), (x, 6)), "snow", "flat", shadow=False)


def _spider(c: Canvas) -> None:
    for side in (-1, 1):
        for knee, foot in ((-9, -12), (-5, -2), (-1, 6), (3, 13)):
            reach = c.between(13, 15) if foot not in (-12, 13) else c.between(10, 12)
            c.add(c.stroke([(2 * side, 0), (9 * side, knee), (reach * side, foot)], 1.5), "main", "flat", level=-1.2)
    c.add(c.ellipse(0, 4, 6.6, 7), "main")
    if c.chance(0.5):
        c.add(c.ellipse(0, 5, 2.2, 3), "second", "flat", shadow=False)
    c.add(c.ellipse(0, -4, 4.6, 4), "main")
    for x in (-1.9, 1.9):
        c.add(c.ellipse(x, -5, 1.2), "blood", "flat", level=1, shadow=False)


def _fish(c: Canvas) -> None:
    tail = c.between(6, 8)
    c.add(c.polygon((-6, 0), (-14, -tail), (-12, 0), (-14, tail)), "main", "flat", level=-0.8)
    c.add(c.polygon((-3, -5), (1, -11), (6, -5)), "main", "flat", level=-0.8)
    c.add(c.ellipse(2, 0, 11, c.between(6.6, 8.5)), "main", "fall", level=0.2)
    if c.chance(0.5):
        for x in (-3, 1):
            c.add(c.box(x - 1, -9, x + 1, 9) & c.ellipse(2, 0, 11, 6.6), "second", "fall", shadow=False)
    c.add(c.ellipse(8, -1.6, 2.2), "snow", "flat", level=0.5, shadow=False)
    c.add(c.ellipse(8.6, -1.4, 1.1), "ink", "flat", shadow=False)
    c.add(c.polygon((0, 2), (5, 2), (0, 6.5)), "main", "flat", level=-0.9, shadow=False)


def _snake(c: Canvas) -> None:
    wide = c.between(3.8, 4.8)
    coil = [(11, 12), (4, 12), (-4, 12), (-8, 9.5), (-4, 6.5), (4, 6), (8, 3.5), (4, 0), (-3, -1), (-6, -5), (-3, -9)]
    c.add(c.stroke(coil, wide), "main", "fall")
    for x, y in ((6, 12), (-1, 12), (0, 6), (4, 0.5), (-6, -4)):
        c.add(c.ellipse(x, y, 1.1), "second", "flat", shadow=False)
    c.add(c.stroke([(3, -8), (9, -7)], 1.3), "blood", "flat")
    c.add(c.ellipse(-0.5, -9.5, 5, 3.8), "main")
    c.add(c.ellipse(1, -10.5, 1.2), "flame", "flat", level=1, shadow=False)


def _knight(c: Canvas) -> None:
    c.add(c.box(-4.6, 7, -0.8, 13.5) | c.box(0.8, 7, 4.6, 13.5), "steel", "tube", level=-1.2)
    c.add(c.box(-9, -2, -5, 6) | c.box(5, -2, 9, 6), "steel", "tube", level=-0.5)
    c.add(c.polygon((-6.5, -3), (6.5, -3), (5.5, 9), (-5.5, 9)), "main")
    c.add(c.box(-5.6, 4.6, 5.6, 6.2), "gold", "flat", shadow=False)
    c.add(c.ellipse(0, -8, 6, 6.2) | c.box(-6, -8, 6, -3), "steel")
    c.add(c.box(-4.4, -8, 4.4, -6.2), "ink", "flat", shadow=False)
    c.add(c.stroke([(0, -14), (0, -12.5)], 2.8), "main", "flat")
    c.add(c.stroke([(10.5, 5), (10.5, -9)], 1.8), "steel", "flat", level=1)
    c.add(c.box(8, 3.6, 13, 5.4), "gold", "flat")
    shield = c.polygon((-13.5, -1), (-6, -1), (-6, 5), (-9.7, 9.5), (-13.5, 5))
    c.add(shield, "main", "bevel", level=0.5)


def _wizard(c: Canvas) -> None:
    c.add(c.stroke([(10.5, -8), (10.5, 13)], 1.8), "wood", "flat")
    c.add(c.ellipse(10.5, -9.5, 2.8), c.pick("sky", "flame", "second"))
    c.add(c.polygon((-4.5, -2), (4.5, -2), (9, 13.5), (-9, 13.5)), "main", "tube")
    c.add(c.stroke([(-4, 1), (-8, 6)], 3.6) | c.stroke([(4, 1), (9.5, 4)], 3.6), "main", "flat", level=-0.3)
    c.add(c.ellipse(0, -3.5, 4.6, 4), "skin")
    for x in (-1.8, 1.8):
        c.add(c.box(x - 0.6, -4.6, x + 0.6, -3), "ink", "flat", shadow=False)
    c.add(c.polygon((-4.6, -2.4), (4.6, -2.4), (0, 8)), "snow", "flat", level=0.3)
    bend = c.between(-2, 3)
    c.add(c.polygon((-5.5, -5), (5.5, -5), (bend, -15.5)), "main", "fall")
    c.add(c.box(-8.4, -6.4, 8.4, -4.6), "main", "flat", level=0.6)
    c.add(c.box(-5, -7.6, 5, -6.4), "gold", "flat", shadow=False)


def _goblin(c: Canvas) -> None:
    c.add(c.stroke([(10, -6), (9, 7)], 3.2), "wood", "tube")
    c.add(c.box(-4.4, 8, -1, 13.5) | c.box(1, 8, 4.4, 13.5), "main", "tube", level=-0.8)
    c.add(c.stroke([(-5, 1), (-9, 7)], 3) | c.stroke([(5, 1), (9.5, 4)], 3), "main", "flat", level=-0.2)
    c.add(c.polygon((-6, -1), (6, -1), (5, 9.5), (-5, 9.5)), "leather")
    c.add(
        c.polygon((-5, -8), (-14.5, -11), (-5, -2)) | c.polygon((5, -8), (14.5, -11), (5, -2)),
        "main",
        "fall",
        level=-0.4,
    )
    c.add(c.ellipse(0, -6, 7.6, 6.6), "main")
    for x in (-3, 3):
        c.add(c.ellipse(x, -6.6, 1.9, 1.6), "flame", "flat", level=0.8, shadow=False)
        c.add(c.ellipse(x, -6.4, 0.8, 1.0), "ink", "flat", shadow=False)
    c.add(c.box(-3, -2.8, 3, -1.7), "ink", "flat", shadow=False)
    c.add(
        c.polygon((-2.4, -2), (-0.8, -2), (-1.6, 0)) | c.polygon((0.8, -2), (2.4, -2), (1.6, 0)),
        "snow",
        "flat",
        shadow=False,
    )


def _tree(c: Canvas) -> None:
    c.add(c.polygon((-2.4, 3), (2.4, 3), (3.6, 13.5), (-3.6, 13.5)), "wood", "tube")
    crown = c.ellipse(0, -3, 10, 8.5)
    for _ in range(5):
        crown |= c.ellipse(c.between(-7, 7), c.between(-8, 0), c.between(4, 6))
    c.add(crown, "main")
    for _ in range(5):
        c.shade(c.ellipse(c.between(-8, 7), c.between(-10, 2), c.between(1.2, 2.4), 1.1) & crown, c.between(-1, 1))
    if c.chance(0.25):
        for _ in range(4):
            c.add(c.ellipse(c.between(-7, 7), c.between(-8, 2), 1.3) & crown, "second", "flat", shadow=False)


def _pine(c: Canvas) -> None:
    c.add(c.box(-1.8, 8, 1.8, 14), "wood", "tube")
    wide = c.between(9.5, 12)
    for top, bottom, part in ((0, 11, 1.0), (-7, 4.5, 0.78), (-14.5, -2.5, 0.55)):
        c.add(c.polygon((0, top - 1), (wide * part, bottom), (-wide * part, bottom)), "main", "round")
    if c.chance(0.2):
        c.add(c.polygon((0, -15.5), (3.4, -9), (-3.4, -9)), "snow", "flat", shadow=False)


def _cactus(c: Canvas) -> None:
    left, right = c.between(-2, 3), c.between(-5, 1)
    arms = c.stroke([(-3, left + 3), (-8.5, left + 3), (-8.5, left - 4)], 4) | c.stroke(
        [(3, right + 4), (8.5, right + 4), (8.5, right - 3)], 4
    )
    c.add(arms, "main", "fall")
    c.add(c.box(-3.8, -9, 3.8, 13) | c.ellipse(0, -9, 3.8, 4.5), "main", "tube")
    for x, y in ((-1.5, -8), (1.5, -4), (-1.5, 0), (1.5, 4), (-1.5, 8)):
        c.shade(c.box(x - 0.5, y - 0.5, x + 0.5, y + 0.5), 1.6)
    if c.chance(0.5):
        c.add(c.ellipse(0, -13, 2.6, 2), "second", "flat")


def _flower(c: Canvas) -> None:
    c.add(c.stroke([(0, -2), (0.6, 6), (0, 13.5)], 2), "leaf", "flat", level=-0.6)
    c.add(c.ellipse(4.4, 8, 4, 1.9) | c.ellipse(-4.4, 10, 4, 1.9), "leaf", "fall")
    petals = int(c.rng.integers(5, 8))
    reach, size = c.between(5, 6), c.between(3.6, 4.6) * (5.6 / petals) ** 0.4
    for i in range(petals):
        turn = i * 2 * np.pi / petals
        c.add(c.ellipse(reach * np.sin(turn), -5 - reach * np.cos(turn), size), "main")
    c.add(c.ellipse(0, -5, 3.2), c.pick("gold", "gold", "second"))


def _mushroom(c: Canvas) -> None:
    stem = c.between(3.6, 5)
    c.add(c.box(-stem, 0, stem, 12) | c.ellipse(0, 12, stem + 0.8, 1.8), "cream", "tube")
    c.add(c.ellipse(0, 2, c.between(11, 13), c.between(11, 14)) & (c.y < 2.6), "main")
    for x, y, size in ((-6, -2.5, 2.1), (1, -7, 2.4), (7, -1.5, 1.8), (0.5, -0.5, 1.6)):
        c.add(c.ellipse(x, y, size * c.between(0.8, 1.2)), "snow", "flat", level=0.4, shadow=False)


def _rock(c: Canvas) -> None:
    corners = np.sort(c.rng.uniform(0, 2 * np.pi, 8) * 0.25 + np.arange(8) * np.pi / 4)
    points = [
        (float(12.5 * np.cos(a) * c.between(0.85, 1.05)), float(3 + 9.5 * np.sin(a) * c.between(0.85, 1.1)))
        for a in corners
    ]
    rock = c.polygon(*points)
    c.add(rock, "main")
    peak = (c.between(-4, 2), c.between(-3, 2))
    c.add(c.polygon(points[4], points[5], points[6], peak), "main", "flat", level=1, shadow=False)
    c.add(c.polygon(points[0], points[1], points[2], peak), "main", "flat", level=-1.4, shadow=False)
    c.shade(c.stroke([peak, (peak[0] + 3, peak[1] + 5), (peak[0] + 1, peak[1] + 8)], 1) & rock, -1.6)


def _crystal(c: Canvas) -> None:
    for x, top, wide, lean in (
        (-7, c.between(-4, 1), 3.4, -3),
        (7, c.between(-3, 2), 3.4, 3),
        (0, c.between(-14, -10), 4.6, 0),
    ):
        base = 12.5
        left = c.polygon((x - wide, base), (x - wide + lean, top + 4), (x + lean, top), (x - 0.5, base))
        right = c.polygon((x - 0.5, base), (x + lean, top), (x + wide + lean, top + 4), (x + wide, base))
        c.add(left, "main", "flat", level=1)
        c.add(right, "main", "flat", level=-1.3, shadow=False)
        c.shade(c.stroke([(x + lean - wide * 0.4, top + 5), (x - wide * 0.4, base - 4)], 0.9) & left, 0.8)
    c.add(c.ellipse(0, 13, 11.5, 2.2), "stone", "flat", level=-1)


def _apple(c: Canvas) -> None:
    c.add(c.stroke([(0, -6), (1.5, -12)], 1.8), "wood", "flat")
    c.add(c.ellipse(5.5, -10.5, 4, 2.1), "leaf", "fall")
    c.add(c.ellipse(-4, 2.5, 7.4, 9.5) | c.ellipse(4, 2.5, 7.4, 9.5), "main")
    c.shade(c.ellipse(0, -6, 2.6, 1.4), -1.6)
    c.add(c.ellipse(-6, -1, 1.7, 2.4), "spark", "flat", level=0.4, shadow=False)


def _house(c: Canvas) -> None:
    if c.chance(0.6):
        c.add(c.box(5, -12, 9, -3), "stone", "bevel")
    c.add(c.box(-10, -1, 10, 13), c.pick("cream", "stone", "wood"), "fall", level=0.3)
    c.add(c.polygon((0, -14), (14, 0.5), (-14, 0.5)), "main", "fall")
    for y in (-7, -3.5):
        c.shade(c.box(-14, y - 0.5, 14, y + 0.5), -0.9)
    c.add(c.box(-2.6, 4.5, 2.6, 13), "leather", "flat")
    c.add(c.ellipse(1.4, 9, 0.9), "gold", "flat", shadow=False)
    pane = c.pick("sky", "flame")
    for x in (-6.4, 6.4):
        c.add(c.box(x - 1.9, 4, x + 1.9, 8), pane, "flat")
        c.shade(c.box(x - 0.5, 4, x + 0.5, 8), -1.6)


def _door(c: Canvas) -> None:
    arch = c.chance(0.6)
    frame = c.box(-10.5, -5, 10.5, 14) | c.ellipse(0, -4, 10.5, 10) if arch else c.box(-10.5, -13.5, 10.5, 14)
    leaf = c.box(-7.6, -5, 7.6, 14) | c.ellipse(0, -4, 7.6, 7.2) if arch else c.box(-7.6, -10.6, 7.6, 14)
    c.add(frame, "stone", "bevel")
    for y in (-8, -3, 2, 7, 12):
        c.shade(c.box(-10.5, y - 0.5, 10.5, y + 0.5) & frame, -1)
    c.add(leaf, "main", "flat")
    for x in (-4, 0, 4):
        c.shade(c.box(x - 0.5, -14, x + 0.5, 14) & leaf, -1.4)
    for y in (-5, 8):
        c.add(c.box(-7.6, y - 1, 7.6, y + 1) & leaf, "steel", "flat", level=-1, shadow=False)
    c.add(c.ellipse(4.8, 2.5, 1.7), "gold")


BEINGS: dict[str, Kind] = {
    "apple": Kind(draw=_apple),
    "bat": Kind(draw=_bat),
    "cactus": Kind(draw=_cactus),
    "crystal": Kind(draw=_crystal),
    "door": Kind(draw=_door),
    "fish": Kind(draw=_fish),
    "flower": Kind(draw=_flower),
    "ghost": Kind(draw=_ghost),
    "goblin": Kind(draw=_goblin),
    "house": Kind(draw=_house),
    "knight": Kind(draw=_knight),
    "mushroom": Kind(draw=_mushroom),
    "pine": Kind(draw=_pine),
    "rock": Kind(draw=_rock),
    "skull": Kind(draw=_skull),
    "slime": Kind(draw=_slime),
    "snake": Kind(draw=_snake),
    "spider": Kind(draw=_spider),
    "tree": Kind(draw=_tree),
    "wizard": Kind(draw=_wizard),
}

"""The native grid of every sprite of a set: exact enlargements are recognised over the whole set, damaged art is named."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field, replace
from itertools import chain, zip_longest
from typing import TYPE_CHECKING

from pixelkit.errors import DataError, Problem
from pixelkit.pixelgrid import Grid, decide_blocks, measure_block
from pixelkit.pixelgrid.exact import ENOUGH_BOUNDARIES
from pixelkit.sources.regions import load_region

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from pixelkit.pixelgrid import Block
    from pixelkit.sources.sprite import Sprite

# A picture smaller than this on either side is taken as it is: there is too little of it to find a damaged grid in.
DAMAGE_FROM = 64
# Pictures of one size that are searched for a damaged grid, where nobody asked for repair.
LOOKED_AT = 8


@dataclass(frozen=True, kw_only=True)
class Grids:
    """The sprites with their grids; what cannot be used, and what an artist should know."""

    sprites: list[Sprite] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


def find_grids(sprites: Sequence[Sprite], *, grid: int | None, repair: bool) -> Grids:
    """Reads pixels only as far as it must: of native art a few images of each size.

    `grid`: the artist's word on the pixels of a file per sprite pixel; it holds for every sprite. `repair`: damaged art gets
    the grid that it will be snapped to; without it, damaged art that is seen becomes a problem.
    """
    if grid == 1:
        return Grids(sprites=list(sprites))
    found = Grids()
    if grid is not None:
        for sprite in sprites:
            _settle(sprite, found, lambda one: _reduce_by(one, grid, repair=repair))
        return found
    groups: dict[tuple[int, int], list[Sprite]] = defaultdict(list)
    for sprite in sprites:
        groups[sprite.width, sprite.height].append(sprite)
    unread: set[str] = set()
    mixed = {size: _mix(group) for size, group in groups.items()}
    decisions = decide_blocks({size: _measure(group, unread) for size, group in mixed.items()})
    blocks: dict[str, int] = {}
    damaged: set[str] = set()
    for size, group in mixed.items():
        decision = decisions[size]
        read = [sprite.name for sprite in group if sprite.name not in unread]
        own = {read[place]: block for place, block in decision.outliers.items()}
        blocks |= {sprite.name: own.get(sprite.name, decision.block) for sprite in group if sprite.name not in unread}
        off = [sprite for sprite in group if blocks.get(sprite.name) == 1 and min(size) >= DAMAGE_FROM]
        damaged |= {sprite.name for sprite in (off if repair else off[:LOOKED_AT])}
        if own and decision.block > 1:
            found.remarks.append(
                f"{len(own)} of {len(group)} images of {size[0]}x{size[1]} are not made of blocks of {decision.block}x"
                f"{decision.block} pixels, as the others are ({next(iter(own))} first)"
            )
    for sprite in sprites:
        if sprite.name in unread:
            found.sprites.append(sprite)  # it is named where its pixels are read
        elif sprite.name in damaged:
            _settle(sprite, found, lambda one: _mend(one, repair=repair))
        else:
            found.sprites.append(_reduced(sprite, blocks[sprite.name]))
    return found


def _settle(sprite: Sprite, found: Grids, settle: Callable[[Sprite], Sprite]) -> None:
    try:
        found.sprites.append(settle(sprite))
    except DataError as error:
        found.problems.append(Problem(where=sprite.name, what=error.message, hint=error.hint))


def _mix(group: Sequence[Sprite]) -> list[Sprite]:
    """The sprites of all folders in turn, so that the first few speak for all."""
    folders: dict[object, list[Sprite]] = defaultdict(list)
    for sprite in group:
        folders[sprite.path.parent].append(sprite)
    return [sprite for sprite in chain.from_iterable(zip_longest(*folders.values())) if sprite is not None]


def _measure(group: Sequence[Sprite], unread: set[str]) -> Iterator[Block]:
    for sprite in group:
        try:
            yield measure_block(load_region(sprite))
        except DataError:
            unread.add(sprite.name)


def _reduced(sprite: Sprite, block: int) -> Sprite:
    return (
        replace(sprite, width=sprite.width // block, height=sprite.height // block, block=block)
        if block > 1
        else sprite
    )


def _reduce_by(sprite: Sprite, block: int, *, repair: bool) -> Sprite:
    """By the artist's word; what is not exact is snapped only with repair."""
    exact = measure_block(load_region(sprite)).size % block == 0
    if exact:
        return _reduced(sprite, block)
    if repair:
        return _snapped(sprite, Grid(step=(float(block), float(block))))
    raise DataError(
        f"it is {sprite.width}x{sprite.height} and not made of exact blocks of {block}x{block} pixels",
        hint="another grid, or repair (it snaps each block to its main colour)",
    )


def _mend(sprite: Sprite, *, repair: bool) -> Sprite:
    """Art that may be enlarged and damaged: as it is, with the grid to snap it to, or refused."""
    from pixelkit.pixelgrid.comb import detect_grid  # noqa: PLC0415 - numpy, which native art needs not
    from pixelkit.sources.pixels import read_region  # noqa: PLC0415

    own = measure_block(load_region(sprite))
    if own.size > 1 and own.boundaries >= ENOUGH_BOUNDARIES:
        return _reduced(sprite, own.size)
    grid = detect_grid(read_region(sprite))
    if grid is None:
        if repair:
            raise DataError(
                f"it is {sprite.width}x{sprite.height}, and no pixel grid is found in it with confidence",
                hint="give the pixels of the file per sprite pixel: grid = 8 (or 1 = take it as it is)",
            )
        return sprite
    if repair:
        return _snapped(sprite, grid)
    raise DataError(
        f"it looks enlarged by {grid.step[0]:.3g} and blurred, compressed or off its grid",
        hint="use the original; or repair = snap it to its grid, or grid = 1 = take it as it is",
    )


def _snapped(sprite: Sprite, grid: Grid) -> Sprite:
    width, height = (round(side / step) for side, step in zip((sprite.width, sprite.height), grid.step, strict=True))
    return replace(sprite, width=max(1, width), height=max(1, height), repair=grid)

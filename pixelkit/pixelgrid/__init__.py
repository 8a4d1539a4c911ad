"""The native pixel grid of art that was enlarged: exact blocks (here), damaged art (comb and repair, which need numpy)."""

from pixelkit.pixelgrid.exact import Block, Decision, decide_blocks, is_exact, measure_block, reduce_block
from pixelkit.pixelgrid.grid import Grid

__all__ = ["Block", "Decision", "Grid", "decide_blocks", "is_exact", "measure_block", "reduce_block"]

"""pixelkit: train models of a game's pixel art, on top of kohya sd-scripts."""

__version__ = "0.1.0"

"""The command line: the only place that knows click. Bodies of a few lines over the library."""

from pixelkit.cli.main import main

__all__ = ["main"]

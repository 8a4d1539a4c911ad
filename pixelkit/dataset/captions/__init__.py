"""Captions of sprites: written from names, pixels or a model, checked, edited and replaced.

The only files that change are captions (`hero.txt` beside `hero.png`); the one that was there goes to a backup first.
"""

from pixelkit.dataset.captions.entries import Entry, find_entries
from pixelkit.dataset.captions.writing import Change, Style, write_changes

__all__ = ["Change", "Entry", "Style", "find_entries", "write_changes"]

"""Where sprites come from: folders, sheets, animations, zips, prepared sets. Sources are only ever read."""

from pixelkit.sources.sidecars import words_of
from pixelkit.sources.sprite import Sprite
from pixelkit.sources.survey import Reading, Survey, lossy_images, survey

__all__ = ["Reading", "Sprite", "Survey", "lossy_images", "survey", "words_of"]

"""The sprites on their way to the engine: flattened, enlarged by whole numbers, centred on their canvas, captioned."""

from pixelkit.dataset.prepare import Prepared, prepare

__all__ = ["Prepared", "prepare"]

"""Step 12: look at what training left, and make of it what others load: files, sidecars, pictures, each loaded again.

Nothing here changes a trained number: exports are conversions of one file; the sidecar holds measured values, or null.
"""

from pixelkit.ship.describe import describe_model
from pixelkit.ship.loading import Check, Loader, Loading
from pixelkit.ship.shipment import Shipment, ship
from pixelkit.ship.sidecar import Sidecar, write_sidecar
from pixelkit.ship.weights import WeightsReport, inspect_weights

__all__ = [
    "Check",
    "Loader",
    "Loading",
    "Shipment",
    "Sidecar",
    "WeightsReport",
    "describe_model",
    "inspect_weights",
    "ship",
    "write_sidecar",
]

"""What training costs in time, memory and money, measured where it can be, and where each figure comes from."""

from pixelkit.measures.book import MeasureBook
from pixelkit.measures.figures import Figures
from pixelkit.measures.measuring import measure_run, remember, settle
from pixelkit.measures.outlook import Forecast, describe, forecast, say_duration
from pixelkit.measures.setup import Measure, Setup, images_per_step, setup_of

__all__ = [
    "Figures",
    "Forecast",
    "Measure",
    "MeasureBook",
    "Setup",
    "describe",
    "forecast",
    "images_per_step",
    "measure_run",
    "remember",
    "say_duration",
    "settle",
    "setup_of",
]

"""What training costs in money: hours, times a price."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pixelkit.errors import PresetError, did_you_mean
from pixelkit.measures.known import Data, Range, read_costs
from pixelkit.paths import data_dir

if TYPE_CHECKING:
    from pathlib import Path

OVERHEAD = 1.2
"""What a run takes beyond its steps, as a multiple of them: loading, pictures, saves. The CatSith guide's word."""


class Provider(Data):
    """Who rents out a GPU, at so much an hour (least and most). An empty `gpu`: the list does not say which it is."""

    name: str
    gpu: str = ""
    memory_gib: float = 0.0
    per_hour: Range
    listed: str = ""


class PriceList(Data):
    """A list of prices."""

    currency: str = "$"
    providers: list[Provider]


def read_prices(file: Path | None = None) -> PriceList:
    """The user's list, or the shipped one. Raises StorageError for a file that is none."""
    return read_costs(PriceList, file or data_dir("presets") / "costs" / "providers.toml")


def choose_providers(prices: PriceList, names: tuple[str, ...]) -> list[Provider]:
    """Those that are named (capitals do not matter), or all. Raises PresetError with the nearest name."""
    known = [provider.name for provider in prices.providers]
    for name in names:
        if name.lower() not in {other.lower() for other in known}:
            hint = did_you_mean(name, known) or f"there are {', '.join(dict.fromkeys(known))}"
            raise PresetError(f"no provider is called {name}", hint=hint)
    wanted = {name.lower() for name in names}
    return [provider for provider in prices.providers if not wanted or provider.name.lower() in wanted]


def training_hours(*, images: float, epochs: float, images_per_second: float, overhead: float = OVERHEAD) -> float:
    """Hours for so many images, each seen `epochs` times. The batch is in images_per_second already: it is no divisor."""
    return images * epochs / images_per_second / 3600 * overhead

"""Which engine trains: what the preset asks for, else kohya where it is found."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pixelkit.engines.diffusers import adapter as diffusers
from pixelkit.engines.kohya import adapter as kohya
from pixelkit.errors import EngineError
from pixelkit.paths import ENGINE_COMMIT, EngineLocation

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pixelkit.catalog import Base
    from pixelkit.engines.adapter import Engine
    from pixelkit.preset import EngineChoice

EngineName = Literal["kohya", "diffusers"]
ENGINES: Mapping[EngineName, Engine] = {"kohya": kohya, "diffusers": diffusers}
GET_KOHYA = (
    "in a clone of pixelkit: `git submodule update --init`; "  # noqa: S608 - git's words, not SQL's
    "elsewhere: `git clone https://github.com/kohya-ss/sd-scripts`, "
    f"`git -C sd-scripts checkout {ENGINE_COMMIT}`, `pixelkit config set sd_scripts PATH`"
)


def choose_engine(wanted: EngineChoice, base: Base, found: EngineLocation | None) -> EngineName:
    """The engine's name. Only a base that says so (pixelkit-tiny) trains without sd-scripts unasked.

    Raises EngineError where the engine that is needed is not there, or cannot train this base.
    """
    if wanted != "auto":
        if wanted not in base.spec.engines:
            raise EngineError(
                f"engine = {wanted} cannot train {base.name}", hint=f"it trains with {', '.join(base.spec.engines)}"
            )
        name: EngineName = wanted
    elif found is None and base.spec.stands_alone:
        return "diffusers"
    else:
        name = base.spec.engines[0]
    if name == "kohya" and found is None:
        own = '; or engine = "diffusers"' if "diffusers" in base.spec.engines else ""
        raise EngineError(f"{base.name} is trained by kohya sd-scripts, which is not here", hint=GET_KOHYA + own)
    return name

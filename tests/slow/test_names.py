"""The name tables against the models themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from converters import name_tables
from converters.make_names import collect_paths, render_tables
from converters.names import join_kohya, parse_kohya

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")


def list_layers(model: Any) -> list[str]:
    return [name for name, module in model.named_modules() if type(module).__name__ in {"Linear", "Conv2d"}]


def test_the_tables_are_what_the_script_makes(sd_scripts: Path) -> None:
    assert render_tables(collect_paths(sd_scripts)) == Path(name_tables.__file__).read_text(encoding="utf-8")


def test_without_sd_scripts_its_tables_stay_as_they_are() -> None:
    assert render_tables(collect_paths(None)) == Path(name_tables.__file__).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "layout",
    [
        {},
        {"mid_block_type": None, "down_block_types": ("CrossAttnDownBlock2D",) * 3,
         "up_block_types": ("CrossAttnUpBlock2D",) * 3, "block_out_channels": (320, 640, 1280),
         "layers_per_block": 1},  # tiny-sd
        {"down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
         "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
         "block_out_channels": (64, 128, 128), "layers_per_block": 1, "cross_attention_dim": 128},  # pixelkit-tiny
        {"layers_per_block": 4, "transformer_layers_per_block": 3},
    ],
)  # fmt: skip
def test_unets_of_other_layouts_need_no_table_of_their_own(layout: dict[str, Any]) -> None:
    with torch.device("meta"):
        layers = list_layers(diffusers.UNet2DConditionModel(**layout))
    for path in layers:
        found = parse_kohya("lora_unet_" + path.replace(".", "_"))
        assert (found.path, found.naming) == (path, "diffusers")


def test_stability_names_are_those_of_sd_scripts(sd_scripts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(sd_scripts))
    from library.sdxl_original_unet import SdxlUNet2DConditionModel

    with torch.device("meta"):
        names = ["lora_unet_" + layer.replace(".", "_") for layer in list_layers(SdxlUNet2DConditionModel())]
    assert len(names) == 794
    found = [parse_kohya(name) for name in names]
    assert {name.naming for name in found} == {"sai"}
    assert len({name.path for name in found}) == 794
    assert [join_kohya("unet", name.path, naming="sai") for name in found] == names

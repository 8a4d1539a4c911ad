"""The check of a base that is too large to be run: its layers in their true shapes, without memory for their weights.

Every weight is one zero, seen at each place of a tensor of the layer's shape: a program can put a LoRA on it as on the
real one. What each layer then makes of one fixed input, by the program's own arithmetic, is held against the kohya
file's numbers.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pixelkit.ship.loaders import PROGRAMS, CannotCheck, apply_network, has_sd_scripts, load, share

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

GATE = 5e-5
"""Largest difference of two outputs of a layer, as a share of the largest number in them. Rounding makes 5e-6 (SDXL)."""
Layer = tuple[str, str]
_CLIPS: Mapping[str, dict[str, Any]] = {
    "vit-l": {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12},
    "vit-h": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23, "num_attention_heads": 16},
    "vit-g": {
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_hidden_layers": 32,
        "num_attention_heads": 20,
        "projection_dim": 1280,
    },
}
_ENCODERS: Mapping[str, tuple[str, ...]] = {
    "sd15": ("vit-l",),
    "sd2": ("vit-h",),
    "sdxl": ("vit-l", "vit-g"),
    "sd3": ("vit-l", "vit-g", "t5"),
    "flux": ("vit-l", "t5"),
}


class Modules:
    """The base's layers; each program's LoRA on layers of its own; the kohya file's numbers to compare with."""

    kind = "modules"
    reference = "the kohya file's numbers"

    def __init__(self, request: dict[str, Any]) -> None:
        self._request = request
        self._kohya = Path(request["files"]["kohya"])
        self._lora = read(self._kohya)
        self._modules = split(self._lora)
        if any(module.magnitude is not None for module in self._modules.values()):
            raise CannotCheck("what DoRA adds to a layer is known with the base's weights only")
        self._models = build_models(request, self._modules)
        self._outputs: dict[int, Any] = {}  # by the module's identity: what it makes of its layer's input

    def look(self, name: str, path: Path) -> dict[str, Any]:
        """State, effect (largest output) and difference (largest, as a share of the layer's largest output)."""
        if name not in PROGRAMS:
            return compare_read(path, self._kohya)
        if name == "kohya":
            return self._look_at_sd_scripts(path)
        models = load(name, path, {part: share(model) for part, model in self._models.items()}, self._request["family"])
        found = {layer: make for part, model in models.items() for layer, make in find_layers(part, model).items()}
        return compare({layer: self._expect(layer) for layer in self._modules}, found)

    def _look_at_sd_scripts(self, path: Path) -> dict[str, Any]:
        if not has_sd_scripts(self._request):
            raise CannotCheck("sd-scripts, which reads it, is not here")
        models = build_models(self._request, self._modules, original=True)
        network = apply_network(path, models, self._request["family"])
        ours = {_spell(name): module for name, module in self._lora.modules.items()}
        theirs = {module.lora_name: module for module in (*network.text_encoder_loras, *network.unet_loras)}
        wanted = {
            name: partial(self._multiply, module, theirs[name].lora_down)
            for name, module in ours.items()
            if name in theirs
        }
        wanted |= {name: module.delta for name, module in ours.items() if name not in theirs}
        found = {name: partial(_run, module, module.lora_down) for name, module in theirs.items()}
        return compare(wanted, found)

    def _expect(self, layer: Layer) -> Callable[[], Any]:
        part, path = layer
        return partial(self._multiply, self._modules[layer], self._models[part].get_submodule(path))

    def _multiply(self, module: Any, like: Any) -> Any:
        """The kohya file's change of the weight, times the input of a layer like this; once for each module."""
        import torch
        from torch.nn.functional import conv2d, linear

        if id(module) not in self._outputs:
            delta, source = torch.from_numpy(module.delta()), make_input(like)
            if hasattr(like, "in_features"):
                output = linear(source, delta)
            else:
                kernel = delta.reshape(delta.shape[0], like.in_channels, *like.kernel_size)
                output = conv2d(source, kernel, stride=like.stride, padding=like.padding)
            self._outputs[id(module)] = output
        return self._outputs[id(module)]


def read(path: Path) -> Any:
    """A LoRA in any format. Raises CannotCheck."""
    from converters import ConversionError, read_lora

    try:
        return read_lora(path)[1]
    except ConversionError as error:
        raise CannotCheck(str(error).partition("\n")[0]) from error


def split(lora: Any) -> dict[Layer, Any]:
    """Component and diffusers path -> module. Raises CannotCheck."""
    from converters import ConversionError, fused

    try:
        modules = fused.split(lora).modules
    except ConversionError as error:
        raise CannotCheck(str(error).partition("\n")[0]) from error
    return {(name.component, name.path): module for name, module in modules.items()}


def _spell(name: Any) -> str:
    from converters.names import join_kohya

    return join_kohya(name.component, name.path, prefix=name.prefix, naming=name.naming)


def make_input(layer: Any) -> Any:
    """One fixed input for a layer, or for one of its inputs' size."""
    import torch

    shape = (2, layer.in_features) if hasattr(layer, "in_features") else (1, layer.in_channels, 8, 8)
    return torch.randn(shape, generator=torch.Generator().manual_seed(3))


def compare_read(path: Path, kohya: Path) -> dict[str, Any]:
    """A format that no program reads yet: what pixelkit's own reader makes of it, against the kohya file."""
    wanted, found = ({layer: module.delta for layer, module in split(read(file)).items()} for file in (kohya, path))
    return compare(wanted, found)


def compare(wanted: Mapping[Any, Callable[[], Any]], found: Mapping[Any, Callable[[], Any]]) -> dict[str, Any]:
    """Module for module: nothing missing, nothing more, the same numbers up to rounding."""
    import numpy as np
    import torch

    if missing := [key for key in wanted if key not in found]:
        return _fail(f"{len(missing)} of {len(wanted)} modules are not loaded, {_tell(missing[0])} for one")
    if more := [key for key in found if key not in wanted]:
        return _fail(f"{len(more)} modules too many are loaded, {_tell(more[0])} for one")
    largest, worst, worst_key = 0.0, 0.0, None
    for key, expect in wanted.items():
        with torch.inference_mode():
            want, got = (np.asarray(make(), dtype=np.float32).reshape(-1) for make in (expect, found[key]))
        if want.shape != got.shape:
            return _fail(f"{_tell(key)} is of another shape")
        size = float(np.abs(want).max())
        part = float(np.abs(got - want).max()) / (size or 1.0)
        largest = max(largest, size)
        if not part <= worst:  # NaN is the worst
            worst, worst_key = part, key
    result = {"effect": {"modules": largest}, "difference": {"modules": worst}}
    if not worst <= GATE:
        return {**_fail(f"{_tell(worst_key)} differs by {worst:.2g} of its largest number"), **result}
    return {**(_fail("changes nothing") if not largest else {"state": "passed", "why": ""}), **result}


def _run(layer: Any, like: Any) -> Any:
    return layer(make_input(like))


def _fail(why: str) -> dict[str, Any]:
    return {"state": "failed", "why": why}


def _tell(key: Any) -> str:
    return key if isinstance(key, str) else ".".join(key)


def find_layers(part: str, model: Any) -> dict[Layer, Callable[[], Any]]:
    """Layer -> what it makes of its input with PEFT's adapters in it; diffusers loads by PEFT, too."""
    found: dict[Layer, Callable[[], Any]] = {}
    for name, layer in model.named_modules():
        if not hasattr(layer, "get_delta_weight"):
            continue
        path = name.removeprefix("base_model.model.")
        if part.startswith("text_encoder") and path.startswith("encoder.layers"):
            path = f"text_model.{path}"  # as transformers before 5.6 had it
        found[part, path] = partial(_run, layer, layer.get_base_layer())
    return found


def build_models(request: dict[str, Any], wanted: Mapping[Layer, Any], *, original: bool = False) -> dict[str, Any]:
    """The components that the LoRA changes; `original`: the UNet or transformer as sd-scripts has it."""
    import torch

    family = request["family"]
    parts = {part for part, _ in wanted}
    models: dict[str, Any] = {}
    with torch.device("meta"):
        if original or parts & {"unet", "transformer"}:
            name = "transformer" if family in {"sd3", "flux"} else "unet"
            models[name] = _build_original(request, wanted) if original else _build_network(request, wanted)
        # sd-scripts numbers the text encoders by their places: all up to the last one that is trained
        kinds = dict(zip(("text_encoder", "text_encoder_2", "text_encoder_3"), _ENCODERS[family], strict=False))
        if family == "flux":
            kinds = {"text_encoder": "vit-l", "text_encoder_3": "t5"}
        for part, kind in kinds.items():
            if part in parts or (original and any(other > part for other in parts if other.startswith("text"))):
                models[part] = _build_encoder(request, part, kind)
    return {part: _flatten(model) for part, model in models.items()}


def _build_network(request: dict[str, Any], wanted: Mapping[Layer, Any]) -> Any:
    from converters import make_names

    folder = Path(request["base"])
    family = request["family"]
    if (folder / "unet" / "config.json").is_file():
        from diffusers import UNet2DConditionModel

        return UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(str(folder), subfolder="unet"))
    if family == "flux":
        return make_names.build_flux()
    if family == "sd3":
        return _choose(make_names.build_sd3s(), wanted)
    return make_names.build_unets()[("sd15", "sd2", "sdxl").index(family)]


def _build_original(request: dict[str, Any], wanted: Mapping[Layer, Any]) -> Any:
    from converters import make_names

    family, folder = request["family"], Path(request["sd_scripts"])
    if family == "sdxl":
        from library.sdxl_original_unet import SdxlUNet2DConditionModel

        return SdxlUNet2DConditionModel()
    if family == "flux":
        return make_names.build_flux_original(folder)
    if family == "sd3":
        kinds = make_names.build_sd3s()
        return make_names.build_sd3_originals(folder)[kinds.index(_choose(kinds, wanted))]
    return _build_network(request, wanted)


def _choose(models: list[Any], wanted: Mapping[Layer, Any]) -> Any:
    """The model that has all layers, in their shapes. Raises CannotCheck."""
    for model in models:
        weights = {name: getattr(layer, "weight", None) for name, layer in model.named_modules()}
        shapes = {name: tuple(weight.shape) for name, weight in weights.items() if weight is not None}
        layers = {path: module for (part, path), module in wanted.items() if part == "transformer"}
        if all(path in shapes and module.shape[0] == shapes[path][0] for path, module in layers.items()):
            return model
    raise CannotCheck("no known model has all of these layers")


def _build_encoder(request: dict[str, Any], part: str, kind: str) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    from converters import make_names

    config = Path(request["base"]) / part / "config.json"
    if kind == "t5":
        return make_names.build_t5()
    settings = CLIPTextConfig.from_pretrained(str(config)) if config.is_file() else CLIPTextConfig(**_CLIPS[kind])
    projected = part != "text_encoder" or request["family"] == "sd3"
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(settings)


def _flatten(model: Any) -> Any:
    """The model off the meta device: each parameter one zero, seen at every place."""
    import torch

    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            zeros = torch.zeros(1).expand(parameter.shape) if parameter.dim() else torch.zeros(())
            module.register_parameter(name, torch.nn.Parameter(zeros, requires_grad=False))
        for name, buffer in list(module.named_buffers(recurse=False)):
            module.register_buffer(name, torch.zeros(buffer.shape, dtype=buffer.dtype), persistent=False)
    return model.eval()

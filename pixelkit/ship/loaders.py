"""Loads a shipped LoRA again as the programs do that it is for, and compares what they make of it. A process of its own:

    python -m pixelkit.ship

It imports what it needs and waits. Standard input: one line {"family", "base", "sd_scripts", "files": {format: path}};
standard output: one line behind a record separator, as `loading.read_answer` takes it.

Where the base can be held in memory, UNet and text encoder run on one fixed input with its real weights in fp32, and
what counts is their output ("outputs"). A larger base is built without memory for its weights: each layer has its true
shape, the program puts the LoRA into it, and what counts is each layer's own output ("modules").
"""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from typing import Any

SEPARATOR = "\x1e"
UNET_GATE, TEXT_GATE = 5e-6, 1e-5
"""Largest difference of two programs' outputs, as a share of the largest output where that is above 1. Rounding in
fp32 makes 1.2e-6; facts measured with SD 1.5."""
OUTPUTS = frozenset({"sd15", "sd2"})  # families whose base is run; larger ones are checked by module
STOCK_WEIGHTS = 4.3e9  # bytes of SD 1.5's UNet and text encoder in fp32; SD 2's are 4.8
PROGRAMS = {"kohya": "sd-scripts", "peft": "PEFT", "diffusers": "diffusers"}


class CannotCheck(Exception):  # noqa: N818 - it is no fault
    """A check that cannot be made here, and why. Never that a file is wrong."""


def main() -> None:
    """Answer one request. The imports, which take longest, come before it."""
    missing = _import_libraries()
    line = sys.stdin.readline()
    if not line:
        return
    request = json.loads(line)
    answer = {"checked": None, "why": missing} if missing else check(request)
    sys.stdout.write(f"\n{SEPARATOR}{json.dumps(answer)}\n")
    sys.stdout.flush()


def check(request: dict[str, Any]) -> dict[str, Any]:
    """The answer: how it was checked, against what, and for each file its state, effect and difference."""
    from pixelkit.ship.skeletons import Modules

    why = []
    for bench_class in (Outputs, Modules):
        try:
            bench: Outputs | Modules = bench_class(request)
        except CannotCheck as reason:
            why.append(str(reason))
            continue
        files = {name: _look(bench, name, Path(path)) for name, path in request["files"].items()}
        return {"checked": bench.kind, "reference": bench.reference, "why": "; ".join(why), "files": files}
    return {"checked": None, "why": "; ".join(why)}


def _look(bench: Any, name: str, path: Path) -> dict[str, Any]:
    """One file's state: whatever a program raises while it loads the file is the file's fault, but for lack of memory."""
    program = PROGRAMS.get(name, "pixelkit's own reader: no program reads it yet")
    if name == "kohya" and bench.kind == "outputs":
        program = bench.reference
    try:
        if name == "kohya" and bench.kind == "modules":
            refuse_other_kinds(path)
        return {"program": program, **bench.look(name, path)}
    except CannotCheck as reason:
        return {"program": program, "state": "not made", "why": str(reason)}
    except MemoryError:
        return {"program": program, "state": "not made", "why": "not enough memory"}
    except Exception as error:  # each program has its own
        if "not enough memory" in str(error):
            return {"program": program, "state": "not made", "why": "not enough memory"}
        what = (str(error).strip().splitlines() or [""])[0]
        return {"program": program, "state": "failed", "why": f"does not load: {type(error).__name__}: {what}"}


def refuse_other_kinds(kohya: Path) -> None:
    """Raises CannotCheck for what is no plain LoRA: it was trained by another network module, which is not loaded here."""
    from converters.tensors import read_file

    parts = {key.partition(".")[2] for key in read_file(kohya).tensors}
    if odd := sorted(parts - {"lora_down.weight", "lora_up.weight", "alpha"}):
        raise CannotCheck(f"neither sd-scripts' networks.lora nor pixelkit's trainer runs a LoRA with {odd[0]}")


class Outputs:
    """The base in memory; each program's LoRA in a copy that shares its weights; one fixed input for all."""

    kind = "outputs"

    def __init__(self, request: dict[str, Any]) -> None:
        self._kohya = Path(request["files"]["kohya"])
        self._sd_scripts = has_sd_scripts(request)
        if not self._sd_scripts:
            refuse_other_kinds(self._kohya)
        else:
            import_network(self._kohya, request["family"])
        self._models = load_base(request)
        self._family = request["family"]
        self._plain = run(self._models)
        self.reference = "sd-scripts" if self._sd_scripts else "pixelkit's diffusers engine"
        self._wanted: dict[str, Any] = {}

    def look(self, name: str, path: Path) -> dict[str, Any]:
        """State, effect and difference of a file: the largest absolute numbers by component."""
        from pixelkit.ship.skeletons import compare_read

        if name not in PROGRAMS:
            return compare_read(path, self._kohya)
        found = self._run_with(name, path)
        if name == "kohya":
            self._wanted = found
        if not self._wanted:
            raise CannotCheck(f"{self._kohya.name} was not loaded, so there is nothing to compare with")
        effect = {part: _distance(output, self._plain[part]) for part, output in found.items()}
        wanted = {part: _distance(output, self._plain[part]) for part, output in self._wanted.items()}
        difference = {part: _distance(output, self._wanted[part]) for part, output in found.items()}
        state, why = self._judge(effect, wanted, difference)
        return {"state": state, "why": why, "effect": effect, "difference": difference}

    def _judge(
        self, effect: dict[str, float], wanted: dict[str, float], difference: dict[str, float]
    ) -> tuple[str, str]:
        gates = {
            part: (UNET_GATE if part == "unet" else TEXT_GATE) * max(1.0, float(output.abs().max()))
            for part, output in self._plain.items()
        }
        odd = [part for part in difference if not difference[part] <= gates[part]]  # NaN is odd, too
        if odd:
            part = odd[0]
            return "failed", f"the {part}'s output differs by {difference[part]:.2g} from {self.reference}'s"
        if not any(effect.values()):
            return "failed", "changes nothing"
        if all(wanted[part] <= gates[part] for part in wanted):
            return "not made", f"the LoRA changes the output by no more than rounding ({max(wanted.values()):.2g})"
        return "passed", ""

    def _run_with(self, name: str, path: Path) -> dict[str, Any]:
        if name == "kohya" and not self._sd_scripts:
            from pixelkit.engines.diffusers.network import merge_file

            models = copy.deepcopy(self._models)
            merge_file(path, models["unet"], models["text_encoder"])
            return run(models)
        models = {part: share(model) for part, model in self._models.items()}
        return run(load(name, path, models, self._family))


def load(name: str, path: Path, models: dict[str, Any], family: str) -> dict[str, Any]:
    """The models with the LoRA in them, put there by the program that format `name` is for."""
    if name == "peft":
        return load_peft(path, models)
    if name == "diffusers":
        return load_diffusers(path, models, family)
    apply_network(path, models, family)
    return models


def load_peft(folder: Path, models: dict[str, Any]) -> dict[str, Any]:
    """`from_pretrained` for each component's folder; where it has several (`unet-2`), all of them together."""
    from peft import PeftMixedModel, PeftModel

    found = dict(models)
    for part, model in models.items():
        if not (folder / part).is_dir():
            continue
        more = sorted(folder.glob(f"{part}-*"))
        found[part] = (PeftMixedModel if more else PeftModel).from_pretrained(model, str(folder / part))
        for adapter in more:
            found[part].load_adapter(str(adapter), adapter.name)
        if more:
            found[part].set_adapter(["default", *(adapter.name for adapter in more)])
    return found


def load_diffusers(path: Path, models: dict[str, Any], family: str) -> dict[str, Any]:
    """diffusers' `load_lora_weights`, on as much of a pipeline as it needs."""
    from diffusers import loaders

    mixins = {
        "sdxl": loaders.StableDiffusionXLLoraLoaderMixin,
        "sd3": loaders.SD3LoraLoaderMixin,
        "flux": loaders.FluxLoraLoaderMixin,
    }
    mixin: Any = mixins.get(family, loaders.StableDiffusionLoraLoaderMixin)
    parts = {"hf_device_map": None, "components": models, **models}
    pipeline = type("Pipeline", (mixin,), parts)()
    pipeline.load_lora_weights(str(path.parent), weight_name=path.name)
    return models


def import_network(path: Path, family: str) -> Any:
    """The module that sd-scripts runs this file's kind of network with. Raises CannotCheck where it is not here."""
    import importlib

    from converters.tensors import read_file

    parts = {key.partition(".")[2] for key in read_file(path).tensors}
    name = {"flux": "networks.lora_flux", "sd3": "networks.lora_sd3"}.get(family, "networks.lora")
    if "oft_blocks" in parts:
        name = "networks.oft_flux" if family == "flux" else "networks.oft"
    elif parts - {"lora_down.weight", "lora_up.weight", "alpha"}:
        name = "lycoris.kohya"
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise CannotCheck(f"{name} is not installed here") from error


def apply_network(path: Path, models: dict[str, Any], family: str) -> Any:
    """sd-scripts' own network for this file, in these models. Raises ValueError for keys that are not the models'."""
    module = import_network(path, family)
    encoders = [models[part] for part in ("text_encoder", "text_encoder_2", "text_encoder_3") if part in models]
    one = family in OUTPUTS
    encoder = encoders[0] if one and encoders else encoders
    network, weights = module.create_network_from_weights(
        1.0, str(path), None, encoder, models.get("unet", models.get("transformer"))
    )
    network.apply_to(encoder, models.get("unet", models.get("transformer")), True, True)  # noqa: FBT003 - sd-scripts' own order
    found = network.load_state_dict({key: value.float() for key, value in weights.items()}, strict=False)
    if wrong := [*found.missing_keys, *found.unexpected_keys]:
        raise ValueError(f"{len(wrong)} keys are not the base's, {wrong[0]} for one")
    return network


def load_base(request: dict[str, Any]) -> dict[str, Any]:
    """UNet and text encoder with the base's real weights in fp32. Raises CannotCheck."""
    import psutil
    import torch

    family, location = request["family"], Path(request["base"])
    if family not in OUTPUTS:
        raise CannotCheck(f"a whole {family} model is too large to be run beside everything else")
    need = 1.5 * (_count_bytes(location) if location.is_dir() else STOCK_WEIGHTS) + 1e9
    free = psutil.virtual_memory().available
    if free < need:
        raise CannotCheck(f"running the base takes {need / 2**30:.1f} GiB of memory, {free / 2**30:.1f} are free")
    try:
        if location.is_file():
            models = _read_checkpoint(location, family, request)
        else:
            from diffusers import UNet2DConditionModel
            from transformers import CLIPTextModel

            options = {"torch_dtype": torch.float32, "local_files_only": True}
            models = {
                "unet": UNet2DConditionModel.from_pretrained(request["base"], subfolder="unet", **options),
                "text_encoder": CLIPTextModel.from_pretrained(request["base"], subfolder="text_encoder", **options),
            }
    except CannotCheck:
        raise
    except Exception as error:  # the hub, safetensors, diffusers and transformers have their own
        what = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CannotCheck(f"the base does not load here: {what}") from error
    return {part: model.float().eval().requires_grad_(requires_grad=False) for part, model in models.items()}


def _read_checkpoint(path: Path, family: str, request: dict[str, Any]) -> dict[str, Any]:
    """A single file as sd-scripts reads it; its UNet's names are diffusers'."""
    if not has_sd_scripts(request):
        raise CannotCheck("a base in one file is read by sd-scripts, which is not here")
    from diffusers import UNet2DConditionModel
    from library import model_util

    v2 = family == "sd2"
    text_encoder, _, unet = model_util.load_models_from_stable_diffusion_checkpoint(v2, str(path))
    ours = UNet2DConditionModel(**model_util.create_unet_diffusers_config(v2))
    ours.load_state_dict(unet.state_dict(), assign=True)
    return {"unet": ours, "text_encoder": text_encoder}


def _count_bytes(folder: Path) -> float:
    """Bytes in fp32 of a diffusers folder's UNet and text encoder; half precision doubles, so all is doubled."""
    files = [path for part in ("unet", "text_encoder") for path in (folder / part).glob("*.safetensors")]
    return 2.0 * sum(path.stat().st_size for path in files) or STOCK_WEIGHTS


def has_sd_scripts(request: dict[str, Any]) -> bool:
    """Whether sd-scripts' LoRA network can be imported."""
    import importlib.util

    return bool(request.get("sd_scripts")) and importlib.util.find_spec("networks") is not None


def run(models: dict[str, Any]) -> dict[str, Any]:
    """What the models make of one fixed input."""
    import torch

    rng = torch.Generator().manual_seed(2)
    unet, text_encoder = models["unet"].config, models["text_encoder"].config
    side = min(int(unet["sample_size"] if isinstance(unet, dict) else unet.sample_size), 16)
    latents = torch.randn(1, models["unet"].config.in_channels, side, side, generator=rng)
    context = torch.randn(1, 7, models["unet"].config.cross_attention_dim, generator=rng)
    tokens = torch.arange(min(16, text_encoder.max_position_embeddings))[None] % text_encoder.vocab_size
    with torch.inference_mode():
        return {
            "unet": models["unet"](latents, 500, context).sample,
            "text_encoder": models["text_encoder"](tokens).last_hidden_state,
        }


def share(model: Any) -> Any:
    """A copy of the model's structure on the same weights: what is put into it does not reach the original."""
    return copy.deepcopy(model, {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())})


def _distance(one: Any, other: Any) -> float:
    return float((one - other).abs().max())


def _import_libraries() -> str:
    """What is missing, or an empty string."""
    try:
        import diffusers.loaders
        import peft
        import torch
        import transformers.models.clip.modeling_clip
        from diffusers import UNet2DConditionModel
    except ImportError as error:
        return f"not installed: {error.name}"
    return "" if all((diffusers, peft, torch, transformers, UNet2DConditionModel)) else "broken"

"""Converted LoRAs against the programs that made them applying their own: the same numbers, or the conversion is wrong.

The models are small but laid out as SD 1.5 (all of its module names), with random weights, in float32. References:
sd-scripts applying its network for t1 and t2, LyCORIS' forward for the rest. t2 has a rank and an alpha of its own in
every module: a LoRA whose alpha is its rank everywhere (t1) cannot tell right from wrong. The table, beside what
diffusers' own loader makes of the kohya file and what peft's example script makes of it:

    PIXELKIT_SD_SCRIPTS=... PIXELKIT_LYCORIS=... PIXELKIT_PEFT=... pytest -s tests/slow/test_parity.py

PIXELKIT_LYCORIS: a folder with the package lycoris; PIXELKIT_PEFT: a checkout of peft, for its examples; and
PIXELKIT_TRANSFORMERS: a folder with transformers 5.6 or later and what it needs. What is not there is left out.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from parity_kinds import KINDS, apply_lycoris, make_models, write_lora

from converters import ConversionError, convert, read_lora
from converters.tensors import read_file, write_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from converters.names import Component

UNET_GATE, TEXT_GATE, EFFECT = 5e-6, 1e-5, 0.1
ROWS: list[tuple[str, ...]] = []


@pytest.fixture(scope="module")
def models() -> dict[Component, Any]:
    return make_models()


@pytest.fixture(scope="module", autouse=True)
def table() -> Iterator[None]:
    """With `-s`, the table: largest absolute difference to the reference, UNet / text encoder."""
    ROWS.clear()
    yield
    heads = ("LoRA", "its effect", "to PEFT", "to diffusers", "diffusers' own loader", "peft's script")
    for row in (heads, *ROWS) if ROWS else ():
        sys.stdout.write("\n" + "".join(f"{cell:<23}" for cell in row).rstrip())
    sys.stdout.write("\n")


def run(models: dict[Component, Any]) -> dict[Component, Any]:
    """What the models make of one fixed input."""
    import torch

    rng = torch.Generator().manual_seed(2)
    latents, context = torch.randn(1, 4, 16, 16, generator=rng), torch.randn(1, 7, 24, generator=rng)
    with torch.no_grad():
        return {
            "unet": models["unet"](latents, 500, context).sample,
            "text_encoder": models["text_encoder"](torch.arange(16)[None]).last_hidden_state,
        }


def run_sd_scripts(models: dict[Component, Any], path: Path) -> dict[Component, Any]:
    from networks import lora

    models = copy.deepcopy(models)
    network, weights = lora.create_network_from_weights(1.0, str(path), None, models["text_encoder"], models["unet"])
    network.apply_to(models["text_encoder"], models["unet"])
    found = network.load_state_dict({key: value.float() for key, value in weights.items()})
    assert not found.missing_keys
    assert not found.unexpected_keys
    return run(models)


def run_peft(models: dict[Component, Any], folder: Path) -> dict[Component, Any]:
    """The folders as the docstring of peft_folder.py says to load them."""
    from peft import PeftMixedModel, PeftModel

    models = copy.deepcopy(models)
    for part, model in models.items():
        more = sorted(folder.glob(f"{part}-*"))
        kind = PeftMixedModel if more else PeftModel
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # of keys that are missing or too many, peft only warns
            models[part] = kind.from_pretrained(model, str(folder / part))
            for extra in more:
                models[part].load_adapter(str(extra), extra.name)
        if more:
            models[part].set_adapter(["default", *(extra.name for extra in more)])
    return run(models)


def run_diffusers(models: dict[Component, Any], path: Path) -> dict[Component, Any]:
    from diffusers.loaders import StableDiffusionLoraLoaderMixin as Loader

    models = copy.deepcopy(models)
    state, alphas = Loader.lora_state_dict(str(path))
    Loader.load_lora_into_unet(state, alphas, models["unet"])
    Loader.load_lora_into_text_encoder(state, alphas, models["text_encoder"])
    return run(models)


def run_peft_script(models: dict[Component, Any], path: Path, folder: Path) -> dict[Component, Any]:
    """peft's own example, as its users run it."""
    script = Path(os.environ["PIXELKIT_PEFT"]) / "examples/stable_diffusion/convert_sd_adapter_to_peft.py"
    for part, model in models.items():
        model.save_pretrained(folder / "base" / part)
    options = {"--sd_checkpoint": folder / "base", "--adapter_path": path, "--dump_path": folder / "out"}
    command = [sys.executable, str(script), *(str(word) for pair in options.items() for word in pair)]
    subprocess.run(command, check=True, capture_output=True)
    from peft import PeftModel

    return run(
        {part: PeftModel.from_pretrained(copy.deepcopy(m), str(folder / "out" / part)) for part, m in models.items()}
    )


def measure(found: dict[Component, Any], reference: dict[Component, Any]) -> tuple[float, float]:
    """Largest absolute difference: UNet, text encoder."""
    unet, text = (float((found[part] - reference[part]).abs().max()) for part in ("unet", "text_encoder"))
    return unet, text


def attempt(measured: Callable[[], tuple[float, float]]) -> str:
    """A cell about another program: its figures, or the error that it ends with."""
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            return show(measured())
    except Exception as error:
        return f"raises {type(error).__name__}"


def show(figures: tuple[float, float]) -> str:
    return " / ".join(f"{figure:.1e}" for figure in figures)


def hold(
    models: dict[Component, Any],
    source: Path,
    reference: dict[Component, Any],
    title: str,
    *,
    diffusers_holds: bool = True,
) -> None:
    """Convert, load and compare with the gates; add a row to the table."""
    folder = source.parent
    effect = measure(run(models), reference)
    assert min(effect) > EFFECT
    convert(source, "peft", folder / "peft")
    peft = measure(run_peft(models, folder / "peft"), reference)
    cells = [title, show(effect), show(peft)]
    measured = [peft]
    if diffusers_holds:
        convert(source, "diffusers", folder / "d.safetensors")
        measured.append(measure(run_diffusers(models, folder / "d.safetensors"), reference))
        cells.append(show(measured[-1]))
    else:
        with pytest.raises(ConversionError) as refusal:
            convert(source, "diffusers", folder / "d.safetensors")
        assert refusal.value.keys
        cells.append(f"refused: {len(refusal.value.keys)} modules")
    cells.append(attempt(lambda: measure(run_diffusers(models, source), reference)))
    if "PIXELKIT_PEFT" in os.environ:
        cells.append(attempt(lambda: measure(run_peft_script(models, source, folder), reference)))
    ROWS.append(tuple(cells))
    for unet, text in measured:
        assert unet <= UNET_GATE
        assert text <= TEXT_GATE


@pytest.mark.parametrize("dtype", ["F32", "BF16"])
@pytest.mark.parametrize("mixed", [False, True], ids=["t1", "t2"])
def test_conversions_do_what_sd_scripts_does(
    models: dict[Component, Any],
    sd_scripts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    mixed: bool,
    dtype: str,
) -> None:
    monkeypatch.syspath_prepend(str(sd_scripts))
    source = tmp_path / "t.safetensors"
    assert write_lora(models, source, seed=3, mixed=mixed, dtype=dtype) == 278 + 72
    hold(models, source, run_sd_scripts(models, source), f"{'t2' if mixed else 't1'} {dtype}")


@pytest.mark.parametrize("kind", [*KINDS, "mixed"])
def test_conversions_do_what_lycoris_does(models: dict[Component, Any], tmp_path: Path, kind: str) -> None:
    source = tmp_path / "t.safetensors"
    applied, deltas = apply_lycoris(models, source, kind)
    modules = {f"{name.component}.{name.path}": module for name, module in read_lora(source)[1].modules.items()}
    assert modules.keys() == deltas.keys()
    for place, delta in deltas.items():
        np.testing.assert_allclose(modules[place].delta().reshape(delta.shape), delta, atol=2e-6, err_msg=place)
    hold(models, source, run(applied), kind, diffusers_holds=kind in {"dora", "locon tucker"})
    convert(tmp_path / "peft", "kohya", tmp_path / "back.safetensors")
    if kind != "locon tucker":
        original, back = read_file(source).tensors, read_file(tmp_path / "back.safetensors").tensors
        assert original.keys() == back.keys()
        assert all(
            (original[key].shape, bytes(original[key].raw)) == (back[key].shape, bytes(back[key].raw)) for key in back
        )


def test_peft_scales_by_alpha_over_rank(models: dict[Component, Any], tmp_path: Path) -> None:
    from peft import PeftModel

    write_lora(models, tmp_path / "t", seed=3, mixed=True)
    convert(tmp_path / "t", "peft", tmp_path / "peft")
    modules = {(name.component, name.path): module for name, module in read_lora(tmp_path / "t")[1].modules.items()}
    for part, model in copy.deepcopy(models).items():
        loaded = PeftModel.from_pretrained(model, str(tmp_path / "peft" / part))
        scales = {
            (part, name.removeprefix("base_model.model.")): layer.scaling["default"]
            for name, layer in loaded.named_modules()
            if hasattr(layer, "scaling") and layer.scaling
        }
        assert scales == {place: module.scale for place, module in modules.items() if place[0] == part}


LOAD_FLAT = """
import json, sys, warnings
import torch, transformers
from peft import PeftModel
for category in (UserWarning, RuntimeWarning):  # of keys that are missing, peft only warns
    warnings.simplefilter("error", category)
sizes = dict(vocab_size=100, hidden_size=24, intermediate_size=48, num_hidden_layers=12, num_attention_heads=4)
out = []
for part, kind in (("text_encoder", "CLIPTextModel"), ("text_encoder_2", "CLIPTextModelWithProjection")):
    model = getattr(transformers, kind)(transformers.CLIPTextConfig(**sizes))
    loaded = PeftModel.from_pretrained(model, sys.argv[1] + "/" + part)
    found = {k: float(v.abs().sum()) for k, v in loaded.state_dict().items() if "lora_" in k}
    out.append(sum(value > 0 for value in found.values()))
print(json.dumps(out), flush=True)
"""


def test_flat_text_encoders_load_in_new_transformers(models: dict[Component, Any], tmp_path: Path) -> None:
    """Both of SDXL's: 5.6 flattened CLIPTextModel, not the one with a projection."""
    folder = os.environ.get("PIXELKIT_TRANSFORMERS")
    if not folder:
        pytest.skip("no transformers of 5.6 or later (PIXELKIT_TRANSFORMERS)")
    text = {"text_encoder": models["text_encoder"]}
    write_lora(text, tmp_path / "t", seed=3, mixed=True)
    first = read_file(tmp_path / "t").tensors
    both = {
        key.replace("lora_te_", prefix): tensor
        for key, tensor in first.items()
        for prefix in ("lora_te1_", "lora_te2_")
    }
    write_file(tmp_path / "both", both)
    convert(tmp_path / "both", "peft", tmp_path / "peft", flat_text_encoder=True)
    environment = {**os.environ, "PYTHONPATH": folder}
    command = [sys.executable, "-c", LOAD_FLAT, str(tmp_path / "peft")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout, done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1]) == [144, 144]

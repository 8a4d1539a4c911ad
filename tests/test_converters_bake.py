"""Baking into models and extracting from them: the right layers change by the right numbers, and no others."""

from __future__ import annotations

import json
import re
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from made_loras import FC1, PROJ, TO_K, TO_Q, deltas, part, save

from converters import ConversionError
from converters.bake import bake
from converters.checkpoint import name_unet, open_checkpoint
from converters.extract import Cut, extract
from converters.metadata import hash_tensors
from converters.tensors import Tensor, encode, read_file, write_file

if TYPE_CHECKING:
    from pathlib import Path

# A model with one attention, laid out as Stability's files: SD 1 (CLIP) and SDXL's second encoder (OpenCLIP).
MODEL = {
    "model.diffusion_model.input_blocks.0.0.weight": (6, 5, 3, 3),
    "model.diffusion_model.input_blocks.1.0.in_layers.2.weight": (6, 6, 3, 3),
    "model.diffusion_model.input_blocks.1.1.proj_in.weight": (6, 5, 1, 1),
    "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight": (6, 5),
    "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (6, 768),
    "model.diffusion_model.input_blocks.1.1.norm.weight": (6,),
    "cond_stage_model.transformer.text_model.encoder.layers.0.mlp.fc1.weight": (6, 5),
    "first_stage_model.decoder.conv_in.weight": (4, 4),
}
OPEN_CLIP = {
    "conditioner.embedders.1.model.transformer.resblocks.0.attn.in_proj_weight": (18, 5),
    "conditioner.embedders.1.model.text_projection": (5, 6),
}


def save_model(path: Path, shapes: dict[str, tuple[int, ...]], *, dtype: str = "F32", **metadata: str) -> Path:
    rng = np.random.default_rng(9)
    tensors = {key: encode(rng.normal(size=shape), dtype) for key, shape in shapes.items()}
    write_file(path, tensors, metadata)
    return path


def test_baking_changes_the_layers_of_the_lora_and_nothing_else(tmp_path: Path) -> None:
    spec = {"modelspec.sai_model_spec": "1.0.1", "modelspec.title": "Base", "modelspec.hash_sha256": "0xold"}
    base = save_model(tmp_path / "base.safetensors", MODEL | OPEN_CLIP, **spec, sshs_model_hash="x")
    q = "lora_te2_text_model_encoder_layers_0_self_attn"
    lora = save(
        tmp_path / "a.safetensors", part(PROJ), part(FC1.replace("te_", "te1_")), part(f"{q}_k_proj", seed=3),
        part("lora_te2_text_projection", seed=4),
    )  # fmt: skip
    done = bake([lora, lora], base, tmp_path / "b.safetensors", weights=[0.5, 1.0])
    before, after = read_file(base), read_file(tmp_path / "b.safetensors")
    wanted = deltas(lora)
    changed = {key for key in before.tensors if bytes(before.tensors[key].raw) != bytes(after.tensors[key].raw)}
    proj, fc1 = (key for key in MODEL if "proj_in" in key or "fc1" in key)
    assert changed == {proj, fc1, *OPEN_CLIP}
    assert done.layers == 4 and done.lost < 1e-6
    change = {key: after.tensors[key].to_float64() - before.tensors[key].to_float64() for key in changed}
    np.testing.assert_allclose(
        change[proj][:, :, 0, 0], 1.5 * wanted["unet.down_blocks.0.attentions.0.proj_in"], atol=1e-6
    )
    in_proj, projection = OPEN_CLIP
    k = wanted["text_encoder_2.text_model.encoder.layers.0.self_attn.k_proj"]
    np.testing.assert_allclose(change[in_proj][6:12], 1.5 * k, atol=1e-6)
    assert not np.any(change[in_proj][:6]) and not np.any(change[in_proj][12:])
    np.testing.assert_allclose(change[projection].T, 1.5 * wanted["text_encoder_2.text_projection"], atol=1e-6)
    assert after.metadata["modelspec.hash_sha256"] == f"0x{hash_tensors(after.tensors)}"
    assert after.metadata["modelspec.merged_from"] == "Base, a, a"
    assert "sshs_model_hash" not in after.metadata


def test_baking_tells_what_half_floats_lose(tmp_path: Path) -> None:
    base = save_model(tmp_path / "base.safetensors", MODEL, dtype="F16")
    lora = save(tmp_path / "a.safetensors", part(PROJ, kernel=1, scale=1e-4))
    done = bake([lora], base, tmp_path / "b.safetensors")
    (key,) = (key for key in MODEL if "proj_in" in key)
    before, after = (read_file(path).tensors[key] for path in (base, tmp_path / "b.safetensors"))
    wanted = deltas(lora)["unet.down_blocks.0.attentions.0.proj_in"]
    lost = np.linalg.norm(after.to_float64() - before.to_float64() - wanted) / np.linalg.norm(wanted)
    assert after.dtype == "F16"
    assert 0.5 < done.lost == pytest.approx(lost, rel=1e-3)


def test_dora_bakes_as_lycoris_has_it(tmp_path: Path) -> None:
    base = save_model(tmp_path / "base.safetensors", MODEL)
    key = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight"
    weight = read_file(base).tensors[key].to_float64()
    for shape, axis in (((6, 1), 1), ((1, 5), 0)):
        magnitude = np.random.default_rng(2).uniform(1, 2, shape)
        lora = save(tmp_path / "a.safetensors", {**part(TO_Q), f"{TO_Q}.dora_scale": encode(magnitude, "F32")})
        bake([lora], base, tmp_path / "b.safetensors", overwrite=True)
        (delta,) = deltas(lora).values()
        wanted = (weight + delta) * magnitude / np.linalg.norm(weight + delta, axis=axis, keepdims=True)
        found = read_file(tmp_path / "b.safetensors").tensors[key].to_float64()
        np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_what_cannot_be_baked(tmp_path: Path) -> None:
    base = save_model(tmp_path / "base.safetensors", MODEL)
    with pytest.raises(ConversionError, match="a LoRA for SDXL, a model of Stable Diffusion 1") as caught:
        bake([save(tmp_path / "a.safetensors", part(TO_K, inputs=2048))], base, tmp_path / "b.safetensors")
    assert caught.value.keys == ("unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k",)
    lora = save(tmp_path / "c.safetensors", part(PROJ))
    with pytest.raises(ConversionError, match="no checkpoint of a known kind"):
        bake([lora], lora, tmp_path / "b.safetensors")
    with pytest.raises(ConversionError, match="never overwritten"):
        bake([lora], base, base, overwrite=True)
    tiny = read_file(base)
    eights = {key: Tensor(dtype="F8_E4M3", shape=t.shape, data=np.zeros(t.data.size // 4, np.uint8))
              for key, t in tiny.tensors.items()}  # fmt: skip
    write_file(tmp_path / "f8.safetensors", eights)
    with pytest.raises(ConversionError, match="of F8_E4M3"):
        bake([lora], tmp_path / "f8.safetensors", tmp_path / "b.safetensors")
    huge = save_model(tmp_path / "half.safetensors", MODEL, dtype="F16")
    with pytest.raises(ConversionError, match="too large for F16"):
        bake([lora], huge, tmp_path / "b.safetensors", weights=[1e6])
    assert not list(tmp_path.glob("*b.safetensors*"))


def save_folder(path: Path) -> Path:
    """The same model as diffusers saves it, the UNet in two shards, with a second precision beside it."""
    unet, text = path / "unet", path / "text_encoder"
    for folder in (unet, text):
        folder.mkdir(parents=True)
    shapes = {"down_blocks.0.attentions.0.proj_in.weight": (6, 5, 1, 1), "conv_in.weight": (6, 5, 3, 3)}
    for number, (key, shape) in enumerate(shapes.items(), 1):
        save_model(unet / f"diffusion_pytorch_model-0000{number}-of-00002.safetensors", {key: shape})
    save_model(unet / "diffusion_pytorch_model.fp16.safetensors", shapes, dtype="F16")
    index = {key: f"diffusion_pytorch_model-0000{n}-of-00002.safetensors" for n, key in enumerate(shapes, 1)}
    (unet / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    save_model(text / "model.safetensors", {"encoder.layers.0.mlp.fc1.weight": (6, 5)})
    (path / "model_index.json").write_text("{}")
    return path


def test_a_diffusers_folder_bakes_whole(tmp_path: Path) -> None:
    base = save_folder(tmp_path / "base")
    lora = save(tmp_path / "a.safetensors", part(PROJ))
    done = bake([lora], base, tmp_path / "out")
    assert done.layers == 1
    names = {str(path.relative_to(base)) for path in base.rglob("*") if path.is_file()}
    found = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert names - found == {"unet/diffusion_pytorch_model.fp16.safetensors"}  # it would be the model without the LoRA
    first = "unet/diffusion_pytorch_model-00001-of-00002.safetensors"
    same = {name for name in found if (base / name).read_bytes() == (tmp_path / "out" / name).read_bytes()}
    assert found - same == {first}
    before, after = (read_file(folder / first).tensors["down_blocks.0.attentions.0.proj_in.weight"].to_float64()
                     for folder in (base, tmp_path / "out"))  # fmt: skip
    np.testing.assert_allclose((after - before)[:, :, 0, 0], next(iter(deltas(lora).values())), atol=1e-6)
    assert ("text_encoder", "text_model.encoder.layers.0.mlp.fc1") in open_checkpoint(base).places
    (base / "unet" / "diffusion_pytorch_model.safetensors.index.json").unlink()
    with pytest.raises(ConversionError, match="several weight files"):
        open_checkpoint(base)
    shutil.rmtree(base / "unet")
    shutil.rmtree(base / "text_encoder")
    with pytest.raises(ConversionError, match="no model as diffusers saves it"):
        open_checkpoint(base)


def test_flux_bakes_into_either_layout(tmp_path: Path) -> None:
    """One fused qkv in the published file, three layers in diffusers' folder: the same rows change by the same numbers."""
    lora = save(tmp_path / "a.safetensors", part("lora_unet_double_blocks_0_img_attn_qkv", out=18))
    single = save_model(tmp_path / "flux.safetensors", {"double_blocks.0.img_attn.qkv.weight": (18, 5)})
    (tmp_path / "folder" / "transformer").mkdir(parents=True)
    keys = [f"transformer_blocks.0.attn.to_{letter}.weight" for letter in "qkv"]
    weights = "transformer/diffusion_pytorch_model.safetensors"
    save_model(tmp_path / "folder" / weights, dict.fromkeys(keys, (6, 5)))
    (wanted,) = deltas(lora).values()
    assert bake([lora], single, tmp_path / "b.safetensors").layers == 1
    assert bake([lora], tmp_path / "folder", tmp_path / "c").layers == 3

    def change(before: Path, after: Path, key: str) -> Any:
        return read_file(after).tensors[key].to_float64() - read_file(before).tensors[key].to_float64()

    whole = change(single, tmp_path / "b.safetensors", "double_blocks.0.img_attn.qkv.weight")
    parts = [change(tmp_path / "folder" / weights, tmp_path / "c" / weights, key) for key in keys]
    np.testing.assert_allclose(whole, wanted, atol=1e-6)
    np.testing.assert_allclose(np.concatenate(parts), wanted, atol=1e-6)


def test_extraction_finds_the_lora_that_was_baked(tmp_path: Path) -> None:
    base = save_model(tmp_path / "base.safetensors", MODEL)
    resnet = "lora_unet_down_blocks_0_resnets_0_conv1"
    lora = save(
        tmp_path / "a.safetensors", part(PROJ, kernel=1), part(FC1, scale=2), part(resnet, kernel=3, inputs=6),
        part("lora_unet_conv_in", kernel=3),
    )  # fmt: skip
    bake([lora], base, tmp_path / "tuned.safetensors")
    extract(base, tmp_path / "tuned.safetensors", tmp_path / "b.safetensors", Cut(rank=2), dtype="F32")
    wanted, found = deltas(lora), deltas(tmp_path / "b.safetensors")
    assert set(found) == {"unet.down_blocks.0.attentions.0.proj_in", "text_encoder.text_model.encoder.layers.0.mlp.fc1"}
    done = extract(
        base, tmp_path / "tuned.safetensors", tmp_path / "c.safetensors", Cut(rank=2, conv_rank=2), dtype="F32"
    )
    found = deltas(tmp_path / "c.safetensors")
    assert set(found) == set(wanted) - {"unet.conv_in"}
    for layer, delta in found.items():
        np.testing.assert_allclose(delta, wanted[layer], atol=2e-6)
    assert done.error < 1e-5
    assert done.lora.metadata["ss_base_model_version"] == "sd_v1"
    assert done.lora.metadata["modelspec.architecture"] == "stable-diffusion-v1/lora"
    clamped = extract(
        base, tmp_path / "tuned.safetensors", tmp_path / "d.safetensors", Cut(rank=2, clamp=0.7), dtype="F32"
    )
    assert clamped.error > 0.05
    lone = Cut(rank=2, least=float(np.max(np.abs(wanted["unet.down_blocks.0.attentions.0.proj_in"]))) * 1.001)
    kept = extract(base, tmp_path / "tuned.safetensors", tmp_path / "e.safetensors", lone, dtype="F32").lora.modules
    assert {name.component for name in kept} == {"text_encoder"}


def test_what_cannot_be_extracted(tmp_path: Path) -> None:
    base = save_model(tmp_path / "base.safetensors", MODEL)
    with pytest.raises(ConversionError, match="do not differ"):
        extract(base, base, tmp_path / "b.safetensors", Cut(rank=2))
    other = {key: (6, 2048) if "to_k" in key else shape for key, shape in MODEL.items()}
    sdxl = save_model(tmp_path / "sdxl.safetensors", other)
    with pytest.raises(ConversionError, match="different kinds: Stable Diffusion 1 and SDXL") as caught:
        extract(base, sdxl, tmp_path / "b.safetensors", Cut(rank=2))
    assert caught.value.keys == ("unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k",)
    for wrong in ({"rank": 0}, {"rank": 1, "clamp": 0.0}, {"rank": 1, "clamp": 2.0}):
        with pytest.raises(ConversionError):
            Cut(**wrong)  # type: ignore[arg-type]


def test_blocks_are_counted_from_the_names() -> None:
    """SDXL's table of names, made elsewhere from sd-scripts, and places of SD 1 that every tool agrees on."""
    from converters import stability

    layers, attentions = stability.places()
    inner = ("norm", "proj_in", "transformer_blocks.0.attn1.to_q", "transformer_blocks.1.ff.net.0.proj")
    dotted = {
        place.replace("_", ".").replace("input.blocks", "input_blocks").replace("output.blocks", "output_blocks")
        .replace("middle.block", "middle_block").replace("in.layers", "in_layers").replace("out.layers", "out_layers")
        .replace("emb.layers", "emb_layers").replace("skip.connection", "skip_connection")
        .replace("time.embed", "time_embed").replace("label.emb", "label_emb"): path
        for place, path in layers.items()
    }  # fmt: skip
    absent = {"input_blocks.1.1", "input_blocks.2.1", "output_blocks.6.1", "output_blocks.7.1", "output_blocks.8.1"}
    names = set(dotted)
    for place in attentions:
        head = place.replace("_blocks_", "_blocks.").replace("middle_block_", "middle_block.").replace("_1", ".1")
        names |= {f"{head}.{part}" for part in inner} if head not in absent else set()
    found = {path.replace(".", "_") for _, path in name_unet(names)}
    real = {place: path for place, path in dotted.items() if not re.search(r"middle_block.*skip", place)}
    assert {place: path.replace(".", "_") for place, path in name_unet(set(dotted))} == real
    assert "down_blocks_1_attentions_0_proj_in" in found and "up_blocks_0_attentions_2_proj_in" in found
    sd15 = {f"input_blocks.{n}.0.op" for n in (3, 6, 9)} | {f"output_blocks.{n}.0.in_layers.2" for n in range(12)}
    sd15 |= {f"input_blocks.{n}.0.in_layers.2" for n in (1, 2, 4, 5, 7, 8, 10, 11)} | {"input_blocks.0.0", "out.2"}
    sd15 |= {"output_blocks.2.1.conv", "output_blocks.5.2.conv", "output_blocks.8.2.conv", "output_blocks.11.1.proj_in"}
    table = dict(name_unet(sd15))
    assert table["input_blocks.9.0.op"] == "down_blocks.2.downsamplers.0.conv"
    assert table["input_blocks.11.0.in_layers.2"] == "down_blocks.3.resnets.1.conv1"
    assert table["output_blocks.2.1.conv"] == "up_blocks.0.upsamplers.0.conv"
    assert table["output_blocks.11.1.proj_in"] == "up_blocks.3.attentions.2.proj_in"
    assert (table["input_blocks.0.0"], table["out.2"]) == ("conv_in", "conv_out")

"""`pixelkit convert` and `pixelkit lora` as a person types them: answers, errors, exit codes, nothing half-written."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest
from click.testing import CliRunner, Result

import converters
from converters import read_lora
from converters.metadata import hash_file
from converters.tensors import Tensor, encode, read_file, write_file
from pixelkit.cli import main
from pixelkit.cli.convert import OUTPUTS

if TYPE_CHECKING:
    from pathlib import Path

TO_Q = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
PROJ = "lora_unet_down_blocks_0_attentions_0_proj_in"
FC1 = "lora_te_text_model_encoder_layers_0_mlp_fc1"
BASE = {
    "model.diffusion_model.input_blocks.0.0.weight": (4, 4, 3, 3),
    "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight": (6, 5),
    "cond_stage_model.transformer.text_model.encoder.layers.0.mlp.fc1.weight": (6, 5),
}


def call(*arguments: object) -> Result:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
    return result


def done(*arguments: object) -> Result:
    result = call(*arguments)
    assert result.exit_code == 0, result.output
    return result


def fails(code: int, *arguments: object) -> str:
    result = call(*arguments)
    assert (result.exit_code, result.stdout) == (code, ""), result.output
    return result.stderr


def part(name: str, *, rank: int = 2, seed: int = 0, **others: str) -> dict[str, Tensor]:
    rng = np.random.default_rng(seed)
    return {
        f"{name}.lora_down.weight": encode(rng.normal(size=(rank, 5)), others.get("dtype", "F16")),
        f"{name}.lora_up.weight": encode(rng.normal(size=(6, rank)), others.get("dtype", "F16")),
        f"{name}.alpha": encode(1.5, "F16"),
    }


@pytest.fixture
def source(tmp_path: Path) -> Path:
    told = {"modelspec.trigger_phrase": "herotok", "ss_base_model_version": "sd_v1", "ss_tag_frequency": "x" * 300}
    write_file(tmp_path / "hero.safetensors", {**part(TO_Q), **part(FC1, rank=3)}, told)
    return tmp_path / "hero.safetensors"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    rng = np.random.default_rng(7)
    write_file(
        tmp_path / "base.safetensors", {key: encode(rng.normal(size=shape), "F32") for key, shape in BASE.items()}
    )
    return tmp_path / "base.safetensors"


def test_one_format_goes_to_the_path_itself(source: Path, tmp_path: Path) -> None:
    result = done("convert", source, "--to", "peft", "--out", tmp_path / "p")
    assert result.stdout.splitlines() == [str(tmp_path / "p" / "unet"), str(tmp_path / "p" / "text_encoder")]
    done("convert", tmp_path / "p", "--out", tmp_path / "back.safetensors")
    for key, tensor in read_file(source).tensors.items():
        assert bytes(read_file(tmp_path / "back.safetensors").tensors[key].raw) == bytes(tensor.raw)


def test_several_formats_go_into_a_folder(source: Path, tmp_path: Path) -> None:
    targets = [word for to in OUTPUTS for word in ("--to", to)]
    result = done("convert", source, *targets, "--out", tmp_path / "all")
    names = {path.name for path in (tmp_path / "all").iterdir()}
    assert names == {name.format(name="hero") for name in OUTPUTS.values()}
    assert "float32, to be exact" in result.stderr
    wanted = {name.path: module.delta() for name, module in read_lora(source)[1].modules.items()}
    for to, name in OUTPUTS.items():
        found, made = read_lora(tmp_path / "all" / name.format(name="hero"))
        assert found == to
        for place, module in made.modules.items():
            np.testing.assert_allclose(module.delta(), wanted[place.path], rtol=1e-6)
    assert "several --to need a folder" in fails(2, "convert", source, "--to", "peft", "--to", "kohya", "--out", source)


def test_the_formats_are_those_of_the_library_and_of_ship() -> None:
    from pixelkit.ship.export import NAMES

    assert list(OUTPUTS) == list(converters.FORMATS)
    assert {to: OUTPUTS[to] for to in NAMES} == dict(NAMES)


def test_errors_are_one_message_with_a_hint(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    out.write_text("mine")
    assert "--overwrite replaces it" in fails(10, "convert", source, "--to", "diffusers", "--out", out)
    assert out.read_text() == "mine"
    done("convert", source, "--to", "diffusers", "--out", out, "--overwrite")
    assert fails(2, "convert", source, "--to", "zip", "--out", tmp_path / "z").count("zip") == 1
    pickled = tmp_path / "a.pt"
    pickled.write_bytes(b"\x80\x02}q\x00.")
    assert "--unsafe-pickle" in fails(10, "convert", pickled, "--out", tmp_path / "z")
    assert "No such file" in fails(10, "lora", "show", tmp_path / "none.safetensors")
    write_file(tmp_path / "odd.safetensors", {**part(TO_Q), "bundle_emb.x": encode([1.0], "F32")})
    said = fails(10, "convert", tmp_path / "odd.safetensors", "--to", "peft", "--out", tmp_path / "z")
    assert said.startswith("bundle_emb.x\n") and "unknown keys" in said
    assert not (tmp_path / "z").exists()


def test_what_a_target_cannot_hold(tmp_path: Path) -> None:
    dora = {**part(TO_Q), f"{TO_Q}.dora_scale": encode(np.ones((6, 1)), "F16"), **part(FC1)}
    write_file(tmp_path / "dora.safetensors", dora)
    out = tmp_path / "x.lora.json"
    said = fails(10, "convert", tmp_path / "dora.safetensors", "--to", "catsith", "--out", out)
    assert "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q" in said
    result = done("convert", tmp_path / "dora.safetensors", "--to", "catsith", "--out", out, "--drop-unsupported")
    assert "1 left out" in result.stderr and "attn1.to_q" in result.stderr
    assert list(json.loads(out.read_text())["layers"]) == [FC1]


def test_show_says_what_is_there(source: Path) -> None:
    shown = done("lora", "show", source).stdout
    rows = dict(line.split(None, 1) for line in shown.splitlines() if line and not line.startswith(("base,", " ")))
    assert rows["format"] == "kohya"
    assert rows["base"] == "its layers do not tell"
    assert (rows["kinds"], rows["rank"], rows["alpha"]) == ("LoRA", "2 (1), 3 (1)", "1.5")
    assert rows["modules"] == "unet (1), text_encoder (1)" or rows["modules"] == "text_encoder (1), unet (1)"
    assert (rows["numbers"], rows["trigger"]) == ("F16", "herotok")
    assert rows["AutoV3"] == hash_file(source).auto_v3
    assert "sshs_model_hash" not in rows
    assert "base, as stated  Stable Diffusion 1" in shown
    assert "x... (300 letters)" in shown and "x" * 300 not in shown
    assert "x" * 300 in done("lora", "show", source, "--metadata").stdout


def test_show_tells_a_wrong_hash(source: Path, tmp_path: Path) -> None:
    done("convert", source, "--out", tmp_path / "signed.safetensors")
    assert "sshs_model_hash  true" in done("lora", "show", tmp_path / "signed.safetensors").stdout
    weights = read_file(tmp_path / "signed.safetensors")
    write_file(tmp_path / "wrong.safetensors", part(TO_Q, seed=5), weights.metadata)
    assert "NOT the hash of these tensors" in done("lora", "show", tmp_path / "wrong.safetensors").stdout


def test_merge_resize_bake_extract(source: Path, base: Path, tmp_path: Path) -> None:
    merged, small, baked, back = (tmp_path / f"{name}.safetensors" for name in ("merged", "small", "baked", "back"))
    result = done("lora", "merge", source, source, "--weight", 1, "--weight", 0.5, "--out", merged)
    assert result.stdout.splitlines()[-1] == str(merged)
    assert "2 modules, ranks 4 to 6" in result.stderr
    result = done("lora", "resize", merged, "--rank", 3, "--out", small)
    assert "error 0.0" in result.stderr and "rank" in result.stderr
    result = done("lora", "bake", small, "--into", base, "--out", baked)
    assert "2 layers changed" in result.stderr and result.stdout == f"{baked}\n"
    result = done("lora", "extract", base, baked, "--rank", 3, "--dtype", "F32", "--out", back)
    wanted = {name.path: 1.5 * module.delta() for name, module in read_lora(source)[1].modules.items()}
    for name, module in read_lora(back)[1].modules.items():
        np.testing.assert_allclose(module.delta(), wanted[name.path], atol=5e-3)  # the resized one is F16 or F32
    assert len(wanted) == 2
    done("lora", "resize", merged, "--keep", "fro", 0.5, "--out", small, "--overwrite")
    assert {module.rank for module in read_lora(small)[1].modules.values()} == {2}


def test_commands_refuse_what_makes_no_sense(source: Path, base: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    assert "2 --weight for 1 LoRAs" in fails(2, "lora", "merge", source, "--weight", 1, "--weight", 2, "--out", out)
    assert "needs a rank" in fails(10, "lora", "resize", source, "--out", out)
    assert "no checkpoint of a known kind" in fails(10, "lora", "bake", source, "--into", source, "--out", out)
    assert "a whole checkpoint" in fails(10, "lora", "resize", base, "--rank", 1, "--out", out)
    write_file(tmp_path / "proj.safetensors", part(PROJ))
    said = fails(10, "lora", "bake", tmp_path / "proj.safetensors", "--into", base, "--out", out)
    assert "\nunet.down_blocks.0.attentions.0.proj_in\n" in said and "has no such layers" in said
    assert "do not differ" in fails(10, "lora", "extract", base, base, "--rank", 1, "--out", out)
    assert not out.exists()


def test_help_needs_no_library() -> None:
    """Importing the commands loads none of what only their work needs."""
    before = dict(sys.modules)
    try:
        for name in list(sys.modules):
            if name.split(".")[0] in {"pixelkit", "converters", "numpy", "rich", "torch"}:
                del sys.modules[name]
        __import__("pixelkit.cli.convert")
        loaded = {name.split(".")[0] for name in sys.modules}
        assert not loaded & {"numpy", "rich", "torch", "converters"}
    finally:
        sys.modules.clear()
        sys.modules.update(before)

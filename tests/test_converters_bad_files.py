"""Files that are broken, lie, or are something else: one clear error each, nothing written, no code run."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import converters
from converters import ConversionError, convert, read_lora
from converters.lora import Written
from converters.tensors import Tensor, encode, write_file

if TYPE_CHECKING:
    from pathlib import Path

TO_Q = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
TO_K = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
FC1 = "lora_te_text_model_encoder_layers_0_mlp_fc1"


def module(name: str, *, inputs: int = 3, value: float = 1.0) -> dict[str, Tensor]:
    return {
        f"{name}.lora_down.weight": encode(np.full((2, inputs), value), "F16"),
        f"{name}.lora_up.weight": encode(np.ones((4, 2)), "F16"),
        f"{name}.alpha": encode(1.0, "F16"),
    }


def save(path: Path, *parts: dict[str, Tensor], **metadata: str) -> Path:
    write_file(path, {key: tensor for part in parts for key, tensor in part.items()}, metadata)
    return path


def refused(tmp_path: Path, source: Path, message: str) -> ConversionError:
    with pytest.raises(ConversionError, match=message) as caught:
        convert(source, "peft", tmp_path / "out")
    assert str(source) in str(caught.value)
    assert str(caught.value).count("\n") <= 11  # the message, ten keys, how many more
    assert not (tmp_path / "out").exists()
    return caught.value


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (b"<!DOCTYPE html><html><body>Log in</body></html>", "a web page"),
        (b"\n  <html lang='en'>", "a web page"),
        (b"\xef\xbb\xbf<HTML>", "a web page"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code>", "an XML error"),
        (b'{"error": "Unauthorized"}', "an error message"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "a Git LFS pointer"),
        (b"PK\x03\x04" + b"\0" * 60, "a pickle"),
        (b"\x80\x02}q\x00.", "a pickle"),
        (b"\x80\x04\x95" + b"\0" * 30, "a pickle"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 60, "a picture"),
        (b"\x1f\x8b\x08" + b"\1" * 60, "an archive"),
        (b"GGUF" + b"\3\0\0\0" * 8, "GGUF"),
        (b"\0" * 900, "nothing but zeros"),
        (b"", "is empty"),
        (b"\xff" * 40, "not a safetensors file"),
        ((2**40).to_bytes(8, "little") + b"{}" * 40, "not a safetensors file"),
        ((90_000_000).to_bytes(8, "little") + b'{"a":' * 40, "cut short"),
    ],
)
def test_something_else_under_a_lora_s_name(tmp_path: Path, head: bytes, message: str) -> None:
    source = tmp_path / "hero.safetensors"
    source.write_bytes(head)
    refused(tmp_path, source, message)


def test_every_cut_of_a_file_is_noticed(tmp_path: Path) -> None:
    whole = save(tmp_path / "whole.safetensors", module(TO_Q)).read_bytes()
    source = tmp_path / "cut.safetensors"
    for length in range(len(whole)):
        source.write_bytes(whole[:length])
        with pytest.raises(ConversionError, match=r"cut short|is empty|not a safetensors file|zeros"):
            read_lora(source)
    source.write_bytes(whole + b"\0")
    refused(tmp_path, source, "after the last tensor")


def test_headers_that_lie_are_found_before_a_number_is_read(tmp_path: Path) -> None:
    whole = save(tmp_path / "whole.safetensors", module(TO_Q)).read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header, body = json.loads(whole[8 : 8 + length]), whole[8 + length :]
    up, down = f"{TO_Q}.lora_up.weight", f"{TO_Q}.lora_down.weight"
    source = tmp_path / "lie.safetensors"

    def lie(change: dict[str, Any], message: str) -> None:
        told = {key: {**entry, **change.get(key, {})} for key, entry in header.items()}
        text = json.dumps(told).encode()
        source.write_bytes(len(text).to_bytes(8, "little") + text + body)
        refused(tmp_path, source, message)

    first = header[down]["data_offsets"]
    lie({up: {"data_offsets": [first[0], first[0] + 16]}}, "overlap")
    lie({up: {"data_offsets": [10**12, 10**12 + 16]}}, r"gap or an overlap|cut short")
    lie({up: {"shape": [4, 3]}}, "16 bytes for a F16 tensor")
    lie({up: {"shape": [2**62, 2**62]}}, "16 bytes for a F16 tensor")
    lie({up: {"dtype": "F32"}}, "16 bytes for a F32 tensor")
    lie({up: {"shape": [-4, -2]}}, "whole numbers")
    text = json.dumps(header)[:-1] + f', "{up}": {json.dumps(header[up])}}}'
    source.write_bytes(len(text).to_bytes(8, "little") + text.encode() + body)
    assert refused(tmp_path, source, "occur twice").keys == (up,)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_numbers_that_are_none(tmp_path: Path, value: float) -> None:
    source = save(tmp_path / "a.safetensors", module(TO_Q), module(FC1, value=value))
    assert refused(tmp_path, source, "NaN or infinite").keys == (f"{FC1}.lora_down.weight",)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model.diffusion_model.input_blocks.0.0.weight", "a whole checkpoint"),
        ("double_blocks.0.img_attn.qkv.weight", "a whole checkpoint"),
        ("conditioner.embedders.0.transformer.x", "a whole checkpoint"),
        ("emb_params", "an embedding"),
        ("clip_g", "an embedding"),
        ("control_model.input_hint_block.0.weight", "a ControlNet"),
        ("first_stage_model.encoder.conv_in.weight", "a VAE"),
        ("down_blocks.0.resnets.0.conv1.weight", "a model's own weights"),
        ("text_model.encoder.layers.0.mlp.fc1.weight", "a text encoder"),
        ("something.else", "no LoRA of a known format"),
    ],
)
def test_other_models_than_loras(tmp_path: Path, name: str, message: str) -> None:
    refused(tmp_path, save(tmp_path / "a.safetensors", {name: encode([1.0], "F32")}), message)


@pytest.mark.parametrize(
    ("inputs", "metadata"),
    [
        (768, {"ss_base_model_version": "sdxl_base_v1-0"}),
        (2048, {"ss_base_model_version": "sd_v1"}),
        (1024, {"modelspec.architecture": "stable-diffusion-xl-v1-base/lora"}),
    ],
)
def test_a_lora_of_another_base_than_it_says(tmp_path: Path, inputs: int, metadata: dict[str, str]) -> None:
    source = save(tmp_path / "a.safetensors", module(TO_K, inputs=inputs), **metadata)
    assert "its layers are those of" in refused(tmp_path, source, "its metadata says").message


def test_bases_that_agree_or_that_nobody_knows(tmp_path: Path) -> None:
    for inputs, version in ((768, "sd_v1"), (1024, "sd_v2_v"), (2048, "sdxl_base_v1-0"), (64, "sd_v1"), (768, "mine")):
        source = save(tmp_path / "a.safetensors", module(TO_K, inputs=inputs), ss_base_model_version=version)
        assert read_lora(source)[0] == "kohya"


class Narrow:
    """A format that holds text encoders only, and writes their number."""

    def matches(self, source: object) -> bool:
        return False

    def write(self, lora: converters.Lora, out: Path, *, flat_text_encoder: bool) -> Written:
        others = [f"{name.component}.{name.path}" for name in lora.modules if name.component == "unet"]
        if others:
            raise ConversionError("this format cannot hold UNets", keys=others)
        out.write_text(str(len(lora.modules)))
        return Written(paths=(out,))


def test_what_a_target_cannot_hold_is_left_out_on_request_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(converters.FORMATS, "narrow", Narrow())  # type: ignore[arg-type, misc]
    source = save(tmp_path / "a.safetensors", module(TO_Q), module(FC1))
    with pytest.raises(ConversionError, match="cannot hold UNets") as caught:
        convert(source, "narrow", tmp_path / "b")
    place = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    assert caught.value.keys == (place,)
    done = convert(source, "narrow", tmp_path / "b", drop_unsupported=True)
    assert done.dropped == (place,)
    assert (tmp_path / "b").read_text() == "1"
    only = save(tmp_path / "c.safetensors", module(TO_Q))
    with pytest.raises(ConversionError, match="cannot hold UNets"):  # nothing would be left
        convert(only, "narrow", tmp_path / "d", drop_unsupported=True)


def test_the_source_is_never_overwritten(tmp_path: Path) -> None:
    source = save(tmp_path / "a.safetensors", module(TO_Q))
    before = source.read_bytes()
    with pytest.raises(ConversionError, match="never overwritten"):
        convert(source, "diffusers", source, overwrite=True)
    assert source.read_bytes() == before

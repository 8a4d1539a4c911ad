"""Hashes and modelspec. tests/slow/test_hashes.py holds the hashes against sd-scripts' own functions."""

from __future__ import annotations

import datetime
import hashlib
from typing import TYPE_CHECKING

import numpy as np
import pytest

from converters.errors import ConversionError
from converters.metadata import (
    ARCHITECTURES,
    build_minimum,
    build_modelspec,
    fingerprint_tensors,
    hash_file,
    hash_legacy,
    hash_tensors,
    read_thumbnail,
    sign,
    write_signed,
)
from converters.tensors import build_header, encode, order_names, read_file, write_file

if TYPE_CHECKING:
    from pathlib import Path

DATE = datetime.datetime(2025, 3, 4, 5, 6, 7, 89, tzinfo=datetime.UTC)
TENSORS = {"b": encode(np.arange(400_000), "F32"), "a": encode(np.arange(5), "F16")}


def test_hashes_are_those_of_the_bytes(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_file(path, TENSORS, {"k": "v"})
    data = path.read_bytes()
    body = data[8 + int.from_bytes(data[:8], "little") :]
    assert hash_tensors(TENSORS) == hashlib.sha256(body).hexdigest()
    found = hash_file(path)
    assert found.sha256 == hashlib.sha256(data).hexdigest()
    assert found.auto_v2 == found.sha256[:10]
    assert found.auto_v3 == hash_tensors(TENSORS)[:12]


def test_the_legacy_hash_sees_ss_keys_only() -> None:
    plain = build_header(TENSORS, {"ss_a": "1"}) + b"".join(TENSORS[name].raw for name in order_names(TENSORS))
    expected = hashlib.sha256(plain[0x100000:0x110000]).hexdigest()[:8]
    assert hash_legacy(TENSORS, {"ss_a": "1", "modelspec.title": "x" * 99}) == expected
    assert hash_legacy(TENSORS, {"ss_a": "1" * 99}) != expected
    tiny = {"a": encode([1.0], "F32")}
    assert hash_legacy(tiny, {}) == hashlib.sha256(b"").hexdigest()[:8]


def test_signing_makes_stale_hashes_true() -> None:
    stale = {"sshs_model_hash": "0", "modelspec.hash_sha256": "0x0", "modelspec.sai_model_spec": "1.0.1", "k": "v"}
    signed = sign(TENSORS, stale)
    assert signed["sshs_model_hash"] == hash_tensors(TENSORS)
    assert signed["modelspec.hash_sha256"] == f"0x{hash_tensors(TENSORS)}"
    assert signed["k"] == "v"
    assert sign(TENSORS, signed) == signed
    assert "modelspec.hash_sha256" not in sign(TENSORS, {})


def test_modelspec_has_what_it_must() -> None:
    spec = build_modelspec(
        family="sdxl", title="Hero", resolution=(1024, 768), date=DATE, trigger_phrase="hero", license_name="CC0-1.0"
    )
    assert spec == {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": "stable-diffusion-xl-v1-base/lora",
        "modelspec.implementation": "https://github.com/Stability-AI/generative-models",
        "modelspec.title": "Hero",
        "modelspec.resolution": "1024x768",
        "modelspec.date": "2025-03-04T05:06:07+00:00",
        "modelspec.license": "CC0-1.0",
        "modelspec.trigger_phrase": "hero",
        "modelspec.prediction_type": "epsilon",
    }


@pytest.mark.parametrize("family", [family for family in ARCHITECTURES if family != "sd21-v"])
def test_every_family_has_an_architecture(family: str) -> None:
    spec = build_modelspec(family=family, title="x", resolution=512, date=DATE, v_prediction=True)
    assert spec["modelspec.architecture"].endswith("/lora")
    assert ("modelspec.prediction_type" in spec) is (not family.startswith("flux"))


def test_writing_signed_is_signing_and_writing(tmp_path: Path) -> None:
    """Hashed beside the writing, header last: the same file; a source's pages are joined to fewer pieces."""
    for number, metadata in enumerate(({}, {"modelspec.sai_model_spec": "1.0.1", "ss_a": "é" * 99})):
        write_file(tmp_path / f"a{number}", TENSORS, sign(TENSORS, metadata))
        tensors = read_file(tmp_path / f"a{number}").tensors
        write_signed(tmp_path / f"b{number}", tensors, metadata)
        write_signed(tmp_path / f"c{number}", dict(reversed([*TENSORS.items()])), metadata)
        expected = (tmp_path / f"a{number}").read_bytes()
        assert (tmp_path / f"b{number}").read_bytes() == (tmp_path / f"c{number}").read_bytes() == expected


def test_a_fingerprint_sees_one_bit() -> None:
    other = {name: encode(tensor.to_float32() + 0, tensor.dtype) for name, tensor in TENSORS.items()}
    assert fingerprint_tensors(other) == fingerprint_tensors(TENSORS)
    other["b"].data[777_777] ^= 1
    assert fingerprint_tensors(other) != fingerprint_tensors(TENSORS)


def test_modelspec_holds_every_field_of_a_lora(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"\x89PNG\r\n\x1a\nrest")
    spec = build_modelspec(
        family="sd21", title="x", resolution=768, date=DATE, v_prediction=True, description="d", author="a",
        license_name="CC0-1.0", usage_hint="hint", trigger_phrase="hero", tags="pixel art,sprite", merged_from="a,b",
        thumbnail=read_thumbnail(tmp_path / "x.png"), encoder_layer="2", timestep_range=(0, 500), preprocessor="p",
        implementation_version="pixelkit/0",
    )  # fmt: skip
    assert spec["modelspec.thumbnail"] == "data:image/png;base64,iVBORw0KGgpyZXN0"
    assert spec["modelspec.timestep_range"] == "0,500"
    assert spec["modelspec.architecture"] == "stable-diffusion-v2-768-v/lora"
    assert spec["modelspec.prediction_type"] == "v"
    # All keys of the specification, but for the hash, which sign adds, and is_negative_embedding.
    assert {key.removeprefix("modelspec.") for key in sign(TENSORS, spec)} - {"sshs_model_hash", "sshs_legacy_hash"} == {
        "sai_model_spec", "architecture", "implementation", "title", "resolution", "description", "author", "date",
        "hash_sha256", "implementation_version", "license", "usage_hint", "thumbnail", "tags", "merged_from",
        "trigger_phrase", "prediction_type", "timestep_range", "encoder_layer", "preprocessor",
    }  # fmt: skip


def test_thumbnails_are_small_pictures(tmp_path: Path) -> None:
    for start, kind in ((b"\xff\xd8\xff\xe0", "jpeg"), (b"RIFF\0\0\0\0WEBP", "webp"), (b"GIF89a", "gif")):
        (tmp_path / "x").write_bytes(start)
        assert read_thumbnail(tmp_path / "x").startswith(f"data:image/{kind};base64,")
    for data, message in ((b"<svg/>", "no PNG"), (b"\x89PNG\r\n\x1a\n" + b"x" * (1 << 20), "too many")):
        (tmp_path / "x").write_bytes(data)
        with pytest.raises(ConversionError, match=message):
            read_thumbnail(tmp_path / "x")
    with pytest.raises(ConversionError, match="cannot be read"):
        read_thumbnail(tmp_path / "none.png")


def test_modelspec_refuses_what_it_does_not_know() -> None:
    with pytest.raises(ConversionError, match="a title"):
        build_modelspec(family="sd15", title="", resolution=512, date=DATE)
    with pytest.raises(ConversionError, match="within 0 and 1000"):
        build_modelspec(family="sd15", title="x", resolution=512, date=DATE, timestep_range=(500, 100))
    with pytest.raises(ConversionError, match="no modelspec architecture for sd9"):
        build_modelspec(family="sd9", title="x", resolution=512, date=DATE)
    with pytest.raises(ConversionError, match="data URL"):
        build_modelspec(family="sd15", title="x", resolution=512, date=DATE, thumbnail="x.png")


def test_the_minimum_says_what_the_network_is(tmp_path: Path) -> None:
    found = build_minimum(base_model_version="sd_v1", rank=8, alpha=4.0, network_args={"conv_dim": 4})
    assert found["ss_network_module"] == "networks.lora"
    assert found["ss_network_args"] == '{"conv_dim": 4}'
    write_file(tmp_path / "x.safetensors", TENSORS, sign(TENSORS, found))
    assert read_file(tmp_path / "x.safetensors").metadata["ss_v2"] == "False"

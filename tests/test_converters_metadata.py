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
    hash_file,
    hash_legacy,
    hash_tensors,
    sign,
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


def test_modelspec_refuses_what_it_does_not_know() -> None:
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

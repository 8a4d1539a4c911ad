"""Our hashes and our modelspec against the functions of sd-scripts that other tools took theirs from."""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING

import numpy as np
import pytest

from converters.metadata import ARCHITECTURES, build_minimum, build_modelspec, hash_file, hash_tensors, sign
from converters.tensors import Tensor, encode, write_file

if TYPE_CHECKING:
    from pathlib import Path

torch = pytest.importorskip("torch")
METADATA = {"ss_tag_frequency": '{"héro \\" 猫": 3}\n\t\x01', "ss_steps": "12", "modelspec.title": "left out"}


@pytest.fixture
def train_util(sd_scripts: Path, monkeypatch: pytest.MonkeyPatch) -> object:
    monkeypatch.syspath_prepend(str(sd_scripts))
    from library import train_util

    return train_util


@pytest.mark.parametrize("size", [10, 300_000, 3_000_000])
def test_sshs_hashes(train_util: object, size: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weights = {
        "b.lora_up.weight": torch.from_numpy(rng.normal(size=size)).bfloat16(),
        "a.lora_down.weight": torch.from_numpy(rng.normal(size=size)).float(),
        "c.alpha": torch.tensor(4.0).half(),
    }
    ours = {
        name: Tensor(
            dtype={torch.bfloat16: "BF16", torch.float32: "F32", torch.float16: "F16"}[tensor.dtype],
            shape=tuple(tensor.shape),
            data=tensor.reshape(-1).view(torch.uint8).numpy(),
        )
        for name, tensor in weights.items()
    }
    model_hash, legacy_hash = train_util.precalculate_safetensors_hashes(weights, METADATA)  # type: ignore[attr-defined]
    signed = sign(ours, METADATA)
    assert (signed["sshs_model_hash"], signed["sshs_legacy_hash"]) == (model_hash, legacy_hash)
    path = tmp_path / "x.safetensors"
    write_file(path, ours, signed)
    assert hash_file(path).sha256 == train_util.calculate_sha256(str(path))  # type: ignore[attr-defined]
    assert hash_file(path).auto_v3 == model_hash[:12] == hash_tensors(ours)[:12]


@pytest.mark.parametrize(
    ("family", "v_prediction", "arguments"),
    [
        ("sd15", False, {}),
        ("sd15", True, {"v_parameterization": True}),
        ("sd21", False, {"v2": True}),
        ("sd21", True, {"v2": True, "v_parameterization": True}),
        ("sdxl", False, {"sdxl": True}),
        ("sd35", False, {"model_config": {"sd3": "5-large"}}),
        ("flux-dev", False, {"model_config": {"flux": "dev"}}),
        ("flux-schnell", False, {"model_config": {"flux": "schnell"}}),
    ],
)
def test_modelspec(train_util: object, family: str, v_prediction: bool, arguments: dict[str, object]) -> None:
    from library import sai_model_spec

    plain = {"v2": False, "v_parameterization": False, "sdxl": False, "lora": True, "textual_inversion": False}
    now = datetime.datetime(2025, 3, 4, 5, 6, 7)
    theirs = sai_model_spec.build_metadata(None, **(plain | arguments), timestamp=now.timestamp(), title="x", reso=512)
    theirs.pop("modelspec.implementation_version")
    assert build_modelspec(family=family, title="x", resolution=512, date=now, v_prediction=v_prediction) == theirs
    assert family in ARCHITECTURES


def test_minimum(train_util: object) -> None:
    found = build_minimum(base_model_version="sd_v1", rank=8, alpha=4.0, network_args={"conv_dim": 4})
    theirs = train_util.build_minimum_network_metadata(  # type: ignore[attr-defined]
        "False", "sd_v1", "networks.lora", "8", "4.0", {"conv_dim": 4}
    )
    assert found == theirs
    assert set(found) == set(train_util.SS_METADATA_MINIMUM_KEYS)  # type: ignore[attr-defined]
    assert bytes(encode([1.0], "BF16").raw) == b"\x80\x3f"

"""What A1111 and its heirs show of a file that we wrote, by their own rules.

Modelled, from stable-diffusion-webui: modules/sd_models.py (read_metadata_from_safetensors: header checked for `{"`, texts
that begin with `{` read as JSON), modules/hashes.py (addnet_hash_safetensors), extensions-builtin/Lora/network.py
(NetworkOnDisk: alias, order, version) and ui_edit_user_metadata.py (build_tags, get_metadata_table). Left out: their
caches, HTML, and the user's own `<name>.json`, which is a sidecar.
"""

from __future__ import annotations

import datetime
import hashlib
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from converters import convert
from converters.metadata import build_minimum, build_modelspec, hash_file, write_signed
from converters.tensors import encode

if TYPE_CHECKING:
    from pathlib import Path

NAME = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q"
DATE = datetime.datetime(2025, 3, 4, tzinfo=datetime.UTC)
ORDER = ["ss_sd_model_name", "ss_resolution", "ss_clip_skip", "ss_num_train_images", "ss_tag_frequency"]
TAGS = {"10_hero": {"hero": 12, "pixel art": 12, " facing left ": 4}, "2_tree": {"tree": 3, "pixel art": 3}}


def read_metadata(path: Path) -> dict[str, Any]:
    with path.open("rb") as handle:
        length = int.from_bytes(handle.read(8), "little")
        start = handle.read(2)
        assert length > 2 and start in (b'{"', b"{'")
        header = json.loads(start + handle.read(length - 2))
    found = {}
    for key, value in header.get("__metadata__", {}).items():
        found[key] = value
        if isinstance(value, str) and value[0:1] == "{":
            found[key] = json.loads(value)
    return dict(sorted(found.items(), key=lambda item: ORDER.index(item[0]) if item[0] in ORDER else 999))


def hash_for_addnet(path: Path) -> str:
    data = path.read_bytes()
    return hashlib.sha256(data[8 + int.from_bytes(data[:8], "little") :]).hexdigest()


def detect_version(metadata: dict[str, Any]) -> str:
    if str(metadata.get("ss_base_model_version", "")).startswith("sdxl_"):
        return "SDXL"
    if str(metadata.get("ss_v2", "")) == "True":
        return "SD2"
    return "SD1" if metadata else "Unknown"


def build_tags(metadata: dict[str, Any]) -> list[tuple[str, int]]:
    tags: dict[str, int] = {}
    for counts in metadata.get("ss_tag_frequency", {}).values():
        for tag, count in counts.items():
            tags[tag.strip()] = tags.get(tag.strip(), 0) + int(count)
    return sorted(tags.items(), key=lambda item: -item[1])


@pytest.mark.parametrize(
    ("family", "version", "v2", "shown"),
    [
        ("sd15", "sd_v1", False, "SD1"),
        ("sd21", "sd_v2", True, "SD2"),
        ("sdxl", "sdxl_base_v1-0", False, "SDXL"),
    ],
)
@pytest.mark.parametrize("way", ["", "peft", "diffusers", "catsith", "catsith-compact"])
def test_a1111_reads_it_back(tmp_path: Path, family: str, version: str, v2: bool, shown: str, way: str) -> None:
    """Also after a way through another format, with the hashes of the tensors that are there now."""
    context = {"sd15": 768, "sd21": 1024, "sdxl": 2048}[family]
    name = NAME.replace("attn1_to_q", "attn2_to_k")
    tensors = {
        f"{name}.lora_down.weight": encode(np.ones((2, context)), "F16"),
        f"{name}.lora_up.weight": encode(np.ones((640, 2)), "F16"),
        f"{name}.alpha": encode(1.0, "F16"),
    }
    metadata = {
        **build_minimum(base_model_version=version, rank=2, alpha=1.0, v2=v2),
        **build_modelspec(
            family=family, title="Hero", resolution=512, date=DATE, trigger_phrase="hero", usage_hint="0.8"
        ),
        "ss_output_name": "hero_v1",
        "ss_tag_frequency": json.dumps(TAGS),
        "ss_resolution": "(512, 512)",
        "ss_bucket_info": json.dumps({"buckets": {"0": {"resolution": [512, 512], "count": 15}}}),
        "ss_dataset_dirs": json.dumps({"10_hero": {"n_repeats": 10, "img_count": 4}}),
        "sshs_model_hash": "stale",
    }
    path = tmp_path / "other-name.safetensors"
    write_signed(path, tensors, metadata)
    if way:
        convert(path, way, tmp_path / "between")
        path = tmp_path / "back.safetensors"
        convert(tmp_path / "between", "kohya", path)
    found = read_metadata(path)
    assert list(found)[:2] == ["ss_resolution", "ss_tag_frequency"]
    assert found["ss_output_name"] == "hero_v1"
    assert detect_version(found) == shown
    assert build_tags(found) == [("pixel art", 15), ("hero", 12), ("facing left", 4), ("tree", 3)]
    assert sum(int(folder["img_count"]) for folder in found["ss_dataset_dirs"].values()) == 4
    assert found["ss_bucket_info"]["buckets"]["0"]["count"] == 15
    assert found["sshs_model_hash"] == hash_for_addnet(path)
    assert found["modelspec.hash_sha256"] == f"0x{hash_for_addnet(path)}"
    assert (found["modelspec.title"], found["modelspec.trigger_phrase"]) == ("Hero", "hero")
    hashes = hash_file(path)
    assert hashes.auto_v3 == found["sshs_model_hash"][:12]
    assert hashes.auto_v2 == hashlib.sha256(path.read_bytes()).hexdigest()[:10]

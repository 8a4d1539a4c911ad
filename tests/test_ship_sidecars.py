"""What lies beside a shipped LoRA: sidecars, a workflow whose links hold, pictures that were only enlarged or thinned."""

from __future__ import annotations

import base64
import io
import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from converters.metadata import FileHashes
from converters.sidecars import (
    BaseFiles,
    Card,
    Drawing,
    build_workflow,
    describe_for_civitai_helper,
    describe_for_lora_manager,
    describe_for_webui,
)
from pixelkit.evaluate.samples import Picture
from pixelkit.ship.loading import read_answer
from pixelkit.ship.pictures import THUMBNAIL, choose_sample, draw_preview, draw_thumbnail, fit_picture

if TYPE_CHECKING:
    from pathlib import Path

# Inputs that are required, as ComfyUI's nodes.py and comfy_extras have them.
NODES = {
    "CheckpointLoaderSimple": {"ckpt_name"},
    "UNETLoader": {"unet_name", "weight_dtype"},
    "DualCLIPLoader": {"clip_name1", "clip_name2", "type"},
    "TripleCLIPLoader": {"clip_name1", "clip_name2", "clip_name3"},
    "VAELoader": {"vae_name"},
    "LoraLoader": {"lora_name", "strength_model", "strength_clip", "model", "clip"},
    "ModelSamplingDiscrete": {"model", "sampling", "zsnr"},
    "ModelSamplingSD3": {"model", "shift"},
    "CLIPSetLastLayer": {"clip", "stop_at_clip_layer"},
    "CLIPTextEncode": {"text", "clip"},
    "FluxGuidance": {"conditioning", "guidance"},
    "EmptyLatentImage": {"width", "height", "batch_size"},
    "EmptySD3LatentImage": {"width", "height", "batch_size"},
    "KSampler": {
        "seed", "steps", "cfg", "sampler_name", "scheduler", "denoise", "model", "positive", "negative", "latent_image",
    },
    "VAEDecode": {"samples", "vae"},
    "ImageCrop": {"image", "width", "height", "x", "y"},
    "ImageScale": {"image", "upscale_method", "width", "height", "crop"},
    "SaveImage": {"images", "filename_prefix"},
}  # fmt: skip
OUTPUTS = {"CheckpointLoaderSimple": ["model", "clip", "vae"], "LoraLoader": ["model", "clip"]}
# What an input takes, and what a node gives, by its one output.
GIVES = {
    "UNETLoader": "model", "DualCLIPLoader": "clip", "TripleCLIPLoader": "clip", "VAELoader": "vae",
    "ModelSamplingDiscrete": "model", "ModelSamplingSD3": "model", "CLIPSetLastLayer": "clip",
    "CLIPTextEncode": "conditioning", "FluxGuidance": "conditioning", "EmptyLatentImage": "latent",
    "EmptySD3LatentImage": "latent", "KSampler": "latent", "VAEDecode": "image", "ImageCrop": "image",
    "ImageScale": "image",
}  # fmt: skip
TAKES = {"positive": "conditioning", "negative": "conditioning", "latent_image": "latent", "samples": "latent"}
TAKES |= {"images": "image"}
ENCODERS = {"clip_l": "l.safetensors", "clip_g": "g.safetensors", "t5xxl": "t5.safetensors", "ae": "ae.safetensors"}


def make_card(**changes: Any) -> Card:
    fields: dict[str, Any] = {
        "name": "hero", "title": "The hero", "base": "SDXL 1.0", "family": "sdxl", "trigger": "hero, pixel",
        "strength": 0.7, "text_encoder": True, "trained": datetime(2025, 1, 2, tzinfo=UTC), "size": 2048,
        "hashes": FileHashes(sha256="ab" * 32, auto_v2="ab" * 5, auto_v3="cd" * 6), "preview": "hero.preview.png",
    }  # fmt: skip
    return Card(**{**fields, **changes})


def make_drawing(**changes: Any) -> Drawing:
    fields: dict[str, Any] = {
        "prompt": "hero, a sword", "negative": "blur", "seed": 42, "steps": 25, "guidance": 7.0,
        "sampler": "euler_a", "width": 1024, "height": 1024, "cell": 16,
    }  # fmt: skip
    return Drawing(**{**fields, **changes})


def follow(workflow: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Class -> inputs, after every node and every link was checked."""
    for name, node in workflow.items():
        assert set(node["inputs"]) == NODES[node["class_type"]], name
        for key, value in node["inputs"].items():
            if isinstance(value, list):
                source, place = value
                kind = workflow[source]["class_type"]
                given = OUTPUTS[kind][place] if kind in OUTPUTS else GIVES[kind]
                assert place == 0 or kind in OUTPUTS
                assert given == TAKES.get(key, key), f"{name}.{key} takes what {source} gives"
    assert json.loads(json.dumps(workflow)) == workflow
    return {node["class_type"]: node["inputs"] for node in workflow.values()}


def test_the_workflow_of_sdxl() -> None:
    workflow = build_workflow(make_card(), BaseFiles(family="sdxl", checkpoint="base.safetensors"), make_drawing())
    nodes = follow(workflow)
    assert nodes["CheckpointLoaderSimple"]["ckpt_name"] == "base.safetensors"
    lora = nodes["LoraLoader"]
    assert (lora["lora_name"], lora["strength_model"], lora["strength_clip"]) == ("hero.safetensors", 0.7, 0.7)
    sampler = nodes["KSampler"]
    assert (sampler["sampler_name"], sampler["steps"], sampler["cfg"]) == ("euler_ancestral", 25, 7.0)
    assert sampler["model"] == ["lora", 0]
    assert workflow["positive"]["inputs"] == {"text": "hero, a sword", "clip": ["lora", 1]}
    scaled = nodes["ImageScale"]
    assert (scaled["upscale_method"], scaled["width"], scaled["height"]) == ("nearest-exact", 64, 64)
    assert "ImageCrop" not in nodes
    assert "ModelSamplingDiscrete" not in nodes


def test_no_strength_where_no_text_encoder_was_trained() -> None:
    base = BaseFiles(family="sdxl", checkpoint="x.safetensors")
    workflow = build_workflow(make_card(text_encoder=False), base, make_drawing())
    assert workflow["lora"]["inputs"]["strength_clip"] == 0
    assert "no text encoder was trained" in workflow["lora"]["_meta"]["title"]


def test_a_base_that_predicts_v() -> None:
    base = BaseFiles(family="sdxl", checkpoint="x.safetensors", v_prediction=True, zero_snr=True)
    workflow = build_workflow(make_card(), base, make_drawing())
    nodes = follow(workflow)
    assert nodes["ModelSamplingDiscrete"] == {"model": ["lora", 0], "sampling": "v_prediction", "zsnr": True}
    assert nodes["KSampler"]["model"] == ["sampling", 0]


def test_blocks_that_do_not_fill_the_canvas_are_cut_before_they_are_reduced() -> None:
    base = BaseFiles(family="sd15", checkpoint="x.safetensors", clip_skip=2)
    workflow = build_workflow(make_card(family="sd15"), base, make_drawing(width=512, height=512, cell=5))
    nodes = follow(workflow)
    assert (nodes["ImageCrop"]["width"], nodes["ImageScale"]["width"]) == (510, 102)
    assert nodes["ImageScale"]["image"] == ["whole_blocks", 0]
    assert nodes["CLIPSetLastLayer"]["stop_at_clip_layer"] == -2
    assert "ImageScale" not in follow(build_workflow(make_card(), base, make_drawing(cell=1)))


@pytest.mark.parametrize("family", ["flux", "sd3"])
def test_bases_with_files_of_their_own(family: Any) -> None:
    base = BaseFiles(family=family, checkpoint="model.safetensors", encoders=ENCODERS)
    nodes = follow(build_workflow(make_card(family=family), base, make_drawing(sampler="euler", guidance=3.5)))
    assert "EmptySD3LatentImage" in nodes
    if family == "flux":
        assert (nodes["FluxGuidance"]["guidance"], nodes["KSampler"]["cfg"]) == (3.5, 1.0)
        assert nodes["VAEDecode"]["vae"] == ["vae", 0]
        assert "CheckpointLoaderSimple" not in nodes
    else:
        assert nodes["VAEDecode"]["vae"] == ["model", 2]
        assert nodes["ModelSamplingSD3"]["shift"] == 3.0


def test_sidecars_say_what_the_card_says() -> None:
    webui = describe_for_webui(make_card(negative="blur"))
    assert (webui["sd version"], webui["activation text"], webui["preferred weight"]) == ("SDXL", "hero, pixel", 0.7)
    assert webui["negative text"] == "blur"
    assert describe_for_webui(make_card(family=None))["sd version"] == "Unknown"
    civitai = describe_for_civitai_helper(make_card())
    (file,) = civitai["files"]
    assert file["hashes"] == {"AutoV2": "AB" * 5, "AutoV3": "CD" * 6, "SHA256": "AB" * 32}
    assert (file["name"], file["sizeKB"]) == ("hero.safetensors", 2.0)
    assert (civitai["id"], civitai["model"]["type"]) == ("", "LORA")
    manager = describe_for_lora_manager(make_card())
    assert json.loads(manager["usage_tips"]) == {"strength": 0.7}
    assert manager["sha256"] == "ab" * 32
    assert not manager["from_civitai"]
    assert manager["preview_url"] == "hero.preview.png"


@pytest.mark.parametrize(("side", "cell", "shown"), [(32, 1, 512), (512, 8, 512), (1024, 16, 512), (1024, 3, 341)])
def test_a_preview_is_a_whole_multiple_or_fraction(tmp_path: Path, side: int, cell: int, shown: int) -> None:
    rng = np.random.default_rng(0)
    pixels = np.kron(
        rng.integers(0, 256, (side // cell, side // cell, 3), np.uint8), np.ones((cell, cell, 1), np.uint8)
    )
    pixels = np.pad(pixels, ((0, side - len(pixels)), (0, side - len(pixels)), (0, 0)))
    Image.fromarray(pixels).save(tmp_path / "x.png")
    with Image.open(io.BytesIO(draw_preview(tmp_path / "x.png", cell=cell))) as preview:
        found = np.asarray(preview)
    assert found.shape == (shown, shown, 3)
    factor, step = shown // side, side // shown
    again = pixels.repeat(factor, 0).repeat(factor, 1) if factor else pixels[step // 2 :: step, step // 2 :: step]
    assert (found == again[:shown, :shown]).all()


def test_a_thumbnail_is_a_small_data_url_of_true_pixels(tmp_path: Path) -> None:
    art = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(art.repeat(16, 0).repeat(16, 1)).save(tmp_path / "x.png")
    url = draw_thumbnail(tmp_path / "x.png", cell=16)
    head, _, data = url.partition(",")
    assert head == "data:image/png;base64"
    with Image.open(io.BytesIO(base64.b64decode(data))) as small:
        assert max(small.size) <= THUMBNAIL
        assert (np.asarray(small) == art.repeat(2, 0).repeat(2, 1)).all()


def test_a_fraction_takes_whole_blocks_only() -> None:
    assert fit_picture(Image.new("RGB", (1000, 300)), 128, cell=8).size == (125, 37)
    assert fit_picture(Image.new("RGB", (1030, 600)), 512).size == (343, 200)


def test_the_best_sample_has_the_most_pixels_in_the_palette(tmp_path: Path) -> None:
    pictures = {}
    for index, color in enumerate([(0, 0, 255), (255, 0, 0), (0, 255, 0)]):
        path = tmp_path / f"{index}.png"
        Image.new("RGB", (8, 8), color).save(path)
        pictures[index] = Picture(prompt="", seed=None, path=path)
    (tmp_path / "2.png").write_bytes(b"no picture")
    samples = {0: {}, 9: pictures}
    assert choose_sample(samples, [(255, 0, 0)]) == tmp_path / "1.png"
    assert choose_sample(samples, []) == tmp_path / "0.png"
    assert choose_sample({}, []) is None


def test_a_process_that_ended_without_an_answer_checked_nothing(tmp_path: Path) -> None:
    loading = read_answer("loading\nterminate called\n", -9, {"kohya": tmp_path / "x.safetensors"})
    assert (loading.checked, loading.checks, loading.parity) == (None, (), None)
    assert "signal 9" in loading.why
    assert "terminate called" in loading.why
    assert "were not loaded again" in loading.tell()[0]

"""A run in the words of those who will use the model: metadata in the file, sidecars, a workflow."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from typing import TYPE_CHECKING, Any

from converters.metadata import hash_file
from converters.sidecars import (
    BaseFiles,
    Card,
    Drawing,
    build_workflow,
    describe_for_civitai_helper,
    describe_for_lora_manager,
    describe_for_webui,
)
from converters.tensors import read_file
from pixelkit.ship.sidecar import Sidecar

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime
    from pathlib import Path

    from pixelkit.plan import Plan

TAGS = ("pixel art",)
# Civitai's words for the bases of presets/bases; a base of another layout is none of its kinds.
_CIVITAI: Mapping[str, str] = {
    "sd15": "SD 1.5",
    "sd21": "SD 2.1 768",
    "sdxl": "SDXL 1.0",
    "animagine": "SDXL 1.0",
    "pony": "Pony",
    "illustrious": "Illustrious",
    "noobai-vpred": "NoobAI",
    "sd35": "SD 3.5 Medium",
    "sd35-large": "SD 3.5 Large",
    "flux-dev": "Flux.1 D",
}
_CIVITAI_FAMILIES: Mapping[str, str] = {"sd15": "SD 1.5", "sd2": "SD 2.1", "sdxl": "SDXL 1.0", "sd3": "SD 3"}


def describe_model(plan: Plan, trained: datetime, *, thumbnail: str = "") -> dict[str, str]:
    """The modelspec keys that only we know; the trainer's own (architecture, resolution ...) stay as they are."""
    export, trigger, strength = plan.preset.export, plan.dataset.trigger, plan.preset.export.strength
    hint = f'Write "{trigger}" in the prompt. ' if trigger else ""
    known = {
        "title": export.title or plan.name,
        "author": export.author,
        "description": export.description,
        "license": export.license,
        "date": trained.isoformat(timespec="seconds"),
        "trigger_phrase": trigger,
        "usage_hint": f"{hint}Strength {strength:g}; less is subtler, above 1 artefacts show.",
        "tags": ", ".join(TAGS),
        "thumbnail": thumbnail,
    }
    return {f"modelspec.{key}": value for key, value in known.items() if value}


def describe_run(
    plan: Plan,
    trained: datetime,
    metrics: Mapping[str, float | None],
    *,
    exports: Sequence[Path],
    fingerprint: str,
    loading: Mapping[str, Any],
) -> Sidecar:
    """What `<name>.pixelkit.json` says."""
    return Sidecar(
        model_name=plan.name,
        base_model=plan.base.name,
        type={"lora": "lora", "model": "checkpoint", "embedding": "embedding"}[plan.makes],
        training_date=trained,
        dataset_name=plan.dataset.source.name,
        dataset_size=len(plan.dataset.sprites),
        dataset_version=fingerprint,
        hyperparameters={
            **(_describe_network(plan) if plan.makes == "lora" else {}),
            **(dataclasses.asdict(plan.embedding) if plan.embedding else {}),
            **(
                {"base_loras": [f"{path.name}:{strength:g}" for path, strength in plan.base_loras]}
                if plan.base_loras
                else {}
            ),
            **dataclasses.asdict(plan.train),
            "resolution": plan.dataset.resolution,
            "repeats": plan.dataset.repeats,
            "kohya": dict(plan.kohya),
        },
        metrics=metrics,
        trigger_words=tuple(word.strip() for word in plan.dataset.trigger.split(",") if word.strip()),
        recommended_strength=plan.preset.export.strength,
        status="staging",
        license=plan.preset.export.license,
        engine=plan.engine,
        exports=tuple(path.name for path in exports),
        loading=loading,
    )


def describe_line(plan: Plan) -> str:
    """The run in one line, for the sheet."""
    made = {
        "lora": [name_network(plan), f"rank {plan.network.rank}, alpha {plan.network.alpha:g}"],
        "model": ["whole model"],
        "embedding": [f"word of {plan.embedding.vectors} vectors" if plan.embedding else ""],
    }[plan.makes]
    parts = (
        f"{made[0]} on {plan.base.spec.title}",
        *made[1:],
        f"{len(plan.dataset.sprites)} sprites",
        f"{plan.train.steps:,} steps",
        f"engine {plan.engine}",
    )
    return " · ".join(parts)


def _describe_network(plan: Plan) -> dict[str, Any]:
    network = dataclasses.asdict(plan.network)
    return {**network, "start_from": plan.network.start_from.name if plan.network.start_from else None}


def name_network(plan: Plan) -> str:
    """The kind of network as people write it."""
    names = {"lora": "LoRA", "dora": "DoRA", "loha": "LoHa", "lokr": "LoKr", "dylora": "DyLoRA", "oft": "OFT"}
    return names[plan.network.kind]


def find_cell(plan: Plan) -> tuple[int, int, int]:
    """The canvas that most of the training was on, and the side of one sprite pixel's block there."""
    seen: Counter[tuple[int, int, int]] = Counter()
    for sprite in plan.dataset.sprites:
        canvas = sprite.canvas
        seen[canvas.width, canvas.height, canvas.scale] += sprite.repeats
    return max(seen, key=lambda canvas: (seen[canvas], canvas))


def describe_for_others(plan: Plan, model: Path, trained: datetime, *, preview: str) -> dict[str, str]:
    """File name -> JSON for the web UIs, Civitai Helper, Lora-Manager and ComfyUI; no workflow where none would run."""
    card = _make_card(plan, model, trained, preview=preview)
    contents: dict[str, Any] = {
        f"{plan.name}.json": describe_for_webui(card),
        f"{plan.name}.civitai.info": describe_for_civitai_helper(card),
        f"{plan.name}.metadata.json": describe_for_lora_manager(card),
    }
    if card.family:
        contents[f"{plan.name}.comfyui.json"] = build_workflow(card, _name_files(plan), _plan_drawing(plan))
    return {name: json.dumps(content, indent=2, ensure_ascii=False) + "\n" for name, content in contents.items()}


def _make_card(plan: Plan, model: Path, trained: datetime, *, preview: str) -> Card:
    spec, export = plan.base.spec, plan.preset.export
    known = spec.layout == "stock"  # of another layout is what these programs cannot load
    base = _CIVITAI.get(plan.base.name) or _CIVITAI_FAMILIES.get(spec.family, "Other")
    width, height, cell = find_cell(plan)
    notes = (
        f"Trained with pixelkit on {spec.title}: {len(plan.dataset.sprites)} sprites, {plan.train.steps} steps, "
        f"canvas {width}x{height}. Reduce pictures by {cell} with nearest neighbour to get the sprite's own pixels."
    )
    return Card(
        name=plan.name,
        title=export.title or plan.name,
        base=base if known else "Other",
        family=spec.family if known else None,
        trigger=plan.dataset.trigger,
        strength=export.strength,
        text_encoder=any(key.startswith("lora_te") for key in read_file(model).tensors),
        trained=trained,
        size=model.stat().st_size,
        hashes=hash_file(model),
        description=export.description,
        negative=plan.sample.negative,
        notes=f"{notes} Licence: {export.license}." if export.license else notes,
        tags=TAGS,
        preview=preview,
    )


def _name_files(plan: Plan) -> BaseFiles:
    spec = plan.base.spec
    usual = [plan.base.location.replace("\\", "/").rpartition("/")[2]] if plan.base.local else []
    return BaseFiles(
        family=spec.family,
        checkpoint=next(iter([*usual, *spec.files]), f"{plan.base.name}.safetensors"),
        encoders=spec.needs,
        v_prediction=bool(plan.kohya.get("v_parameterization", spec.v_parameterization)),
        zero_snr=bool(plan.kohya.get("zero_terminal_snr", spec.kohya.get("zero_terminal_snr", False))),
        clip_skip=plan.train.clip_skip,
    )


def _plan_drawing(plan: Plan) -> Drawing:
    width, height, cell = find_cell(plan)
    sample, spec = plan.sample, plan.base.spec
    trigger = plan.dataset.trigger
    prompt = next(iter(sample.prompts), trigger or next(sprite.caption for sprite in plan.dataset.sprites))
    return Drawing(
        prompt=prompt,
        negative=sample.negative,
        seed=sample.seed,
        steps=sample.steps,
        guidance=sample.guidance,
        sampler=sample.sampler if sample.sampler != "auto" else spec.sample.sampler,
        width=width,
        height=height,
        cell=cell,
    )

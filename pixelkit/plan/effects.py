"""Keys that were written and that this plan cannot give any effect: each is a warning, so that none is lost in silence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pixelkit.plan.model import Plan
    from pixelkit.preset import Family, Method, NetworkKind
    from pixelkit.preset_file import LoadedPreset

FLOW = frozenset({"flux", "sd3"})  # trained by flow matching, on transformers
STABLE_DIFFUSION = frozenset({"sd15", "sd2"})


@dataclass(frozen=True, kw_only=True)
class Idle:
    """`keys` (`table.key`, or `table.*`) do nothing where `when` is true of the plan, and `why`."""

    keys: tuple[str, ...]
    when: Callable[[Plan], bool]
    why: str


def _family(plan: Plan) -> Family:
    return plan.base.spec.family


def why_no_text_encoder(method: Method, kind: NetworkKind, family: Family) -> str:
    """Why a method or a kind of network cannot train the text encoder; empty where it can."""
    if method == "textual-inversion":
        return "textual-inversion trains a new word only"
    if method != "lora":
        return "sd-scripts trains FLUX's transformer only" if family == "flux" else ""
    return "oft turns the layers of the UNet or transformer only" if kind == "oft" else ""


def _lacks_text_encoder(plan: Plan) -> bool:
    return bool(why_no_text_encoder(plan.method, plan.network.kind, _family(plan)))


IDLE: tuple[Idle, ...] = (
    Idle(
        keys=("network.*",),
        when=lambda plan: plan.makes != "lora",
        why="only method = lora has a network",
    ),
    Idle(
        keys=("embedding.*",),
        when=lambda plan: plan.makes != "embedding",
        why="only method = textual-inversion makes a new word",
    ),
    Idle(
        keys=("network.factor",),
        when=lambda plan: plan.makes == "lora" and plan.network.kind != "lokr",
        why="only a lokr has one",
    ),
    Idle(
        keys=("network.unit",),
        when=lambda plan: plan.makes == "lora" and plan.network.kind != "dylora",
        why="only a dylora has one",
    ),
    Idle(
        keys=("network.dropout",),
        when=lambda plan: plan.makes == "lora" and plan.network.kind in {"dylora", "oft"},
        why="this kind of network has none",
    ),
    Idle(
        keys=("network.conv_alpha",),
        when=lambda plan: plan.makes == "lora" and plan.network.kind == "oft",
        why="oft has one alpha",
    ),
    Idle(
        keys=("train.min_snr_gamma", "train.noise_offset"),
        when=lambda plan: _family(plan) in FLOW,
        why="bases that learn by flow matching have no such term",
    ),
    Idle(
        keys=("network.conv_rank", "network.conv_alpha"),
        when=lambda plan: _family(plan) in FLOW and plan.makes == "lora",
        why="this base has no convolutions",
    ),
    Idle(
        keys=("network.conv_alpha",),
        when=lambda plan: plan.preset.network.conv_rank is None and _family(plan) not in FLOW and plan.makes == "lora",
        why="there is no conv_rank",
    ),
    Idle(
        keys=("train.caption_dropout",),
        when=lambda plan: plan.makes == "embedding",
        why="sd-scripts has none for textual inversion",
    ),
    Idle(
        keys=("train.clip_skip",),
        when=lambda plan: _family(plan) not in STABLE_DIFFUSION,
        why="this base always reads the same layer of its text encoders",
    ),
    Idle(
        keys=("train.text_encoder_learning_rate",),
        when=lambda plan: not plan.train.train_text_encoder and not _lacks_text_encoder(plan),
        why="the text encoder is not trained; train.text_encoder = true does",
    ),
    Idle(
        keys=("train.text_encoder", "train.text_encoder_learning_rate"),
        when=lambda plan: (
            bool(plan.preset.train.text_encoder or not plan.train.train_text_encoder) and _lacks_text_encoder(plan)
        ),
        why="this method, or this kind of network, does not train it",
    ),
    Idle(
        keys=("train.warmup_steps",),
        when=lambda plan: plan.train.scheduler == "constant",
        why='scheduler = "constant" has no warm-up; "constant_with_warmup" has',
    ),
    Idle(
        keys=("train.save_every_steps", "train.save_every_epochs"),
        when=lambda plan: plan.train.save_every_steps >= plan.train.steps,
        why="the training is over before",
    ),
    Idle(
        keys=("sample.*",),
        when=lambda plan: not plan.sample.prompts,
        why="without sample.prompts no pictures are drawn",
    ),
    Idle(
        keys=("sample.every_steps", "sample.every_epochs"),
        when=lambda plan: bool(plan.sample.prompts) and plan.sample.every_steps >= plan.train.steps,
        why="the training is over before",
    ),
    Idle(
        keys=("sample.sampler",),
        when=lambda plan: bool(plan.sample.prompts) and _family(plan) in FLOW,
        why="pictures of this base are drawn with its own sampler",
    ),
    Idle(
        keys=("sample.negative",),
        when=lambda plan: bool(plan.sample.prompts) and _family(plan) == "flux",
        why="FLUX is drawn without",
    ),
    Idle(
        keys=("dataset.class_prompt", "dataset.prior_weight"),
        when=lambda plan: not plan.dataset.class_sprites,
        why="there is no class_path",
    ),
    Idle(
        keys=("dataset.prior_weight",),
        when=lambda plan: (
            bool(plan.dataset.class_sprites) and plan.makes == "model" and _family(plan) not in STABLE_DIFFUSION
        ),
        why="sd-scripts' sdxl_train, sd3_train and flux_train weigh class images like all others",
    ),
    Idle(
        keys=("dataset.caption",),
        when=lambda plan: plan.preset.dataset.instance_prompt is not None,
        why="instance_prompt is the caption of all sprites",
    ),
    Idle(
        keys=("dataset.trigger",),
        when=lambda plan: plan.dataset.trigger not in (plan.preset.dataset.instance_prompt or plan.dataset.trigger),
        why="instance_prompt is the caption of all sprites, and the trigger words are not in it",
    ),
)


def find_idle(loaded: LoadedPreset, plan: Plan) -> Iterator[str]:
    """One line for each written key that does nothing."""
    for idle in IDLE:
        if not idle.when(plan):
            continue
        for name in idle.keys:
            table, _, key = name.partition(".")
            fields = type(getattr(loaded.preset, table)).model_fields if key == "*" else (key,)
            for field in fields:
                if loaded.is_written(table, field) and getattr(getattr(loaded.preset, table), field) not in {None, ()}:
                    yield f"{loaded.where(table, field)} {field} has no effect: {idle.why}"
    formats = [name for name in loaded.preset.export.formats if name != "kohya"]
    if formats and loaded.is_written("export", "formats"):
        where = f"{loaded.where('export', 'formats')} formats: no"
        if plan.makes != "lora":
            yield f"{where} {' and '.join(formats)}; what is no LoRA is shipped as the trainer wrote it"

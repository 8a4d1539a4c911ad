"""kohya sd-scripts as an engine: which script, which options, and what must not reach it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pixelkit.engines.adapter import ACCELERATE, CONFIG, EngineData, launch_command
from pixelkit.engines.kohya.networks import list_arguments, name_module
from pixelkit.engines.kohya.options import (
    check_kohya_table,
    list_changed_files,
    load_table,
    verify_config,
    verify_dataset_config,
)
from pixelkit.engines.kohya.rules import check_rules
from pixelkit.errors import Problem, RenderError
from pixelkit.plan.network import LYCORIS
from pixelkit.toml_text import format_value

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pixelkit.plan import Plan
    from pixelkit.process import Command
    from pixelkit.rundir import RunDir

DATASET = "dataset.toml"
PROMPTS = "prompts.json"
_WHOLE: Mapping[str, str] = {
    "sd15": "train_db",
    "sd2": "train_db",
    "sdxl": "sdxl_train",
    "sd3": "sd3_train",
    "flux": "flux_train",
}
SCRIPTS: Mapping[str, Mapping[str, str]] = {
    "lora": {
        "sd15": "train_network",
        "sd2": "train_network",
        "sdxl": "sdxl_train_network",
        "sd3": "sd3_train_network",
        "flux": "flux_train_network",
    },
    "dreambooth": _WHOLE,
    "finetune": _WHOLE,
    "textual-inversion": {
        "sd15": "train_textual_inversion",
        "sd2": "train_textual_inversion",
        "sdxl": "sdxl_train_textual_inversion",
    },
}
OPTIMIZERS: Mapping[str, str] = {
    "adamw": "AdamW",
    "adamw8bit": "AdamW8bit",
    "adafactor": "Adafactor",
    "lion": "Lion",
    "prodigy": "Prodigy",
    "sgd": "SGDNesterov",
}
SAMPLERS: Mapping[str, str] = {"ddim": "ddim", "euler": "euler", "euler_a": "euler_a", "dpm++": "dpmsolver++"}
MODELS_HINT = "put it into your models folder (`pixelkit config set models PATH`)"
_GRID = "the sprites' pixel grid rests on it"
_EXPORT = "set it in [export]"
# What pixelkit sets itself, because its own care rests on it, and where a preset says it.
OWNED: Mapping[str, str] = {
    "config_file": "pixelkit renders it",
    "output_config": "`pixelkit render` writes the configuration",
    "dataset_config": "pixelkit renders it",
    "dataset_class": "pixelkit renders the data set's file",
    "in_json": "pixelkit renders the data set's file",
    "caption_extension": "captions are .txt files",
    "caption_extention": "captions are .txt files",
    "enable_bucket": _GRID,
    "bucket_no_upscale": _GRID,
    "bucket_reso_steps": _GRID,
    "min_bucket_reso": _GRID,
    "max_bucket_reso": _GRID,
    "save_model_as": "files are safetensors",
    "output_name": "set name, at the top of the preset",
    "output_dir": "--runs DIR puts runs elsewhere",
    "train_data_dir": "set [dataset] path",
    "reg_data_dir": "set [dataset] class_path",
    "dataset_repeats": "set [dataset] repeats",
    "resolution": "set [dataset] resolution",
    "network_train_unet_only": "set [train] text_encoder",
    "train_text_encoder": "set [train] text_encoder",
    "stop_text_encoder_training": "set [train] text_encoder",
    "sample_prompts": "set [sample] prompts",
    "sample_sampler": "set [sample] sampler",
    "metadata_title": _EXPORT,
    "metadata_author": _EXPORT,
    "metadata_description": _EXPORT,
    "metadata_license": _EXPORT,
    "metadata_tags": _EXPORT,
    "token_string": "set [dataset] trigger",
    "resume": "`pixelkit resume RUN` does it",
    "pretrained_model_name_or_path": "set base, at the top of the preset",
    "base_weights": "it trains the wrong modules (networks/lora.py:1038); set base_loras, at the top of the preset",
    "base_weights_multiplier": "set base_loras, at the top of the preset",
}
DIFFUSION = frozenset({"sd15", "sd2", "sdxl"})


def script_of(plan: Plan) -> str | None:
    """The script of sd-scripts for a plan's method and family, or None where there is none."""
    return SCRIPTS[plan.method].get(plan.base.spec.family)


def check(plan: Plan, sd_scripts: Path | None) -> list[Problem]:
    """The engine, its commit, the base's further files, [kohya], and options that exclude each other."""
    problems = _check_checkout(sd_scripts)
    script = script_of(plan)
    if script is None:
        return [
            *problems,
            Problem(what=f"method = {plan.method}: not for {plan.base.spec.family}", hint='use method = "lora"'),
        ]
    if plan.base.spec.layout == "diffusers" and plan.method != "lora":
        return [
            *problems,
            Problem(
                what=f"method = {plan.method}: sd-scripts cannot load the layout of {plan.base.name}",
                hint='use method = "lora"',
            ),
        ]

    def where(key: str) -> str:
        return f"{plan.sources[f'kohya.{key}']} [kohya]"

    for key, value in plan.kohya.items():
        if key in OWNED:
            problems.append(Problem(where=where(key), what=f"{key}: pixelkit sets this itself", hint=OWNED[key]))
        elif found := check_kohya_table({key: value}, script, where):
            problems += found
        else:
            problems += _check_writable(key, value, where(key))
    if plan.train.gpus > 1 and plan.device in {"cpu", "mps"}:
        problems.append(
            Problem(
                where=f"{plan.sources['train.gpus']} [train]",
                what=f"gpus = {plan.train.gpus}: there is no GPU here",
                hint="remove it",
            )
        )
    if plan.base.spec.local_only and not plan.base.local:
        files = " or ".join(plan.base.spec.files)
        problems.append(Problem(what=f"{plan.base.name} must be a local file: {files}", hint=MODELS_HINT))
    for option, file in plan.base.spec.needs.items():
        path = plan.kohya.get(option) or plan.base.files.get(option)
        if not path:
            problems.append(
                Problem(
                    what=f"{plan.base.name} needs {file}",
                    hint=f'{MODELS_HINT}, or write [kohya] {option} = "/path/to/{file}"',
                )
            )
        elif not Path(str(path)).is_file():
            problems.append(Problem(where=where(option), what=f"{option} = {path}: no such file"))
    return problems


def _check_writable(key: str, value: object, where: str) -> list[Problem]:
    try:
        format_value(value)
    except RenderError as error:
        return [Problem(where=where, what=f"{key}: {error.message}", hint=error.hint)]
    return []


def _check_checkout(sd_scripts: Path | None) -> list[Problem]:
    if sd_scripts is None:
        return [Problem(what="sd-scripts is not found", hint="`pixelkit doctor` says how to get it")]
    if not (sd_scripts / "train_network.py").is_file():
        return [
            Problem(
                what=f"{sd_scripts} holds no train_network.py, so it is no sd-scripts checkout",
                hint="`pixelkit doctor` says how to get it",
            )
        ]
    if changed := list_changed_files(sd_scripts):
        commit = load_table().commit
        return [
            Problem(
                what=f"{sd_scripts} is not sd-scripts at {commit[:8]}; other than there: {', '.join(changed[:3])}",
                hint=f"git -C {sd_scripts} checkout {commit}",
            )
        ]
    return []


def context(plan: Plan, run: RunDir, data: EngineData) -> Mapping[str, Mapping[str, object]]:
    """Variables of config.toml, dataset.toml, prompts.json and accelerate.yaml."""
    spec, train = plan.base.spec, plan.train
    script = script_of(plan)
    assert script is not None
    known = load_table().options_of(script)
    stock = spec.layout == "stock"
    sides = [side for bucket in plan.dataset.buckets for side in (bucket.width, bucket.height)]
    config: dict[str, object] = {
        "name": plan.name,
        "script": script,
        "base": data.base or plan.base.location,
        "output_dir": run.output,
        "save_precision": train.save_precision,
        "v_parameterization": spec.v_parameterization,
        "files": {key: plan.kohya.get(key) or plan.base.files[key] for key in spec.needs},
        "network": _network(plan, data) if plan.makes == "lora" else None,
        "embedding": plan.embedding,
        "text_encoder_rates": _text_encoder_rates(plan),
        "train": train,
        "resolution": f"{plan.dataset.resolution},{plan.dataset.resolution}",
        "cache_text_encoder": train.cache_text_encoder and "cache_text_encoder_outputs" in known,
        "long_captions": stock and spec.family in DIFFUSION,
        "prior_weight": plan.dataset.prior_weight if data.class_images and "prior_loss_weight" in known else None,
        "optimizer": OPTIMIZERS.get(train.optimizer, train.optimizer),
        "optimizer_args": _optimizer_args(plan),
        "diffusion_loss": spec.family in DIFFUSION,
        "no_half_vae": spec.family == "sdxl",
        "stop_text_encoder": script == "train_db" and not train.train_text_encoder,
        "train_text_encoder_flag": "train_text_encoder" in known and train.train_text_encoder,
        "metadata": _metadata(plan),
        "prompts_file": run.config / PROMPTS if plan.sample.prompts else None,
        "sampler": SAMPLERS[plan.sample.sampler],
        "sample_every_steps": plan.sample.every_steps,
        "extra": _extra(plan),
    }
    dataset = {
        "train": train,
        "caption_dropout": 0 if script in load_table().no_dropout else train.caption_dropout,
        "keep_tokens": plan.kohya.get("keep_tokens", _count_parts(plan.dataset.trigger)),
        "dataset_resolution": plan.dataset.resolution,
        "bucket_step": spec.bucket_step,
        "min_bucket": min(*sides, plan.dataset.resolution),
        "max_bucket": max(*sides, plan.dataset.resolution),
        "images": data.images,
        "alpha_mask": plan.dataset.alpha == "mask",
        "class_images": data.class_images,
    }
    contexts: dict[str, Mapping[str, object]] = {
        CONFIG: config,
        DATASET: dataset,
        ACCELERATE: {"precision": train.precision, "cpu": plan.device == "cpu", "gpus": train.gpus},
    }
    if plan.sample.prompts:
        contexts[PROMPTS] = {"prompts": _prompts(plan)}
    return contexts


def _extra(plan: Plan) -> Mapping[str, object]:
    """[kohya] and what profile and base add to it. Lists of arguments come behind pixelkit's own: the last one wins."""
    own = {"network_args": list_arguments(plan), "optimizer_args": _optimizer_args(plan)}
    return {
        key: [*own.get(key, ()), *value] if isinstance(value, list) else value
        for key, value in plan.kohya.items()
        if key not in plan.base.spec.needs
    }


def _count_parts(trigger: str) -> int:
    """Parts between commas: so many stay in front when captions are shuffled."""
    return len([part for part in trigger.split(",") if part.strip()])


def _network(plan: Plan, data: EngineData) -> Mapping[str, object]:
    network = plan.network
    return {
        "module": name_module(plan),
        "rank": network.rank,
        "alpha": network.alpha,
        "dropout": 0 if network.kind in LYCORIS | {"dylora", "oft"} else network.dropout,
        "args": list_arguments(plan),
        "unet_only": not plan.train.train_text_encoder,
        "weights": data.weights,
    }


def _text_encoder_rates(plan: Plan) -> Mapping[str, object]:
    """The text encoders' learning rates under the names that each script has for them."""
    rate, family = plan.train.text_encoder_learning_rate, plan.base.spec.family
    if not plan.train.train_text_encoder:
        return {}
    if plan.makes == "lora":
        return {"text_encoder_lr": [rate] * (2 if family == "sdxl" else 1)}
    names = ("learning_rate_te",) if family in {"sd15", "sd2"} else ("learning_rate_te1", "learning_rate_te2")
    return dict.fromkeys(names, rate)


def _optimizer_args(plan: Plan) -> list[str]:
    if plan.train.optimizer == "adafactor":
        return ["relative_step=False", "scale_parameter=False", "warmup_init=False"]
    return ["fused=True"] if plan.train.optimizer == "adamw" and plan.train.fused_optimizer else []


def _metadata(plan: Plan) -> Mapping[str, str]:
    export = plan.preset.export
    texts = {
        "metadata_title": export.title or plan.name,
        "metadata_author": export.author,
        "metadata_description": export.description,
        "metadata_license": export.license,
        "metadata_tags": plan.dataset.trigger,
    }
    return {key: text for key, text in texts.items() if text}


def _prompts(plan: Plan) -> list[Mapping[str, object]]:
    sample = plan.sample
    # FLUX dev takes its distilled guidance; `scale` there is true CFG (library/flux_train_utils.py:158).
    guidance = (
        {"guidance_scale": sample.guidance, "scale": 1.0}
        if plan.base.spec.family == "flux"
        else {"scale": sample.guidance}
    )
    return [
        {
            "prompt": prompt,
            "negative_prompt": sample.negative,
            "width": sample.width,
            "height": sample.height,
            "sample_steps": sample.steps,
            **guidance,
            "seed": sample.seed + index,
            "sample_sampler": SAMPLERS[sample.sampler],
        }
        for index, prompt in enumerate(sample.prompts)
    ]


def verify(plan: Plan, files: Mapping[str, Path]) -> list[Problem]:
    """Both files read back with the engine's parser, every key held against the option table, then the rules."""
    import toml

    script = script_of(plan)
    assert script is not None
    problems = verify_config(files[CONFIG], script) + verify_dataset_config(files[DATASET], script)
    if problems:
        return problems
    options: dict[str, object] = {}
    for key, value in toml.load(files[CONFIG]).items():
        options.update(value if isinstance(value, dict) else {key: value})
    options["dataset_config"] = str(files[DATASET])
    dataset: dict[str, object] = toml.load(files[DATASET])
    # Our entry trains UNets of other layouts, whose latents are not those that the 64-pixel step is about.
    skip = frozenset({"bucket_step"} if plan.base.spec.layout == "diffusers" else ())
    return check_rules(script, options, dataset, skip=skip)


def command(plan: Plan, run: RunDir, data: EngineData, *, resume: Path | None = None) -> Command:
    """Our entry module under `accelerate launch`, in the checkout's folder."""
    assert data.sd_scripts is not None
    script = script_of(plan)
    assert script is not None
    arguments = ["--script", script, "--layout", plan.base.spec.layout]
    arguments += ["--images", str(data.root), "--latents", str(data.latents), "--"]
    arguments += ["--config_file", str(run.config / CONFIG), "--dataset_config", str(run.config / DATASET)]
    if resume:
        arguments += ["--resume", str(resume)]
    return launch_command(plan, run, module="pixelkit.engines.kohya.entry", arguments=arguments, cwd=data.sd_scripts)

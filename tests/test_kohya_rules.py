from __future__ import annotations

import json
import struct
from typing import TYPE_CHECKING, Any

import pytest

from pixelkit.engines.kohya.effective import Effective, Environment, read_rank, version_of
from pixelkit.engines.kohya.effective import has_module as is_installed
from pixelkit.engines.kohya.options import check_kohya_table, load_table
from pixelkit.engines.kohya.rules import RULES, check_rules
from pixelkit.errors import EngineError

if TYPE_CHECKING:
    from pathlib import Path

SCRIPTS = ("train_network", "sdxl_train_network", "flux_train_network", "sd3_train_network", "train_db", "sdxl_train")
MODULES = {"flux_train_network": "networks.lora_flux", "sd3_train_network": "networks.lora_sd3"}
EVERYTHING = Environment(has_module=lambda _: True, version_of=lambda _: "3.2.0", read_rank=lambda _: 16)
NOTHING = Environment(has_module=lambda _: False, version_of=lambda _: "", read_rank=lambda _: None)
LORA = "train_network"


def good_options(script: str) -> dict[str, Any]:
    options: dict[str, Any] = {
        "pretrained_model_name_or_path": "/base.safetensors",
        "output_dir": "/out",
        "max_train_steps": 100,
        "mixed_precision": "bf16",
        "optimizer_type": "AdamW",
        "cache_latents": True,
    }
    if script not in {"train_db", "sdxl_train"}:
        options |= {"network_module": MODULES.get(script, "networks.lora"), "network_train_unet_only": True}
    if script == "flux_train_network":
        options |= {"ae": "ae.sft", "clip_l": "clip_l.sft", "t5xxl": "t5.sft"}
    return options


def good_dataset() -> dict[str, Any]:
    subset = {"image_dir": "/sprites", "num_repeats": 2}
    return {
        "general": {"caption_extension": ".txt"},
        "datasets": [{"resolution": [512, 512], "enable_bucket": True, "subsets": [subset]}],
    }


def change(target: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """With the changes; None takes a key away."""
    return {key: value for key, value in {**target, **changes}.items() if value is not None}


def in_dataset(**changes: Any) -> dict[str, Any]:
    dataset = good_dataset()
    dataset["datasets"][0] = change(dataset["datasets"][0], changes)
    return dataset


def in_subset(**changes: Any) -> dict[str, Any]:
    dataset = good_dataset()
    dataset["datasets"][0]["subsets"][0] |= changes
    return dataset


def broken_rules(
    script: str, options: dict[str, Any], dataset: dict[str, Any], environment: Environment = EVERYTHING
) -> list[str]:
    effective = Effective(script=script, options=options, dataset=dataset, environment=environment)
    found = [rule.name for rule in RULES if (not rule.scripts or script in rule.scripts) and rule.broken(effective)]
    assert len(found) == len(check_rules(script, options, dataset, environment=environment))
    return found


# rule -> (script, options that break it, options that do not)
Case = tuple[str, dict[str, Any], dict[str, Any]]
OPTION_CASES: dict[str, Case] = {
    "data_given_twice": (LORA, {"reg_data_dir": "/reg"}, {}),
    "debug_dataset": (LORA, {"debug_dataset": True}, {"debug_dataset": False}),
    "latents_cached_and_changed": ("train_db", {"color_aug": True}, {"color_aug": True, "cache_latents": False}),
    "text_cached_and_changed": (
        "sdxl_train_network",
        {"cache_text_encoder_outputs_to_disk": True, "shuffle_caption": True},
        {"cache_text_encoder_outputs": True, "caption_dropout_rate": 0.0},
    ),
    "workers_missing": (
        LORA,
        {"persistent_data_loader_workers": True, "max_data_loader_n_workers": 0},
        {"persistent_data_loader_workers": True},
    ),
    "prompts_missing": ("flux_train_network", {"sample_at_first": True}, {"sample_every_n_steps": 0}),
    "prompts_unreadable": (
        LORA,
        {"sample_every_n_epochs": 1, "sample_prompts": "/prompts.md"},
        {"sample_every_n_epochs": 1, "sample_prompts": "/prompts.json"},
    ),
    "samples_given_twice": (
        LORA,
        {"sample_every_n_epochs": 1, "sample_every_n_steps": 50, "sample_prompts": "/prompts.txt"},
        {"sample_every_n_epochs": 0, "sample_every_n_steps": 50, "sample_prompts": "/prompts.txt"},
    ),
    "base_missing": ("train_db", {"pretrained_model_name_or_path": None}, {}),
    "base_files_missing": (
        "flux_train_network",
        {"clip_l": None},
        {"clip_l": None, "model_type": "chroma", "apply_t5_attn_mask": True},
    ),
    "network_missing": (LORA, {"network_module": None}, {}),
    "network_of_another_base": (LORA, {"network_module": "networks.lora_flux"}, {"network_module": "networks.dylora"}),
    "lycoris_preset": (  # with lycoris 4: below
        LORA,
        {"network_module": "lycoris.kohya"},
        {"network_module": "lycoris.kohya", "network_args": ["preset=attn-mlp"]},
    ),
    "network_args_form": (LORA, {"network_args": ["conv_dim"]}, {"network_args": ["conv_dim=8"]}),
    "nothing_to_train": (
        LORA,
        {"network_train_text_encoder_only": True},
        {"network_train_text_encoder_only": True, "network_train_unet_only": False},
    ),
    "base_weights": (LORA, {"base_weights": ["/a.safetensors"]}, {"base_weights": []}),
    "weights_of_another_rank": (
        LORA,
        {"network_weights": "/a.safetensors", "network_dim": 8},
        {"network_weights": "/a.safetensors", "network_dim": 16},
    ),
    "weights_missing": (
        LORA,
        {"dim_from_weights": True},
        {"dim_from_weights": True, "network_weights": "/a.safetensors", "network_dim": 16},
    ),
    "text_cached_and_trained": (
        "sdxl_train_network",
        {"cache_text_encoder_outputs": True, "network_train_unet_only": False},
        {"cache_text_encoder_outputs": True},
    ),
    "text_cached_and_tuned": (
        "sdxl_train",
        {"cache_text_encoder_outputs": True, "train_text_encoder": True},
        {"cache_text_encoder_outputs": True},
    ),
    "text_cached_and_weighted": (
        "sdxl_train",
        {"cache_text_encoder_outputs": True, "weighted_captions": True},
        {"weighted_captions": True},
    ),
    "t5_cached_and_trained": (
        "sd3_train_network",
        {"cache_text_encoder_outputs": True, "network_args": ["train_t5xxl=True"]},
        {"cache_text_encoder_outputs": True, "network_args": ["train_t5xxl=False"]},
    ),
    "chroma_mask": (
        "flux_train_network",
        {"model_type": "chroma"},
        {"model_type": "chroma", "apply_t5_attn_mask": True},
    ),
    "sdxl_v2": ("sdxl_train_network", {"v2": True}, {"v2": False}),
    "full_fp16": ("train_db", {"full_fp16": True}, {"full_fp16": True, "mixed_precision": "fp16"}),
    "full_bf16": (LORA, {"full_bf16": True, "mixed_precision": "no"}, {"full_bf16": True}),
    "fp8_base": ("flux_train_network", {"fp8_base_unet": True, "mixed_precision": "no"}, {"fp8_base": True}),
    "sdxl_half_vae": (
        "sdxl_train_network",
        {"mixed_precision": "fp16"},
        {"mixed_precision": "fp16", "no_half_vae": True},
    ),
    "swap_and_offload": (
        "flux_train_network",
        {"blocks_to_swap": 4, "cpu_offload_checkpointing": True},
        {"blocks_to_swap": 0, "cpu_offload_checkpointing": True},
    ),
    "offload_unsupported": (
        "sd3_train_network",
        {"gradient_checkpointing": True, "cpu_offload_checkpointing": True},
        {"gradient_checkpointing": True},
    ),
    "output_missing": ("train_db", {"output_dir": None}, {}),
    "length_missing": (LORA, {"max_train_steps": None}, {"max_train_steps": None, "max_train_epochs": 2}),
    "length_given_twice": (LORA, {"max_train_epochs": 2}, {"max_train_steps": None, "max_train_epochs": 2}),
    "length_reached": (LORA, {"initial_step": 100}, {"initial_step": 99}),
    "interval_zero": (LORA, {"save_every_n_epochs": 0}, {"save_every_n_steps": 1}),
    "text_encoder_stop": ("train_db", {"stop_text_encoder_training": 0}, {"stop_text_encoder_training": -1}),
    "optimizer_given_twice": (LORA, {"use_8bit_adam": True}, {"use_8bit_adam": True, "optimizer_type": None}),
    "optimizer_unknown": (
        LORA,
        {"optimizer_type": "AdEMAMix8bit"},
        {"optimizer_type": "bitsandbytes.optim.AdEMAMix8bit"},
    ),
    "arguments_form": (
        LORA,
        {"optimizer_args": ["betas=0.9, 0.99, x"]},
        {"optimizer_args": ["betas=0.9, 0.99"], "lr_scheduler_args": ["gamma=0.5"]},
    ),
    "fused_optimizer": (
        LORA,
        {"fused_backward_pass": True},
        {"fused_backward_pass": True, "optimizer_type": "adafactor"},
    ),
    "fused_accumulation": (
        LORA,
        {"fused_backward_pass": True, "optimizer_type": "Adafactor", "gradient_accumulation_steps": 2},
        {"gradient_accumulation_steps": 2},
    ),
    "scheduler_unknown": (LORA, {"lr_scheduler": "reduce_lr_on_plateau"}, {"lr_scheduler": "cosine_with_restarts"}),
    "warmup_needless": (
        LORA,
        {"lr_scheduler": "constant", "lr_warmup_steps": 10},
        {"lr_scheduler": "constant_with_warmup", "lr_warmup_steps": 10},
    ),
    "warmup_fraction": (
        LORA,
        {"lr_scheduler": "cosine", "lr_warmup_steps": 10.0},
        {"lr_scheduler": "cosine", "lr_warmup_steps": 0.1},
    ),
    "adafactor_schedule": (
        LORA,
        {"lr_scheduler": "adafactor"},
        {"lr_scheduler": "adafactor", "optimizer_type": "Adafactor"},
    ),
    "min_lr_missing": (
        LORA,
        {"lr_scheduler": "cosine_with_min_lr"},
        {"lr_scheduler": "cosine_with_min_lr", "lr_scheduler_min_lr_ratio": 0.1},
    ),
    "adaptive_noise": (LORA, {"adaptive_noise_scale": 0.01}, {"adaptive_noise_scale": 0.01, "noise_offset": 0.05}),
    "v_loss_scale": (
        LORA,
        {"scale_v_pred_loss_like_noise_pred": True},
        {"scale_v_pred_loss_like_noise_pred": True, "v_parameterization": True},
    ),
    "v_like_loss": (LORA, {"v_pred_like_loss": 0.5, "v_parameterization": True}, {"v_pred_like_loss": 0.5}),
    "zero_terminal_snr": (
        LORA,
        {"zero_terminal_snr": True},
        {"zero_terminal_snr": True, "v_parameterization": True},
    ),
    "log_folder_missing": (LORA, {"log_with": "all"}, {"log_with": "all", "logging_dir": "/logs"}),
}
# rule -> (script, dataset that breaks it, dataset that does not)
DATASET_CASES: dict[str, Case] = {
    "data_missing": (LORA, {}, good_dataset()),
    "resolution_missing": (
        LORA,
        in_dataset(resolution=None, enable_bucket=False),
        in_dataset(resolution=64, min_bucket_reso=64),
    ),
    "captions_lost": (
        LORA,
        change(good_dataset(), {"general": None}),
        change(in_subset(class_tokens="sks sprite"), {"general": None}),
    ),
    "latents_cached_and_changed": (LORA, in_subset(random_crop=True), in_subset(random_crop=False)),
    "bucket_step": ("flux_train_network", in_dataset(bucket_reso_steps=32), in_dataset(bucket_reso_steps=128)),
    "bucket_range": (LORA, in_dataset(max_bucket_reso=448), in_dataset(max_bucket_reso=460)),
    "masked_dreambooth": ("train_db", good_dataset(), {}),
}
# rule -> (script, options that need something that may be missing)
INSTALLED_CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "network_not_installed": (LORA, {"network_module": "lycoris.kohya", "network_args": ["preset=attn-mlp"]}),
    "xformers_not_installed": ("train_db", {"xformers": True}),
    "optimizer_not_installed": (LORA, {"optimizer_type": "PagedAdamW"}),
    "tensorboard_not_installed": (LORA, {"logging_dir": "/logs"}),
    "wandb_not_installed": (LORA, {"log_with": "wandb"}),
    "deepspeed_not_installed": (LORA, {"deepspeed": True}),
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_good_options_break_no_rule(script: str) -> None:
    assert broken_rules(script, good_options(script), good_dataset()) == []
    assert broken_rules(script, good_options(script), good_dataset(), NOTHING) == []


def test_every_rule_has_a_case() -> None:
    assert {rule.name for rule in RULES} == {*OPTION_CASES, *DATASET_CASES, *INSTALLED_CASES}
    assert len({rule.name for rule in RULES}) == len(RULES)


@pytest.mark.parametrize("name", OPTION_CASES)
def test_options_that_break_a_rule(name: str) -> None:
    script, bad, good = OPTION_CASES[name]
    environment = EVERYTHING
    if name == "lycoris_preset":
        environment = Environment(has_module=lambda _: True, version_of=lambda _: "4.0.1")
    for changes in (bad, good):
        given = {key: value for key, value in changes.items() if value is not None}
        assert check_kohya_table(given, script, str) == []
    assert name in broken_rules(script, change(good_options(script), bad), good_dataset(), environment)
    assert broken_rules(script, change(good_options(script), good), good_dataset(), environment) == []


@pytest.mark.parametrize("name", DATASET_CASES)
def test_datasets_that_break_a_rule(name: str) -> None:
    script, bad, good = DATASET_CASES[name]
    options = good_options(script)
    if name == "masked_dreambooth":
        options |= {"masked_loss": True, "train_data_dir": None}
    assert name in broken_rules(script, options, bad)
    assert name not in broken_rules(script, options, good)


@pytest.mark.parametrize("name", INSTALLED_CASES)
def test_packages_that_are_missing(name: str) -> None:
    script, options = INSTALLED_CASES[name]
    assert broken_rules(script, good_options(script) | options, good_dataset(), NOTHING) == [name]
    assert broken_rules(script, good_options(script) | options, good_dataset()) == []


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_every_rule_says_what_it_mirrors_and_what_to_do(rule: Any) -> None:
    file, _, line = rule.mirrors.partition(":")
    assert file.endswith(".py")
    assert line.isdigit()
    assert rule.quote
    assert rule.hint
    assert rule.scripts <= set(load_table().scripts)


@pytest.mark.parametrize(
    ("options", "package"),
    [
        ({"optimizer_type": "AdamW8bit"}, "bitsandbytes"),
        ({"optimizer_type": None, "use_8bit_adam": True}, "bitsandbytes"),
        ({"optimizer_type": None, "use_lion_optimizer": True}, "lion_pytorch"),
        ({"optimizer_type": "Prodigy"}, "prodigyopt"),
        ({"optimizer_type": "DAdaptAdam"}, "dadaptation"),
        ({"optimizer_type": "AdamWScheduleFree"}, "schedulefree"),
        ({"optimizer_type": "prodigyplus.ProdigyPlusScheduleFree"}, "prodigyplus"),
    ],
)
def test_the_package_of_an_optimizer(options: dict[str, Any], package: str) -> None:
    problems = check_rules(LORA, change(good_options(LORA), options), good_dataset(), environment=NOTHING, where="here")
    assert [str(problem) for problem in problems] == [
        f"here the optimizer needs the package {package}, which is not installed; install it, or use AdamW"
    ]


def test_adafactor_brings_its_own_schedule() -> None:
    options = good_options(LORA) | {"optimizer_type": "Adafactor", "lr_scheduler": "cosine", "lr_warmup_steps": 5}
    assert broken_rules(LORA, options, good_dataset()) == ["warmup_needless"]
    options["optimizer_args"] = ["relative_step=False", "scale_parameter=False", "warmup_init=False"]
    assert broken_rules(LORA, options, good_dataset()) == []
    assert broken_rules(LORA, options | {"lr_scheduler": "adafactor", "lr_warmup_steps": 0}, good_dataset()) == [
        "adafactor_schedule"
    ]


def test_a_schedule_free_optimizer_takes_any_schedule() -> None:
    options = good_options(LORA) | {"optimizer_type": "AdamWScheduleFree", "lr_warmup_steps": 5, "lr_scheduler": "x"}
    assert broken_rules(LORA, options, good_dataset()) == []


def test_subsets_fall_back_to_dataset_general_and_options() -> None:
    dataset = good_dataset()
    dataset["general"]["random_crop"] = True
    assert broken_rules(LORA, good_options(LORA), dataset) == ["latents_cached_and_changed"]
    dataset["datasets"][0]["random_crop"] = False
    assert broken_rules(LORA, good_options(LORA) | {"random_crop": True}, dataset) == []


def test_the_resolution_of_the_options() -> None:
    dataset = in_dataset(resolution=None)
    options = good_options(LORA)
    assert broken_rules(LORA, options | {"resolution": "512,768"}, dataset) == []
    assert broken_rules(LORA, options | {"resolution": "2048"}, dataset) == ["bucket_range"]
    assert broken_rules(LORA, options | {"resolution": "5x2"}, dataset) == ["resolution_missing"]
    assert broken_rules(LORA, options | {"resolution": "1,2,3"}, dataset) == ["resolution_missing"]


def test_problems_come_in_plain_words() -> None:
    problems = check_rules(LORA, good_options(LORA) | {"color_aug": True}, good_dataset(), where="config.toml")
    assert [str(problem) for problem in problems] == [
        "config.toml cache_latents excludes color_aug; turn one of them off"
    ]
    with pytest.raises(EngineError):
        check_rules("train_networks", {}, {})


def write_lora(path: Path, shapes: dict[str, list[int]]) -> None:
    header = json.dumps(
        {name: {"dtype": "F16", "shape": shape, "data_offsets": [0, 0]} for name, shape in shapes.items()}
    )
    path.write_bytes(struct.pack("<Q", len(header)) + header.encode())


def test_the_rank_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_lora(
        path, {"x.lora_down.weight": [8, 320], "y.lora_down.weight": [8, 4, 1, 1], "z.lora_down.weight": [4, 4, 3, 3]}
    )
    assert read_rank(str(path)) == 8
    write_lora(path, {"x.lora_down.weight": [8, 320], "y.lora_down.weight": [4, 320]})
    assert read_rank(str(path)) is None
    path.write_bytes(b"no model")
    assert read_rank(str(path)) is None
    assert read_rank(str(tmp_path / "none")) is None


def test_what_is_installed() -> None:
    assert is_installed("toml")
    assert not is_installed("no_such_package_of_ours")
    assert version_of("toml") == "0.10.2"
    assert version_of("no-such-package-of-ours") == ""

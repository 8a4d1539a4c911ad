"""What [kohya] says in sd-scripts' names, said in the preset's own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pixelkit.preset_file import validate, without_alternatives

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pixelkit.preset_file import LoadedPreset
    from pixelkit.toml_lines import KeyPath

# sd-scripts' names for what a preset says in its own terms: `[kohya] max_train_steps` is train.steps.
KOHYA_TERMS: Mapping[str, tuple[str, str]] = {
    "max_train_steps": ("train", "steps"),
    "max_train_epochs": ("train", "epochs"),
    "train_batch_size": ("train", "batch_size"),
    "gradient_accumulation_steps": ("train", "gradient_accumulation"),
    "learning_rate": ("train", "learning_rate"),
    "unet_lr": ("train", "learning_rate"),
    "lr_warmup_steps": ("train", "warmup_steps"),
    "max_grad_norm": ("train", "max_grad_norm"),
    "min_snr_gamma": ("train", "min_snr_gamma"),
    "noise_offset": ("train", "noise_offset"),
    "gradient_checkpointing": ("train", "gradient_checkpointing"),
    "mixed_precision": ("train", "precision"),
    "seed": ("train", "seed"),
    "save_every_n_steps": ("train", "save_every_steps"),
    "save_every_n_epochs": ("train", "save_every_epochs"),
    "clip_skip": ("train", "clip_skip"),
    "caption_dropout_rate": ("train", "caption_dropout"),
    "shuffle_caption": ("train", "shuffle_caption"),
    "network_dim": ("network", "rank"),
    "network_alpha": ("network", "alpha"),
    "network_dropout": ("network", "dropout"),
    "num_vectors_per_token": ("embedding", "vectors"),
    "init_word": ("embedding", "start_word"),
    "prior_loss_weight": ("dataset", "prior_weight"),
    "sample_every_n_steps": ("sample", "every_steps"),
    "sample_every_n_epochs": ("sample", "every_epochs"),
}


# Options whose value is a file or folder; sd-scripts runs in its own folder, so they start from the preset's.
KOHYA_PATHS = (
    "ae",
    "clip_g",
    "clip_l",
    "log_tracker_config",
    "logging_dir",
    "network_weights",
    "t5xxl",
    "tokenizer_cache_dir",
    "vae",
)


def absorb_kohya(loaded: LoadedPreset) -> LoadedPreset:
    """Move what [kohya] says in sd-scripts' names into the preset's own terms, so that the plan shows what will happen;
    its relative paths become absolute.

    Raises PresetError if a value is not possible there.
    """
    values = loaded.preset.model_dump(exclude_unset=True)
    given: dict[str, Any] = values.get("kohya", {})
    origins = dict(loaded.origins)
    names: dict[KeyPath, KeyPath] = {}
    above: dict[str, dict[str, Any]] = {}
    for name, (table, key) in KOHYA_TERMS.items():
        if name in given:
            above.setdefault(table, {})[key] = given.pop(name)
            origins[table, key] = loaded.origin("kohya", name)
            origins.setdefault((table,), origins[table, key])
            names[table, key] = ("kohya", name)
    for name in KOHYA_PATHS:
        if isinstance(given.get(name), str):
            path = loaded.resolve_path(given[name], "kohya", name)
            given[name] = str(path) if path.exists() or name == "logging_dir" else given[name]
    for table, keys in above.items():
        values[table] = {**without_alternatives(values.get(table, {}), keys), **keys}
    return validate(values, origins, loaded.file, loaded.text, names=names)

"""Rules on data, captions, buckets, caches and samples."""

from __future__ import annotations

from pixelkit.engines.kohya.effective import Effective, Rule

BUCKET_STEPS = {
    "train_network": 64,
    "flux_train_network": 64,
    "train_db": 64,
    "train_textual_inversion": 64,
    "sdxl_train_network": 32,
    "sd3_train_network": 32,
    "sdxl_train": 32,
}
SAMPLE_FILES = (".txt", ".toml", ".json")
CAPTION_CHANGES = ("caption_dropout_rate", "caption_tag_dropout_rate", "token_warmup_step", "shuffle_caption")


def _find_given_twice(it: Effective) -> str:
    given = [name for name in ("train_data_dir", "reg_data_dir", "in_json") if it.is_given(name)]
    return ", ".join(given) if it.dataset.get("datasets") else ""


def _find_lost_captions(it: Effective) -> str:
    """Folders whose caption files would not be looked at: nobody has said that they are not called .caption."""
    if not it.dataset.get("datasets"):
        return ""
    lost = [
        str(subset.get("image_dir"))
        for subset in it.subsets()
        if not subset.written("caption_extension")
        and not subset.written("caption_extention")
        and not subset.written("class_tokens")
    ]
    return ", ".join(lost)


def _find_caption_changes(it: Effective) -> str:
    if not it.caches_text:
        return ""
    changes = [name for name in CAPTION_CHANGES if any((subset.get(name) or 0) > 0 for subset in it.subsets())]
    return ", ".join(changes)


def _find_augmentation(it: Effective) -> str:
    if not it.caches_latents:
        return ""
    return " and ".join(
        name for name in ("color_aug", "random_crop") if any(subset.get(name) for subset in it.subsets())
    )


def _find_bucket_step(it: Effective) -> str:
    step = BUCKET_STEPS.get(it.script, 1)
    wrong = [
        dataset.get("bucket_reso_steps")
        for dataset in it.datasets()
        if dataset.get("enable_bucket") and dataset.get("bucket_reso_steps") % step
    ]
    return f"{wrong[0]} is no multiple of {step}" if wrong else ""


def _find_bucket_range(it: Effective) -> str:
    for dataset in it.datasets():
        resolution, step = dataset.resolution(), dataset.get("bucket_reso_steps")
        if not dataset.get("enable_bucket") or resolution is None or step < 1:
            continue
        # adjusted to multiples of the step first, as the engine does
        low = dataset.get("min_bucket_reso") // step * step
        high = -(-dataset.get("max_bucket_reso") // step) * step
        if min(resolution) < low:
            return f"min_bucket_reso = {low} is above the resolution {min(resolution)}"
        if max(resolution) > high:
            return f"max_bucket_reso = {high} is below the resolution {max(resolution)}"
    return ""


DATA_RULES = (
    Rule(
        name="data_missing",
        mirrors="train_network.py:575",
        quote="if len(train_dataset_group) == 0",
        broken=lambda it: (
            not any((it.dataset.get("datasets"), it.is_given("train_data_dir"), it.is_given("dataset_class")))
        ),
        message="no images are named: sd-scripts would say `No data found` and end with exit code 0",
        hint="give a dataset file with [[datasets]]",
    ),
    Rule(
        name="data_given_twice",
        mirrors="train_network.py:521",
        quote='ignored = ["train_data_dir", "reg_data_dir", "in_json"]',
        broken=_find_given_twice,
        message="{found} would be ignored, since there is a dataset file",
        hint="name the folders in the dataset file only",
    ),
    Rule(
        name="debug_dataset",
        mirrors="train_network.py:567",
        quote="if args.debug_dataset",
        broken=lambda it: it.get("debug_dataset"),
        message="debug_dataset shows the images and trains nothing",
        hint="remove it",
    ),
    Rule(
        name="resolution_missing",
        mirrors="library/train_util.py:1921",
        quote="assert resolution is not None",
        broken=lambda it: any(dataset.resolution() is None for dataset in it.datasets()),
        message="there is no resolution, or none that can be read",
        hint='give one: [512, 512] in the dataset file, "512,512" among the options',
    ),
    Rule(
        name="captions_lost",
        mirrors="library/train_util.py:2070",
        quote="cap_for_img is None and subset.class_tokens is None",
        broken=_find_lost_captions,
        message="caption_extension is not set, so only .caption files are read in {found}, and captions may be empty",
        hint='set caption_extension = ".txt"',
    ),
    Rule(
        name="latents_cached_and_changed",
        mirrors="train_network.py:583",
        quote="train_dataset_group.is_latent_cacheable()",
        broken=_find_augmentation,
        message="cache_latents excludes {found}",
        hint="turn one of them off",
    ),
    Rule(
        name="text_cached_and_changed",
        mirrors="library/train_util.py:1102",
        quote="def is_text_encoder_output_cacheable",
        broken=_find_caption_changes,
        message="cache_text_encoder_outputs excludes {found}",
        hint="turn one of them off",
    ),
    Rule(
        name="bucket_step",
        mirrors="library/train_util.py:1094",
        quote="self.bucket_reso_steps % min_steps == 0",
        broken=_find_bucket_step,
        message="bucket_reso_steps: {found}, as this base needs",
        hint="SDXL and SD3 take multiples of 32, the others of 64",
    ),
    Rule(
        name="bucket_range",
        mirrors="library/train_util.py:767",
        quote="min(resolution) >= min_bucket_reso",
        broken=_find_bucket_range,
        message="{found}",
        hint="min_bucket_reso <= resolution <= max_bucket_reso must hold",
    ),
    Rule(
        name="masked_dreambooth",
        mirrors="library/config_util.py:338",
        quote="self.dataset_schema = self.cn_dataset_schema",
        scripts=frozenset({"train_db"}),
        broken=lambda it: it.get("masked_loss") and it.dataset.get("datasets"),
        message="train_db with masked_loss takes only ControlNet data from a dataset file",
        hint="use alpha_mask in the subsets, without masked_loss",
    ),
    Rule(
        name="workers_missing",
        mirrors="train_network.py:786",
        quote="persistent_workers=args.persistent_data_loader_workers",
        broken=lambda it: it.get("persistent_data_loader_workers") and it.get("max_data_loader_n_workers") == 0,
        message="persistent_data_loader_workers needs workers, and max_data_loader_n_workers is 0",
        hint="remove persistent_data_loader_workers",
    ),
    Rule(
        name="prompts_missing",
        mirrors="library/train_util.py:6395",
        quote="os.path.isfile(args.sample_prompts)",
        broken=lambda it: it.samples and not it.get("sample_prompts"),
        message="samples are asked for without sample_prompts: the training would crash at the first",
        hint="give sample_prompts, or no sample_* option",
    ),
    Rule(
        name="prompts_unreadable",
        mirrors="library/train_util.py:6420",
        quote='args.sample_prompts.endswith(".json")',
        broken=lambda it: (
            it.samples and it.get("sample_prompts") and not it.get("sample_prompts").endswith(SAMPLE_FILES)
        ),
        message="sample_prompts must end in .txt, .toml or .json: the training would crash at the first sample",
        hint="rename the file",
    ),
    Rule(
        name="samples_given_twice",
        mirrors="library/train_util.py:6385",
        quote="if args.sample_every_n_epochs is not None",
        broken=lambda it: (it.get("sample_every_n_epochs") or 0) > 0 and (it.get("sample_every_n_steps") or 0) > 0,
        message="sample_every_n_steps is ignored, since sample_every_n_epochs is set",
        hint="keep one",
    ),
)

"""Rules on the base, the network that is trained, and precision."""

from __future__ import annotations

from pixelkit.engines.kohya.effective import LORA, Effective, Rule

SDXL = frozenset({"sdxl_train_network", "sdxl_train"})
DEFAULT_RANK = 4  # networks/lora.py, create_network, where network_dim is not given
# network modules made for one family; networks.lora and what is not named here serves SD1.x, SD2.x and SDXL
FAMILIES = {"flux": "flux_train_network", "sd3": "sd3_train_network"}
FOREIGN = ("anima", "lumina", "hunyuan_image")


def _find_foreign_network(it: Effective) -> str:
    module = it.get("network_module") or ""
    if not module.startswith("networks."):
        return ""
    ending = module.rpartition("_")[2]
    wanted = next((family for family, script in FAMILIES.items() if script == it.script), "")
    if module.endswith(FOREIGN) or ending in FAMILIES or wanted:
        return module if ending != wanted else ""
    return ""


def _find_rank(it: Effective) -> str:
    file = it.get("network_weights")
    rank = it.environment.read_rank(file) if file else None
    asked = it.get("network_dim") or DEFAULT_RANK
    return "" if rank is None or rank == asked else f"{rank}, and network_dim is {asked}"


def _find_missing_files(it: Effective) -> str:
    needed = ("ae", "t5xxl") if it.get("model_type") == "chroma" else ("ae", "clip_l", "t5xxl")
    return ", ".join(name for name in needed if not it.get(name))


def _find_lycoris(it: Effective) -> str:
    module, preset = it.get("network_module") or "", it.pairs("network_args").get("preset", "full")
    if not module.startswith("lycoris") or preset != "full":
        return ""
    version = it.environment.version_of("lycoris-lora")
    major = version.partition(".")[0]
    return version if major.isdigit() and int(major) >= 4 else ""


def _trains_t5(it: Effective) -> bool:
    return it.pairs("network_args").get("train_t5xxl") == "True"


NETWORK_RULES = (
    Rule(
        name="base_missing",
        mirrors="library/train_util.py:5526",
        quote="name_or_path = args.pretrained_model_name_or_path",
        broken=lambda it: not it.get("pretrained_model_name_or_path"),
        message="pretrained_model_name_or_path is missing",
        hint="name the base model",
    ),
    Rule(
        name="base_files_missing",
        mirrors="flux_train_network.py:148",
        quote="load_t5xxl(args.t5xxl",
        scripts=frozenset({"flux_train_network"}),
        broken=_find_missing_files,
        message="this base needs the files {found} too",
        hint="give their paths",
    ),
    Rule(
        name="network_missing",
        mirrors="train_network.py:644",
        quote="importlib.import_module(args.network_module)",
        scripts=LORA,
        broken=lambda it: not it.get("network_module"),
        message="network_module is missing: the training would crash after loading the base",
        hint='for SD1.x, SD2.x and SDXL: network_module = "networks.lora"; for others lora_flux or lora_sd3',
    ),
    Rule(
        name="network_of_another_base",
        mirrors="networks/lora_flux.py:709",
        quote="FLUX_TARGET_REPLACE_MODULE_DOUBLE",
        scripts=LORA,
        broken=_find_foreign_network,
        message="network_module = {found} is made for another base",
        hint="networks.lora for SD1.x, SD2.x and SDXL, networks.lora_flux for FLUX, networks.lora_sd3 for SD3",
    ),
    Rule(
        name="network_not_installed",
        mirrors="train_network.py:644",
        quote="importlib.import_module(args.network_module)",
        scripts=LORA,
        broken=lambda it: (
            it.get("network_module")
            and not it.get("network_module").startswith("networks.")
            and not it.environment.has_module(it.get("network_module").partition(".")[0])
            and it.get("network_module").partition(".")[0]
        ),
        message="network_module: the package {found} is not installed",
        hint="install it (lycoris: pip install 'lycoris-lora<4'), or use networks.lora",
    ),
    Rule(
        name="lycoris_preset",
        mirrors="train_network.py:675",
        quote="workaround for LyCORIS",
        scripts=LORA,
        broken=_find_lycoris,
        message="lycoris-lora {found} stops with its default preset",
        hint='add "preset=attn-mlp" to network_args, or install lycoris-lora < 4',
    ),
    Rule(
        name="network_args_form",
        mirrors="train_network.py:667",
        quote='net_arg.split("=", 1)',
        scripts=LORA,
        broken=lambda it: ", ".join(text for text in it.get("network_args") or [] if "=" not in text),
        message="network_args: {found} is not of the form key=value",
        hint='as in ["conv_dim=8", "conv_alpha=4"]',
    ),
    Rule(
        name="nothing_to_train",
        mirrors="train_network.py:707",
        quote="train_unet = not args.network_train_text_encoder_only",
        scripts=LORA,
        broken=lambda it: it.get("network_train_unet_only") and it.get("network_train_text_encoder_only"),
        message="network_train_unet_only and network_train_text_encoder_only leave nothing to train",
        hint="keep one",
    ),
    Rule(
        name="base_weights",
        mirrors="networks/lora.py:1040",
        quote="target_modules += LoRANetwork.UNET_TARGET_REPLACE_MODULE_CONV2D_3X3",
        scripts=LORA,
        broken=lambda it: it.get("base_weights") and it.get("network_module") == "networks.lora",
        message="base_weights makes sd-scripts train convolutions that were not asked for",
        hint="merge the weights into the base beforehand",
    ),
    Rule(
        name="weights_of_another_rank",
        mirrors="train_network.py:713",
        quote="network.load_weights(args.network_weights)",
        scripts=LORA,
        broken=_find_rank,
        message="network_weights has rank {found}",
        hint="set network_dim to the file's rank; dim_from_weights alone would write a wrong rank into the metadata",
    ),
    Rule(
        name="weights_missing",
        mirrors="train_network.py:671",
        quote="if args.dim_from_weights",
        scripts=LORA,
        broken=lambda it: it.get("dim_from_weights") and not it.get("network_weights"),
        message="dim_from_weights needs network_weights",
        hint="set network_dim instead",
    ),
    Rule(
        name="text_cached_and_trained",
        mirrors="sdxl_train_network.py:40",
        quote="args.network_train_unet_only or not args.cache_text_encoder_outputs",
        scripts=frozenset({"sdxl_train_network"}),
        broken=lambda it: it.caches_text and not it.get("network_train_unet_only"),
        message="cache_text_encoder_outputs leaves no text encoder to train",
        hint="set network_train_unet_only = true, or do not cache",
    ),
    Rule(
        name="text_cached_and_tuned",
        mirrors="sdxl_train.py:110",
        quote="not args.train_text_encoder or not args.cache_text_encoder_outputs",
        scripts=frozenset({"sdxl_train"}),
        broken=lambda it: it.caches_text and it.get("train_text_encoder"),
        message="cache_text_encoder_outputs leaves no text encoder to train",
        hint="remove train_text_encoder, or do not cache",
    ),
    Rule(
        name="text_cached_and_weighted",
        mirrors="sdxl_train.py:107",
        quote="not args.weighted_captions or not args.cache_text_encoder_outputs",
        scripts=frozenset({"sdxl_train"}),
        broken=lambda it: it.caches_text and it.get("weighted_captions"),
        message="cache_text_encoder_outputs excludes weighted_captions",
        hint="keep one",
    ),
    Rule(
        name="t5_cached_and_trained",
        mirrors="flux_train_network.py:196",
        quote="self.train_t5xxl and args.cache_text_encoder_outputs",
        scripts=frozenset({"flux_train_network", "sd3_train_network"}),
        broken=lambda it: it.caches_text and _trains_t5(it),
        message="train_t5xxl=True excludes cache_text_encoder_outputs",
        hint="keep one",
    ),
    Rule(
        name="chroma_mask",
        mirrors="flux_train_network.py:54",
        quote="assert args.apply_t5_attn_mask",
        scripts=frozenset({"flux_train_network"}),
        broken=lambda it: it.get("model_type") == "chroma" and not it.get("apply_t5_attn_mask"),
        message="Chroma needs apply_t5_attn_mask",
        hint="set apply_t5_attn_mask = true",
    ),
    Rule(
        name="sdxl_v2",
        mirrors="library/sdxl_train_util.py:349",
        quote="assert not args.v2",
        scripts=SDXL,
        broken=lambda it: it.get("v2"),
        message="v2 is for Stable Diffusion 2 and cannot go with SDXL",
        hint="remove v2",
    ),
    Rule(
        name="full_fp16",
        mirrors="train_network.py:816",
        quote='args.mixed_precision == "fp16"',
        broken=lambda it: it.get("full_fp16") and it.get("mixed_precision") != "fp16",
        message='full_fp16 needs mixed_precision = "fp16"',
        hint="set it, or remove full_fp16",
    ),
    Rule(
        name="full_bf16",
        mirrors="train_network.py:822",
        quote='args.mixed_precision == "bf16"',
        broken=lambda it: it.get("full_bf16") and it.get("mixed_precision") != "bf16",
        message='full_bf16 needs mixed_precision = "bf16"',
        hint="set it, or remove full_bf16",
    ),
    Rule(
        name="fp8_base",
        mirrors="train_network.py:832",
        quote='args.mixed_precision != "no"',
        scripts=LORA,
        broken=lambda it: (it.get("fp8_base") or it.get("fp8_base_unet")) and it.get("mixed_precision") == "no",
        message="fp8_base needs mixed precision",
        hint='set mixed_precision = "bf16"',
    ),
    Rule(
        name="sdxl_half_vae",
        mirrors="train_network.py:599",
        quote="torch.float32 if args.no_half_vae else weight_dtype",
        scripts=SDXL,
        broken=lambda it: it.get("mixed_precision") == "fp16" and not it.get("no_half_vae") and not it.get("vae"),
        message="the VAE of SDXL overflows in fp16: latents become NaN, in the cache for later runs too",
        hint="set no_half_vae = true",
    ),
    Rule(
        name="swap_and_offload",
        mirrors="flux_train_network.py:79",
        quote="not args.cpu_offload_checkpointing",
        scripts=frozenset({"flux_train_network", "sd3_train_network"}),
        broken=lambda it: it.get("blocks_to_swap") and it.get("cpu_offload_checkpointing"),
        message="blocks_to_swap excludes cpu_offload_checkpointing",
        hint="keep blocks_to_swap",
    ),
    Rule(
        name="offload_unsupported",
        mirrors="train_network.py:718",
        quote="unet.enable_gradient_checkpointing(cpu_offload=True)",
        scripts=LORA - {"flux_train_network"},
        broken=lambda it: it.get("cpu_offload_checkpointing") and it.get("gradient_checkpointing"),
        message="cpu_offload_checkpointing exists only for FLUX and would crash here",
        hint="remove it",
    ),
    Rule(
        name="xformers_not_installed",
        mirrors="library/train_util.py:3369",
        quote="import xformers.ops",
        broken=lambda it: it.get("xformers") and not it.environment.has_module("xformers"),
        message="xformers is not installed",
        hint="use sdpa = true in its place",
    ),
)

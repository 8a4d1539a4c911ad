"""A diffusers folder as the base of train_network.py, its UNet as it is: tiny-sd, pixelkit-tiny, or SD1.5 itself.

Stock train_network.py loads a folder by pouring its UNet into SD1.5's layout (train_util.py:5552), which fails for any
other. `DiffusersBase` goes before NetworkTrainer in the order of inheritance and takes over what is bound to SD1.5
there: loading, the tokenizer, the VAE's factor 8 and scale 0.18215, the noise schedule, and sampling. The LoRA
network works on any model with diffusers' module names, so its keys are kohya's.

TN below is train_network.py, TU library/train_util.py, at the pinned commit.
"""

from __future__ import annotations

import hashlib
import json
import logging
import random
import time
from pathlib import Path
from typing import Any

from pixelkit.engines.kohya.endings import Refusal

LOG = logging.getLogger(__name__)
CLIP_LENGTH = 77


class DiffusersBase:
    """Hooks of NetworkTrainer for a base that is a diffusers folder (or a hub id of one)."""

    def train(self, args: Any) -> None:
        """TN:491: read the base's configuration first, since the options depend on it."""
        from diffusers import DDPMScheduler, UNet2DConditionModel

        base = args.pretrained_model_name_or_path
        if Path(base).is_file():
            raise Refusal(f"{base} is one file; --layout diffusers takes a folder (unet, vae, text_encoder, tokenizer)")
        if args.cpu_offload_checkpointing:
            raise Refusal("cpu_offload_checkpointing is not for --layout diffusers")
        try:
            self.unet_config = UNet2DConditionModel.load_config(base, subfolder="unet")
            self.vae_config = UNet2DConditionModel.load_config(args.vae or base, subfolder=None if args.vae else "vae")
            self.schedule = DDPMScheduler.load_config(base, subfolder="scheduler")
        except OSError as problem:
            raise Refusal(f"{base} is not a diffusers folder: {problem}") from problem
        prediction = self.schedule.get("prediction_type", "epsilon")
        if prediction not in ("epsilon", "v_prediction"):
            raise Refusal(f"{base}: sd-scripts cannot train a base that predicts `{prediction}`")
        args.v_parameterization = args.v_parameterization or prediction == "v_prediction"
        self.schedule["prediction_type"] = "v_prediction" if args.v_parameterization else "epsilon"
        rescaled = args.zero_terminal_snr or self.schedule.get("rescale_betas_zero_snr", False)
        args.zero_terminal_snr = self.schedule["rescale_betas_zero_snr"] = rescaled
        tiny = self.vae_config["_class_name"] == "AutoencoderTiny"
        channels = self.vae_config["encoder_block_out_channels" if tiny else "block_out_channels"]
        self.factor = 2 ** (len(channels) - 1)
        self.vae_scale_factor = self.vae_config.get("scaling_factor", 1.0 if tiny else 0.18215)
        parent: Any = super()
        parent.train(args)

    def assert_extra_args(self, args: Any, train_group: Any, val_group: Any) -> None:  # noqa: ARG002
        """TN:169: buckets in multiples of what VAE and UNet halve: 64 for SD1.5, 8 for pixelkit-tiny."""
        step = self.factor * 2 ** (len(self.unet_config["down_block_types"]) - 1)
        for group in (train_group, val_group):
            if group is not None:
                group.verify_bucket_reso_steps(step)

    def load_target_model(self, args: Any, weight_dtype: Any, accelerator: Any) -> tuple[str, Any, Any, Any]:  # noqa: ARG002
        """TN:179, without the conversion of TU:5552."""
        import torch
        from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
        from library import model_util
        from transformers import CLIPTextModel

        base = args.pretrained_model_name_or_path
        LOG.info("load diffusers model as it is: %s", base)
        vae_class = AutoencoderTiny if self.vae_config["_class_name"] == "AutoencoderTiny" else AutoencoderKL
        text_encoder = CLIPTextModel.from_pretrained(base, subfolder="text_encoder", torch_dtype=torch.float32)
        where = {} if args.vae else {"subfolder": "vae"}
        vae = vae_class.from_pretrained(args.vae or base, torch_dtype=torch.float32, **where)
        unet = UNet2DConditionModel.from_pretrained(base, subfolder="unet", torch_dtype=torch.float32)
        if args.xformers:
            unet.enable_xformers_memory_efficient_attention()
        if args.lowram:
            for model in (text_encoder, vae, unet):
                model.to(accelerator.device)
        version = model_util.get_model_version_str_for_sd1_sd2(args.v2, args.v_parameterization)
        return version, text_encoder, vae, unet

    def get_tokenize_strategy(self, args: Any) -> Any:
        """TN:192. Longer captions in chunks are for CLIP's 77 tokens; a tokenizer of another length has just that."""
        from pixelkit.engines.kohya.strategies import FolderTokenizeStrategy

        strategy = FolderTokenizeStrategy(args.pretrained_model_name_or_path, args.max_token_length)
        length = strategy.tokenizer.model_max_length
        if length != CLIP_LENGTH and args.max_token_length is not None:
            LOG.warning("max_token_length is ignored: the tokenizer of this base has %d tokens", length)
            args.max_token_length, strategy.max_length = None, length
        return strategy

    def get_latents_caching_strategy(self, args: Any) -> Any:
        """TN:198."""
        from pixelkit.engines.kohya.strategies import FolderLatentsStrategy

        return FolderLatentsStrategy(
            vae_name=self._name_vae(args),
            factor=self.factor,
            to_disk=args.cache_latents_to_disk,
            batch_size=args.vae_batch_size,
            skip_check=args.skip_cache_check,
        )

    def encode_images_to_latents(self, args: Any, vae: Any, images: Any) -> Any:  # noqa: ARG002
        """TN:254."""
        from pixelkit.engines.kohya.strategies import encode_latents

        return encode_latents(vae, images)

    def get_noise_scheduler(self, args: Any, device: Any) -> Any:  # noqa: ARG002
        """TN:245, with the base's own betas, rescaled to zero terminal SNR where it is so."""
        from diffusers import DDPMScheduler
        from library import custom_train_functions

        scheduler = DDPMScheduler.from_config({**self.schedule, "clip_sample": False})
        custom_train_functions.prepare_scheduler_for_custom_training(scheduler, device)
        return scheduler

    def update_metadata(self, metadata: dict[str, Any], args: Any) -> None:
        """TN:344: what a reader needs to know to load a LoRA for a UNet that is not SD1.5's."""
        parent: Any = super()
        parent.update_metadata(metadata, args)
        metadata["ss_base_layout"] = json.dumps(
            {
                "block_out_channels": self.unet_config["block_out_channels"],
                "cross_attention_dim": self.unet_config["cross_attention_dim"],
                "vae_factor": self.factor,
                "vae_scale": self.vae_scale_factor,
                "prediction_type": self.schedule["prediction_type"],
            }
        )

    def sample_images(  # noqa: PLR0917 - sd-scripts' own order
        self,
        accelerator: Any,
        args: Any,
        epoch: int | None,
        global_step: int,
        device: Any,
        vae: Any,
        tokenizers: list[Any],
        text_encoder: Any,
        unet: Any,
    ) -> None:
        """TN:237, TU:6360: diffusers' own pipeline on the modules in training, under sd-scripts' file names.

        Draws whenever it is called (`Watch` decides, and keeps the random state); of several processes, the first draws.
        """
        if not accelerator.is_main_process:
            return
        import torch
        from diffusers import StableDiffusionPipeline
        from library import train_util

        folder = Path(args.output_dir) / "sample"
        folder.mkdir(parents=True, exist_ok=True)
        home = vae.device
        vae.to(device)
        pipeline = StableDiffusionPipeline(
            vae=vae,
            text_encoder=accelerator.unwrap_model(text_encoder),
            tokenizer=tokenizers[0],
            unet=accelerator.unwrap_model(unet),
            scheduler=self._make_sampler(args.sample_sampler),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        pipeline.set_progress_bar_config(disable=True)
        size = int(self.unet_config["sample_size"]) * self.factor
        for prompt in train_util.load_prompts(args.sample_prompts):
            seed = prompt.get("seed")
            pipeline.scheduler = self._make_sampler(prompt.get("sample_sampler", args.sample_sampler))
            with accelerator.autocast(), torch.no_grad():
                image = pipeline(
                    prompt.get("prompt", ""),
                    negative_prompt=prompt.get("negative_prompt"),
                    width=max(8, prompt.get("width", size) // 8 * 8),
                    height=max(8, prompt.get("height", size) // 8 * 8),
                    num_inference_steps=prompt.get("sample_steps", 30),
                    guidance_scale=prompt.get("scale", 7.5),
                    generator=torch.Generator("cpu").manual_seed(random.getrandbits(32) if seed is None else seed),
                    clip_skip=None if args.clip_skip is None else args.clip_skip - 1,
                ).images[0]
            number = f"{global_step:06d}" if epoch is None else f"e{epoch:06d}"
            parts = [args.output_name, number, f"{prompt['enum']:02d}", time.strftime("%Y%m%d%H%M%S"), seed]
            image.save(folder / ("_".join(str(part) for part in parts if part is not None) + ".png"))
        vae.to(home)

    def _make_sampler(self, name: str) -> Any:
        """A sampler of sd-scripts' name (TU:6199) on the base's own betas and prediction type."""
        from library import train_util

        stock = train_util.get_my_scheduler(sample_sampler=name, v_parameterization=False)
        config = {"clip_sample": False, **self.schedule, "steps_offset": 1}  # as StableDiffusionPipeline insists on
        if "algorithm_type" in stock.config:
            config["algorithm_type"] = stock.config.algorithm_type
        return type(stock).from_config(config)

    def _name_vae(self, args: Any) -> str:
        """A short name for this VAE's latents, from its configuration and weights."""
        folder = Path(args.vae) if args.vae else Path(args.pretrained_model_name_or_path) / "vae"
        digest = hashlib.sha256(json.dumps(dict(self.vae_config), sort_keys=True, default=str).encode())
        for file in sorted(folder.glob("*.safetensors")) + sorted(folder.glob("*.bin")):
            with file.open("rb") as weights:
                while chunk := weights.read(1 << 20):
                    digest.update(chunk)
        return f"{digest.hexdigest()[:12]}f{self.factor}"

"""LoRA training of a Stable Diffusion 1.x pipeline of any block layout, from top to bottom. Started by entry.py.

Everything random follows from the seed and the number of the batch, never from what ran before: so two runs on a CPU
give the same bytes, and a resumed run ends as a straight one does.
"""

from __future__ import annotations

import math
import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import count, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from diffusers import DDPMScheduler
from torch import Tensor
from torch.nn import functional

from pixelkit.engines.diffusers.checkpoint import Facts, State, describe_training, read_state, read_step, write_state
from pixelkit.engines.diffusers.examples import Example, find_examples, order_epoch
from pixelkit.engines.diffusers.network import Layer, attach_network, export_tensors, merge_file, write_tensors
from pixelkit.engines.diffusers.preparation import (
    NonFiniteError,
    cache_latents,
    claim_folder,
    make_optimizer,
    measure_memory,
    prepare_models,
    set_train_mode,
    start_accelerator,
    tokenize,
)
from pixelkit.engines.diffusers.sampling import draw_samples, load_pipeline
from pixelkit.errors import EngineError

if TYPE_CHECKING:
    from accelerate import Accelerator

    from pixelkit.engines.control import Control
    from pixelkit.engines.diffusers.settings import Settings, TrainSettings

Autocast = Callable[[], AbstractContextManager[Any]]
EXIT_NONFINITE = 65
VERSIONS = ("torch", "diffusers", "transformers", "peft", "accelerate")
DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def train(settings: Settings, control: Control, *, resume: Path | None = None) -> int:
    """Train, save, and draw the samples of base and result; the exit code. Raises PixelkitError."""
    accelerator = start_accelerator(settings)
    step = 0
    try:
        trainer = Trainer.prepare(settings, control, accelerator, resume=resume)
        step = trainer.step
        for step in range(trainer.step + 1, settings.train.steps + 1):
            if control.stop_requested:
                break
            trainer.take_step(step)
            trainer.keep_promises()
        if control.stop_requested and trainer.step < settings.train.steps:
            trainer.save(numbered=True, state=True)
            control.emit("stopped", step=trainer.step, reason=control.stop_requested)
            return 0
        path = trainer.save(numbered=False, state=False)
    except NonFiniteError as error:
        control.emit("nonfinite", step=step, what=str(error))
        return EXIT_NONFINITE
    del trainer
    if settings.sample.prompts and not control.stop_requested:
        # From the file, not from the model in memory: the samples prove what is on disk.
        pipeline = load_pipeline(settings.base, accelerator.device)
        merge_file(path, pipeline.unet, pipeline.text_encoder)
        emit_samples(pipeline, settings, control, accelerator.autocast, settings.train.steps)
    control.emit("end", step=settings.train.steps, path=path)
    return 0


def emit_samples(
    pipeline: Any, settings: Settings, control: Control, autocast: Autocast, step: int, *, skip_existing: bool = False
) -> None:
    """Draw every prompt with `pipeline` and tell of each; a stop ends it early."""
    for index, seed, prompt, path in draw_samples(
        pipeline, settings, step, autocast=autocast, skip_existing=skip_existing,
        is_stopped=lambda: control.stop_requested is not None,
    ):  # fmt: skip
        control.emit("sample", step=step, index=index, seed=seed, prompt=prompt, path=path)


@dataclass(frozen=True, kw_only=True)
class Diffusion:
    """Noising at timestep t: x_t = signal[t] x + noise[t] e; the model predicts e, or v = signal[t] e - noise[t] x."""

    signal: Tensor
    noise: Tensor
    v_prediction: bool

    @classmethod
    def of_pipeline(cls, pipeline: Any, device: torch.device) -> Diffusion:
        """As the base's scheduler config says."""
        kind = pipeline.scheduler.config.get("prediction_type", "epsilon")
        if kind not in {"epsilon", "v_prediction"}:
            raise EngineError(f"the base predicts {kind}; this engine knows epsilon and v_prediction")
        kept = DDPMScheduler.from_config(pipeline.scheduler.config).alphas_cumprod.to(device, torch.float32)
        return cls(signal=kept.sqrt(), noise=(1 - kept).sqrt(), v_prediction=kind == "v_prediction")

    def weigh(self, timesteps: Tensor, gamma: float) -> Tensor:
        """Min-SNR weights (arXiv 2303.09556), as sd-scripts' apply_snr_weight; with zero terminal SNR finite too."""
        ratio = (self.signal[timesteps] / self.noise[timesteps]) ** 2
        return ratio.clamp(max=gamma) / (ratio + 1 if self.v_prediction else ratio.clamp(min=1e-8))


@dataclass(kw_only=True)
class Trainer:
    """Models, optimizer and data of one training; `step` optimizer steps are done, in `epoch` (from 1)."""

    settings: Settings
    control: Control
    accelerator: Accelerator
    pipeline: Any
    diffusion: Diffusion
    examples: Sequence[Example]
    latents: Sequence[Tensor]
    texts: dict[str, Tensor]
    layers: list[Layer]
    optimizer: Any
    facts: Facts
    step: int = 0
    epoch: int = 1
    batches: Iterator[tuple[int, int, list[int]]] = field(default_factory=lambda: iter(()))

    @classmethod
    def prepare(cls, settings: Settings, control: Control, accelerator: Accelerator, *, resume: Path | None) -> Trainer:
        """Load the base, draw its samples, cache latents and texts, put the LoRA in, restore a state."""
        claim_folder(settings.output_dir)
        device, dtype = accelerator.device, DTYPES[settings.precision]
        torch.manual_seed(settings.seed)
        pipeline = load_pipeline(settings.base, device)
        examples = find_examples(settings.dataset, multiple=pipeline.vae_scale_factor)
        per_epoch = len(order_epoch(examples, settings.dataset, seed=settings.seed, epoch=0))
        control.emit(
            "begin", total=settings.train.steps, step=read_step(resume) if resume else 0, pid=os.getpid(), engine="diffusers",
            epochs=math.ceil(settings.train.steps * settings.train.gradient_accumulation / per_epoch),
            versions={name: version(name) for name in VERSIONS},
        )  # fmt: skip
        emit_samples(pipeline, settings, control, accelerator.autocast, 0, skip_existing=resume is not None)
        latents = cache_latents(pipeline.vae, examples, settings.dataset.workers)

        pipeline.unet.to(dtype)
        pipeline.text_encoder.to(dtype)
        texts = tokenize(pipeline, {example.caption for example in examples} | {""})
        if not settings.network.train_text_encoder:
            with torch.no_grad(), accelerator.autocast():
                texts = {caption: pipeline.text_encoder(ids)[0] for caption, ids in texts.items()}
        torch.manual_seed(settings.seed)
        layers = attach_network(settings.network, pipeline.unet, pipeline.text_encoder)
        prepare_models(pipeline, settings)
        diffusion = Diffusion.of_pipeline(pipeline, device)
        trainer = cls(
            settings=settings, control=control, accelerator=accelerator, pipeline=pipeline, diffusion=diffusion,
            examples=examples, latents=latents, texts=texts, layers=layers,
            optimizer=accelerator.prepare_optimizer(make_optimizer(settings, layers, device)),
            facts=Facts(
                examples=examples, batches_per_epoch=per_epoch, started_at=time.time(),
                v2=pipeline.unet.config.cross_attention_dim == 1024, v_prediction=diffusion.v_prediction,
            ),
        )  # fmt: skip
        if resume is not None:
            trainer.restore(read_state(resume, settings, layers))
        done = trainer.step * settings.train.gradient_accumulation
        trainer.batches = islice(stream_batches(examples, settings), done, None)
        return trainer

    def take_step(self, step: int) -> None:
        """One optimizer step over `gradient_accumulation` batches, and its event. Raises NonFiniteError."""
        began, train = time.perf_counter(), self.settings.train
        factor = scale_learning_rate(train, step)
        for group in self.optimizer.param_groups:
            group["lr"] = group["full_lr"] * factor
        total = torch.zeros((), device=self.accelerator.device)
        for number, epoch, batch in islice(self.batches, train.gradient_accumulation):
            self.epoch = epoch
            loss = self.compute_loss(number, batch) / train.gradient_accumulation
            self.accelerator.backward(loss)
            total += loss.detach()
        value = total.item()
        if not math.isfinite(value):
            raise NonFiniteError("loss")
        if train.max_grad_norm:
            parameters = [parameter for layer in self.layers for parameter in (layer.down, layer.up)]
            norm = self.accelerator.clip_grad_norm_(parameters, train.max_grad_norm)
            # In fp16 such a step is no accident: the scaler skips it and lowers its scale.
            if self.settings.precision != "fp16" and not math.isfinite(float(norm)):
                raise NonFiniteError("gradient")
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step = step
        self.control.emit(
            "step", step=step, epoch=self.epoch, loss=value, lr=train.learning_rate * factor,
            seconds=round(time.perf_counter() - began, 4), memory=measure_memory(self.accelerator.device),
        )  # fmt: skip

    def compute_loss(self, number: int, batch: list[int]) -> Tensor:
        """The weighted mean squared error of one batch; all randomness from the seed and the batch's number."""
        device, train = self.accelerator.device, self.settings.train
        chance = random.Random(f"{self.settings.seed} batch {number}")
        torch.manual_seed(chance.getrandbits(63))
        clean = torch.stack([self.latents[index] for index in batch]).to(device)
        noise = torch.randn(clean.shape)
        if train.noise_offset:
            noise += train.noise_offset * torch.randn(*clean.shape[:2], 1, 1)
        noise = noise.to(device)
        timesteps = torch.randint(len(self.diffusion.signal), (len(batch),)).to(device)
        signal, spread = (table[timesteps].view(-1, 1, 1, 1) for table in (self.diffusion.signal, self.diffusion.noise))
        target = signal * noise - spread * clean if self.diffusion.v_prediction else noise
        dropped = self.settings.dataset.caption_dropout
        texts = torch.cat([self.texts["" if chance.random() < dropped else self.examples[i].caption] for i in batch])
        with self.accelerator.autocast():
            if self.settings.network.train_text_encoder:
                texts = self.pipeline.text_encoder(texts)[0]
            predicted = self.pipeline.unet(signal * clean + spread * noise, timesteps, texts, return_dict=False)[0]
        loss = functional.mse_loss(predicted.float(), target, reduction="none").mean(dim=(1, 2, 3))
        if train.min_snr_gamma:
            loss = loss * self.diffusion.weigh(timesteps, train.min_snr_gamma)
        if self.settings.dataset.class_images:
            weights = [train.prior_loss_weight if self.examples[index].is_class else 1.0 for index in batch]
            loss = loss * torch.tensor(weights, device=device)
        return loss.mean()

    def keep_promises(self) -> None:
        """Save and sample where the settings or an order say so. The last step's are made at the end anyway."""
        step, train, sample = self.step, self.settings.train, self.settings.sample
        last = step == train.steps
        if self.control.take_save() or (train.save_every_steps and step % train.save_every_steps == 0 and not last):
            self.save(numbered=True, state=True)
        if self.control.take_sample() or (sample.every_steps and step % sample.every_steps == 0 and not last):
            self.pipeline.unet.eval()
            self.pipeline.text_encoder.eval()
            emit_samples(self.pipeline, self.settings, self.control, self.accelerator.autocast, step)
            set_train_mode(self.pipeline, self.settings)

    def save(self, *, numbered: bool, state: bool) -> Path:
        """Write the LoRA, and the state if wanted; the LoRA's path. Raises NonFiniteError, then nothing is written."""
        tensors = export_tensors(self.layers)
        if not all(bool(tensor.isfinite().all()) for tensor in tensors.values()):
            raise NonFiniteError("weights")
        folder = Path(os.path.abspath(self.settings.output_dir))  # noqa: PTH100  (no symlinks resolved)
        name = f"{self.settings.output_name}-step{self.step:08d}"
        path = folder / f"{name if numbered else self.settings.output_name}.safetensors"
        write_tensors(path, tensors, describe_training(self.settings, self.facts, step=self.step, epoch=self.epoch))
        self.control.emit("save", step=self.step, path=path)
        if state:
            scaler = self.accelerator.scaler.state_dict() if self.accelerator.scaler is not None else {}
            write_state(
                folder / f"{name}-state", self.settings,
                State(
                    step=self.step, started_at=self.facts.started_at,
                    optimizer=self.optimizer.state_dict(), scaler=scaler,
                ),
                self.layers,
            )  # fmt: skip
            self.control.emit("state", step=self.step, path=folder / f"{name}-state")
        return path

    def restore(self, state: State) -> None:
        """Go on from a state whose weights are in already."""
        self.step = state.step
        self.optimizer.load_state_dict(state.optimizer)
        if state.scaler and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state.scaler)


def stream_batches(examples: Sequence[Example], settings: Settings) -> Iterator[tuple[int, int, list[int]]]:
    """(number of the batch from 0, epoch from 1, indices of examples) without end."""
    numbers = count()
    for epoch in count():
        for batch in order_epoch(examples, settings.dataset, seed=settings.seed, epoch=epoch):
            yield next(numbers), epoch + 1, batch


def scale_learning_rate(train: TrainSettings, step: int) -> float:
    """What the learning rate is multiplied with at `step` (from 1): the schedules of sd-scripts."""
    done = step - 1
    if done < train.warmup_steps:
        return done / train.warmup_steps
    if train.scheduler == "constant":
        return 1.0
    progress = (done - train.warmup_steps) / max(1, train.steps - train.warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * progress)) if train.scheduler == "cosine" else max(0.0, 1 - progress)

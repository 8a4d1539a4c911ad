"""The artist's TOML preset: its keys, their types, limits and meaning. Loading one is `preset_file`."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from PIL import ImageColor
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

Optimizer = Literal["auto", "adamw", "adamw8bit", "adafactor", "lion", "prodigy", "sgd"]
Scheduler = Literal["cosine", "constant", "linear", "constant_with_warmup", "cosine_with_restarts"]
Precision = Literal["auto", "no", "bf16", "fp16"]
Family = Literal["sd15", "sd2", "sdxl", "sd3", "flux"]
Method = Literal["lora", "dreambooth", "finetune", "textual-inversion"]
NetworkKind = Literal["lora", "dora", "loha", "lokr", "dylora", "oft"]
EngineChoice = Literal["auto", "kohya", "diffusers"]
ExportFormat = Literal["kohya", "peft", "diffusers", "catsith", "catsith-compact"]
Sampler = Literal["auto", "ddim", "euler", "euler_a", "dpm++"]
KohyaValue = bool | int | float | str | list[bool | int | float | str]


def check_name(name: str) -> str:
    """A name becomes file names on every platform."""
    if not name or name[0] in ".-" or not all(sign.isalnum() or sign in "-_." for sign in name):
        raise ValueError("use letters, digits, '-', '_' and '.', and begin with a letter or digit")
    if len(name.encode()) > 150:
        raise ValueError("too long for a file name")
    return name


def _colour(name: str) -> str:
    if name != "auto":
        try:
            ImageColor.getrgb(name)
        except ValueError:
            raise ValueError("no colour; write #rrggbb, a colour's English name, or auto") from None
    return name


def _cells(size: str) -> str:
    if not re.fullmatch(r"[1-9]\d*x[1-9]\d*", size):
        raise ValueError("write width x height of one cell, as 32x32")
    return size


def _only_name(text: str) -> str:
    """{name} is all that a caption may hold in braces: anything else would be trained as it stands."""
    for word in re.findall(r"\{(\w+)\}", text):
        if word != "name":
            hint = "; the trigger words come first by themselves" if word == "trigger" else ""
            raise ValueError(f"{{{word}}} is not replaced, only {{name}} is{hint}")
    return text


def _only_trigger(prompts: tuple[str, ...]) -> tuple[str, ...]:
    for word in re.findall(r"\{(\w+)\}", " ".join(prompts)):
        if word != "trigger":
            raise ValueError(f"{{{word}}} is not replaced, only {{trigger}} is")
    return prompts


def _lora_file(text: str) -> str:
    path, _, strength = text.rpartition(":")
    if path and strength.replace(".", "", 1).replace("-", "", 1).isdigit() and not -2 <= float(strength) <= 2:
        raise ValueError("a strength is between -2 and 2")
    return text


def _project(name: str) -> str:
    if not re.fullmatch(r"([^/\\#?%:\s]+/)?[^/\\#?%:]{1,128}", name):
        raise ValueError("write a project's name, or team/project, without \\ # ? % :")
    return name


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Dataset(_Table):
    """The sprites and how they reach the trainer. Every sprite pixel becomes an exact square block; nothing is resampled."""

    path: Annotated[str, Field(description="folder of sprites, relative to the preset; sub-folders are read too")]
    trigger: Annotated[
        str,
        AfterValidator(lambda words: " ".join(words.split())),
        Field(description="trigger words, put before every caption", max_length=200),
    ] = ""
    caption: Annotated[
        str,
        AfterValidator(_only_name),
        Field(description="caption of a sprite without a .txt file; {name} is its file name in words", min_length=1),
    ] = "{name}"
    background: Annotated[
        str,
        AfterValidator(_colour),
        Field(description="colour under transparent pixels: #rrggbb, or auto = one that occurs in no sprite"),
    ] = "auto"
    alpha: Annotated[
        Literal["flatten", "mask"],
        Field(description="flatten = train on the background too; mask = the loss counts only where the sprite is"),
    ] = "flatten"
    sheet: Annotated[
        str | None,
        AfterValidator(_cells),
        Field(description="the images are sheets with cells of this size, as 32x32; empty cells are left out"),
    ] = None
    grid: Annotated[
        int | None,
        Field(
            description="pixels of a file per sprite pixel, for art that was enlarged; default: found in the pixels",
            ge=1,
            le=256,
        ),
    ] = None
    repair: Annotated[
        bool, Field(description="snap blurred, compressed or unevenly enlarged art to its pixel grid")
    ] = False
    resolution: Annotated[
        int | None,
        Field(
            description="side of the square whose area no canvas exceeds, pixels; default: the base's", ge=16, le=4096
        ),
    ] = None
    scale: Annotated[
        int | None, Field(description="enlargement of one sprite pixel; default: the largest that fits", ge=1, le=256)
    ] = None
    repeats: Annotated[int, Field(description="how often each sprite is seen in one epoch", ge=1, le=10_000)] = 1
    class_path: Annotated[
        str | None,
        Field(description="folder of class images that keep the base's idea of the class (prior preservation)"),
    ] = None
    instance_prompt: Annotated[
        str | None,
        Field(description="one caption for all sprites, as DreamBooth does; replaces their own", min_length=1),
    ] = None
    class_prompt: Annotated[str | None, Field(description="caption of the class images", min_length=1)] = None
    prior_weight: Annotated[float, Field(description="weight of the class images' loss", ge=0, le=10)] = 1.0


class Network(_Table):
    """The LoRA's shape."""

    kind: Annotated[
        NetworkKind,
        Field(
            description="lora; dora = magnitude trained apart; loha, lokr = products that hold more in less (these three need"
            " the package lycoris-lora); dylora = one file that serves as many ranks; oft = rotations of the weights"
        ),
    ] = "lora"
    rank: Annotated[
        int, Field(description="rank of the update; more holds more detail; with oft: blocks a layer", ge=1, le=1024)
    ] = 32
    alpha: Annotated[
        float | None,
        Field(description="strength is alpha / rank; default: the rank; with oft: how far it may turn", gt=0, le=4096),
    ] = None
    dropout: Annotated[float, Field(description="share of the update dropped in training", ge=0, lt=1)] = 0.0
    conv_rank: Annotated[
        int | None, Field(description="rank for 3x3 convolutions too; default: none", ge=1, le=1024)
    ] = None
    conv_alpha: Annotated[
        float | None, Field(description="alpha of the convolutions; default: conv_rank", gt=0, le=4096)
    ] = None
    factor: Annotated[
        int | None, Field(description="lokr: side of the smaller matrix; default: nearest to square", ge=2, le=1024)
    ] = None
    unit: Annotated[int | None, Field(description="dylora: ranks come in steps of this; default: 1", ge=1, le=1024)] = (
        None
    )
    start_from: Annotated[
        str | None,
        Field(description="an earlier LoRA to go on from, any format; brought to this rank", min_length=1),
    ] = None


class Embedding(_Table):
    """method = textual-inversion: new words for the text encoder, and nothing else. The trigger is the word."""

    vectors: Annotated[
        int, Field(description="vectors behind the word; each takes a token of a prompt", ge=1, le=75)
    ] = 4
    start_word: Annotated[
        str | None, Field(description="a word whose meaning it starts from; default: noise", min_length=1)
    ] = None


class Train(_Table):
    """How long and how fast. Give steps or epochs; give batch_size, or effective_batch and let the machine split it."""

    steps: Annotated[int | None, Field(description="optimizer steps", ge=1, le=10_000_000)] = None
    epochs: Annotated[int | None, Field(description="passes over all sprites and repeats", ge=1, le=1_000_000)] = None
    batch_size: Annotated[
        int | None, Field(description="images per forward pass; default: the machine's", ge=1, le=4096)
    ] = None
    gradient_accumulation: Annotated[
        int | None, Field(description="forward passes per optimizer step", ge=1, le=4096)
    ] = None
    effective_batch: Annotated[
        int | None,
        Field(
            description="images per optimizer step; the machine chooses batch_size x gradient_accumulation",
            ge=1,
            le=65_536,
        ),
    ] = None
    learning_rate: Annotated[
        float, Field(description="of the UNet or transformer; default with textual-inversion: 5e-4", gt=0, le=1)
    ] = 1e-4
    text_encoder: Annotated[
        bool | None, Field(description="train the text encoder's LoRA too; default: what the base suggests")
    ] = None
    text_encoder_learning_rate: Annotated[
        float | None,
        Field(description="default: half of learning_rate; with method = dreambooth all of it", gt=0, le=1),
    ] = None
    optimizer: Annotated[Optimizer, Field(description="auto = what the machine's profile names")] = "auto"
    scheduler: Annotated[Scheduler, Field(description="course of the learning rate")] = "cosine"
    warmup_steps: Annotated[
        int | None, Field(description="steps of rising learning rate; default: 5% of all, at most 100", ge=0)
    ] = None
    max_grad_norm: Annotated[
        float, Field(description="gradients are clipped to this norm; 0 = never", ge=0, le=1000)
    ] = 1.0
    min_snr_gamma: Annotated[
        float, Field(description="weighs the noise levels evenly (arXiv 2303.09556); 0 = off", ge=0, le=100)
    ] = 5.0
    noise_offset: Annotated[
        float, Field(description="lets the model learn darker and brighter pictures; 0 = off", ge=0, le=1)
    ] = 0.0
    caption_dropout: Annotated[float, Field(description="share of images seen without caption", ge=0, lt=1)] = 0.0
    shuffle_caption: Annotated[
        bool, Field(description="shuffle the comma-separated parts of captions, trigger first")
    ] = False
    gpus: Annotated[
        int, Field(description="GPUs that train together, each with batch_size images of its own", ge=1, le=64)
    ] = 1
    gradient_checkpointing: Annotated[
        bool | None, Field(description="less memory, about 30% slower; default: the machine's")
    ] = None
    precision: Annotated[Precision, Field(description="auto = what the machine's profile names")] = "auto"
    seed: Annotated[int, Field(description="same seed, same run", ge=0, lt=2**32)] = 42
    save_every_steps: Annotated[int | None, Field(description="keep a checkpoint each so many steps", ge=1)] = None
    save_every_epochs: Annotated[int | None, Field(description="keep a checkpoint each so many epochs", ge=1)] = None
    clip_skip: Annotated[
        int | None, Field(description="take the text encoder's output so many layers early", ge=1, le=12)
    ] = None

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if self.steps and self.epochs:
            raise ValueError("steps and epochs are both given; keep the one you mean")
        if self.save_every_steps and self.save_every_epochs:
            raise ValueError("save_every_steps and save_every_epochs are both given; keep the one you mean")
        if self.effective_batch and self.gradient_accumulation:
            raise ValueError("effective_batch and gradient_accumulation are both given; keep the one you mean")
        if self.effective_batch and self.batch_size and self.effective_batch % self.batch_size:
            raise ValueError(
                f"effective_batch = {self.effective_batch} is no multiple of batch_size = {self.batch_size}"
            )
        return self


class Sample(_Table):
    """Pictures made on the way, the same prompts and seeds each time: with the base before the first step, last with the LoRA."""

    prompts: Annotated[
        tuple[str, ...],
        AfterValidator(_only_trigger),
        Field(description="none = no pictures; {trigger} stands for the trigger words", strict=False),
    ] = ()
    negative: Annotated[str, Field(description="what the pictures should not show")] = ""
    every_steps: Annotated[int | None, Field(description="also on the way, each so many steps", ge=1)] = None
    every_epochs: Annotated[int | None, Field(description="also on the way, each so many epochs", ge=1)] = None
    steps: Annotated[int | None, Field(description="sampling steps; default: the base's", ge=1, le=1000)] = None
    guidance: Annotated[
        float | None, Field(description="classifier-free guidance; default: the base's", ge=0, le=50)
    ] = None
    seed: Annotated[int, Field(description="of the first prompt; the next one's is one higher", ge=0, lt=2**32)] = 42
    sampler: Annotated[Sampler, Field(description="auto = what the base suggests")] = "auto"
    width: Annotated[int | None, Field(description="default: the training canvas", ge=16, le=4096, multiple_of=8)] = (
        None
    )
    height: Annotated[int | None, Field(description="default: the training canvas", ge=16, le=4096, multiple_of=8)] = (
        None
    )

    @model_validator(mode="after")
    def _one_interval(self) -> Self:
        if self.every_steps and self.every_epochs:
            raise ValueError("every_steps and every_epochs are both given; keep the one you mean")
        return self


class Export(_Table):
    """What comes out."""

    formats: Annotated[
        tuple[ExportFormat, ...], Field(description="file formats to ship", strict=False, min_length=1)
    ] = (
        "kohya",
        "peft",
        "diffusers",
    )
    strength: Annotated[float, Field(description="recommended strength, written into the metadata", gt=0, le=2)] = 0.8
    title: Annotated[str | None, Field(description="default: the name")] = None
    author: Annotated[str, Field(description="written into the metadata")] = ""
    license: Annotated[str, Field(description="licence of your model, written into the metadata")] = ""
    description: Annotated[str, Field(description="written into the metadata")] = ""


class Track(_Table):
    """Who keeps the curves of the run, beside pixelkit's own metrics.jsonl. The same for every engine and method."""

    tensorboard: Annotated[
        bool, Field(description="event files in the run's directory, where the package tensorboard is installed")
    ] = True
    wandb: Annotated[
        str | None,
        AfterValidator(_project),
        Field(
            description="a Weights & Biases project, or team/project; the package wandb and its own login are needed"
        ),
    ] = None
    wandb_mode: Annotated[
        Literal["online", "offline"], Field(description="offline = kept on disk, for `wandb sync` later")
    ] = "online"


class Preset(_Table):
    """A preset: what to train, on what, how, and what to make of it."""

    extends: Annotated[
        str | None, Field(description="a shipped preset's name or a file; this preset's keys win over its keys")
    ] = None
    name: Annotated[str, AfterValidator(check_name), Field(description="names the run and the files", max_length=100)]
    base: Annotated[
        str, Field(description="a base of presets/bases, a file, a folder or a hub id (then family too)", min_length=1)
    ]
    family: Annotated[Family | None, Field(description="kind of model, when base is a path or a hub id")] = None
    base_loras: Annotated[
        tuple[Annotated[str, AfterValidator(_lora_file)], ...],
        Field(description='LoRAs that are baked into the base first, as "style.safetensors:0.8"', strict=False),
    ] = ()
    method: Annotated[
        Method,
        Field(
            description="lora; dreambooth = the whole model on one subject; finetune = the whole model on many sprites;"
            " textual-inversion = a new word only"
        ),
    ] = "lora"
    engine: Annotated[EngineChoice, Field(description="auto = kohya where it is found")] = "auto"
    hardware: Annotated[
        str, Field(description="a profile of presets/hardware; auto = the one that fits this machine")
    ] = "auto"
    dataset: Dataset
    network: Network = Network()
    embedding: Embedding = Embedding()
    train: Train = Train()
    sample: Sample = Sample()
    export: Export = Export()
    track: Track = Track()
    kohya: Annotated[
        dict[str, KohyaValue],
        Field(description="any option of the trainer's script by its own name; wins over everything else"),
    ] = {}

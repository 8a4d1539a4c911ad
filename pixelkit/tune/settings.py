"""What can be set otherwise without changing what is learned, and what this plan and this machine allow of it."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from pixelkit.tuned import ATTENTION_KEYS, Attention

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pixelkit.plan import Plan
    from pixelkit.preset_file import LoadedPreset

WORKERS = (0, 2, 4, 8)
MOST_BATCH = 4096
# sd-scripts' options in [kohya] that settle one of the settings.
KOHYA_SAYS: Mapping[str, tuple[str, ...]] = {
    "attention": ("sdpa", "xformers", "mem_eff_attn", "diffusers_xformers", "attn_mode", "split_attn"),
    "compile": ("torch_compile", "dynamo_backend"),
    "workers": ("max_data_loader_n_workers", "persistent_data_loader_workers"),
    "optimizer": ("optimizer_type", "use_8bit_adam", "use_lion_optimizer", "optimizer_args", "fused_backward_pass"),
    "gradient_checkpointing": ("cpu_offload_checkpointing", "blocks_to_swap"),
}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that is tried. `gradient_accumulation` follows the batch size where the effective batch is held."""

    batch_size: int
    gradient_accumulation: int
    gradient_checkpointing: bool
    attention: Attention
    compile: bool
    workers: int
    optimizer: str
    fused_optimizer: bool


@dataclass(frozen=True, kw_only=True)
class Space:
    """The values that may be tried, each with the plan's own among them; one value = nothing to try.

    `fixed`: by setting, why it is held. `share`: images per optimizer step on one GPU where that is held, else None.
    """

    batch_sizes: tuple[int, ...]
    share: int | None
    gradient_checkpointing: tuple[bool, ...]
    attention: tuple[Attention, ...]
    compile: tuple[bool, ...]
    workers: tuple[int, ...]
    optimizers: tuple[tuple[str, bool], ...]
    compile_excludes_checkpointing: bool = False
    fixed: Mapping[str, str] = field(default_factory=dict)

    def with_batch(self, settings: Settings, batch_size: int) -> Settings:
        """The same images per optimizer step, split otherwise; where they are left open, another number of them."""
        accumulation = self.share // batch_size if self.share else settings.gradient_accumulation
        return replace(settings, batch_size=batch_size, gradient_accumulation=accumulation)

    def make_legal(self, settings: Settings) -> Settings:
        """What the plan makes of it: SDXL's checkpointing breaks compiled graphs, so there it is one or the other."""
        excluded = self.compile_excludes_checkpointing and settings.gradient_checkpointing
        return replace(settings, compile=settings.compile and not excluded)


def settings_of(plan: Plan) -> Settings:
    """The settings that a plan has."""
    train = plan.train
    return Settings(
        batch_size=train.batch_size,
        gradient_accumulation=train.gradient_accumulation,
        gradient_checkpointing=train.gradient_checkpointing,
        attention="xformers" if plan.engine == "kohya" and plan.kohya.get("xformers") else "sdpa",
        compile=train.compile,
        workers=train.workers,
        optimizer=train.optimizer,
        fused_optimizer=train.fused_optimizer,
    )


def with_settings(plan: Plan, settings: Settings) -> Plan:
    """The plan with other settings."""
    train = replace(
        plan.train,
        batch_size=settings.batch_size,
        gradient_accumulation=settings.gradient_accumulation,
        gradient_checkpointing=settings.gradient_checkpointing,
        compile=settings.compile,
        workers=settings.workers,
        optimizer=settings.optimizer,
        fused_optimizer=settings.fused_optimizer,
    )
    kohya, sources = dict(plan.kohya), dict(plan.sources)
    if settings.attention != settings_of(plan).attention:
        kohya = {key: value for key, value in kohya.items() if key not in {"xformers", "sdpa"}}
        kohya |= ATTENTION_KEYS[settings.attention]
        sources |= {f"kohya.{key}": "tune" for key in kohya if f"kohya.{key}" not in sources}
    return replace(plan, train=train, kohya=kohya, sources=sources)


def find_space(plan: Plan, loaded: LoadedPreset, *, installed: Sequence[str] | None = None) -> Space:
    """What may be tried for this plan. `installed`: packages that count as there; None = look.

    What the preset says, in its own terms or in [kohya], is held.
    """
    fixed = dict(_find_fixed(loaded))
    now = settings_of(plan)
    has = _is_installed if installed is None else installed.__contains__
    cuda, kohya = plan.device == "cuda", plan.engine == "kohya"

    def open_to(name: str, *, where: bool = True) -> bool:
        return where and name not in fixed

    batch_sizes, share = _find_batch_sizes(plan, loaded, held="batch_size" in fixed)
    attention: tuple[Attention, ...] = (now.attention,)
    if open_to("attention", where=cuda and kohya and plan.base.spec.family != "flux" and has("xformers")):
        attention = ("sdpa", "xformers")
    may_compile = cuda and plan.base.spec.layout == "stock" and plan.method == "lora" and has("triton")
    workers = tuple(sorted({now.workers, *(number for number in WORKERS if number <= plan.machine.cores)}))
    optimizers = {(now.optimizer, now.fused_optimizer)}
    if now.optimizer in {"adamw", "adamw8bit"} and open_to("optimizer", where=cuda):
        # pixelkit's own trainer fuses by itself; in fp16 the loss scaler and a fused step do not mix.
        fused = plan.train.precision != "fp16" if kohya else now.fused_optimizer
        optimizers |= {("adamw", fused)}
        optimizers |= {("adamw8bit", now.fused_optimizer)} if has("bitsandbytes") else set()
    return Space(
        batch_sizes=batch_sizes,
        share=share,
        gradient_checkpointing=(False, True) if open_to("gradient_checkpointing") else (now.gradient_checkpointing,),
        attention=attention,
        compile=(False, True) if open_to("compile", where=may_compile) else (now.compile,),
        workers=workers if open_to("workers", where=kohya) else (now.workers,),
        optimizers=tuple(sorted(optimizers)),
        compile_excludes_checkpointing=plan.base.spec.family == "sdxl",
        fixed=fixed,
    )


def _find_fixed(loaded: LoadedPreset) -> Iterator[tuple[str, str]]:
    """Settings that the preset says, and where."""
    train, kohya = loaded.preset.train, loaded.preset.kohya
    for name in ("batch_size", "gradient_checkpointing"):
        if getattr(train, name) is not None:
            yield name, str(loaded.origin("train", name))
    if train.optimizer != "auto":
        yield "optimizer", str(loaded.origin("train", "optimizer"))
    for name, options in KOHYA_SAYS.items():
        for option in options:
            if option in kohya:
                yield name, f"{loaded.origin('kohya', option)} {option}"


def _find_batch_sizes(plan: Plan, loaded: LoadedPreset, *, held: bool) -> tuple[tuple[int, ...], int | None]:
    """The batch sizes to choose from, and the images per step and GPU that they must divide (None = left open).

    No batch is larger than the fullest bucket: it would never be full.
    """
    now = plan.train.batch_size
    most = min(MOST_BATCH, max(now, *(bucket.images for bucket in plan.dataset.buckets)))
    if held:
        return (now,), None
    if loaded.preset.train.effective_batch:
        share = now * plan.train.gradient_accumulation
        return tuple(size for size in range(1, most + 1) if share % size == 0), share
    powers = {2**exponent for exponent in range(most.bit_length()) if 2**exponent <= most}
    return tuple(sorted({now, *powers})), None


def _is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def describe(settings: Settings, start: Settings) -> str:
    """What is other than at the start, in a few words."""
    words = []
    if (settings.batch_size, settings.gradient_accumulation) != (start.batch_size, start.gradient_accumulation):
        many = settings.gradient_accumulation > 1 or start.gradient_accumulation > 1
        words.append(f"batch {settings.batch_size}{f' x {settings.gradient_accumulation}' if many else ''}")
    words += [
        f"{name.removeprefix('gradient_')} {'on' if getattr(settings, name) else 'off'}"
        for name in ("gradient_checkpointing", "compile")
        if getattr(settings, name) != getattr(start, name)
    ]
    if settings.attention != start.attention:
        words.append(settings.attention)
    if settings.workers != start.workers:
        words.append(f"{settings.workers} workers")
    if (settings.optimizer, settings.fused_optimizer) != (start.optimizer, start.fused_optimizer):
        fused = " fused" if settings.optimizer == "adamw" and settings.fused_optimizer else ""
        words.append(f"{settings.optimizer}{fused}")
    return ", ".join(words) or "as it is"

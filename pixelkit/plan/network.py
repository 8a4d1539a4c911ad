"""The plan of what is trained on top of the base: a network of some kind, or the vectors of a new word."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pixelkit.errors import PresetError, WeightsError
from pixelkit.plan.effects import FLOW
from pixelkit.plan.model import EmbeddingPlan, NetworkPlan

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from pixelkit.catalog import Base
    from pixelkit.plan.settle import Resolver
    from pixelkit.preset import Family, NetworkKind

_CLIP_BASES: frozenset[Family] = frozenset({"sd15", "sd2", "sdxl"})
# The families whose layers a kind knows, at the pinned sd-scripts and with lycoris-lora 3.
FAMILIES: Mapping[NetworkKind, frozenset[Family]] = {
    "lora": frozenset({"sd15", "sd2", "sdxl", "sd3", "flux"}),
    "dora": _CLIP_BASES,
    "loha": _CLIP_BASES,
    "lokr": _CLIP_BASES,
    "dylora": _CLIP_BASES,
    "oft": _CLIP_BASES | {"flux"},
}
LYCORIS: frozenset[NetworkKind] = frozenset({"dora", "loha", "lokr"})
OFT_BLOCKS, OFT_ALPHA = 4, 1e-3  # networks/oft.py, create_network
# What every layer's width is a multiple of: OFT cuts it into equal blocks.
_WIDTHS: Mapping[Family, int] = {"sd15": 320, "sd2": 320, "sdxl": 320, "flux": 3072}


def plan_network(resolver: Resolver, base: Base) -> NetworkPlan:
    """The network's shape. Raises PresetError for a kind that the base's layers cannot take, WeightsError for a bad file."""
    network = resolver.loaded.preset.network
    family, kind = base.spec.family, resolver.settle("network.kind")
    if resolver.loaded.preset.method != "lora":
        kind = "lora"
    if family not in FAMILIES[kind]:
        raise PresetError(
            f"{resolver.sources['network.kind']} [network] kind = {kind}: not for {family}",
            hint=f"for this base there are {', '.join(name for name, families in FAMILIES.items() if family in families)}",
        )
    start = find_start(resolver)
    if start:
        resolver.sources["network.start_from"] = str(resolver.loaded.origin("network", "start_from"))
    oft = kind == "oft"
    rank = resolver.settle(
        "network.rank",
        *([(OFT_BLOCKS, "oft's own")] if oft else ()),
        *([(_read_start(resolver, base, start), f"the rank of {start.name}")] if start else ()),
    )
    if oft:
        _check_blocks(resolver, base, rank)
    conv_rank = 0 if family in FLOW else network.conv_rank or 0
    if kind == "dylora" and conv_rank not in {0, rank}:
        raise PresetError(
            f"{resolver.loaded.where('network', 'conv_rank')} conv_rank = {conv_rank}: a dylora has one rank for all layers",
            hint=f"write conv_rank = {rank}, or leave it out",
        )
    for key in ("dropout", "conv_rank", "conv_alpha", "factor", "unit"):
        resolver.settle(f"network.{key}", (0, "default"))
    unit = network.unit or 0
    if unit and rank % unit:
        raise PresetError(
            f"{resolver.loaded.where('network', 'unit')} unit = {unit} does not divide the rank {rank}",
            hint=f"write one of {', '.join(str(step) for step in range(1, rank + 1) if rank % step == 0)}",
        )
    alpha = resolver.settle("network.alpha", (OFT_ALPHA, "oft's own") if oft else (float(rank), "the rank"))
    return NetworkPlan(
        kind=kind,
        rank=rank,
        alpha=float(alpha),
        dropout=network.dropout,
        conv_rank=conv_rank,
        conv_alpha=float(network.conv_alpha or (alpha if kind == "dylora" else conv_rank)),
        factor=network.factor or 0,
        unit=unit,
        start_from=start,
    )


def find_start(resolver: Resolver) -> Path | None:
    """The earlier LoRA. Raises PresetError where there is none, or the kind cannot go on from one."""
    loaded = resolver.loaded
    network = loaded.preset.network
    if network.start_from is None or loaded.preset.method != "lora":
        return None
    where = f"{loaded.where('network', 'start_from')} start_from"
    path = loaded.resolve_path(network.start_from, "network", "start_from")
    if not path.exists():
        raise PresetError(f"{where} = {network.start_from}: no such file or folder")
    if network.kind != "lora":
        raise PresetError(
            f"{where}: a {network.kind} cannot go on from an earlier file",
            hint='use kind = "lora", or bake the earlier one into the base: base_loras',
        )
    return path


def _read_start(resolver: Resolver, base: Base, path: Path) -> int:
    """The earlier LoRA's rank; warnings for what of it has no place in this run."""
    from converters import ConversionError  # noqa: PLC0415 - numpy, which only this needs
    from converters.family import TITLES, family_of  # noqa: PLC0415
    from converters.lineage import is_wide  # noqa: PLC0415
    from converters.start import find_rank, read_start  # noqa: PLC0415

    preset = resolver.loaded.preset
    where = f"{resolver.loaded.where('network', 'start_from')} start_from"
    try:
        lora = read_start(path)
    except ConversionError as error:
        raise WeightsError(f"{where}: {error}") from error
    family = family_of(lora)
    if family and base.spec.layout == "stock" and family != {"sd2": "sd21"}.get(base.spec.family, base.spec.family):
        raise PresetError(f"{where} = {path.name} is a LoRA for {TITLES[family]}, and {base.name} is {base.spec.title}")
    if not preset.network.conv_rank and any(is_wide(part) for part in lora.modules.values()):
        resolver.warnings.append(
            f"{where}: its 3x3 convolutions are left behind; network.conv_rank would take them along"
        )
    trained = preset.train.text_encoder if preset.train.text_encoder is not None else base.spec.train_text_encoder
    if not trained and any(name.component.startswith("text_encoder") for name in lora.modules):
        resolver.warnings.append(
            f"{where}: its text encoder part is left behind; train.text_encoder = true would take it along"
        )
    return find_rank(lora)


def _check_blocks(resolver: Resolver, base: Base, blocks: int) -> None:
    width = _WIDTHS[base.spec.family]
    if base.spec.layout == "stock" and width % blocks:
        fitting = [number for number in range(1, 65) if width % number == 0]
        raise PresetError(
            f"{resolver.loaded.where('network', 'rank')} rank = {blocks}: oft cuts each layer into so many equal blocks, and"
            f" {width} channels cannot be cut so",
            hint=f"write one of {', '.join(map(str, fitting))}",
        )


def plan_embedding(resolver: Resolver, trigger: str) -> EmbeddingPlan | None:
    """The new word. Raises PresetError where the trigger is not one word."""
    if resolver.loaded.preset.method != "textual-inversion":
        return None
    where = f"{resolver.loaded.where('dataset', 'trigger')} trigger"
    if not trigger:
        raise PresetError(
            f"{where} is missing: it is the word that textual inversion makes", hint='as trigger = "herochar"'
        )
    if len(trigger.split()) > 1 or "," in trigger:
        raise PresetError(
            f'{where} = "{trigger}": textual inversion makes one word',
            hint=f'as "{trigger.split(maxsplit=1)[0].strip(",")}"',
        )
    return EmbeddingPlan(
        token=trigger,
        vectors=resolver.settle("embedding.vectors"),
        start_word=resolver.loaded.preset.embedding.start_word,
    )


def plan_base_loras(resolver: Resolver, base: Base) -> tuple[tuple[Path, float], ...]:
    """The LoRAs that go into the base, each with its strength. Raises PresetError where it, or the base, is not here."""
    loaded = resolver.loaded
    if loaded.preset.base_loras and not base.local:
        raise PresetError(
            f"{loaded.where('base_loras')} base_loras: {base.name} is not a file or folder here, so nothing can be baked into it",
            hint="put the base into your models folder (`pixelkit config set models PATH`)",
        )
    found = []
    for text in loaded.preset.base_loras:
        name, _, strength = text.rpartition(":")
        try:
            path, amount = (name, float(strength)) if name else (text, 1.0)
        except ValueError:
            path, amount = text, 1.0
        place = loaded.resolve_path(path, "base_loras")
        if not place.exists():
            raise PresetError(f"{loaded.where('base_loras')} base_loras: {path}: no such file or folder")
        found.append((place, amount))
    return tuple(found)

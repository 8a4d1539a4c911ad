"""PEFT's adapter_config.json: what it says of modules, and how many configs a LoRA needs.

A config has one kind of adapter and, for LoHa and LoKr, one rule (peft: tuners/loha/layer.py, tuners/lokr/layer.py) by
which PEFT makes out the shape of every module's matrices from the layer's own. Modules that no one config describes
are spread over several: PeftMixedModel loads those one after the other.
"""

from __future__ import annotations

import functools
import itertools
import math
import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from converters.errors import ConversionError
from converters.lora import AnyModule, HadaModule, KronModule, Module, name_places

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from converters.names import Name

KINDS: Mapping[str, type[AnyModule]] = {"LORA": Module, "LOHA": HadaModule, "LOKR": KronModule}
# Settings that change what the weights mean, with the value that leaves the meaning as it is.
PLAIN: Mapping[str, object] = {
    "bias": "none",
    "lora_bias": False,
    "modules_to_save": None,
    "layer_replication": None,
    "trainable_token_indices": None,
    "target_parameters": None,
    "fan_in_fan_out": False,
    "alora_invocation_tokens": None,
    "use_qalora": False,
}
_CONV_3X3 = re.compile(r"(?:.*\.)?(?:conv1|conv2|conv|conv_in|conv_out)")  # of a UNet: resnets, samplers, both ends


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What one config says of all its modules, ranks and alphas aside."""

    kind: str
    dora: bool = False
    effective: bool = False  # use_effective_conv2d: 3x3 convolutions have Tucker cores
    both: bool = False  # decompose_both: LoKr's small factor is a product where the rank is low
    factor: int = -1  # decompose_factor: how LoKr splits a layer's width

    def rank_of(self, name: Name, module: AnyModule) -> int | None:
        """The rank under which PEFT gives a module's matrices the shapes they have; None where no rank does."""
        if type(module) is not KINDS[self.kind]:
            return None
        if isinstance(module, Module):
            return module.rank if (module.magnitude is not None) == self.dora else None
        if isinstance(module, HadaModule):
            return module.rank if (module.t1 is not None) == (self.effective and _area(name) > 1) else None
        return self._rank_of_kron(name, module)

    def _rank_of_kron(self, name: Name, module: KronModule) -> int | None:
        area = _area(name)
        flat = module.w2 is None and module.t2 is None
        if flat and module.large[1] % area:
            return None
        inner = module.large[1] // area if flat else module.large[1]
        (out_1, in_1), (out_2, in_2) = module.small, (module.large[0], inner)
        splits = (split_width(out_1 * out_2, self.factor), split_width(in_1 * in_2, self.factor))
        if splits != ((out_1, out_2), (in_1, in_2)):
            return None
        small, large = max(out_1, in_1) / 2, max(out_2, in_2) / 2
        rank = math.ceil(max(small, large)) if module.is_whole else module.rank
        if (module.w1 is None) != (self.both and rank < small) or (module.w2 is None) != (rank < large):
            return None
        if module.w2 is None and (module.t2 is not None) != (self.effective and area > 1):
            return None
        return rank


@dataclass(frozen=True, kw_only=True)
class Group:
    """The modules that one config describes, with the rank that each has there."""

    rule: Rule
    ranks: Mapping[Name, int]


def group_modules(modules: Mapping[Name, AnyModule]) -> list[Group]:
    """As few configs as the greedy choice finds, the one with most modules first. Modules without Tucker LoRA.

    Raises ConversionError with the modules that PEFT cannot hold.
    """
    by_input = name_places(name for name, module in modules.items() if module.by_input)
    if by_input:
        raise ConversionError("DoRA by input, dora_scale of shape (1, in): PEFT has none", keys=by_input)
    dora = name_places(
        name for name, module in modules.items() if module.magnitude is not None and not isinstance(module, Module)
    )
    if dora:
        raise ConversionError("DoRA with LoHa or LoKr: PEFT has none", keys=dora)
    groups: list[Group] = []
    left = dict(modules)
    while left:
        best = Group(rule=Rule(kind=""), ranks={})
        for rule in _rules(list(left.values())):
            ranks = {name: rank for name in left if (rank := rule.rank_of(name, left[name])) is not None}
            if len(ranks) > len(best.ranks):
                best = Group(rule=rule, ranks=ranks)
            if len(ranks) == len(left):
                break
        if not best.ranks:
            raise ConversionError("LoHa or LoKr of shapes that PEFT does not make", keys=name_places(left))
        groups.append(best)
        left = {name: module for name, module in left.items() if name not in best.ranks}
    return groups


def build_config(
    rule: Rule, modules: Mapping[str, AnyModule], ranks: Mapping[str, int], *, is_first: bool
) -> dict[str, Any]:
    """adapter_config.json for modules by their paths; PeftMixedModel prefixes the paths for all adapters but the first."""
    anchor = "^" if is_first else r"^(base_model\.model\.)?"
    alphas = {
        path: _plain(module.alpha_value if ranks[path] == module.rank else ranks[path])
        for path, module in modules.items()
    }
    rank, alpha = (Counter(found.values()).most_common(1)[0][0] for found in (ranks, alphas))
    config: dict[str, Any] = {
        "peft_type": rule.kind,
        "task_type": None,
        "base_model_name_or_path": None,
        "inference_mode": True,
        "r": rank,
        "lora_alpha" if rule.kind == "LORA" else "alpha": alpha,
        "rank_pattern": {f"{anchor}{path}": found for path, found in ranks.items() if found != rank},
        "alpha_pattern": {f"{anchor}{path}": found for path, found in alphas.items() if found != alpha},
        "target_modules": sorted(modules),
    }
    if rule.kind == "LORA":
        plain = {"lora_dropout": 0.0, "bias": "none", "fan_in_fan_out": False, "use_rslora": False}
        return config | plain | {"use_dora": rule.dora}
    config |= {"rank_dropout": 0.0, "module_dropout": 0.0, "use_effective_conv2d": rule.effective}
    return config if rule.kind == "LOHA" else config | {"decompose_both": rule.both, "decompose_factor": rule.factor}


def find_alpha(config: Mapping[str, Any], path: str, *, rank: int) -> float:
    """PEFT's alpha of a module, as kohya means it (alpha / rank); `use_rslora` divides by the root of the rank."""
    default = config.get("lora_alpha", config.get("alpha", 8))
    alpha = float(_match(config.get("alpha_pattern"), path, default))
    return alpha * math.sqrt(rank) if config.get("use_rslora") else alpha


def find_rank(config: Mapping[str, Any], path: str) -> int:
    """The rank that a config gives a module."""
    return int(_match(config.get("rank_pattern"), path, config.get("r", 8)))


@functools.cache
def split_width(width: int, factor: int) -> tuple[int, int]:
    """The two numbers, their product being `width`, that PEFT's LoKr makes of a layer's width (peft: factorization)."""
    if factor > 0 and width % factor == 0:
        return factor, width // factor
    limit = width if factor < 0 else factor
    divisors = [number for number in range(1, math.isqrt(width) + 1) if width % number == 0 and number <= limit]
    return divisors[-1], width // divisors[-1]


def _rules(modules: Sequence[AnyModule]) -> Iterator[Rule]:
    """Every rule that could describe some of the modules, the plainest first."""
    present = {kind for kind, found in KINDS.items() if any(type(module) is found for module in modules)}
    if "LORA" in present:
        yield from (Rule(kind="LORA", dora=dora) for dora in (False, True))
    if "LOHA" in present:
        yield from (Rule(kind="LOHA", effective=effective) for effective in (False, True))
    if "LOKR" in present:
        krons = [module for module in modules if isinstance(module, KronModule)]
        factors = (-1, *range(1, 2 * max(number for module in krons for number in module.small) + 1))
        effectives = {False, any(module.t2 is not None for module in krons)}
        boths = {False, any(module.w1 is None for module in krons)}
        for effective, both, factor in itertools.product(sorted(effectives), sorted(boths), factors):
            yield Rule(kind="LOKR", effective=effective, both=both, factor=factor)


@functools.cache
def _area(name: Name) -> int:
    """How many numbers a layer's kernel has: LyCORIS' files do not always tell, the known layers' names do."""
    if name.component == "transformer":
        return 4 if name.path == "pos_embed.proj" else 1  # SD 3's patches
    return 9 if name.component == "unet" and _CONV_3X3.fullmatch(name.path) else 1


def _match(patterns: Mapping[str, Any] | None, path: str, default: Any) -> Any:
    """As PEFT looks up a pattern (peft: utils/other.py, get_pattern_key), under either name of a text encoder's layer."""
    for pattern, value in (patterns or {}).items():
        if any(re.match(rf"(.*\.)?({pattern})$", kind) for kind in (path, path.removeprefix("text_model."))):
            return value
    return default


def _plain(number: float) -> int | float:
    return int(number) if float(number).is_integer() else number

"""Options that exclude or need each other, checked before a trainer starts.

sd-scripts finds most of these out by an assertion after minutes of loading and caching, some after the whole training,
and some never. Each rule names the line that it mirrors; tests/slow/test_kohya_extract.py holds it to that line.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pixelkit.engines.kohya.effective import Effective, Environment, Rule
from pixelkit.engines.kohya.rules_data import DATA_RULES
from pixelkit.engines.kohya.rules_network import NETWORK_RULES
from pixelkit.engines.kohya.rules_training import TRAINING_RULES
from pixelkit.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Mapping

RULES: tuple[Rule, ...] = (*DATA_RULES, *NETWORK_RULES, *TRAINING_RULES)


def check_rules(
    script: str,
    options: Mapping[str, Any],
    dataset: Mapping[str, Any],
    *,
    where: str = "",
    skip: frozenset[str] = frozenset(),
    environment: Environment | None = None,
) -> list[Problem]:
    """Every rule that the flattened options and the dataset file (empty without one) break, in the table's order.

    `skip` names rules that do not hold, because our entry changes what they guard.
    Types must be right: run verify_config and verify_dataset_config before. Raises EngineError for an unknown script.
    """
    effective = Effective(script=script, options=options, dataset=dataset, environment=environment or Environment())
    problems = []
    for rule in RULES:
        if rule.name in skip or (rule.scripts and script not in rule.scripts):
            continue
        if found := rule.broken(effective):
            what, hint = rule.message.replace("{found}", str(found)), rule.hint.replace("{found}", str(found))
            problems.append(Problem(where=where, what=what, hint=hint))
    return problems

"""The rules between several settings of a run, and the functions that check them.

A rule is a generator of problems over a run's settings. Rules read plain settings only (no properties),
because they also run on configurations in which other settings are missing or invalid.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

from pipeline.config.errors import ConfigProblem
from pipeline.config.rules_checkpoint import CHECKPOINT_RULES
from pipeline.config.rules_data import DATA_RULES
from pipeline.config.rules_logging import LOGGING_RULES
from pipeline.config.rules_model import MODEL_RULES
from pipeline.config.rules_parallel import PARALLEL_RULES
from pipeline.config.rules_ponder import PONDER_RULES
from pipeline.config.rules_submit import SUBMIT_RULES
from pipeline.config.rules_training import TRAINING_RULES
from pipeline.config.rules_workflow import WORKFLOW_RULES

if TYPE_CHECKING:
    from pipeline.config.schema import RunConfig

Rule = Callable[["RunConfig"], Iterator[ConfigProblem]]

RULES: tuple[Rule, ...] = (
    *MODEL_RULES,
    *PONDER_RULES,
    *PARALLEL_RULES,
    *TRAINING_RULES,
    *DATA_RULES,
    *CHECKPOINT_RULES,
    *LOGGING_RULES,
    *SUBMIT_RULES,
    *WORKFLOW_RULES,
)


def broken_rules(config: RunConfig) -> list[ConfigProblem]:
    """Return every problem of a complete configuration."""
    return [problem for rule in RULES for problem in rule(config)]


def broken_rules_of_part(settings: SimpleNamespace) -> list[ConfigProblem]:
    """Return the problems among the valid settings of an invalid configuration.

    Args:
        settings: sections as nested namespaces that hold the valid settings only.
    """
    problems: list[ConfigProblem] = []
    for rule in RULES:
        remaining = rule(cast("RunConfig", settings))
        while True:
            try:
                problems.append(next(remaining))
            except (StopIteration, AttributeError):
                # AttributeError: the rule needs a setting that is missing or invalid, and reported as such.
                break
    return problems

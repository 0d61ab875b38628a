from typing import Any

import pytest

from pipeline.config.load import build_config
from tests.unit.pipeline.config.settings import changed_settings, problems_of

FOUR_RANKS = {"parallel__data": 4, "training__micro_batch_size": 2}
BROKEN: list[tuple[dict[str, Any], str, str]] = [
    ({**FOUR_RANKS, "submit": {"target": "slurm", "nodes": 3}}, "submit.nodes", "3"),
    (
        {**FOUR_RANKS, "submit": {"target": "slurm", "nodes": 2, "gpus_per_node": 4}},
        "submit.gpus_per_node",
        "4",
    ),
    ({**FOUR_RANKS, "submit": {"nodes": 2}}, "submit.nodes", "2"),
    ({"submit": {"chain": 2}}, "submit.chain", "2 with target local, no wall_time"),
    ({"submit": {"target": "slurm", "chain": 2}}, "submit.chain", "2 with target slurm, no wall_time"),
    (
        {"submit": {"target": "slurm", "wall_time": "0:05:00", "signal_lead_seconds": 300}},
        "submit.signal_lead_seconds",
        "300",
    ),
]


@pytest.mark.parametrize(("changes", "path", "value"), BROKEN)
def test_a_broken_rule_is_reported_at_its_setting(changes: dict[str, Any], path: str, value: str) -> None:
    (problem,) = problems_of(**changes)
    assert (problem.path, problem.value) == (path, value)


@pytest.mark.parametrize(
    "submit",
    [
        {},
        {"target": "slurm", "nodes": 2, "gpus_per_node": 2},
        {"target": "ray", "nodes": 4},
        {"target": "slurm", "chain": 5, "wall_time": "1-00:00:00"},
    ],
)
def test_what_fits_is_accepted(submit: dict[str, Any]) -> None:
    build_config(changed_settings(**FOUR_RANKS, submit=submit))

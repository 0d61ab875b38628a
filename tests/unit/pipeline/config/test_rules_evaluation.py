from typing import Any

import pytest

from pipeline.config.validate import build_config
from tests.unit.pipeline.config.settings import changed_settings, problems_of


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"evaluation__sweep_tau": [0.1], "ponder__method": "ponderlm2"}, "evaluation.sweep_tau"),
        (
            {
                "evaluation__sweep_steps": True,
                "ponder__method": "ponderlm",
                "ponder__multiply_embedding": True,
            },
            "evaluation.sweep_steps",
        ),
    ],
)
def test_a_sweep_that_means_nothing_is_refused(changes: dict[str, Any], path: str) -> None:
    assert [problem.path for problem in problems_of(**changes)] == [path]


def test_a_method_that_halts_may_sweep_both() -> None:
    settings = changed_settings(evaluation__sweep_steps=True, evaluation__sweep_tau=[1e-4, 0.1])

    assert build_config(settings).evaluation.sweep_tau == (1e-4, 0.1)

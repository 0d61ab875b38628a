from typing import Any

import pytest

from pipeline.config.load import build_config
from tests.unit.pipeline.config.settings import changed_settings, problems_of


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"metrics__sinks": ["wandb", "wandb"]}, "metrics.sinks"),
        ({"metrics__sinks": ["ftp"]}, "metrics.sinks.0"),
        ({"metrics__project": "a/b"}, "metrics.project"),
        ({"profile__steps": [5, 3]}, "profile.steps"),
        ({"profile__steps": [99, 101]}, "profile.steps"),
        ({"profile__steps": [1, 2], "profile__ranks": [1]}, "profile.ranks"),
        ({"profile__steps": [1, 2], "profile__ranks": [0, 0]}, "profile.ranks"),
        ({"profile__ranks": []}, "profile.ranks"),
    ],
)
def test_a_broken_rule_is_reported_at_its_setting(changes: dict[str, Any], path: str) -> None:
    assert [problem.path for problem in problems_of(**changes)] == [path]


def test_several_sinks_and_ranks_may_be_named() -> None:
    config = build_config(
        changed_settings(
            metrics__sinks=["wandb", "mlflow"],
            profile__steps=[3, 100],
            profile__ranks=[0, 1],
            parallel__data=2,
        )
    )
    assert config.metrics.sinks == ("wandb", "mlflow")
    assert config.profile.ranks == (0, 1)

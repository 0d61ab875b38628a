import copy
import logging
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.errors import ConfigError
from pipeline.config.load import load_config
from pipeline.config.short_runs import fit_to_short_run

RECIPES = Path(__file__).parents[4] / "pipeline" / "recipes"


def fitted(train_iters: Any, **optimizer: Any) -> dict[str, Any]:
    settings = {"training": {"train_iters": train_iters}, "optimizer": optimizer}
    fit_to_short_run(settings)
    return settings["optimizer"]


@pytest.mark.parametrize(
    ("train_iters", "warmup", "expected"), [(20, 143, 2), (100, 100, 10), (5, 10, 1), (1, 10, 0)]
)
def test_a_warmup_that_does_not_end_in_the_run_becomes_a_tenth_of_it(
    train_iters: int, warmup: int, expected: int, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert fitted(train_iters, lr_warmup_iters=warmup) == {"lr_warmup_iters": expected}
    (record,) = caplog.records
    assert all(str(number) in record.getMessage() for number in (train_iters, warmup, expected))


@pytest.mark.parametrize(
    ("train_iters", "optimizer"),
    [
        (100, {"lr_warmup_iters": 99}),
        (100, {}),
        # A mistake of its own: the decay ends before the warm-up.
        (100, {"lr_warmup_iters": 200, "lr_decay_iters": 50}),
        ("many", {"lr_warmup_iters": 200}),
        (0, {"lr_warmup_iters": 200}),
        (100, {"lr_warmup_iters": True}),
    ],
)
def test_other_settings_stay_what_they_are(
    train_iters: Any, optimizer: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    assert fitted(train_iters, **copy.deepcopy(optimizer)) == optimizer
    assert not caplog.records


def test_settings_that_are_no_groups_are_left_to_the_checks() -> None:
    for settings in ({}, {"training": 3}, {"training": {"train_iters": 3}, "optimizer": []}):
        before = copy.deepcopy(settings)
        fit_to_short_run(settings)
        assert settings == before


@pytest.mark.parametrize(
    "recipe", sorted(set(RECIPES.rglob("*.yaml")) - set(RECIPES.glob("base/*"))), ids=lambda path: path.stem
)
def test_every_recipe_takes_a_first_job_of_twenty_iterations(recipe: Path) -> None:
    long, short = load_config(recipe), load_config(recipe, ["train-iters=20"])
    assert short.training.train_iters == 20
    assert short.optimizer.lr_warmup_iters == (
        2 if long.optimizer.lr_warmup_iters >= 20 else long.optimizer.lr_warmup_iters
    )


def test_a_warmup_that_is_longer_than_the_decay_is_still_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(RECIPES / "tiny_vanilla.yaml", ["lr_decay_iters=10", "train-iters=20"])
    assert [problem.path for problem in caught.value.problems] == ["optimizer.lr_warmup_iters"]

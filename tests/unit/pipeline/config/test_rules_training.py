from typing import Any

import pytest

from pipeline.config.load import build_config
from tests.unit.pipeline.config.settings import changed_settings, problems_of

# Changes that break one rule, the setting it is reported at, and the setting or value that the cure gives.
BROKEN = [
    ({"optimizer__min_lr": 1e-2}, "optimizer.min_lr", "0.0001"),
    ({"optimizer__lr_warmup_iters": 100}, "optimizer.lr_warmup_iters", "try 10"),
    ({"optimizer__lr_decay_iters": 50, "optimizer__lr_warmup_iters": 50}, "optimizer.lr_warmup_iters", "5"),
    ({"optimizer__lr_decay_style": "wsd"}, "optimizer.wsd_decay_iters", "try 20"),
    (
        {"optimizer__lr_decay_style": "wsd", "optimizer__wsd_decay_iters": 101},
        "optimizer.wsd_decay_iters",
        "try 20",
    ),
    (
        {"optimizer__lr_warmup_init": 1.0, "optimizer__lr_warmup_iters": 5},
        "optimizer.lr_warmup_init",
        "try 0.0001",
    ),
    (
        {"optimizer__lr_warmup_init": 1e-4, "optimizer__lr_warmup_iters": 0},
        "optimizer.lr_warmup_init",
        "optimizer.lr_warmup_iters",
    ),
    (
        {"optimizer__new_parameters_lr_mult": 2.0, "ponder__method": "loop"},
        "optimizer.new_parameters_lr_mult",
        "ponder.method: adaponderlm",
    ),
    ({"optimizer__muon_lr": 1e-3}, "optimizer.muon_lr", "optimizer.name to muon"),
    ({"optimizer__muon_momentum": 0.9}, "optimizer.muon_momentum", "leave it out"),
    ({"optimizer__muon_num_ns_steps": 4}, "optimizer.muon_num_ns_steps", "leave it out"),
    (
        {"optimizer__name": "muon", "parallel": {"data": 2, "use_distributed_optimizer": False}},
        "parallel.use_distributed_optimizer",
        "leave it out",
    ),
    (
        {"optimizer__name": "muon", "parallel": {"context": 2, "use_distributed_optimizer": False}},
        "parallel.use_distributed_optimizer",
        "leave it out",
    ),
    (
        {
            "optimizer__name": "muon",
            "optimizer__muon_lr": 1e-4,
            "optimizer__lr_warmup_init": 5e-4,
            "optimizer__lr_warmup_iters": 5,
        },
        "optimizer.lr_warmup_init",
        "try 1e-05",
    ),
    *(
        (
            {"training__attention": "cudnn", "training__precision": "bf16"} | changes,
            "training.attention",
            "remove",
        )
        for changes in (
            {"parallel__device": "cpu"},
            {"training__precision": "fp32"},
            {"training__deterministic": True},
        )
    ),
]


@pytest.mark.parametrize(("changes", "path", "cure"), BROKEN)
def test_a_broken_rule_is_reported_at_its_setting_with_a_cure(
    changes: dict[str, Any], path: str, cure: str
) -> None:
    problems = problems_of(**changes)

    assert [problem.path for problem in problems] == [path]
    assert problems[0].cure
    assert cure in problems[0].cure


ALLOWED = [
    {"optimizer__lr_decay_style": "wsd", "optimizer__wsd_decay_iters": 20},
    {"optimizer__lr_decay_style": "constant", "optimizer__clip_grad": 0},
    {"training__precision": "bf16"},
    {"optimizer__name": "muon", "optimizer__muon_lr": 2e-2, "optimizer__muon_num_ns_steps": 3},
    {"optimizer__name": "muon", "parallel": {"use_distributed_optimizer": False}},
    {"training__precision": "bf16", "training__attention": "cudnn"},
    {"training__attention": "flash", "training__deterministic": True},
    {
        "optimizer__lr_warmup_init": 1e-4,
        "optimizer__lr_warmup_iters": 5,
        "optimizer__new_parameters_lr_mult": 5.0,
    },
]


@pytest.mark.parametrize("changes", ALLOWED)
def test_consistent_settings_are_accepted(changes: dict[str, Any]) -> None:
    build_config(changed_settings(**changes))


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
def test_an_evaluation_that_means_nothing_is_refused(changes: dict[str, Any], path: str) -> None:
    assert [problem.path for problem in problems_of(**changes)] == [path]


def test_a_method_that_halts_may_sweep_both() -> None:
    settings = changed_settings(evaluation__sweep_steps=True, evaluation__sweep_tau=[1e-4, 0.1])

    assert build_config(settings).evaluation.sweep_tau == (1e-4, 0.1)

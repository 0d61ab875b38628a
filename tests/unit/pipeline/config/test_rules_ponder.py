from typing import Any

import pytest

from megatron_ext.ponder.config import Method
from pipeline.config.load import build_config
from pipeline.config.ponder_section import PonderSection
from pipeline.config.rules_ponder import methods_with
from tests.unit.pipeline.config.settings import changed_settings, problems_of


def with_method(method: str, **settings: Any) -> dict[str, Any]:
    return {"ponder": {"method": method} | settings}


TWO_WIDE = {
    "architecture": "llama",
    "num_layers": 1,
    "hidden_size": 2,
    "ffn_hidden_size": 2,
    "num_attention_heads": 1,
}

# Changes that break one rule, the setting it is reported at, and the setting or value that the cure gives.
BROKEN = [
    ({"ponder__random_jacobi_iterations": [3, 1]}, "ponder.random_jacobi_iterations", "[1, 3]"),
    (
        {"ponder__random_jacobi_iterations": [1, 3], "ponder__num_latent_thoughts": 0},
        "ponder.random_jacobi_iterations",
        "",
    ),
    (
        {"ponder__jacobi_schedule": [[0, 1]], "ponder__num_latent_thoughts": 0},
        "ponder.jacobi_schedule",
        "",
    ),
    ({"ponder__jacobi_schedule": [[5, 1], [9, 2]]}, "ponder.jacobi_schedule", "begin it with [0, 1]"),
    (
        {"ponder__jacobi_schedule": [[0, 1], [9, 2], [5, 3]]},
        "ponder.jacobi_schedule",
        "try [[0, 1], [5, 3], [9, 2]]",
    ),
    ({"ponder__jacobi_schedule": [[0, 1], [0, 2]]}, "ponder.jacobi_schedule", "try [[0, 2]]"),
    (
        {"ponder__jacobi_schedule": [[0, 1]], "ponder__random_jacobi_iterations": [1, 2]},
        "ponder.jacobi_schedule",
        "",
    ),
    ({"ponder__gradient_passes": 6}, "ponder.gradient_passes", "try 5"),
    ({"ponder__gradient_passes": 2, "ponder__num_latent_thoughts": 0}, "ponder.gradient_passes", ""),
    (
        {"ponder__gradient_passes": 5, "ponder__random_jacobi_iterations": [1, 4]},
        "ponder.gradient_passes",
        "try 4",
    ),
    (
        {"ponder__gradient_passes": 5, "ponder__thoughts_schedule": [[0, 0], [5, 1], [9, 2]]},
        "ponder.gradient_passes",
        "try 4",
    ),
    ({"ponder__gradient_passes": 1, "ponder__readout_from": "last_sweep"}, "ponder.gradient_passes", "2"),
    ({"ponder__sweep_tolerance": 0.1, "ponder__gradient_passes": 2}, "ponder.sweep_tolerance", ""),
    ({"ponder__sweep_tolerance": 0.1, "ponder__num_latent_thoughts": 0}, "ponder.sweep_tolerance", ""),
    (
        {"ponder__sweep_tolerance": 0.1, "parallel__pipeline": 2},
        "parallel.pipeline",
        "ponder.sweep_tolerance",
    ),
    (
        {"ponder__sweep_tolerance": 0.1, "ponder__router_damping": 0.5},
        "ponder.router_damping",
        "ponder.sweep_tolerance",
    ),
    (
        {"ponder__sweep_tolerance": 0.1, "ponder__readout_from": "last_sweep"},
        "ponder.readout_from",
        "ponder.sweep_tolerance",
    ),
    ({"ponder__skip_pruned_rows": True, "ponder__num_latent_thoughts": 0}, "ponder.skip_pruned_rows", ""),
    (
        {"ponder__skip_pruned_rows": True, "parallel__context": 2},
        "parallel.context",
        "ponder.skip_pruned_rows",
    ),
    (
        {"ponder__skip_pruned_rows": True, "parallel__pipeline": 2},
        "parallel.pipeline",
        "ponder.skip_pruned_rows",
    ),
    (
        {
            "ponder__skip_pruned_rows": True,
            "parallel__tensor": 2,
            "parallel__sequence_parallel": True,
        },
        "parallel.sequence_parallel",
        "ponder.skip_pruned_rows",
    ),
    (
        {"ponder__skip_pruned_rows": True, "ponder__reading": "last_step"},
        "ponder.reading",
        "ponder.skip_pruned_rows",
    ),
    (
        {"ponder__skip_pruned_rows": True, "ponder__step_loss_weight": 0.5},
        "ponder.step_loss_weight",
        "ponder.skip_pruned_rows",
    ),
    ({"ponder__penalty_ramp": [9, 3]}, "ponder.penalty_ramp", "[3, 9]"),
    ({"ponder__mixture": "top_k", "model__vocab_size": 50}, "ponder.mixture_top_k", "try 50"),
    (
        with_method("ponderlm", mixture="hidden", softmax_temperature=2.0),
        "ponder.softmax_temperature",
        "softmax or top_k",
    ),
    (
        with_method("ponderlm", multiply_embedding=True, num_latent_thoughts=0),
        "ponder.multiply_embedding",
        "",
    ),
    (
        {**with_method("pause", pause_token_id=50), "model__vocab_size": 50},
        "ponder.pause_token_id",
        "",
    ),
    (with_method("ponderlm3", undamped_sweeps=2), "ponder.undamped_sweeps", "router_damping"),
    (
        with_method("ponderlm3", form="authors", router_damping=1.0, undamped_sweeps=2),
        "ponder.undamped_sweeps",
        "router_damping",
    ),
    (
        with_method("ponderlm3", form="authors", bottom_k_fraction=0.5),
        "ponder.bottom_k_fraction",
        "bottom_k",
    ),
    (
        {"ponder__freeze_backbone_tokens": 9, "ponder__num_latent_thoughts": 0},
        "ponder.freeze_backbone_tokens",
        "",
    ),
    ({"ponder__random_latent_thoughts": [2, 1]}, "ponder.random_latent_thoughts", "[1, 2]"),
    ({"ponder__random_latent_thoughts": [0, 4]}, "ponder.random_latent_thoughts", "to 4"),
    ({"ponder__thoughts_schedule": [[5, 1]]}, "ponder.thoughts_schedule", "[0, 1]"),
    ({"ponder__thoughts_schedule": [[0, 1], [0, 2]]}, "ponder.thoughts_schedule", "[[0, 2]]"),
    ({"ponder__thoughts_schedule": [[0, 1], [9, 5]]}, "ponder.thoughts_schedule", "to 5"),
    (
        {"ponder__thoughts_schedule": [[0, 1]], "ponder__random_latent_thoughts": [1, 2]},
        "ponder.thoughts_schedule",
        "",
    ),
    (
        {"ponder__thoughts_schedule": [[0, 0]], "ponder__freeze_backbone_tokens": 9},
        "ponder.thoughts_schedule",
        "",
    ),
    (
        with_method("ponderlm", multiply_embedding=True, random_latent_thoughts=[1, 2]),
        "ponder.random_latent_thoughts",
        "",
    ),
    (
        {"ponder__blended_start_iterations": 9, "ponder__num_latent_thoughts": 0},
        "ponder.blended_start_iterations",
        "",
    ),
    (
        with_method("ponderlm", multiply_embedding=True, blended_start_iterations=3),
        "ponder.blended_start_iterations",
        "",
    ),
    ({"ponder__blended_start_iterations": 10**9}, "ponder.blended_start_iterations", ""),
    ({"ponder__held_decisions_iterations": 10**9}, "ponder.held_decisions_iterations", ""),
    ({"ponder__entropy_floor": 2.0}, "ponder.entropy_floor", "try 0.27"),
    ({"ponder__entropy_floor_weight": 2.0}, "ponder.entropy_floor_weight", ""),
    (
        {"ponder__step_loss_weight": 0.5, "ponder__num_latent_thoughts": 0},
        "ponder.step_loss_weight",
        "",
    ),
    (
        {"ponder__entropy_floor": 0.1, "ponder__num_latent_thoughts": 0},
        "ponder.entropy_floor",
        "",
    ),
    (
        {"ponder__held_decisions_iterations": 3, "ponder__freeze_backbone_tokens": 9},
        "ponder.held_decisions_iterations",
        "",
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


# A value other than every method's default.
UNUSUAL = {
    "form": "authors",
    "router": "linear",
    "router_start": "random",
    "mask_in_training": "hard",
    "attention_scale_extra": 8,
    "pre_pass": True,
    "router_damping": 0.1,
    # Needs sweeps that are damped.
    "undamped_sweeps": 2,
    "readout_from": "last_sweep",
    "penalty_start_weight": 0.01,
    "num_latent_thoughts": 2,
    "num_jacobi_iterations": 1,
    "random_latent_thoughts": [1, 3],
    "thoughts_schedule": [[0, 0], [10, 3]],
    "random_jacobi_iterations": [1, 2],
    "jacobi_schedule": [[0, 2], [10, 3]],
    "gradient_passes": 2,
    "sweep_tolerance": 0.1,
    "scale_embeds": {Method.VANILLA: True},
    "mixture": "top_k",
    "mixture_top_k": 7,
    "softmax_temperature": 0.5,
    "residual": "from_embedding",
    "multiply_embedding": True,
    "pause_token_id": 3,
    "step_input_scale": 0.5,
    "pruning_threshold": 0.01,
    "penalty": {Method.ADAPONDERLM: "expected_steps"},
    "penalty_weight": 0.02,
    "penalty_ramp": [3, 9],
    "bottom_k_fraction": 0.5,
    "bottom_k_floor": False,
    "penalty_exponent": 2.0,
    "freeze_backbone_tokens": 1000,
    "blended_start_iterations": 3,
    "held_decisions_iterations": 3,
    "skip_pruned_rows": True,
    "reading": "last_step",
    "step_loss_weight": 0.5,
    "entropy_floor": 0.25,
    "entropy_floor_weight": 2.0,
}


def unusual(name: str, method: Method) -> Any:
    value = UNUSUAL[name]
    if not isinstance(value, dict):
        return value
    return value.get(method, "bottom_k" if name == "penalty" else False)


def test_every_setting_belongs_to_a_method_and_every_setting_of_a_method_exists() -> None:
    used = {name for method in Method for name in method.facts.settings}
    assert used == UNUSUAL.keys() == PonderSection.model_fields.keys() - {"method"}


# What a setting needs beside it.
COMPANIONS = {
    "entropy_floor_weight": {"entropy_floor": 0.25},
    "undamped_sweeps": {"router_damping": 0.5},
}


@pytest.mark.parametrize("method", Method)
@pytest.mark.parametrize("name", UNUSUAL)
def test_a_setting_is_taken_by_the_methods_that_have_it_and_by_no_other(name: str, method: Method) -> None:
    changes = with_method(method, **{name: unusual(name, method)})
    if name in method.facts.settings:
        changes["ponder"] |= COMPANIONS.get(name, {})
        build_config(changed_settings(**changes))
        return
    (problem,) = problems_of(**changes)
    assert problem.path == f"ponder.{name}"
    assert method in problem.rule
    assert methods_with(name)[0] in problem.cure


@pytest.mark.parametrize("method", Method)
def test_the_defaults_of_every_method_fit_together(method: Method) -> None:
    config = build_config(changed_settings(**with_method(method)))

    assert build_config(config.model_dump(mode="json")) == config


def test_a_router_needs_a_quarter_of_the_hidden_size() -> None:
    problems = problems_of(model=TWO_WIDE)

    assert [problem.path for problem in problems] == ["model.hidden_size"]


def test_a_setting_that_a_method_does_not_have_is_reported_beside_one_of_the_wrong_type() -> None:
    problems = problems_of(**with_method("loop", num_latent_thoughts="two", penalty_ramp=[9, 3]))

    assert {problem.path for problem in problems} == {"ponder.num_latent_thoughts", "ponder.penalty_ramp"}


ALLOWED = [
    {"ponder__gradient_passes": 5},
    {"ponder__gradient_passes": "all", "ponder__sweep_tolerance": 0.1},
    # Forwards without thoughts have one pass, whatever is asked for.
    {"ponder__gradient_passes": 3, "ponder__thoughts_schedule": [[0, 0], [9, 1]]},
    {"ponder__gradient_passes": 2, "parallel__pipeline": 2},
    {"ponder__skip_pruned_rows": True, "parallel__tensor": 2},
    {"ponder__random_jacobi_iterations": [2, 2]},
    {"ponder__jacobi_schedule": [[0, 0]]},
    with_method("ponderlm2", num_latent_thoughts=0),
    with_method("vanilla", num_latent_thoughts=0, num_jacobi_iterations=0),
    with_method("adaponderlm", penalty="bottom_k", penalty_ramp=[4, 9]),
    {**with_method("pause", pause_token_id=49), "model__vocab_size": 50},
    {**with_method("pause", pause_token_id=49)},
    # The number of embeddings matters for a mixture of the most likely only.
    {"ponder__mixture": "softmax", "model__vocab_size": 50},
    with_method("ponderlm3", router_damping=0.1, undamped_sweeps=0),
    with_method("ponderlm3", form="authors", undamped_sweeps=3),
    with_method("ponderlm3", form="authors", num_latent_thoughts=0),
    with_method("ponderlm3", form="authors", penalty="bottom_k", bottom_k_fraction=0.5),
    with_method("ponderlm3", form="authors", jacobi_schedule=[[0, 5]]),
    # A linear router has no hidden units.
    {**with_method("ponderlm3", router="linear"), "model": TWO_WIDE},
]


@pytest.mark.parametrize("changes", ALLOWED)
def test_consistent_settings_are_accepted(changes: dict[str, Any]) -> None:
    build_config(changed_settings(**changes))

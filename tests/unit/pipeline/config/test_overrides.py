from typing import Any

import pytest

from pipeline.config.load import setting_paths, text_paths
from pipeline.config.overrides import apply_overrides


def overridden(*overrides: str) -> dict[str, Any]:
    settings: dict[str, Any] = {"training": {"train_iters": 10}}
    assert apply_overrides(settings, overrides, setting_paths()) == []
    return settings


@pytest.mark.parametrize(
    ("override", "group", "leaf", "value"),
    [
        ("training.train_iters=5", "training", "train_iters", 5),
        ("train-iters=5", "training", "train_iters", 5),
        ("train_iters=5", "training", "train_iters", 5),
        ("tensor-model-parallel-size=2", "parallel", "tensor", 2),
        ("lr=3e-4", "optimizer", "lr", 3e-4),
        ("bf16=true", "training", "precision", "bf16"),
        ("bf16=false", "training", "precision", "fp32"),
        ("lr-decay-style=WSD", "optimizer", "lr_decay_style", "wsd"),
        ("distributed-timeout-minutes=2", "parallel", "timeout_seconds", 120),
        ("save-interval=7", "checkpoint", "interval", 7),
        ("ponder-method=ponderlm2", "ponder", "method", "ponderlm2"),
        ("patch_method=ours", "ponder", "method", "ponderlm2"),
        ("--patch_method=loop", "ponder", "method", "loop"),
        ("pondering_steps=3", "ponder", "num_latent_thoughts", 3),
        ("mutiply_pondering_steps=true", "ponder", "multiply_embedding", True),
        ("interpolation-topk=50", "ponder", "mixture_top_k", 50),
        ("parallel.layers_per_stage=[2, 1]", "parallel", "layers_per_stage", [2, 1]),
        ("ponder.random_jacobi_iterations=[2, 4]", "ponder", "random_jacobi_iterations", [2, 4]),
        ("evaluation.interval=null", "evaluation", "interval", None),
        ("data.path=a=b", "data", "path", "a=b"),
    ],
)
def test_an_override_sets_one_value(override: str, group: str, leaf: str, value: object) -> None:
    assert overridden(override)[group][leaf] == value


def test_the_last_of_two_overrides_counts() -> None:
    assert overridden("train-iters=5", "training.train_iters=6")["training"]["train_iters"] == 6


def test_top_level_settings_are_overridable() -> None:
    assert overridden("seed=7")["seed"] == 7


@pytest.mark.parametrize(
    ("override", "path", "cure"),
    [
        ("training.train_iters", "training.train_iters", ""),
        ("=3", "override", ""),
        ("training.trian_iters=3", "training.trian_iters", "training.train_iters"),
        ("train-itres=3", "train-itres", "training.train_iters"),
        ("interpolation=true", "interpolation", "ponder.mixture"),
        ("recurrent-steps=4", "recurrent-steps", "ponder.num_latent_thoughts"),
        ("training=3", "training", "training."),
        ("model.num_layers=[1", "model.num_layers", ""),
    ],
)
def test_an_override_that_cannot_be_applied_is_reported(override: str, path: str, cure: str) -> None:
    settings: dict[str, Any] = {}

    (problem,) = apply_overrides(settings, [override], setting_paths())

    assert problem.path == path
    assert cure in problem.cure
    assert settings == {}


TYPED = (
    "run #3/x",
    "a: b",
    "a, b",
    "  spaces  ",
    "'quoted'",
    '"quoted"',
    "[a, b]",
    "{a: b}",
    "*a &b !c",
    "%d @e `f`",
    "- x",
    "? y",
    "12",
    "1e3",
    "true",
    "~x",
    "#",
    "|",
    ">",
    "a\\nb",
    "caf\u00e9",
    "a=b=c",
    "---",
)


@pytest.mark.parametrize("text", TYPED)
@pytest.mark.parametrize(("name", "path"), [("data.path", ("data", "path")), ("data-path", ("data", "path"))])
def test_text_is_taken_as_it_is_typed(text: str, name: str, path: tuple[str, str]) -> None:
    settings: dict[str, Any] = {}
    assert apply_overrides(settings, [f"{name}={text}"], setting_paths(), text_paths=text_paths()) == []
    group, leaf = path
    assert settings[group][leaf] == text


@pytest.mark.parametrize("text", ["", "null"])
def test_text_may_be_reset_to_its_default(text: str) -> None:
    settings: dict[str, Any] = {"output_dir": "x"}
    assert apply_overrides(settings, [f"output_dir={text}"], setting_paths(), text_paths=text_paths()) == []
    assert settings == {"output_dir": None}


@pytest.mark.parametrize("override", ["seed=3 # x", "ponder.penalty_ramp=[1, 2] #x", "lr=1e-3 #"])
def test_nothing_is_cut_off_a_value(override: str) -> None:
    (problem,) = apply_overrides({}, [override], setting_paths(), text_paths=text_paths())
    assert problem.path == override.partition("=")[0]


def test_which_settings_are_text() -> None:
    assert {"output_dir", "name", "data.path", "checkpoint.directory", "submit.partition"} <= text_paths()
    assert not {"seed", "training.precision", "submit.options", "workflow", "submit.container"} & text_paths()

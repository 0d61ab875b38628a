import json
from typing import Any

import pytest

from pipeline.config.errors import ConfigError
from pipeline.config.load import build_config
from pipeline.config.schema import RunConfig
from pipeline.cost.peaks import CPU, DEVICES, GIB, Device
from pipeline.cost.plan import Assumptions, RunPlan, plan_run, plan_values
from pipeline.cost.suggest import on_devices, suggest
from tests.unit.pipeline.config.settings import changed_settings

VOCAB_SIZE = 50_304
H100 = Assumptions(device=DEVICES["h100-80g"], mfu=0.4, reserve_bytes=6 * GIB)


def large_run(**changes: Any) -> RunConfig:
    """PonderLM-3 on a Pythia of 2.8 B parameters, on eight data-parallel ranks."""
    settings: dict[str, Any] = {
        "model__architecture": "gpt_neox",
        "model__num_layers": 32,
        "model__hidden_size": 2560,
        "model__ffn_hidden_size": 10240,
        "model__num_attention_heads": 32,
        "ponder": {"method": "ponderlm3", "num_latent_thoughts": 3, "num_jacobi_iterations": 2},
        "parallel__data": 8,
        "training": {
            "seq_length": 2048,
            "micro_batch_size": 1,
            "global_batch_size": 1024,
            "train_iters": 1000,
            "precision": "bf16",
        },
    }
    return build_config(changed_settings(**(settings | changes)))


def plan_of(config: RunConfig) -> RunPlan:
    return plan_run(config, VOCAB_SIZE, H100)


def test_speed_and_length_follow_from_the_utilisation() -> None:
    plan = plan_of(large_run())

    speed = 0.4 * 8 * 989.4e12 / plan.training_flops.model
    assert plan.tokens_per_second == pytest.approx(speed)
    assert plan.days == pytest.approx(1000 * 1024 * 2048 / speed / 86_400)
    # Without recomputation the hardware computes little beyond the model: the channels of the weights.
    assert plan.assumptions.mfu < plan.hfu < 1.06 * plan.assumptions.mfu


def test_vanilla_pythia_has_the_known_speed() -> None:
    # 23.4 thousand tokens/s on a device of 989 TFLOP/s at 40 %, by 6 N + causal attention.
    plan = plan_of(large_run(ponder={"method": "vanilla"}))

    assert plan.tokens_per_second / plan.num_ranks == pytest.approx(23_400, rel=0.02)


def test_recomputation_asks_more_of_the_hardware_not_of_the_model() -> None:
    plain, again = plan_of(large_run()), plan_of(large_run(parallel__recompute="full"))

    assert again.tokens_per_second == plain.tokens_per_second
    assert 0.5 < again.hfu < 0.56


def test_what_does_not_fit_gets_suggestions_that_do() -> None:
    config = large_run()
    assert not plan_of(config).fits

    suggestions = suggest(config, VOCAB_SIZE, H100)

    assert suggestions
    assert [each.relative_cost for each in suggestions] == sorted(each.relative_cost for each in suggestions)
    for suggestion in suggestions:
        assert suggestion.plan.fits
        assert suggestion.plan.num_ranks == 8
        changes = dict(override.split("=") for override in suggestion.overrides)
        assert changes, "a run that does not fit must be changed"
        assert all(name.startswith(("parallel.", "training.micro_batch_size")) for name in changes)


def test_no_suggestion_is_dearer_and_larger_than_another() -> None:
    needed = [each.plan.needed_bytes for each in suggest(large_run(), VOCAB_SIZE, H100)]

    assert needed == sorted(needed, reverse=True)


def test_nothing_is_suggested_where_nothing_fits() -> None:
    tiny = Assumptions(device=DEVICES["rtx4090-24g"], mfu=0.4, reserve_bytes=20 * GIB)

    assert suggest(large_run(parallel__data=1), VOCAB_SIZE, tiny) == []


def test_devices_are_taken_by_the_data_axis() -> None:
    config = large_run(parallel={"tensor": 2, "data": 4})

    assert on_devices(config, 64).parallel.data == 32
    with pytest.raises(ConfigError) as refused:
        on_devices(config, 7)
    assert [(problem.path, problem.value) for problem in refused.value.problems] == [("--gpus", "7")]


def test_plain_values_add_up_to_the_peak() -> None:
    values = json.loads(json.dumps(plan_values(plan_of(large_run()))))

    (stage,) = values["stages"]
    by_pass = stage["activations_bytes_by_pass"]
    parts = [value for name, value in stage.items() if name.endswith("_bytes") and name != "peak_bytes"]
    assert sum(parts) + sum(by_pass) == pytest.approx(stage["peak_bytes"], abs=20)
    assert values["needed_bytes"] == pytest.approx(stage["peak_bytes"] + 6 * GIB, abs=1)
    assert values["fits"] is False


def test_suggestions_for_cpus_split_no_rows_over_the_tensor_axis() -> None:
    cpu = Assumptions(device=Device(name=CPU, memory_bytes=40 * GIB, peak=None), mfu=0.4, reserve_bytes=GIB)

    found = suggest(large_run(), VOCAB_SIZE, cpu)

    assert found
    assert all("parallel.sequence_parallel=true" not in each.overrides for each in found)
    assert any("parallel.tensor" in override for each in found for override in each.overrides)

"""The plan's memory against the tensors that are alive while small runs train."""

import pytest

from megatron_ext.ponder.config import Method
from pipeline.config.schema import RunConfig
from tests.bench.memory import bench_configs, compare_memory

CONFIGS = {config.name: config for config in bench_configs()}
# One of each recomputation and method with something of its own; `python -m tests.bench memory` takes all.
CHOSEN = [
    "vanilla_gpt_neox_none",
    "pause_gpt_neox_none",
    "vanilla_llama_full",
    "ponderlm_llama_per_pass",
    "adaponderlm_llama_none",
    "adaptive_latent_cot_llama_none",
    "adaptive_latent_cot_llama_per_pass",
    "ponderlm3_gpt_neox_none",
    "ponderlm3_gpt_neox_per_pass",
    "ponderlm3_llama_selective",
    "adaponderlm_gpt_neox_selective",
]


def smaller(config: RunConfig) -> RunConfig:
    """Half of everything, so that it takes a second."""
    model = config.model.model_copy(update={"num_layers": 4, "hidden_size": 128, "kv_channels": 32})
    training = config.training.model_copy(update={"micro_batch_size": 2, "global_batch_size": 2})
    return config.model_copy(update={"model": model, "training": training})


def test_every_method_is_compared_with_every_recomputation() -> None:
    assert len(CONFIGS) == len(Method) * 4
    assert {config.model.architecture for config in CONFIGS.values()} == {"gpt_neox", "llama"}


@pytest.mark.parametrize("name", CHOSEN)
def test_the_planned_peak_is_within_a_twentieth_of_the_measured_one(name: str) -> None:
    found = compare_memory(smaller(CONFIGS[name]))

    assert found.planned_state == pytest.approx(found.measured_state, rel=0.005)
    assert abs(found.error) < 0.05
    assert abs(found.activation_error) < 0.1

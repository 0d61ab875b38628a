"""`bench decode` on a tiny model: what it counts; its times are only times."""

from pathlib import Path

import pytest

from pipeline.bench.decode import DecodeSizes, DecodeTime, time_decoding
from pipeline.config.load import load_config

SIZES = DecodeSizes(batch_size=3, prompt_tokens=4, new_tokens=5)


@pytest.fixture(scope="module")
def times() -> dict[str, DecodeTime]:
    recipe = Path(__file__).parents[4] / "pipeline" / "recipes" / "tiny_ponderlm3.yaml"
    config = load_config(recipe, ["model.vocab_size=64", "model.num_query_groups=2"])
    return {row.name: row for row in time_decoding(config, SIZES, repeats=1)}


def test_the_router_decides_how_many_steps_are_taken(times: dict[str, DecodeTime]) -> None:
    steps = {name: row.mean_steps for name, row in times.items()}

    assert 0 < steps.pop("steps differ by token") < 3
    assert steps == {
        "without pruning": 3.0,
        "0 steps": 0.0,
        "1 steps": 1.0,
        "2 steps": 2.0,
        "3 steps": 3.0,
        "vanilla": 0.0,
    }


def test_operations_follow_the_steps(times: dict[str, DecodeTime]) -> None:
    flops = [times[f"{step} steps"].flops_per_token for step in range(4)]

    assert flops == sorted(flops)
    assert flops[3] == times["without pruning"].flops_per_token
    assert times["vanilla"].flops_per_token < flops[0]
    assert all(row.seconds_per_token > 0 for row in times.values())

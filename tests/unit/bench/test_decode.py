"""`python -m tests.bench decode` on a tiny model: what it counts; times are not checked."""

import json
from pathlib import Path

import pytest

from pipeline.config.load import load_config
from tests.bench.decode import (
    ONE_STEP,
    ROUTERS,
    TOKEN_BY_TOKEN,
    UNPRUNED,
    VANILLA,
    DecodeSizes,
    DecodeTime,
    time_decoding,
)
from tests.bench.decode_figures import decode_figures, figures_json
from tests.bench.decode_transformers import THEIRS

SIZES = DecodeSizes(batch_size=3, prompt_tokens=4, new_tokens=12)


@pytest.fixture(scope="module")
def times() -> dict[str, DecodeTime]:
    recipe = Path(__file__).parents[3] / "pipeline" / "recipes" / "tiny_ponderlm3.yaml"
    config = load_config(recipe, ["model.vocab_size=64", "model.num_query_groups=2"])
    return {row.name: row for row in time_decoding(config, SIZES, repeats=1)}


def test_the_router_decides_how_many_steps_are_taken(times: dict[str, DecodeTime]) -> None:
    steps = {name: row.mean_steps for name, row in times.items()}

    differing = ("steps differ by token", *ROUTERS)
    for name in differing:
        assert 0 < steps.pop(name) < 3
        assert 0 < steps.pop(name + TOKEN_BY_TOKEN) < 3
    assert steps == {
        "without pruning": 3.0,
        "without pruning, token by token": 3.0,
        "0 steps": 0.0,
        "1 steps": 1.0,
        "2 steps": 2.0,
        "3 steps": 3.0,
        "vanilla": 0.0,
    }


def test_calls_follow_the_mean_of_the_rows_unless_texts_wait_for_each_other(
    times: dict[str, DecodeTime],
) -> None:
    most = 3 / SIZES.new_tokens
    for name in ROUTERS:
        row, waiting = times[name], times[name + TOKEN_BY_TOKEN]
        assert row.calls_per_token is not None
        assert waiting.calls_per_token is not None
        # Only the last tokens do not fill the batch.
        assert 1 + row.mean_steps <= row.calls_per_token <= 1 + row.mean_steps + most
        assert row.calls_per_token < waiting.calls_per_token
    assert times[UNPRUNED].calls_per_token == times[UNPRUNED + TOKEN_BY_TOKEN].calls_per_token == 4


def test_operations_follow_the_steps(times: dict[str, DecodeTime]) -> None:
    flops = [times[f"{step} steps"].flops_per_token for step in range(4)]

    assert flops == sorted(flops)
    assert flops[3] == times["without pruning"].flops_per_token
    assert times["vanilla"].flops_per_token < flops[0]
    assert all(row.seconds_per_token > 0 for row in times.values())


def test_shares_of_time_and_operations_saved() -> None:
    def row(name: str, seconds: float, flops: float) -> DecodeTime:
        return DecodeTime(
            name=name,
            mean_steps=0.0,
            calls_per_token=None,
            seconds_per_token=seconds,
            seconds_of_rounds=(seconds,),
            flops_per_token=flops,
        )

    rows = [
        row(UNPRUNED, 4.0, 80.0),
        row(ONE_STEP, 2.0, 20.0),
        row(VANILLA, 1.5, 16.0),
        row(THEIRS, 1.0, 16.0),
        row(ONE_STEP + TOKEN_BY_TOKEN, 3.0, 20.0),
    ]
    figures = decode_figures(rows)

    assert figures.speedup_at_one_step == 2.0
    assert figures.ratio_to_transformers == 1.5
    content = json.loads(figures_json(figures, {"machine": "one core"}))
    assert content["machine"] == "one core"
    assert [one["time_saved"] for one in content["rows"]] == [0.0, 0.5, 0.625, 0.75, 0.25]
    assert [one["flops_saved"] for one in content["rows"]] == [0.0, 0.75, 0.8, 0.8, 0.75]
    assert content["rows"][0]["gain_reached"] is None
    assert content["rows"][1]["gain_reached"] == pytest.approx(0.5 / 0.75)
    assert content["rows"][1]["speedup_over_token_by_token"] == 1.5
    assert decode_figures(rows[:1]).speedup_at_one_step is None

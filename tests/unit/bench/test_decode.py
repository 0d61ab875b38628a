"""`python -m tests.bench decode` on a tiny model: what it counts; times are not checked."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.config.load import load_config
from pipeline.config.schema import RunConfig
from tests.bench.decode import (
    MIXED,
    ONE_STEP,
    ROUTERS,
    TOKEN_BY_TOKEN,
    UNPRUNED,
    VANILLA,
    DecodeSizes,
    DecodeTime,
    Round,
    time_decoding,
)
from tests.bench.decode_figures import decode_figures, figures_json
from tests.bench.decode_other import OTHER, other_ways
from tests.bench.decode_transformers import THEIRS

SIZES = DecodeSizes(batch_size=3, prompt_tokens=4, new_tokens=12)
RECIPE = Path(__file__).parents[3] / "pipeline" / "recipes" / "tiny_ponderlm3.yaml"


def small_run() -> RunConfig:
    return load_config(RECIPE, ["model.vocab_size=64", "model.num_query_groups=2"])


@pytest.fixture(scope="module")
def times() -> dict[str, DecodeTime]:
    shares: list[float] = []
    rows = time_decoding(small_run(), [SIZES], repeats=1, steps=range(4), watch=shares.append)
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    return {row.name: row for row in rows}


def test_the_router_decides_how_many_steps_are_taken(times: dict[str, DecodeTime]) -> None:
    steps = {name: row.median("mean_steps") for name, row in times.items()}

    for name in (MIXED, *ROUTERS):
        assert 0 < steps.pop(name) < 3
        assert 0 < steps.pop(name + TOKEN_BY_TOKEN) < 3
    assert steps == {
        "without pruning": 3.0,
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
        calls, steps = row.median("calls_per_token"), row.median("mean_steps")
        # Only the last tokens do not fill the batch.
        assert 1 + steps <= calls <= 1 + steps + most
        assert calls < waiting.median("calls_per_token")
        for one in (row, waiting):
            rows = one.median("rows_per_call") * one.median("calls_per_token")
            assert rows == pytest.approx(SIZES.batch_size * (1 + one.median("mean_steps")))
    assert times[UNPRUNED].median("calls_per_token") == 4


def test_operations_follow_the_steps(times: dict[str, DecodeTime]) -> None:
    flops = [times[f"{step} steps"].flops_per_token for step in range(4)]

    assert flops == sorted(flops)
    assert flops[3] == times["without pruning"].flops_per_token
    assert times["vanilla"].flops_per_token < flops[0]
    assert all(row.median("seconds") > 0 for row in times.values())


def test_no_round_begins_that_would_end_too_late() -> None:
    rows = time_decoding(small_run(), [replace(SIZES, new_tokens=2)], repeats=3, steps=(), most_seconds=1e-6)

    assert {len(row.rounds) for row in rows} == {1}


def test_another_checkout_takes_its_turns() -> None:
    sizes = [replace(SIZES, batch_size=size, new_tokens=2) for size in (3, 1)]
    with other_ways(Path(__file__).parents[3], small_run(), sizes, threads=1) as others:
        rounds = {
            (way.name, way.sizes.batch_size): way.run(is_timed=is_timed)
            for is_timed in (False, True)
            for way in others
        }

    assert {name for name, _ in rounds} == {name + OTHER for name in (UNPRUNED, MIXED, *ROUTERS)}
    assert [rounds[UNPRUNED + OTHER, size].rows_per_call for size in (3, 1)] == [3, 1]


def test_shares_of_time_and_operations_saved() -> None:
    def row(name: str, seconds: float, flops: float, calls: float, rows: float, size: int = 8) -> DecodeTime:
        one = Round(
            seconds=2 * seconds,
            cpu_seconds=seconds,
            reading_seconds=1.0,
            reading_cpu_seconds=1.0,
            calls_per_token=calls,
            rows_per_call=rows,
        )
        return DecodeTime(name=name, batch_size=size, rounds=(one,), flops_per_token=flops)

    rows = [
        row(UNPRUNED, 4.0, 80.0, calls=4, rows=8),
        row(ONE_STEP, 2.0, 20.0, calls=2, rows=8),
        row(VANILLA, 1.5, 16.0, calls=1, rows=8),
        row(THEIRS, 1.0, 16.0, calls=1, rows=8),
        row(ONE_STEP + TOKEN_BY_TOKEN, 3.0, 20.0, calls=4, rows=4),
        row(ONE_STEP + OTHER, 2.5, 20.0, calls=4, rows=4),
        row(UNPRUNED, 9.0, 80.0, calls=4, rows=1, size=1),
    ]
    figures = decode_figures(rows, by_cpu=True)

    assert [len(one.times) for one in figures] == [6, 1]
    content = json.loads(figures_json(figures, {"machine": "one core"}))
    assert content["machine"] == "one core"
    first, second = content["batches"]
    assert first["speedup_at_one_step"] == 2.0
    assert first["ratio_to_transformers"] == 1.5
    assert [one["time_saved"] for one in first["rows"]] == [0.0, 0.5, 0.625, 0.75, 0.25, 0.375]
    assert [one["flops_saved"] for one in first["rows"]] == [0.0, 0.75, 0.8, 0.8, 0.75, 0.75]
    assert first["rows"][0]["gain_reached"] is None
    one_step = first["rows"][1]
    assert one_step["gain_reached"] == pytest.approx(0.5 / 0.75)
    assert one_step["calls_saved"] == one_step["calls_gain_reached"] / 2 == 0.5
    assert one_step["speedup_over_token_by_token"] == 1.5
    # 4 x (43 + 3.5 x 4) over 2 x (43 + 3.5 x 8).
    assert one_step["computed_speedup_over_token_by_token"] == pytest.approx(4 * 57 / (2 * 71))
    assert one_step["speedup_over_other_checkout"] == 1.25
    assert second["speedup_at_one_step"] is None

    def in_rounds(row: DecodeTime, *seconds: float) -> DecodeTime:
        return replace(row, rounds=tuple(replace(row.rounds[0], seconds=one) for one in seconds))

    # Rounds are compared one by one: 1, 4 and 4 times, not 4 over 2.
    times = [in_rounds(rows[0], 2.0, 4.0, 80.0), in_rounds(rows[1], 2.0, 1.0, 20.0)]
    (by_round,) = decode_figures(times)
    assert by_round.speedup_at_one_step == 4.0

import math
from pathlib import Path

import pytest

from pipeline.config.schema import RunConfig
from tests.bench.metrics import MetricsCost, Stopwatch, measure_metrics
from tests.unit.pipeline.config.settings import changed_settings


def tiny_run(method: str) -> RunConfig:
    thoughts = {} if method == "vanilla" else {"num_latent_thoughts": 1, "num_jacobi_iterations": 1}
    return RunConfig(
        **changed_settings(
            model__num_layers=1,
            model__hidden_size=16,
            model__ffn_hidden_size=16,
            model__vocab_size=40,
            ponder={"method": method, **thoughts},
            training__seq_length=8,
            metrics__interval=2,
        )
    )


@pytest.mark.parametrize("method", ["vanilla", "ponderlm3"])
def test_steps_and_metrics_are_timed_in_one_run(tmp_path: Path, method: str) -> None:
    cost = measure_metrics(tiny_run(method), tmp_path, num_intervals=1)

    for seconds in (cost.step_seconds, cost.statistics_seconds, cost.logging_seconds, cost.share):
        assert math.isfinite(seconds)
        assert seconds > 0
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2
    assert list((tmp_path / "tensorboard").iterdir())


def test_logging_is_shared_by_the_steps_of_its_interval() -> None:
    cost = MetricsCost(step_seconds=2.0, statistics_seconds=0.01, logging_seconds=0.1, interval=10)

    assert cost.metrics_seconds == pytest.approx(0.02)
    assert cost.share == pytest.approx(0.01)


def test_a_stopwatch_returns_the_results_of_the_watched_function() -> None:
    stopwatch = Stopwatch()

    assert stopwatch.watch(divmod)(7, 2) == (3, 1)
    assert stopwatch.take() > 0
    assert stopwatch.take() == 0

import math
import re
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2

from megatron_ext.ponder.config import Method
from pipeline.metrics import names
from pipeline.metrics.descriptions import description_of
from pipeline.metrics.tensorboard import (
    RANKING_METRICS,
    TensorBoardSink,
    custom_scalars_layout,
    flatten_settings,
    histogram_of_counts,
)
from tests.unit.pipeline.metrics.records import training_record, validation_record


@pytest.fixture(scope="module")
def events(tmp_path_factory: pytest.TempPathFactory) -> EventAccumulator:
    folder = tmp_path_factory.mktemp("tensorboard")
    sink = TensorBoardSink(folder, method=Method.PONDERLM3, num_latent_thoughts=3, max_jacobi_iterations=2)
    sink.write_configuration(
        {"model": {"num_layers": 4}, "data": Path("runs/data")}, "model:\n  num_layers: 4\n"
    )
    sink.write_training(training_record())
    sink.write_validation(validation_record())
    sink.close()
    accumulator = EventAccumulator(str(folder))
    accumulator.Reload()
    return accumulator


def only_value(events: EventAccumulator, tag: str) -> tuple[int, float]:
    (event,) = events.Scalars(tag)
    return event.step, event.value


@pytest.mark.parametrize(
    ("tag", "value"),
    [
        ("lm loss", 5.25),
        ("learning-rate", 1e-3),
        ("batch-size", 16),
        ("world-size", 2),
        ("grad-norm", 1.2345),
    ],
)
def test_megatrons_tags_are_written_over_iterations_and_samples(
    events: EventAccumulator, tag: str, value: float
) -> None:
    assert only_value(events, tag) == (20, pytest.approx(value))
    assert only_value(events, f"{tag} vs samples") == (320, pytest.approx(value))


def test_speed_is_written_over_iterations(events: EventAccumulator) -> None:
    assert only_value(events, "iteration-time") == (20, pytest.approx(0.5125))
    assert only_value(events, "throughput") == (20, pytest.approx(0.14))


def test_validation_has_megatrons_four_tags(events: EventAccumulator) -> None:
    assert only_value(events, "lm loss validation") == (20, 4.0)
    assert only_value(events, "lm loss validation vs samples") == (320, 4.0)
    assert only_value(events, "lm loss validation ppl") == (20, pytest.approx(54.59815))
    assert only_value(events, "lm loss validation ppl vs samples") == (320, pytest.approx(54.59815))


def test_ponder_curves_are_written_for_training_and_validation(events: EventAccumulator) -> None:
    assert only_value(events, "ponder/mean-steps") == (20, 1.75)
    assert only_value(events, "ponder/halt-fraction/step_0") == (20, 0.25)
    assert only_value(events, "ponder/mean-steps validation") == (20, 1.5)


def test_a_sweep_has_a_curve_for_each_limit(events: EventAccumulator) -> None:
    assert only_value(events, "ponder/eval-ppl-vs-steps/step_0") == (20, pytest.approx(math.exp(5)))
    assert only_value(events, "ponder/eval-ppl-vs-tau/tau_0.0001") == (20, pytest.approx(math.exp(4.5)))
    assert only_value(events, "ponder/eval-steps-vs-tau/tau_0.0001") == (20, 1.25)


def test_the_histogram_holds_the_counts(events: EventAccumulator) -> None:
    (event,) = events.Histograms("ponder/steps-histogram")
    histogram = event.histogram_value
    assert event.step == 20
    assert (histogram.min, histogram.max, histogram.num) == (-0.5, 3.5, 8)
    assert sum(histogram.bucket) == 8


def test_a_run_that_sweeps_over_steps_has_a_chart_of_them() -> None:
    layout = custom_scalars_layout(
        method=Method.LOOP, num_latent_thoughts=1, max_jacobi_iterations=0, sweeps_steps=True
    )

    (expression,) = layout["loss"]["held-out perplexity by steps allowed"][1]
    assert re.match(expression, "ponder/eval-ppl-vs-steps/step_0")
    assert re.match(expression, "ponder/eval-ppl-vs-steps/step_12")


def chart_curves(events: EventAccumulator, layout: dict[str, Any], group: str, title: str) -> set[str]:
    expressions = layout[group][title][1]
    return {tag for tag in events.Tags()["scalars"] if any(re.match(one, tag) for one in expressions)}


def test_a_chart_has_the_curves_of_its_title_and_no_others(events: EventAccumulator) -> None:
    layout = custom_scalars_layout(method=Method.PONDERLM3, num_latent_thoughts=3, max_jacobi_iterations=2)
    loss = chart_curves(events, layout, "loss", "training and validation")
    assert loss == {"lm loss", "lm loss validation"}
    steps = chart_curves(events, layout, "halting", "mean steps")
    assert steps == {"ponder/mean-steps", "ponder/mean-steps validation"}
    assert chart_curves(events, layout, "halting", "halting tokens by step") == {
        "ponder/halt-fraction/step_0"
    }
    (alone,) = layout["halting"]["held-out loss of reading one step alone"][1]
    assert re.match(alone, names.on_validation(names.per_step(names.STEP_NLL, 10)))
    assert not re.match(alone, names.per_step(names.STEP_NLL, 10))


@pytest.mark.parametrize("method", Method)
def test_charts_are_equal_in_runs_of_other_sizes(method: Method) -> None:
    few, many = (
        custom_scalars_layout(
            method=method, num_latent_thoughts=number, max_jacobi_iterations=number, sweeps_steps=True
        )
        for number in (1, 12)
    )
    assert few == many


def test_settings_and_layout_are_written(events: EventAccumulator) -> None:
    tags = events.Tags()
    assert "config/text_summary" in tags["tensors"]
    assert "custom_scalars__config__" in tags["tensors"]
    layout = layout_pb2.Layout.FromString(
        events.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0]
    )
    assert [category.title for category in layout.category] == ["halting", "Jacobi iteration", "loss", "cost"]
    hparams = events.SummaryMetadata("_hparams_/session_start_info")
    assert b"model.num_layers" in hparams.plugin_data.content
    metrics = events.SummaryMetadata("_hparams_/experiment").plugin_data.content
    assert all(tag.encode() in metrics for tag in RANKING_METRICS)


def test_tensorboard_shows_what_each_curve_is(events: EventAccumulator) -> None:
    tags = events.Tags()
    curves = [*tags["scalars"], *tags["histograms"]]
    shown = {tag: events.SummaryMetadata(tag).summary_description for tag in curves}
    assert shown == {tag: description_of(tag) for tag in curves}
    assert all(shown.values())


def test_histogram_buckets_are_centred_on_steps() -> None:
    histogram = histogram_of_counts([0.0, 2.0, 3.0])
    assert histogram["bucket_limits"] == [-0.5, 0.5, 1.5, 2.5]
    assert histogram["bucket_counts"] == [0.0, 0.0, 2.0, 3.0]
    assert (histogram["min"], histogram["max"], histogram["num"]) == (0.5, 2.5, 5.0)
    assert (histogram["sum"], histogram["sum_squares"]) == (8.0, 14.0)


@pytest.mark.parametrize(
    ("method", "steps", "sweeps", "groups"),
    [
        ("vanilla", 0, 0, ["loss", "cost"]),
        ("loop", 3, 0, ["loss", "cost"]),
        ("pause", 3, 0, ["loss", "cost"]),
        ("ponderlm", 3, 0, ["loss", "cost"]),
        ("ponderlm2", 3, 2, ["Jacobi iteration", "loss", "cost"]),
        ("ponderlm2", 0, 2, ["loss", "cost"]),
        ("adaponderlm", 3, 0, ["halting", "loss", "cost"]),
        ("ponderlm3", 3, 0, ["halting", "loss", "cost"]),
        ("adaptive_latent_cot", 3, 0, ["halting", "loss", "cost"]),
    ],
)
def test_a_method_gets_the_charts_that_it_has_curves_for(
    method: str, steps: int, sweeps: int, groups: list[str]
) -> None:
    layout = custom_scalars_layout(
        method=Method(method), num_latent_thoughts=steps, max_jacobi_iterations=sweeps
    )
    assert list(layout) == groups
    assert all(tags for charts in layout.values() for _, tags in charts.values())


def test_halting_is_shown_by_router_or_by_gates() -> None:
    by_method = {
        method: custom_scalars_layout(method=method, num_latent_thoughts=2, max_jacobi_iterations=1)[
            "halting"
        ]
        for method in Method
        if method.halts
    }
    assert "router entropy" in by_method[Method.PONDERLM3]
    (gate,) = by_method[Method.ADAPONDERLM]["gate by iteration"][1]
    assert re.match(gate, "ponder/gate/iteration_1")
    (asked,) = by_method[Method.ADAPTIVE_LATENT_COT]["probability of continuing by step"][1]
    assert re.match(asked, "ponder/continue-probability/step_1")
    assert by_method[Method.PONDERLM3].keys() & by_method[Method.ADAPONDERLM].keys() == {
        "mean steps",
        "active tokens by step",
        "halting tokens by step",
        "loss by steps taken",
        "penalty",
    }


def test_settings_are_flattened_to_dotted_names() -> None:
    settings = {"a": {"b": 1, "c": {"d": None}}, "e": True, "f": (1, 2)}
    assert flatten_settings(settings) == {"a.b": 1, "a.c.d": "None", "e": True, "f": "(1, 2)"}

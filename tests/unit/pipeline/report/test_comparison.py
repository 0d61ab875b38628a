import pytest

from pipeline.evaluation.compare.curve import PruningCurve
from pipeline.metrics.records import LossPoint
from pipeline.report.comparison import render_comparison_png


def curve(name: str, *points: LossPoint) -> PruningCurve:
    return PruningCurve(
        name=name,
        method="ponderlm3",
        num_latent_thoughts=2,
        iteration=7,
        num_jacobi_iterations=3,
        num_global_batches=4,
        num_tokens=100,
        unigram_entropy=5.0,
        points=points,
    )


def point(flops: float, loss: float, threshold: float | None = None) -> LossPoint:
    return LossPoint(pruning_threshold=threshold, loss=loss, mean_steps=1.0, flops_per_token=flops)


CURVES = [curve("a", point(1e9, 3.0, 0.5), point(2e9, 2.0, 1e-4)), curve("b", point(3e9, 1.0))]


def test_the_plot_is_a_png_of_print_size() -> None:
    image = render_comparison_png(CURVES, ["a", "b"])

    assert image.startswith(b"\x89PNG")
    width, height = (int.from_bytes(image[start : start + 4], "big") for start in (16, 20))
    assert (width, height) == (1500, 937)


def test_equal_curves_give_equal_plots_and_others_do_not() -> None:
    image = render_comparison_png(CURVES, ["a", "b"])

    assert render_comparison_png(CURVES, ["a", "b"]) == image
    assert render_comparison_png(CURVES[:1], ["a"]) != image


@pytest.mark.parametrize("num_runs", [1, 9, 20])
def test_any_number_of_runs_can_be_drawn(num_runs: int) -> None:
    curves = [curve(f"run {index}", point(1e9 + index, 2.0 + index, 0.1)) for index in range(num_runs)]

    assert render_comparison_png(curves, [one.name for one in curves]).startswith(b"\x89PNG")

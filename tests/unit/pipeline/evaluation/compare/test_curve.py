from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.evaluation.compare.curve import PruningCurve, WantedPoint, front, load_curve, save_curve
from pipeline.evaluation.compare.table import comparison_values, labels_of, same_text
from pipeline.metrics.records import LossPoint
from pipeline.shared.errors import DataError


def point(flops: float, loss: float, threshold: float | None = None) -> LossPoint:
    return LossPoint(pruning_threshold=threshold, loss=loss, mean_steps=1.0, flops_per_token=flops)


def curve(*points: LossPoint, name: str = "run", entropy: float = 5.0) -> PruningCurve:
    return PruningCurve(
        name=name,
        method="ponderlm3",
        num_latent_thoughts=2,
        iteration=7,
        num_jacobi_iterations=3,
        num_global_batches=4,
        num_tokens=100,
        unigram_entropy=entropy,
        points=points,
    )


def test_the_front_has_the_points_that_none_beats() -> None:
    cheap, beaten, better, dear = point(1, 3.0), point(2, 3.5), point(3, 2.0), point(4, 2.0)

    assert front([dear, beaten, cheap, better]) == {cheap, better}


def test_a_curve_is_read_as_it_was_written(tmp_path: Path) -> None:
    written = curve(point(1, 3.0, 0.5), point(2, 2.0, 1e-4))
    save_curve(written, tmp_path / "curve.json")

    assert load_curve(tmp_path / "curve.json") == written


def test_a_file_that_is_not_a_curve_is_refused(tmp_path: Path) -> None:
    (tmp_path / "curve.json").write_text("{}")

    with pytest.raises(DataError, match=r"curve\.json"):
        load_curve(tmp_path / "curve.json")


def test_a_curve_gives_the_points_it_has() -> None:
    whole = curve(point(1, 3.0, 0.5), point(2, 2.0, 1e-4))
    spent = replace(point(3, 1.0, 0.07), budget="1.5")
    halting = replace(point(3, 2.5, 3.0), budget="1.5", signal="entropy")
    whole = replace(whole, points=(*whole.points, spent), baseline=(halting,), unmet=("0.5",))
    small, large = WantedPoint(threshold=1e-4), WantedPoint(threshold=0.5)
    by_entropy = WantedPoint(budget="1.5", signal="entropy")

    assert whole.at((small, large)) == (whole.points[1], whole.points[0])
    assert whole.at((WantedPoint(budget="1.5"), by_entropy)) == (spent, halting)
    # A threshold that was found for a budget is not one that was given.
    assert whole.at((WantedPoint(threshold=0.07),)) is None
    assert whole.at((small, WantedPoint(threshold=0.1))) is None
    # What the baseline could not meet is not asked for again.
    assert whole.at((WantedPoint(budget="0.5", signal="entropy"),)) == ()
    assert whole.at((WantedPoint(budget="0.5"),)) is None


def test_runs_of_one_name_are_labelled_by_their_folders() -> None:
    folders = [Path("a"), Path("b")]

    assert labels_of([curve(name="x"), curve(name="y")], folders) == ["x", "y"]
    assert labels_of([curve(), curve()], folders) == ["a", "b"]


def test_losses_of_different_texts_are_recognized() -> None:
    assert same_text([curve(), curve(name="other")])
    assert not same_text([curve(), curve(entropy=5.1)])


def test_the_figures_mark_the_points_on_the_front() -> None:
    values = comparison_values([curve(point(1, 3.0)), curve(point(2, 3.5), name="worse")], ["a", "b"])

    assert [run["label"] for run in values["runs"]] == ["a", "b"]
    assert [run["points"][0]["is_on_front"] for run in values["runs"]] == [True, False]

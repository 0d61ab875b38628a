import pytest

from pipeline.config.load import build_config
from pipeline.evaluation.budget import Budget
from pipeline.evaluation.compare.curve import WantedPoint
from pipeline.evaluation.compare.measure import DEFAULT_THRESHOLDS, Wanted, _is_of
from tests.unit.pipeline.config.settings import changed_settings


@pytest.mark.parametrize(
    ("num_tokens", "num_samples", "fits"),
    [(32 * 16, 32, True), (32 * 16 - 9, 32, True), (24 * 16, 32, False), (33 * 16, 32, False), (25, 3, True)],
)
def test_an_evaluation_of_more_or_less_text_is_recognized(
    num_tokens: int, num_samples: int, fits: bool
) -> None:
    assert _is_of(num_tokens, num_samples, seq_length=16, global_batch_size=8) is fits


def test_only_methods_that_halt_have_thresholds() -> None:
    halting = build_config(changed_settings(ponder={"method": "ponderlm3", "pruning_threshold": 0.3}))
    vanilla = build_config(changed_settings(ponder={"method": "vanilla"}))

    usual = Wanted().points_of(halting)
    assert [point.threshold for point in usual] == sorted({*DEFAULT_THRESHOLDS, 0.3})
    chosen = Wanted(thresholds=(0.5, 0.1))
    assert [point.threshold for point in chosen.points_of(halting)] == [0.1, 0.5]
    assert chosen.points_of(vanilla) == (WantedPoint(),)


def test_each_method_has_the_limits_and_the_baseline_that_it_can_have() -> None:
    wanted = Wanted(
        thresholds=(0.1,), max_steps=(1, 9), budgets=(Budget(mean_steps=1.5), Budget(flops_share=0.6))
    )
    of_method = {
        method: build_config(changed_settings(ponder={"method": method, "num_latent_thoughts": 2}))
        for method in ("ponderlm3", "ponderlm2", "adaponderlm", "loop")
    }

    def limits(method: str) -> list[tuple[object, ...]]:
        points = (*wanted.points_of(of_method[method]), *wanted.baseline_of(of_method[method]))
        return [(one.step_limit, one.threshold, one.signal, one.budget) for one in points]

    learned = [(None, 0.1, None, None), (1, None, None, None)]
    learned += [(None, None, None, "1.5"), (None, None, None, "60%")]
    baseline = [(None, None, "entropy", "1.5"), (None, None, "entropy", "60%")]
    by_steps = [(None, None, None, None), (1, None, None, None), (9, None, None, None)]
    assert limits("ponderlm3") == learned + baseline
    assert limits("adaponderlm") == learned
    assert limits("ponderlm2") == by_steps + baseline
    assert limits("loop") == by_steps
    assert [point.budget for point in Wanted().baseline_of(of_method["ponderlm2"])] == ["0.5", "1", "1.5"]

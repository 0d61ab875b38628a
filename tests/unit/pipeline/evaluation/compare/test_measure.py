import pytest

from pipeline.config.load import build_config
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

    assert Wanted().thresholds_of(halting) == tuple(sorted({*DEFAULT_THRESHOLDS, 0.3}))
    assert Wanted(thresholds=(0.5, 0.1)).thresholds_of(halting) == (0.1, 0.5)
    assert Wanted(thresholds=(0.5, 0.1)).thresholds_of(vanilla) == (None,)

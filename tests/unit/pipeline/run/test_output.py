import logging

import pytest

from pipeline.config.schema import RunConfig
from pipeline.run import output
from pipeline.run.output import warn_of_slow_precision
from tests.unit.pipeline.config.settings import valid_settings


@pytest.mark.parametrize(
    ("precision", "is_able", "warns"), [("bf16", False, True), ("bf16", True, False), ("fp32", False, False)]
)
def test_a_run_in_bf16_warns_where_its_device_has_no_bf16(
    precision: str,
    is_able: bool,
    warns: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(output, "computes_bf16", lambda: is_able)
    settings = valid_settings()
    settings["training"]["precision"] = precision

    with caplog.at_level(logging.WARNING):
        warn_of_slow_precision(RunConfig(**settings))

    assert ("training.precision is bf16" in caplog.text) is warns

"""TensorBoard in a real Chromium: charts have the curves of their titles, and curves their descriptions."""

import asyncio
import json
import urllib.request
from pathlib import Path

import pytest

from megatron_ext.ponder.config import Method
from pipeline.metrics import names
from pipeline.metrics.descriptions import description_of
from pipeline.metrics.tensorboard import TensorBoardSink
from scripts.screenshots.board import serve_board, shown_charts
from scripts.screenshots.browser import find_chromium, open_page
from tests.unit.pipeline.metrics.records import training_record, validation_record

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(find_chromium() is None, reason="needs a Chromium (apt install chromium)"),
]


def write_run(folder: Path, *, num_latent_thoughts: int) -> None:
    sink = TensorBoardSink(
        folder, method=Method.PONDERLM3, num_latent_thoughts=num_latent_thoughts, max_jacobi_iterations=2
    )
    for iteration in (10, 20, 30):
        steps = range(num_latent_thoughts + 1)
        halting = {names.per_step(names.HALT_FRACTION, step): 0.5 for step in steps}
        sink.write_training(training_record(iteration=iteration, scalars={names.MEAN_STEPS: 1.5, **halting}))
    sink.write_validation(validation_record(iteration=30))
    sink.close()


async def charts_of(address: str) -> dict[str, set[str]]:
    async with open_page() as page:
        await page.emulate(width=1280, height=900, scheme="light")
        return await shown_charts(page, address)


def test_a_chart_in_the_browser_has_the_curves_of_its_title(tmp_path: Path) -> None:
    write_run(tmp_path / "few" / "tensorboard", num_latent_thoughts=1)
    write_run(tmp_path / "many" / "tensorboard", num_latent_thoughts=3)
    with serve_board(tmp_path) as address:
        charts = asyncio.run(charts_of(address))
        with urllib.request.urlopen(f"{address}data/plugin/scalars/tags", timeout=20) as response:
            runs = json.load(response)

    assert next(iter(charts)) == "mean steps"
    assert charts["training and validation"] == {names.LM_LOSS, names.LM_LOSS_VALIDATION}
    assert charts["mean steps"] == {names.MEAN_STEPS, names.on_validation(names.MEAN_STEPS)}
    assert charts["halting tokens by step"] == {
        names.per_step(names.HALT_FRACTION, step) for step in range(4)
    }
    assert len(runs) == 2
    for tags in runs.values():
        assert all(description_of(tag) in shown["description"] for tag, shown in tags.items())

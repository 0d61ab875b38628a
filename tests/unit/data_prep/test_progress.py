import io

import pytest
from rich.console import Console

from data_prep.progress import LiveProgress, PlainProgress, Throughput, WorkTotals, build_progress
from tests.unit.data_prep.conftest import Prepared


class Clock:
    """A clock that tests set."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


def test_rates_are_amounts_over_time_and_the_rest_follows(prepared: Prepared) -> None:
    entry = prepared.manifest.shards[0]
    totals = WorkTotals(num_shards=4, num_skipped_shards=0, text_bytes=4 * entry.inputs.num_bytes)
    throughput = Throughput(totals=totals)
    assert throughput.seconds_left is None
    assert "-:-- left" in throughput.describe()
    throughput = throughput.add(entry, 40.0)
    assert throughput.seconds_left == pytest.approx(120.0)
    line = throughput.describe()
    assert line.startswith(f"{entry.num_documents / 40:,.0f} documents/s | ")
    assert line.endswith("2:00 left")


def test_without_a_terminal_lines_are_plain_and_rare(prepared: Prepared) -> None:
    output, clock = io.StringIO(), Clock()
    progress = PlainProgress(Console(file=output, width=40), clock)
    shards = prepared.manifest.shards
    total_bytes = sum(shard.inputs.num_bytes for shard in shards)
    progress.start(WorkTotals(num_shards=len(shards), num_skipped_shards=2, text_bytes=total_bytes))
    for entry in shards:
        clock.seconds += 2.0
        progress.advance(entry)
    progress.stop()
    progress.finish(prepared.manifest, num_new_shards=len(shards))
    lines = output.getvalue().splitlines()
    assert lines[0] == "2 shards are complete already"
    assert lines[1].startswith(f"tokenizing: 3/{len(shards)} shards | ")
    assert lines[-2].startswith(f"tokenizing: {len(shards)}/{len(shards)} shards | ")
    assert lines[-1].startswith(f"tokenization: {len(shards)} shards made; train ")
    assert len(lines) == 2 + -(-len(shards) // 3)
    assert "\x1b" not in output.getvalue()


def test_a_terminal_gets_a_live_line_that_ends_after_an_error(prepared: Prepared) -> None:
    output = io.StringIO()
    progress = LiveProgress(Console(file=output, force_terminal=True, width=200))
    progress.start(WorkTotals(num_shards=1, num_skipped_shards=0, text_bytes=10))
    progress.advance(prepared.manifest.shards[0])
    progress.stop()
    progress.stop()
    assert "documents/s" in output.getvalue()


def test_the_display_suits_the_output() -> None:
    assert isinstance(build_progress(Console(file=io.StringIO())), PlainProgress)
    assert isinstance(build_progress(Console(file=io.StringIO(), force_terminal=True)), LiveProgress)

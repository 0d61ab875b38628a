import io

from rich.console import Console

from data_prep.progress import PLAIN_LINE_SECONDS, PrepareProgress, Throughput, WorkTotals
from tests.unit.data_prep.conftest import Prepared


class Clock:
    """A clock that tests set."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


def test_rates_are_amounts_over_time(prepared: Prepared) -> None:
    entry = prepared.manifest.shards[0]
    totals = WorkTotals(num_shards=4, num_skipped_shards=0, text_bytes=4 * entry.inputs.num_bytes)
    throughput = Throughput(totals=totals).add(entry, 40.0)
    assert (throughput.num_shards, throughput.text_bytes) == (1, entry.inputs.num_bytes)
    shards, documents, _, _ = throughput.describe().split(" | ")
    assert shards.split()[0] == "1/4"
    assert documents.split()[0] == f"{entry.num_documents / 40:,.0f}"


def test_without_a_terminal_lines_are_plain_and_end_with_all_shards(prepared: Prepared) -> None:
    output, clock = io.StringIO(), Clock()
    progress = PrepareProgress(Console(file=output, width=40), clock)
    shards = prepared.manifest.shards
    total_bytes = sum(shard.inputs.num_bytes for shard in shards)
    progress.start(WorkTotals(num_shards=len(shards), num_skipped_shards=2, text_bytes=total_bytes))
    for entry in shards:
        clock.seconds += PLAIN_LINE_SECONDS / 2
        progress.advance(entry)
    progress.stop()
    progress.finish(prepared.manifest, num_new_shards=len(shards))
    skipped, *rates, finished = output.getvalue().splitlines()
    assert skipped.startswith("2 ")
    assert 1 <= len(rates) <= len(shards)
    assert f" 100% | {len(shards)}/{len(shards)} " in rates[-1]
    assert all(f"{prepared.manifest.num_tokens(split):,}" in finished for split in prepared.manifest.splits)
    assert "\x1b" not in output.getvalue()


def test_a_terminal_gets_a_bar_that_ends_after_an_error(prepared: Prepared) -> None:
    output = io.StringIO()
    progress = PrepareProgress(Console(file=output, force_terminal=True, width=200))
    progress.start(WorkTotals(num_shards=1, num_skipped_shards=0, text_bytes=10))
    progress.advance(prepared.manifest.shards[0])
    progress.stop()
    progress.stop()
    assert "1/1 shards" in output.getvalue()


def test_without_a_console_nothing_is_printed(prepared: Prepared) -> None:
    progress = PrepareProgress()
    progress.start(WorkTotals(num_shards=1, num_skipped_shards=0, text_bytes=10))
    progress.advance(prepared.manifest.shards[0])
    progress.stop()
    progress.finish(prepared.manifest, num_new_shards=1)

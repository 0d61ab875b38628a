"""Progress of a preparation, with its rates."""

import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from data_prep.inputs.documents import file_format
from data_prep.inputs.finding import FoundFiles
from data_prep.inputs.rejections import LOST_NAME, REJECTED_NAME, SKIPPED_NAME
from data_prep.manifest import ShardEntry, ShardManifest
from pipeline.shared.progress import Progress, SilentProgress, open_progress
from pipeline.shared.units import render_bytes

MEGA = 1_000_000
# How often a log file gets a line.
PLAIN_LINE_SECONDS = 5.0
# Kinds of files that a summary counts one by one.
_MOST_KINDS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkTotals:
    """The work to do, without what is done already."""

    num_shards: int
    num_skipped_shards: int
    text_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Throughput:
    """Amounts since the start and the rates that follow from them."""

    totals: WorkTotals
    elapsed_seconds: float = 0.0
    num_shards: int = 0
    num_documents: int = 0
    text_bytes: int = 0
    num_tokens: int = 0

    def add(self, entry: ShardEntry, elapsed_seconds: float) -> "Throughput":
        """Return the amounts with one more shard."""
        return replace(
            self,
            elapsed_seconds=elapsed_seconds,
            num_shards=self.num_shards + 1,
            num_documents=self.num_documents + entry.num_documents,
            text_bytes=self.text_bytes + entry.inputs.num_bytes,
            num_tokens=self.num_tokens + entry.num_tokens,
        )

    def describe(self) -> str:
        """Render one line: shards, documents, bytes and tokens per second."""
        seconds = max(self.elapsed_seconds, 1e-9)
        return (
            f"{self.num_shards}/{self.totals.num_shards} shards | "
            f"{self.num_documents / seconds:,.0f} documents/s | "
            f"{render_bytes(self.text_bytes / seconds)}/s | "
            f"{self.num_tokens / seconds / MEGA:.2f} M tokens/s"
        )


class PrepareProgress:
    """Show the finished shards of a preparation and its rates.

    Args:
        console: where to show them; None shows nothing.
        clock: seconds.
    """

    def __init__(self, console: Console | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._clock = clock
        self._start_seconds = clock()
        self._throughput: Throughput | None = None
        self._display: Progress = SilentProgress()

    def start(self, totals: WorkTotals) -> None:
        """Start the clock."""
        self._start_seconds = self._clock()
        self._throughput = Throughput(totals=totals)
        if totals.num_skipped_shards:
            self._say(f"{totals.num_skipped_shards} shards are complete already")
        if self._console is not None:
            self._display = open_progress(
                self._console,
                "tokenizing",
                # Shards differ in size: the time left follows the text.
                total=totals.text_bytes,
                interval_seconds=PLAIN_LINE_SECONDS,
                clock=self._clock,
            )

    def advance(self, entry: ShardEntry) -> None:
        """Count a finished shard."""
        assert self._throughput is not None, "advance comes after start"
        self._throughput = self._throughput.add(entry, self._clock() - self._start_seconds)
        self._display.update(self._throughput.text_bytes, self._throughput.describe())

    def stop(self) -> None:
        """Release the terminal, after the last shard or an error."""
        self._display.close()

    def finish(
        self,
        manifest: ShardManifest,
        *,
        num_new_shards: int,
        folder: Path | None = None,
        found: FoundFiles | None = None,
    ) -> None:
        """Report what the folder holds now; the only call where there was nothing to do.

        Args:
            manifest: of the folder.
            num_new_shards: that this run made.
            folder: of the lists of what was not taken.
            found: the input files of this run.
        """
        made = f"{num_new_shards} shards made" if num_new_shards else "nothing to do: all shards are complete"
        parts = [
            f"{split} {manifest.num_tokens(split):,} tokens in {manifest.num_documents(split):,} documents"
            for split in manifest.splits
        ]
        self._say(f"tokenization: {made}; {'; '.join(parts)}; {len(manifest.rejected)} records rejected")
        if folder is not None:
            for line in describe_inputs(manifest, folder, found):
                self._say(line)

    def _say(self, line: str) -> None:
        if self._console is not None:
            self._console.print(line, highlight=False, markup=False, soft_wrap=True)


def describe_inputs(manifest: ShardManifest, folder: Path, found: FoundFiles | None) -> list[str]:
    """Render what was taken, skipped, rejected and lost, by kind, and where it is listed."""
    reading = manifest.header.reading

    def formats(names: Iterable[str]) -> str:
        return _counts(file_format(name, reading) for name in names)

    lines = []
    if found is not None:
        lines.append(f"read: {len(found.files):,} files ({formats(file.path for file in found.files)})")
        if found.skipped:
            kinds = _counts(file.kind for file in found.skipped)
            lines.append(
                f"skipped: {len(found.skipped):,} files ({kinds}), listed in {folder / SKIPPED_NAME}"
            )
    if manifest.rejected:
        kinds = formats(record.path for record in manifest.rejected)
        lines.append(
            f"rejected: {len(manifest.rejected):,} records ({kinds}), listed in {folder / REJECTED_NAME}"
        )
    if manifest.lost:
        kinds = formats(file.path for file in manifest.lost)
        lines.append(f"lost: {len(manifest.lost):,} files ({kinds}), listed in {folder / LOST_NAME}")
    return lines


def _counts(kinds: Iterable[str]) -> str:
    return ", ".join(f"{kind} {count:,}" for kind, count in Counter(kinds).most_common(_MOST_KINDS))

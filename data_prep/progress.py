"""How far a preparation is: a protocol, a live line for terminals and plain lines for everything else."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from data_prep.manifest import ShardEntry, ShardManifest

MEGA = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkTotals:
    """The work ahead, without what is done already."""

    num_shards: int
    num_skipped_shards: int
    text_bytes: int


class PrepareProgress(Protocol):
    """What a preparation tells about itself, in this order; ``stop`` comes after an error, too."""

    def start(self, totals: WorkTotals) -> None:
        """Take the amount of work; it begins now."""

    def advance(self, entry: ShardEntry) -> None:
        """Take one finished shard."""

    def stop(self) -> None:
        """Give the terminal back; no more shards come."""

    def finish(self, manifest: ShardManifest, *, num_new_shards: int) -> None:
        """Take the finished result; the only call when there was nothing to do."""


class SilentProgress:
    """Says nothing."""

    def start(self, totals: WorkTotals) -> None:
        """Say nothing."""

    def advance(self, entry: ShardEntry) -> None:
        """Say nothing."""

    def stop(self) -> None:
        """Say nothing."""

    def finish(self, manifest: ShardManifest, *, num_new_shards: int) -> None:
        """Say nothing."""


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

    @property
    def seconds_left(self) -> float | None:
        """Time left at the mean rate so far, or None before anything is done."""
        if self.text_bytes == 0:
            return None
        return self.elapsed_seconds * (self.totals.text_bytes - self.text_bytes) / self.text_bytes

    def describe(self) -> str:
        """One line: documents/s, MB/s, tokens/s, time left."""
        seconds = max(self.elapsed_seconds, 1e-9)
        left = "-:--" if self.seconds_left is None else _minutes(self.seconds_left)
        return (
            f"{self.num_documents / seconds:,.0f} documents/s | "
            f"{self.text_bytes / seconds / MEGA:.2f} MB/s | "
            f"{self.num_tokens / seconds / MEGA:.2f} M tokens/s | {left} left"
        )


class _RateProgress(ABC):
    """Counts for both kinds of display."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._clock = clock
        self._start_seconds = clock()
        self._throughput: Throughput | None = None

    def start(self, totals: WorkTotals) -> None:
        """Begin to count."""
        self._start_seconds = self._clock()
        self._throughput = Throughput(totals=totals)
        if totals.num_skipped_shards:
            self._say(f"{totals.num_skipped_shards} shards are complete already")

    def advance(self, entry: ShardEntry) -> None:
        """Count a shard and show it."""
        assert self._throughput is not None, "advance comes after start"
        self._throughput = self._throughput.add(entry, self._clock() - self._start_seconds)
        self._show(self._throughput)

    def stop(self) -> None:  # noqa: B027  # only a display that holds the terminal has something to do
        """Nothing is held."""

    def finish(self, manifest: ShardManifest, *, num_new_shards: int) -> None:
        """Say what the folder holds now."""
        made = f"{num_new_shards} shards made" if num_new_shards else "nothing to do: all shards are complete"
        parts = [
            f"{split} {manifest.num_tokens(split):,} tokens in {manifest.num_documents(split):,} documents"
            for split in manifest.splits
        ]
        self._say(f"tokenization: {made}; {'; '.join(parts)}; {len(manifest.rejected)} records rejected")

    @abstractmethod
    def _show(self, throughput: Throughput) -> None:
        """Show the state after another shard."""

    def _say(self, line: str) -> None:
        self._console.print(line, highlight=False, soft_wrap=True)


class PlainProgress(_RateProgress):
    """A line every few seconds, for log files."""

    def __init__(
        self, console: Console, clock: Callable[[], float] = time.monotonic, *, interval_seconds: float = 5.0
    ) -> None:
        super().__init__(console, clock)
        self._interval_seconds = interval_seconds
        self._last_line_seconds = 0.0

    def _show(self, throughput: Throughput) -> None:
        is_last = throughput.num_shards == throughput.totals.num_shards
        if is_last or throughput.elapsed_seconds - self._last_line_seconds >= self._interval_seconds:
            self._last_line_seconds = throughput.elapsed_seconds
            done = f"{throughput.num_shards}/{throughput.totals.num_shards} shards"
            self._say(f"tokenizing: {done} | {throughput.describe()}")


class LiveProgress(_RateProgress):
    """One line that is drawn again and again, for terminals."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(console, clock)
        rates = TextColumn("{task.fields[rates]}")
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), rates)
        self._display = Progress(*columns, console=console, transient=True)
        self._task: TaskID | None = None

    def start(self, totals: WorkTotals) -> None:
        """Begin to count and to draw."""
        super().start(totals)
        self._task = self._display.add_task("tokenizing", total=totals.num_shards, rates="starting workers")
        self._display.start()

    def stop(self) -> None:
        """Stop drawing."""
        self._display.stop()

    def _show(self, throughput: Throughput) -> None:
        assert self._task is not None, "shards are shown after start"
        self._display.update(self._task, completed=throughput.num_shards, rates=throughput.describe())


def build_progress(console: Console) -> PrepareProgress:
    """Choose the display that suits where the output goes."""
    return LiveProgress(console) if console.is_terminal else PlainProgress(console)


def _minutes(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"

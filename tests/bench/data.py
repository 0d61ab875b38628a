"""Speed of preparing and reading data, relative to alternatives on the same files."""

import math
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from data_prep.plan import default_shard_bytes
from tests.bench.data_corpus import train_sentencepiece, train_tokenizer_json, write_corpus
from tests.bench.data_preparation import (
    EOD_TOKEN,
    PreparationTime,
    describe_corpus,
    mean_time,
    time_datatrove,
    time_plain_process,
    time_preparation,
    time_task_overhead,
)
from tests.bench.data_reading import MEMMAP, READER, ReadingSizes, time_reading
from tests.bench.machine import machine_name

# Worker counts and text size that are computed instead of measured.
MANY_WORKERS = (64, 1024)
MUCH_TEXT_BYTES = 10**12


@dataclass(frozen=True, slots=True, kw_only=True)
class DataBenchSettings:
    """Settings of the benchmark.

    Attributes:
        corpus_bytes: size of the text.
        worker_counts: ascending numbers of workers.
        tokenizer: file of a tokenizer; None trains a sentencepiece model.
        reading: rows to read.
        repeats: timed rounds of the reader.
    """

    corpus_bytes: int
    worker_counts: tuple[int, ...]
    tokenizer: Path | None
    reading: ReadingSizes
    repeats: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalingModel:
    """Measurements that the scaling is computed from.

    Attributes:
        worker_bytes_per_second: text that one worker tokenizes.
        task_overhead_seconds: time of a task without its text. All of it is attributed to the process that
            assigns tasks, which overestimates it.
        start_seconds: start-up and shutdown of the workers.
    """

    worker_bytes_per_second: float
    task_overhead_seconds: float
    start_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaling:
    """Computed preparation with a number of workers; ``efficiency`` is 1 if all are always busy."""

    num_workers: int
    num_tasks: int
    seconds: float
    efficiency: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DataMeasurements:
    """The measurements.

    Attributes:
        machine: name of the machine.
        plain, prepared: the same tokenizer in one plain process, and with each number of workers.
        ours_beside_datatrove: our preparation with the tokenizer.json that datatrove uses.
        datatrove: None if it is not installed.
        task_overhead_seconds: time of a task without its text.
        computed: scaling to many workers.
        reading_tokens_per_second: by reader, per core.
    """

    machine: str
    plain: PreparationTime
    prepared: tuple[PreparationTime, ...]
    ours_beside_datatrove: PreparationTime
    datatrove: PreparationTime | None
    task_overhead_seconds: float
    computed: tuple[Scaling, ...]
    reading_tokens_per_second: dict[str, float]

    @property
    def speedup(self) -> float:
        """Rate of the most workers over that of the plain process, without start-up."""
        return self.plain.seconds / self.prepared[-1].working_seconds

    @property
    def lead(self) -> float | None:
        """Speed relative to datatrove with as many workers, start-up included."""
        if self.datatrove is None:
            return None
        return self.datatrove.seconds / self.ours_beside_datatrove.seconds

    @property
    def reader_tokens_per_second(self) -> float:
        """Rate of the reader of training, per core."""
        return self.reading_tokens_per_second[READER]

    def falls_short(
        self,
        *,
        minimum_speedup: float | None = None,
        minimum_lead: float | None = None,
        minimum_reader_tokens_per_second: float | None = None,
    ) -> bool:
        """Return whether a given minimum is missed; a lead over a missing datatrove counts as missed."""
        limits = (
            (minimum_speedup, self.speedup),
            (minimum_lead, self.lead),
            (minimum_reader_tokens_per_second, self.reader_tokens_per_second),
        )
        return any(limit is not None and (found is None or found < limit) for limit, found in limits)

    def facts(self) -> dict[str, object]:
        """Return all measurements as plain values."""
        ratios = {"speedup": self.speedup, "lead": self.lead}
        return asdict(self) | ratios


def measure_data(settings: DataBenchSettings) -> DataMeasurements:
    """Generate text in a temporary folder, prepare it in all ways, and read random rows in all ways."""
    with tempfile.TemporaryDirectory(prefix="megaponder-bench-") as name:
        folder = Path(name)
        corpus = describe_corpus(write_corpus(folder / "text", settings.corpus_bytes))
        tokenizer = settings.tokenizer or folder / "tokenizer.model"
        if settings.tokenizer is None:
            train_sentencepiece(corpus.paths, tokenizer)
        train_tokenizer_json(corpus.paths, folder / "tokenizer.json", eod_token=EOD_TOKEN)
        before = time_plain_process(corpus, tokenizer)
        most = settings.worker_counts[-1]
        prepared = tuple(
            time_preparation(corpus, tokenizer, num_workers=number) for number in settings.worker_counts
        )
        after = time_plain_process(corpus, tokenizer)
        overhead = time_task_overhead(tokenizer)
        datatrove = time_datatrove(corpus, folder / "tokenizer.json", num_workers=most)
        ours = time_preparation(corpus, folder / "tokenizer.json", num_workers=most)
        (folder / "rows").mkdir()
        reading = time_reading(settings.reading, folder / "rows", repeats=settings.repeats)
    return DataMeasurements(
        machine=machine_name(),
        # Measured before and after the others, so that a drift of the machine's speed averages out.
        plain=mean_time(before, after),
        prepared=prepared,
        ours_beside_datatrove=ours,
        datatrove=datatrove,
        task_overhead_seconds=overhead,
        computed=_compute(prepared, overhead),
        reading_tokens_per_second=reading,
    )


def _compute(prepared: Sequence[PreparationTime], overhead: float) -> tuple[Scaling, ...]:
    last = prepared[-1]
    model = ScalingModel(
        worker_bytes_per_second=last.text_bytes / last.working_seconds / last.num_workers,
        task_overhead_seconds=overhead,
        start_seconds=max(0.0, last.seconds - last.working_seconds),
    )
    return tuple(
        compute_scaling(model, text_bytes=MUCH_TEXT_BYTES, num_workers=number) for number in MANY_WORKERS
    )


def relative_reading(measured: DataMeasurements) -> dict[str, float]:
    """Return the rate of each reader relative to the memory map."""
    base = measured.reading_tokens_per_second[MEMMAP]
    return {name: rate / base for name, rate in measured.reading_tokens_per_second.items()}


def compute_scaling(model: ScalingModel, *, text_bytes: int, num_workers: int) -> Scaling:
    """Compute the time of a corpus: tasks run in rounds, no faster than they are assigned.

    Args:
        model: the measurements.
        text_bytes: size of the corpus, which is split into shards as in the preparation.
        num_workers: at least 1.
    """
    num_tasks = math.ceil(text_bytes / default_shard_bytes(text_bytes))
    text_seconds = text_bytes / num_tasks / model.worker_bytes_per_second
    task_seconds = text_seconds + model.task_overhead_seconds
    rounds = math.ceil(num_tasks / num_workers)
    seconds = model.start_seconds + max(rounds * task_seconds, num_tasks * model.task_overhead_seconds)
    alone = num_tasks * text_seconds
    return Scaling(
        num_workers=num_workers,
        num_tasks=num_tasks,
        seconds=seconds,
        efficiency=alone / num_workers / seconds,
    )

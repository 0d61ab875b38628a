"""Preparing and reading data, measured in one run beside what others do with the same files."""

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.bench.data_corpus import write_corpus
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
from tests.bench.data_scaling import Scaling, ScalingModel, compute_scaling
from tests.bench.data_tokenizers import train_sentencepiece, train_tokenizer_json
from tests.bench.machine import machine_name

# Worker counts and text for the numbers that are worked out.
MANY_WORKERS = (64, 1024)
MUCH_TEXT_BYTES = 10**12


@dataclass(frozen=True, slots=True, kw_only=True)
class DataBenchSettings:
    """What to measure with.

    Attributes:
        corpus_bytes: of text.
        worker_counts: ascending.
        tokenizer: file of a tokenizer; None trains a sentencepiece model.
        reading: rows that the reader reads.
        repeats: timed rounds of the reader.
    """

    corpus_bytes: int
    worker_counts: tuple[int, ...]
    tokenizer: Path | None
    reading: ReadingSizes
    repeats: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DataMeasurements:
    """What came of it.

    Attributes:
        machine: that it ran on.
        plain, prepared: the same tokenizer in one plain process, and with each number of workers.
        ours_beside_datatrove: our preparation with the tokenizer.json that datatrove has.
        datatrove: None where it is not installed.
        task_overhead_seconds: of a task beside its text.
        computed: for many workers.
        reading_tokens_per_second: of each way to read, per core.
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
        """Of the most workers over the plain process, both at work."""
        return self.plain.seconds / self.prepared[-1].working_seconds

    @property
    def lead(self) -> float | None:
        """Over datatrove with as many workers, of whole commands."""
        if self.datatrove is None:
            return None
        return self.datatrove.seconds / self.ours_beside_datatrove.seconds

    @property
    def reader_tokens_per_second(self) -> float:
        """Of training's reader, per core."""
        return self.reading_tokens_per_second[READER]

    def falls_short(
        self,
        *,
        minimum_speedup: float | None = None,
        minimum_lead: float | None = None,
        minimum_reader_tokens_per_second: float | None = None,
    ) -> bool:
        """Whether a limit is given and not reached; a lead over what is not installed is not."""
        limits = (
            (minimum_speedup, self.speedup),
            (minimum_lead, self.lead),
            (minimum_reader_tokens_per_second, self.reader_tokens_per_second),
        )
        return any(limit is not None and (found is None or found < limit) for limit, found in limits)

    def facts(self) -> dict[str, object]:
        """Everything, for a JSON file."""
        ratios = {"speedup": self.speedup, "lead": self.lead}
        return asdict(self) | ratios


def measure_data(settings: DataBenchSettings) -> DataMeasurements:
    """Make text in a temporary folder, prepare it in all ways, and read random rows in all ways."""
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
        # Before and after, so that a change of the machine's speed hits what is compared with it alike.
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
    """Tokens per second of each way to read, over those of the memory map."""
    base = measured.reading_tokens_per_second[MEMMAP]
    return {name: rate / base for name, rate in measured.reading_tokens_per_second.items()}

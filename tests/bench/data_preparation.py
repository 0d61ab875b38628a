"""Time of preparing the same text with Ray workers, in one plain process, and with datatrove."""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

from data_prep.inputs.documents import TextFiles
from data_prep.manifest import PrepareSettings, ShardEntry
from data_prep.preparation import PrepareRequest
from data_prep.progress import PrepareProgress
from data_prep.run import prepare
from data_prep.tokenizers.reading import read_tokenizer

# End of documents in the tokenizer.json trained here.
EOD_TOKEN = "<|endoftext|>"
DATATROVE_SECONDS = 3600
# Tasks with almost no text, which show the overhead of a task.
_NUM_SMALL_TASKS = 48


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """JSONL files and the size of their text."""

    paths: tuple[Path, ...]
    text_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparationTime:
    """Time of one way to tokenize a corpus.

    Attributes:
        name: of the way.
        num_workers: 0 is a plain process.
        seconds: of the complete command.
        working_seconds: time of the text at the rate while all workers are busy; the rest of ``seconds`` is
            start-up and shutdown.
        num_tokens: tokens produced.
        text_bytes: text read.
    """

    name: str
    num_workers: int
    seconds: float
    working_seconds: float
    num_tokens: int
    text_bytes: int


def mean_time(first: PreparationTime, second: PreparationTime) -> PreparationTime:
    """Return the mean of two measurements of the same way."""
    return replace(
        first,
        seconds=(first.seconds + second.seconds) / 2,
        working_seconds=(first.working_seconds + second.working_seconds) / 2,
    )


class ShardTimes(PrepareProgress):
    """Records the time at which each shard was finished."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        super().__init__()
        self._shard_clock = clock
        self._finished: list[tuple[float, int]] = []

    def advance(self, entry: ShardEntry) -> None:
        """Record one finished shard."""
        self._finished.append((self._shard_clock(), entry.num_tokens))

    def tokens_per_second(self, num_workers: int) -> float | None:
        """Return the rate after the first ``num_workers`` shards; None if there were no more."""
        after = self._finished[num_workers:]
        if not after:
            return None
        return sum(tokens for _, tokens in after) / (after[-1][0] - self._finished[num_workers - 1][0])

    @property
    def seconds_per_shard(self) -> float:
        """Mean time of a shard after the first one; needs at least two."""
        return (self._finished[-1][0] - self._finished[0][0]) / (len(self._finished) - 1)


def describe_corpus(paths: Sequence[Path]) -> Corpus:
    """Return JSONL files with the size of their text."""
    num_bytes = sum(len(json.loads(line)["text"].encode()) for path in paths for line in path.open("rb"))
    return Corpus(paths=tuple(paths), text_bytes=num_bytes)


def time_plain_process(corpus: Corpus, tokenizer: Path) -> PreparationTime:
    """Read and tokenize all documents in this process; nothing is written."""
    loaded = read_tokenizer(tokenizer, eod_token=_eod_token(tokenizer))
    started = time.perf_counter()
    num_tokens = 0
    for path in corpus.paths:
        with path.open("rb") as lines:
            num_tokens += sum(len(loaded.encode(json.loads(line)["text"])) + 1 for line in lines)
    seconds = time.perf_counter() - started
    return PreparationTime(
        name="plain process",
        num_workers=0,
        seconds=seconds,
        working_seconds=seconds,
        num_tokens=num_tokens,
        text_bytes=corpus.text_bytes,
    )


def time_preparation(corpus: Corpus, tokenizer: Path, *, num_workers: int) -> PreparationTime:
    """Run the preparation of `megaponder data prepare`, with Ray."""
    times = ShardTimes()
    with tempfile.TemporaryDirectory() as scratch:
        request = _request(corpus.paths, tokenizer, Path(scratch), num_workers)
        started = time.perf_counter()
        manifest = prepare(request, times)
        seconds = time.perf_counter() - started
    num_tokens = sum(manifest.num_tokens(split) for split in manifest.splits)
    rate = times.tokens_per_second(num_workers)
    return PreparationTime(
        name="megaponder",
        num_workers=num_workers,
        seconds=seconds,
        working_seconds=seconds if rate is None else num_tokens / rate,
        num_tokens=num_tokens,
        text_bytes=corpus.text_bytes,
    )


def time_datatrove(corpus: Corpus, tokenizer: Path, *, num_workers: int) -> PreparationTime | None:
    """Run the tokenization of datatrove with local workers; return None if it is not installed.

    It keeps the order of the documents, as our preparation does, which saves it a second pass.
    """
    if find_spec("datatrove") is None:
        return None
    with tempfile.TemporaryDirectory() as scratch:
        seconds, num_tokens = _run_datatrove(corpus.paths, tokenizer, Path(scratch), num_workers)
    return PreparationTime(
        name="datatrove",
        num_workers=num_workers,
        seconds=seconds,
        working_seconds=seconds,
        num_tokens=num_tokens,
        text_bytes=corpus.text_bytes,
    )


def time_task_overhead(tokenizer: Path) -> float:
    """Return the seconds of a task without its text: dispatch, opening, writing, syncing."""
    times = ShardTimes()
    with tempfile.TemporaryDirectory() as scratch:
        small = [Path(scratch) / f"part-{number:05d}.jsonl" for number in range(_NUM_SMALL_TASKS)]
        for path in small:
            path.write_text('{"text": "a"}\n', encoding="utf-8")
        prepare(_request(small, tokenizer, Path(scratch) / "shards", 1, shard_text_bytes=1), times)
    return times.seconds_per_shard


def _request(
    paths: Sequence[Path],
    tokenizer: Path,
    output: Path,
    num_workers: int,
    *,
    shard_text_bytes: int | None = None,
) -> PrepareRequest:
    return PrepareRequest(
        source=TextFiles(inputs=tuple(str(path) for path in paths)),
        output=output,
        tokenizer=tokenizer,
        eod_token=_eod_token(tokenizer),
        settings=PrepareSettings(heldout_fraction=0.0, shard_text_bytes=shard_text_bytes),
        workers=num_workers,
        # Of a small corpus too the figures are those of Ray.
        small_bytes=0,
    )


def _run_datatrove(
    paths: Sequence[Path], tokenizer: Path, output: Path, num_workers: int
) -> tuple[float, int]:
    """Return seconds and tokens; runs in a separate process, whose start-up is not counted."""
    arguments = [paths[0].parent, tokenizer, output, num_workers, len(paths), EOD_TOKEN]
    finished = subprocess.run(
        [sys.executable, "-m", "tests.bench.datatrove_run", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=DATATROVE_SECONDS,
        check=False,
    )
    if finished.returncode != 0:
        raise RuntimeError(f"datatrove must finish, but does not:\n{finished.stderr[-3000:]}")
    seconds, num_tokens = json.loads(finished.stdout.splitlines()[-1])
    return float(seconds), int(num_tokens)


def _eod_token(tokenizer: Path) -> str | None:
    return EOD_TOKEN if tokenizer.suffix == ".json" else None

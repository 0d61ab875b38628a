"""What preparing text costs: with Ray workers, in one plain process, with datatrove; on the same files."""

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

# Ends documents in the tokenizer.json that is made for this.
EOD_TOKEN = "<|endoftext|>"
DATATROVE_SECONDS = 3600
# Tasks of next to no text, to see what a task costs beside its text.
_NUM_SMALL_TASKS = 48


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """JSONL files and how much they hold."""

    paths: tuple[Path, ...]
    text_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparationTime:
    """One way to tokenize a corpus.

    Attributes:
        name: of the way.
        num_workers: 0 is a plain process.
        seconds: of the whole command.
        working_seconds: what the text takes at the rate of workers that are all at work; the rest of
            ``seconds`` is their start and end.
        num_tokens: that came of it.
        text_bytes: that went in.
    """

    name: str
    num_workers: int
    seconds: float
    working_seconds: float
    num_tokens: int
    text_bytes: int


def mean_time(first: PreparationTime, second: PreparationTime) -> PreparationTime:
    """The mean of two measurements of the same way."""
    return replace(
        first,
        seconds=(first.seconds + second.seconds) / 2,
        working_seconds=(first.working_seconds + second.working_seconds) / 2,
    )


class ShardTimes(PrepareProgress):
    """Notes when each shard was finished."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        super().__init__(clock=clock)
        self._finished: list[tuple[float, int]] = []

    def advance(self, entry: ShardEntry) -> None:
        """Take one finished shard."""
        self._finished.append((self._clock(), entry.num_tokens))

    def tokens_per_second(self, num_workers: int) -> float | None:
        """Rate from when as many shards were finished as there are workers; None if no more were."""
        after = self._finished[num_workers:]
        if not after:
            return None
        return sum(tokens for _, tokens in after) / (after[-1][0] - self._finished[num_workers - 1][0])

    @property
    def seconds_per_shard(self) -> float:
        """From the first finished shard on, of at least two."""
        return (self._finished[-1][0] - self._finished[0][0]) / (len(self._finished) - 1)


def describe_corpus(paths: Sequence[Path]) -> Corpus:
    """Count the text of JSONL files."""
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
    """Run what `megaponder data prepare` runs, with Ray."""
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
    """Run datatrove's tokenization with as many local workers; None where it is not installed.

    Its documents stay in their order, as ours do, which spares it a second pass over its output.
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
    """Seconds that a task of one worker takes beside its text: dispatch, opening, writing, syncing."""
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
    )


def _run_datatrove(
    paths: Sequence[Path], tokenizer: Path, output: Path, num_workers: int
) -> tuple[float, int]:
    """Seconds and tokens; in a process of its own, whose start is not counted."""
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

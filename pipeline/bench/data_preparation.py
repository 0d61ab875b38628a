"""What preparing text costs: with Ray workers, in one plain process, with datatrove; on the same files."""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from data_prep.documents import TextFiles
from data_prep.manifest import PrepareSettings
from data_prep.preparation import PrepareRequest
from data_prep.run import prepare
from data_prep.tokenizer import Tokenizer

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
        start_seconds: of the same with next to no text, which is the start and end of its workers.
        num_tokens: that came of it.
        text_bytes: that went in.
    """

    name: str
    num_workers: int
    seconds: float
    start_seconds: float
    num_tokens: int
    text_bytes: int

    @property
    def working_seconds(self) -> float:
        """Without the start of workers."""
        return max(self.seconds - self.start_seconds, 1e-9)


def describe_corpus(paths: Sequence[Path]) -> Corpus:
    """Count the text of JSONL files."""
    num_bytes = sum(len(json.loads(line)["text"].encode()) for path in paths for line in path.open("rb"))
    return Corpus(paths=tuple(paths), text_bytes=num_bytes)


def time_plain_process(corpus: Corpus, tokenizer: Path) -> PreparationTime:
    """Read and tokenize all documents in this process; nothing is written."""
    loaded = Tokenizer.load(tokenizer, eod_token=_eod_token(tokenizer))
    loaded.encode("a")
    started = time.perf_counter()
    num_tokens = 0
    for path in corpus.paths:
        with path.open("rb") as lines:
            num_tokens += sum(len(loaded.encode(json.loads(line)["text"])) + 1 for line in lines)
    return PreparationTime(
        name="plain process",
        num_workers=0,
        seconds=time.perf_counter() - started,
        start_seconds=0.0,
        num_tokens=num_tokens,
        text_bytes=corpus.text_bytes,
    )


def time_preparation(corpus: Corpus, tokenizer: Path, *, num_workers: int) -> PreparationTime:
    """Run what `megaponder data prepare` runs, with Ray."""
    with tempfile.TemporaryDirectory() as scratch:
        small = _write_small_files(Path(scratch) / "text", num_workers)
        start_seconds, _ = _prepare(
            small, tokenizer, Path(scratch) / "small", num_workers, shard_text_bytes=1
        )
        seconds, num_tokens = _prepare(corpus.paths, tokenizer, Path(scratch) / "shards", num_workers)
    return PreparationTime(
        name="megaponder",
        num_workers=num_workers,
        seconds=seconds,
        start_seconds=start_seconds,
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
        small = _write_small_files(Path(scratch) / "text", num_workers)
        start_seconds, _ = _run_datatrove(small, tokenizer, Path(scratch) / "small", num_workers)
        seconds, num_tokens = _run_datatrove(corpus.paths, tokenizer, Path(scratch) / "tokens", num_workers)
    return PreparationTime(
        name="datatrove",
        num_workers=num_workers,
        seconds=seconds,
        start_seconds=start_seconds,
        num_tokens=num_tokens,
        text_bytes=corpus.text_bytes,
    )


def time_task_overhead(tokenizer: Path) -> float:
    """Seconds that a task of one worker takes beside its text: dispatch, opening, writing, syncing."""
    with tempfile.TemporaryDirectory() as scratch:
        seconds = []
        for number in (1, 1 + _NUM_SMALL_TASKS):
            small = _write_small_files(Path(scratch) / f"text-{number}", number)
            output = Path(scratch) / f"shards-{number}"
            seconds.append(_prepare(small, tokenizer, output, 1, shard_text_bytes=1)[0])
    return max(seconds[1] - seconds[0], 0.0) / _NUM_SMALL_TASKS


def _prepare(
    paths: Sequence[Path],
    tokenizer: Path,
    output: Path,
    num_workers: int,
    *,
    shard_text_bytes: int | None = None,
) -> tuple[float, int]:
    """Seconds and tokens."""
    request = PrepareRequest(
        source=TextFiles(inputs=tuple(str(path) for path in paths)),
        output=output,
        tokenizer=tokenizer,
        eod_token=_eod_token(tokenizer),
        settings=PrepareSettings(heldout_fraction=0.0, shard_text_bytes=shard_text_bytes),
        workers=num_workers,
    )
    started = time.perf_counter()
    manifest = prepare(request)
    return time.perf_counter() - started, sum(manifest.num_tokens(split) for split in manifest.splits)


def _run_datatrove(
    paths: Sequence[Path], tokenizer: Path, output: Path, num_workers: int
) -> tuple[float, int]:
    """Seconds and tokens; in a process of its own, whose start is not counted."""
    output.mkdir()
    arguments = [paths[0].parent, tokenizer, output, num_workers, len(paths), EOD_TOKEN]
    finished = subprocess.run(
        [sys.executable, "-m", "pipeline.bench.datatrove_run", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=DATATROVE_SECONDS,
        check=False,
    )
    if finished.returncode != 0:
        raise RuntimeError(f"datatrove must finish, but does not:\n{finished.stderr[-3000:]}")
    seconds, num_tokens = json.loads(finished.stdout.splitlines()[-1])
    return float(seconds), int(num_tokens)


def _write_small_files(folder: Path, number: int) -> list[Path]:
    folder.mkdir(parents=True)
    paths = [folder / f"part-{index:05d}.jsonl" for index in range(number)]
    for path in paths:
        path.write_text('{"text": "a"}\n', encoding="utf-8")
    return paths


def _eod_token(tokenizer: Path) -> str | None:
    return EOD_TOKEN if tokenizer.suffix == ".json" else None

"""The record of `python -m tests.bench compare-reference`: where its figures are from, and tables of them."""

import json
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from pipeline.shared.errors import DataError
from pipeline.shared.files import file_sha256
from pipeline.shared.foreign_files import read_json_object
from tests.bench.machine import machine_name
from tests.bench.reference import OURS, Comparison
from tests.bench.reference_cases import model_files
from tests.bench.step import HERE

FORMAT = 1
_TRAINING = ("case", "precision", "beside", "ours", "theirs", "ratio", "CPU s, ours / theirs", "peak GiB")
_DECODING = ("case", "texts", "beside", "ours", "theirs", "ratio", "prompts: ours", "theirs", "ratio")


def provenance(comparison: Comparison, *, note: str) -> dict[str, Any]:
    """Return the machine, the date and the versions of both sides that a record begins with."""
    checkout = comparison.checkout
    files = [] if checkout is None else model_files(comparison.cases, comparison.parts, checkout)
    return {
        "format": FORMAT,
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine_name(),
        "commit": commit_of(HERE),
        "published_commit": None if checkout is None else commit_of(checkout),
        "published_files": {file.name: file_sha256(file) for file in files},
        "note": note,
    }


def commit_of(folder: Path) -> str | None:
    """Return the commit that a checkout is at, marked where files differ; None for other folders."""
    if not (folder / ".git").exists():
        return None
    try:
        described = subprocess.run(
            ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return described.stdout.strip()


def read_record(file: Path) -> dict[str, Any]:
    """Read a record.

    Raises:
        DataError: the file is not one.
    """
    cure = "name a file that `--json` wrote"
    try:
        record = read_json_object(file)
    except (OSError, ValueError) as error:
        raise DataError(
            f"{file} must be a record of compare-reference, but cannot be read ({error}); {cure}"
        ) from error
    if record.get("format") != FORMAT or "results" not in record:
        raise DataError(
            f"{file} must be a record of compare-reference of format {FORMAT}, but is of format "
            f"{record.get('format')!r}; {cure}"
        )
    return record


def render_record(record: Mapping[str, Any]) -> str:
    """Render a record as Markdown: what was measured where, and a table for each part."""
    sizes, model = record["sizes"], record["sizes"]["model"]
    shape = f"{model['num_layers']} layers of {model['hidden_size']}, vocabulary {model['vocab_size']:,}"
    rounds = f"median (range) of {record['rounds']} processes of {record['steps']} timed"
    lines = [*_origin(record), ""]
    if training := [each for each in record["results"] if each["part"] == "train"]:
        lines += [
            f"Training steps: GPT-NeoX of {shape}, {model['micro_batch_size']} x {model['seq_length']} "
            f"tokens. Seconds per step, {rounds} steps each; ratio: time of the other side over ours.",
            "",
            *_table(_TRAINING, [row for each in training for row in _training_rows(each)], num_text=3),
            "",
        ]
    if decoding := [each for each in record["results"] if each["part"] == "decode"]:
        lines += [
            f"Decoding: Llama of {shape}, fp32, {sizes['prompt_tokens']} + {sizes['new_tokens']} tokens. "
            f"Milliseconds per token of all texts, and of reading the prompts, {rounds} batches each.",
            "",
            *_table(_DECODING, [row for each in decoding for row in _decoding_rows(each)], num_text=1),
            "",
        ]
    return "\n".join(lines).rstrip() + "\n"


def _origin(record: Mapping[str, Any]) -> Iterator[str]:
    loads = [value for each in record["results"] for value in each["load"]]
    load = f", load {min(loads):.1f} to {max(loads):.1f}" if loads else ""
    pages = ", huge pages" if record["huge_pages"] else ""
    yield (
        f"{record['date']}, {record['machine']}, {record['threads']} thread(s) each{pages}{load}. "
        f"This program: {record['commit'] or 'no git'}."
    )
    for name, versions in record["versions"].items():
        found = ", ".join(f"{package} {version}" for package, version in versions.items())
        commit = record["published_commit"] if name == "published code" else None
        yield f"{name[0].upper()}{name[1:]}: {found}{f', commit {commit}' if commit else ''}."
    if record["note"]:
        yield str(record["note"])


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, num_text: int) -> Iterator[str]:
    yield f"| {' | '.join(columns)} |"
    yield "|" + "".join("---|" if place < num_text else "---:|" for place in range(len(columns)))
    for row in rows:
        yield f"| {' | '.join(row)} |"


def _training_rows(result: Mapping[str, Any]) -> Iterator[list[str]]:
    ours = result["sides"][OURS]
    for name, theirs in _others(result):
        peaks = [max(each["peak_bytes"] for each in rounds) / 2**30 for rounds in (ours, theirs)]
        used = [median(_medians(rounds, "cpu_seconds")) for rounds in (ours, theirs)]
        yield [
            result["case"],
            result["precision"],
            _beside(name, theirs),
            *_compared(ours, theirs, "seconds", scale=1.0),
            f"{used[0]:.3g} / {used[1]:.3g}",
            f"{peaks[0]:.2f} / {peaks[1]:.2f}",
        ]


def _decoding_rows(result: Mapping[str, Any]) -> Iterator[list[str]]:
    ours = result["sides"][OURS]
    for name, theirs in _others(result):
        yield [
            result["case"],
            str(result["batch_size"]),
            _beside(name, theirs),
            *_compared(ours, theirs, "token_seconds", scale=1e3),
            *_compared(ours, theirs, "prompt_seconds", scale=1e3),
        ]


def _others(result: Mapping[str, Any]) -> Iterator[tuple[str, list[Mapping[str, Any]]]]:
    for name, rounds in result["sides"].items():
        if name != OURS:
            yield name, rounds


def _beside(name: str, rounds: Sequence[Mapping[str, Any]]) -> str:
    is_published = name == "published code"
    return name if is_published else f"transformers {rounds[0]['versions']['transformers']}"


def _medians(rounds: Sequence[Mapping[str, Any]], figure: str) -> list[float]:
    """Return one value per process."""
    return [median(each[figure]) for each in rounds]


def _compared(
    ours: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, Any]], figure: str, *, scale: float
) -> list[str]:
    """Return the columns of a figure: ours, theirs, and the median of the ratios of the rounds."""
    own, other = _medians(ours, figure), _medians(theirs, figure)
    ratios = [their / mine for mine, their in zip(own, other, strict=True)]
    times = [_with_range([scale * value for value in values]) for values in (own, other)]
    return [*times, f"{median(ratios):.2f} ({min(ratios):.2f}..{max(ratios):.2f})"]


def _with_range(values: Sequence[float]) -> str:
    return f"{_figures(median(values))} ({_figures(min(values))}..{_figures(max(values))})"


def _figures(value: float) -> str:
    """Three significant figures, never in powers of ten."""
    return f"{float(f'{value:.3g}'):,g}"


def record_json(record: Mapping[str, Any]) -> str:
    """Return the text of a record's file."""
    return json.dumps(record, indent=1) + "\n"

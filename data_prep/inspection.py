"""Inspect a finished folder of shards: summary, decoded samples, damage."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.text import Text

from data_prep.manifest import ShardEntry, ShardManifest, StoredAs, load_manifest
from data_prep.storage.stored_tokens import StoredTokens, open_stored
from data_prep.tokenizers.reading import read_tokenizer
from data_prep.tokenizers.tokenizer import Tokenizer
from pipeline.shared.errors import DataError
from pipeline.shared.tables import Table
from pipeline.shared.units import render_bytes

SAMPLE_TOKENS = 200
BAR_CHARACTERS = 40
_STORED_AS: dict[StoredAs, str] = {"webdataset": "in webdataset shards", "megatron": "in Megatron pairs"}


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentSample:
    """The beginning of a document, decoded from its stored tokens."""

    split: str
    shard: str
    num_tokens: int
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardProblem:
    """A shard whose file does not match the manifest."""

    shard: str
    finding: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LengthBin:
    """The number of documents with ``first`` to ``last`` tokens, including the end-of-document token."""

    first: int
    last: int
    num_documents: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """Result of :func:`inspect_shards`; ``problems`` is None if checksums were not compared."""

    folder: Path
    manifest: ShardManifest
    samples: tuple[DocumentSample, ...]
    lengths: tuple[LengthBin, ...]
    problems: tuple[ShardProblem, ...] | None


def inspect_shards(folder: Path, *, num_samples: int = 2, verify: bool = False) -> Inspection:
    """Summarize a prepared folder.

    Args:
        folder: with a ``manifest.json``.
        num_samples: documents to decode from the start of each split.
        verify: read every shard completely and compare it with the manifest.
    Raises:
        DataError: the folder is unfinished, or a shard to sample from is damaged.
    """
    manifest = load_manifest(folder)
    stored = open_stored(folder, manifest)
    problems = tuple(find_problems(stored, manifest)) if verify else None
    damaged = {problem.shard for problem in problems or ()}
    tokenizer = read_tokenizer(folder / manifest.header.tokenizer.file)
    samples = tuple(
        sample
        for split in manifest.splits
        for sample in islice(_samples(stored, manifest.split_shards(split), tokenizer, damaged), num_samples)
    )
    lengths = [stored.lengths(entry) for entry in manifest.shards if entry.name not in damaged]
    return Inspection(
        folder=folder,
        manifest=manifest,
        samples=samples,
        lengths=length_bins(np.concatenate([np.empty(0, dtype=np.int64), *lengths])),
        problems=problems,
    )


def length_bins(lengths: NDArray[np.int64]) -> tuple[LengthBin, ...]:
    """Count documents by length in bins that double: 1, 2, 3 to 4, 5 to 8, ...

    Args:
        lengths: [documents], each at least 1.
    """
    exponents = np.ceil(np.log2(lengths)).astype(np.int64)
    counts = np.bincount(exponents)
    return tuple(
        LengthBin(first=2**exponent // 2 + 1, last=2**exponent, num_documents=int(count))
        for exponent, count in enumerate(counts)
        if exponent >= exponents.min()
    )


def find_problems(stored: StoredTokens, manifest: ShardManifest) -> Iterator[ShardProblem]:
    """Compare existence, size, checksum and token counts of every shard with the manifest."""
    for name, finding in stored.pair_damage():
        yield ShardProblem(shard=name, finding=finding)
    for entry in manifest.shards:
        if (damage := stored.damage(entry)) is not None:
            yield ShardProblem(shard=entry.name, finding=damage)


def render_inspection(inspection: Inspection) -> RenderableType:
    """Render an inspection for ``megaponder data inspect``."""
    manifest = inspection.manifest
    tokenizer = manifest.header.tokenizer
    facts = Text(
        f"{inspection.folder}: {manifest.header.inputs.source}, {manifest.header.inputs.num_files:,} files, "
        f"{render_bytes(manifest.header.inputs.num_bytes)} of text, "
        f"{len(manifest.rejected)} records rejected, {len(manifest.lost)} files lost\n"
        f"tokenizer: {tokenizer.kind}, {tokenizer.vocab_size:,} ids, end of document {tokenizer.eod_id}, "
        f"sha256 {tokenizer.sha256[:12]}; tokens stored as {manifest.header.token_type}, "
        f"{_STORED_AS[manifest.header.stored_as]}"
    )
    rejected = [Text(f"rejected: {record.place}: {record.reason}") for record in manifest.rejected]
    panels = [
        Panel(Text(sample.text), title=Text(f"{sample.shard}: a document of {sample.num_tokens:,} tokens"))
        for sample in inspection.samples
    ]
    return Group(
        facts,
        _split_table(manifest),
        _length_table(inspection.lengths),
        *rejected,
        *panels,
        *_verification(inspection),
    )


def _samples(
    stored: StoredTokens, entries: tuple[ShardEntry, ...], tokenizer: Tokenizer, damaged: set[str]
) -> Iterator[DocumentSample]:
    for entry in entries:
        if entry.name in damaged:
            continue
        for tokens in stored.documents(entry):
            yield DocumentSample(
                split=entry.split,
                shard=entry.name,
                num_tokens=len(tokens),
                text=_decoded(tokenizer, tokens[:SAMPLE_TOKENS]),
            )


def _decoded(tokenizer: Tokenizer, tokens: NDArray[np.integer]) -> str:
    try:
        return tokenizer.decode(tokens)
    except Exception as error:  # of a library, about ids that it does not have
        raise DataError(
            f"the tokens of a shard must be ids below {tokenizer.vocab_size}, but they are "
            f"{tokens.min()} to {tokens.max()}: {error}; prepare the data again"
        ) from error


def _split_table(manifest: ShardManifest) -> Table:
    table = Table("split", "shards", "documents", "tokens", "MB", "tokens/document")
    for split in manifest.splits:
        entries = manifest.split_shards(split)
        num_documents, num_tokens = manifest.num_documents(split), manifest.num_tokens(split)
        megabytes = sum(entry.size_bytes for entry in entries) / 1e6
        mean = num_tokens / num_documents if num_documents else 0.0
        row = (len(entries), num_documents, num_tokens, round(megabytes, 1), round(mean))
        table.add_row(split, *(f"{value:,}" for value in row))
    return table


def _length_table(bins: tuple[LengthBin, ...]) -> Table:
    table = Table("tokens of a document", "documents", "")
    largest = max((each.num_documents for each in bins), default=1)
    for each in bins:
        span = str(each.last) if each.first == each.last else f"{each.first:,} to {each.last:,}"
        bar = "#" * -(-each.num_documents * BAR_CHARACTERS // largest)
        table.add_row(span, f"{each.num_documents:,}", bar)
    return table


def _verification(inspection: Inspection) -> list[Text]:
    if inspection.problems is None:
        return [Text("checksums were not compared; use --verify")]
    if not inspection.problems:
        return [Text(f"verified: all {len(inspection.manifest.shards)} shards match the manifest")]
    problems = inspection.problems
    return [Text(f"damaged: {problem.shard}: {problem.finding}", style="bold red") for problem in problems]

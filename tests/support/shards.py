"""Folders of shards with given token ids."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data_prep.manifest import (
    InputEntry,
    InputRange,
    PreparationHeader,
    PrepareSettings,
    ShardEntry,
    ShardManifest,
    TokenizerEntry,
    TokenType,
    save_manifest,
)
from data_prep.storage.shard_writer import ShardWriter

EOD_ID = 0
VOCAB_SIZE = 100


def random_documents(num_documents: int, *, longest: int = 40, seed: int = 5) -> list[list[int]]:
    """Make documents of 1 to ``longest`` tokens, without their end-of-document token."""
    generator = np.random.default_rng(seed)
    lengths = generator.integers(1, longest + 1, size=num_documents)
    return [generator.integers(1, VOCAB_SIZE, size=length).tolist() for length in lengths]


def stream_of(documents: Sequence[Sequence[int]]) -> list[int]:
    """Join documents in the slow, obvious way."""
    return [token for document in documents for token in [*document, EOD_ID]]


def write_split(
    folder: Path,
    documents: Sequence[Sequence[int]],
    *,
    split: str = "train",
    documents_per_shard: int = 7,
    member_tokens: int = 50,
    token_type: TokenType = "uint16",
) -> Path:
    """Write a folder with one split that holds exactly these documents."""
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for number, first in enumerate(range(0, len(documents), documents_per_shard)):
        path = folder / f"{split}-{number:06d}.tar"
        with ShardWriter(path, token_type=token_type, eod_id=EOD_ID, member_tokens=member_tokens) as writer:
            for document in documents[first : first + documents_per_shard]:
                writer.add_document(np.array(document, dtype=np.int32))
            written = writer.finish()
        entries.append(
            ShardEntry(
                name=path.name,
                split=split,
                size_bytes=written.size_bytes,
                sha256=written.sha256,
                num_tokens=written.num_tokens,
                num_documents=written.num_documents,
                num_members=written.num_members,
                tokenizer_sha256="made up",
                inputs=InputRange(first_file="a", last_file="b", num_files=1, num_bytes=1, fingerprint="c"),
            )
        )
    save_manifest(ShardManifest(header=_header(token_type), shards=tuple(entries)), folder)
    return folder


def _header(token_type: TokenType) -> PreparationHeader:
    return PreparationHeader(
        token_type=token_type,
        tokenizer=TokenizerEntry(
            file="tokenizer.model", sha256="made up", vocab_size=VOCAB_SIZE, eod_id=EOD_ID
        ),
        settings=PrepareSettings(),
        inputs=InputEntry(source="made up", num_files=1, num_bytes=1, fingerprint="c"),
    )

"""Held-out prompts for a trained model: beginnings of documents, and how they continue."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_prep.manifest import load_manifest
from data_prep.tokenizers.reading import read_tokenizer
from data_prep.tokenizers.tokenizer import Tokenizer
from pipeline.data.dataset import SampleSource
from pipeline.data.order import SampleOrder
from pipeline.shared.errors import DataError

# Prompts are the same in every run, whatever its seed.
_PROMPT_SEED = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """The beginning of a document and its continuation, as token ids and as text."""

    token_ids: tuple[int, ...]
    text: str
    continuation_ids: tuple[int, ...]
    continuation: str


def load_tokenizer(folder: Path) -> Tokenizer:
    """Return the tokenizer that the shards in ``folder`` were made with.

    Raises:
        DataError: the file in the folder is not that tokenizer.
    """
    entry = load_manifest(folder).header.tokenizer
    tokenizer = read_tokenizer(folder / entry.file)
    if tokenizer.sha256 != entry.sha256:
        raise DataError(
            f"{folder / entry.file} must have sha256 {entry.sha256}, but has {tokenizer.sha256}; "
            "prepare the data again with --overwrite"
        )
    return tokenizer


def read_prompts(
    dataset: SampleSource,
    tokenizer: Tokenizer,
    *,
    num_prompts: int,
    prompt_tokens: int,
    continuation_tokens: int = 64,
) -> list[Prompt]:
    """Take the beginnings of documents from all over the split, the same ones every time.

    Documents that are too short for a prompt and one more token are skipped, so that fewer prompts may be
    returned than were requested.

    Raises:
        DataError: no document is long enough.
    """
    documents = _documents(dataset)
    order = SampleOrder(num_samples=len(documents), seed=_PROMPT_SEED, shuffled=True)
    prompts: list[Prompt] = []
    for number in order.indices(0, len(documents)):
        start, stop = documents[number]
        # The end-of-document token is not text.
        if len(prompts) < num_prompts and stop - 1 - start > prompt_tokens:
            end = min(stop - 1, start + prompt_tokens + continuation_tokens)
            prompts.append(_prompt(dataset, tokenizer, int(start), int(start + prompt_tokens), int(end)))
    if not prompts:
        raise DataError(
            f"a prompt of {prompt_tokens} tokens needs a longer document than the {dataset.split} split has; "
            "ask for shorter prompts"
        )
    return prompts


def _prompt(dataset: SampleSource, tokenizer: Tokenizer, start: int, middle: int, end: int) -> Prompt:
    ids = np.empty(end - start, dtype=np.int64)
    dataset.stream.read_into(ids, start)
    prompt, continuation = ids[: middle - start], ids[middle - start :]
    return Prompt(
        token_ids=tuple(prompt.tolist()),
        text=tokenizer.decode(prompt),
        continuation_ids=tuple(continuation.tolist()),
        continuation=tokenizer.decode(continuation),
    )


def _documents(dataset: SampleSource) -> NDArray[np.int64]:
    """Return [documents, 2]: first token, and the one after the last, of each document of the split."""
    ends = np.concatenate([np.empty(0, dtype=np.int64), *_document_ends(dataset)])
    return np.stack([np.concatenate([np.zeros(1, dtype=np.int64), ends[:-1]]), ends], axis=1)


def _document_ends(dataset: SampleSource) -> Iterator[NDArray[np.int64]]:
    before = 0
    for tokens in dataset.stream.runs():
        yield np.flatnonzero(tokens == dataset.vocabulary.eod_id) + (before + 1)
        before += len(tokens)

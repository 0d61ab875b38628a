"""Losses by source, and the bytes that their tokens stand for."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from data_prep.tokenizers.reading import read_tokenizer
from data_prep.tokenizers.tokenizer import Tokenizer
from megatron_ext.model.micro_batch import ModelOutput, TokenBatch
from megatron_ext.parallel.groups import ParallelGroups
from megatron_ext.parallel.vocabulary import IGNORED_LABEL
from pipeline.data.batches import BatchLayout, HeldoutBatches, PackingOptions
from pipeline.data.dataset import TokenDataset, Vocabulary
from pipeline.data.joined_dataset import JoinedDataset
from pipeline.data.order import SampleOrder
from pipeline.data.stream import ArrayStream
from pipeline.evaluation.sources import SourceRecorder, text_bytes
from tests.support.corpus import train_small_tokenizer, write_corpus

TEXTS = ["def value\n    return", "\u00e9\u6f22 token  \u6f22", "x", " leading and  double spaces "]
SEQ_LENGTH = 9


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    source = write_corpus(folder / "text")
    return read_tokenizer(train_small_tokenizer(source, folder / "tokenizer.model"))


def documents(tokenizer: Tokenizer, texts: Sequence[str]) -> list[int]:
    return [token for text in texts for token in [*tokenizer.encode(text).tolist(), tokenizer.eod_id]]


def size(text: str) -> int:
    return len(text.encode())


def test_the_bytes_of_complete_documents_are_those_of_their_texts(tokenizer: Tokenizer) -> None:
    tokens = np.array(documents(tokenizer, TEXTS))

    assert text_bytes(tokens, np.ones(len(tokens), dtype=bool), tokenizer) == sum(map(size, TEXTS))
    assert text_bytes(tokens, np.zeros(len(tokens), dtype=bool), tokenizer) == 0


def test_what_comes_before_the_first_target_has_no_share(tokenizer: Tokenizer) -> None:
    tokens = np.array(documents(tokenizer, TEXTS))
    begins = np.concatenate([[True], tokens[:-1] == tokenizer.eod_id])
    firsts = sum(size(tokenizer.decode(tokens[[place]])) for place in np.flatnonzero(begins))

    assert text_bytes(tokens, ~begins, tokenizer) == sum(map(size, TEXTS)) - firsts


def sources(tokenizer: Tokenizer) -> JoinedDataset:
    vocabulary = Vocabulary(size=tokenizer.vocab_size, eod_id=tokenizer.eod_id)
    parts = [
        TokenDataset(
            ArrayStream(np.array(documents(tokenizer, texts))),
            vocabulary,
            split="heldout",
            seq_length=SEQ_LENGTH,
        )
        for texts in (TEXTS * 3, ["import range"] * 7)
    ]
    return JoinedDataset(parts, names=["mixed", "plain"])


def output_of(batch: TokenBatch) -> ModelOutput:
    """A loss of its own for each token: one of 2 nats for even ids, 1 for odd ones."""
    losses = torch.where(batch.labels % 2 == 0, 2.0, 1.0)
    losses = torch.where(batch.labels == IGNORED_LABEL, 0.0, losses)
    return ModelOutput(token_losses=losses.transpose(0, 1), penalty=None, steps=None)


@pytest.mark.parametrize("knows_tokenizer", [True, False])
def test_every_source_gets_its_own_tokens(
    groups: ParallelGroups, tokenizer: Tokenizer, knows_tokenizer: bool
) -> None:
    dataset = sources(tokenizer)
    batches = HeldoutBatches(
        dataset,
        SampleOrder(num_samples=len(dataset), seed=3, shuffled=True),
        layout=BatchLayout(global_batch_size=4, micro_batch_size=2, dp_rank=0, dp_size=1),
        packing=PackingOptions(mask_document_boundaries=False),
        max_global_batches=1000,
    )
    recorder = SourceRecorder(batches, tokenizer if knows_tokenizer else None)

    for micro_batches in batches:
        for batch in micro_batches:
            recorder(batch, output_of(batch))
    found = recorder.read(groups)

    assert [source.name for source in found] == ["mixed", "plain"]
    for source, part in zip(found, dataset.parts, strict=True):
        # Every token of the stream but the first is predicted once.
        (tokens,) = part.stream.pieces(0, len(part.stream))
        assert source.num_tokens == len(tokens) - 1
        expected = np.where(tokens[1:] % 2 == 0, 2.0, 1.0)
        assert source.loss == pytest.approx(expected.mean())
        if not knows_tokenizer:
            assert source.bits_per_byte is None
            continue
        assert source.num_bytes is not None
        whole = size(tokenizer.decode(tokens)) - size(tokenizer.decode(tokens[:1]))
        rows = len(part)
        assert abs(source.num_bytes - whole) <= 6 * rows
        assert source.bits_per_byte == pytest.approx(expected.sum() / math.log(2) / source.num_bytes)


def test_a_split_of_plain_text_has_its_exact_bytes(
    groups: ParallelGroups, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    dataset = sources(tokenizer).parts[1]
    order = SampleOrder(num_samples=len(dataset), seed=3, shuffled=False)
    layout = BatchLayout(global_batch_size=2, micro_batch_size=2, dp_rank=0, dp_size=1)
    batches = HeldoutBatches(
        dataset,
        order,
        layout=layout,
        packing=PackingOptions(mask_document_boundaries=False),
        max_global_batches=1000,
    )
    recorder = SourceRecorder(batches, tokenizer)

    for (batch,) in batches:
        recorder(batch, output_of(batch))
    (found,) = recorder.read(groups)

    (tokens,) = dataset.stream.pieces(0, len(dataset.stream))
    assert found.num_bytes == 7 * size("import range") - size(tokenizer.decode(tokens[:1]))

import math
from collections import Counter

import numpy as np
import pytest

from pipeline.data.dataset import TokenDataset
from pipeline.data.unigram import count_tokens, entropy, unigram_entropy
from tests.support.shards import VOCAB_SIZE, stream_of
from tests.unit.pipeline.data.conftest import DOCUMENTS

STREAM = stream_of(DOCUMENTS)


def test_the_entropy_of_equal_frequencies_is_the_logarithm_of_their_number() -> None:
    assert entropy(np.array([5, 5, 0, 5, 5])) == pytest.approx(math.log(4))
    assert entropy(np.array([0, 7])) == 0.0


def test_tokens_are_counted_over_all_shards(dataset: TokenDataset) -> None:
    counts = Counter(STREAM)
    assert count_tokens(dataset).tolist() == [counts[token] for token in range(VOCAB_SIZE)]


def test_the_unigram_entropy_is_the_mean_loss_of_the_best_unigram_model(dataset: TokenDataset) -> None:
    counts = Counter(STREAM)
    losses = [-math.log(counts[token] / len(STREAM)) for token in STREAM]
    assert unigram_entropy(dataset) == pytest.approx(sum(losses) / len(losses), rel=1e-12)

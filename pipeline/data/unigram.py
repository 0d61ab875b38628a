"""The loss of a model that knows only how often each token occurs."""

import numpy as np
from numpy.typing import NDArray

from pipeline.data.dataset import SampleSource


def unigram_entropy(dataset: SampleSource) -> float:
    """Return the entropy of the split's token frequencies, in nats per token, with end-of-document tokens.

    No model that predicts tokens without their context has a lower mean loss on the split.
    """
    return entropy(count_tokens(dataset))


def count_tokens(dataset: SampleSource) -> NDArray[np.int64]:
    """Return [vocab_size]: how often each id occurs in the split."""
    counts = np.zeros(dataset.vocabulary.size, dtype=np.int64)
    for tokens in dataset.stream.runs():
        counts += np.bincount(tokens, minlength=dataset.vocabulary.size)
    return counts


def entropy(counts: NDArray[np.int64]) -> float:
    """Return the entropy, in nats, of the distribution proportional to ``counts``."""
    seen = counts[counts > 0] / counts.sum()
    return float(-(seen * np.log(seen)).sum())

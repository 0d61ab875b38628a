"""Rows of shards through webdataset's own pipeline: what a training without an index of its own would do."""

from pathlib import Path

import numpy as np
import torch
import webdataset
from numpy.typing import NDArray

from data_prep.storage.shard_format import TOKENS_FIELD


def read_webdataset(folder: Path, seq_length: int, num_tokens: int) -> int:
    """Read rows in the order of the shards, and drop what is left of each sample of a tar.

    Returns:
        tokens of the rows, at most ``num_tokens``.
    """
    shards = sorted(str(path) for path in folder.glob("*.tar"))
    samples = webdataset.WebDataset(shards, shardshuffle=False, empty_check=False).decode()
    num_read = 0
    for sample in samples:
        tokens: NDArray[np.integer] = sample[TOKENS_FIELD]
        for start in range(0, len(tokens) - seq_length, seq_length):
            if num_read >= num_tokens:
                return num_read
            torch.from_numpy(tokens[start : start + seq_length + 1].astype(np.int64))
            num_read += seq_length
    return num_read

"""A checksum that tells whether two runs were trained on the same tokens in the same order."""

import hashlib

import numpy as np

from pipeline.data.dataset import TokenRows


def hash_rows(rows: TokenRows) -> str:
    """SHA-256, hexadecimal, of the rows' token ids as little-endian int32, row after row, without padding."""
    digest = hashlib.sha256()
    for tokens, length in zip(rows.tokens.astype(np.dtype("<i4")), rows.lengths, strict=True):
        digest.update(tokens[:length].tobytes())
    return digest.hexdigest()

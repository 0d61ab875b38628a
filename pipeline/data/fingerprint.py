"""A fingerprint of the tokens of a split, however and wherever they are stored."""

import hashlib

import numpy as np

from pipeline.data.stream import TokenStream

# Up to so many tokens all are read; of longer streams, windows spread evenly over them.
_MOST_TOKENS = 2**22
_NUM_WINDOWS, _WINDOW_TOKENS = 256, 4096


def stream_fingerprint(stream: TokenStream) -> str:
    """Return a digest of the number of tokens and of their values, in a fraction of a second.

    Equal streams have equal ones. Streams of more than 4 million tokens that differ only between the windows
    that are read have equal ones too.
    """
    digest = hashlib.sha256(f"{len(stream)}:".encode())
    for start, length in _windows(len(stream)):
        tokens = np.empty(length, dtype=np.int64)
        stream.read_into(tokens, start)
        digest.update(tokens.tobytes())
    return digest.hexdigest()


def _windows(num_tokens: int) -> list[tuple[int, int]]:
    if num_tokens <= _MOST_TOKENS:
        return [(0, num_tokens)]
    last = num_tokens - _WINDOW_TOKENS
    return [(last * number // (_NUM_WINDOWS - 1), _WINDOW_TOKENS) for number in range(_NUM_WINDOWS)]

"""The hash of a global batch: shows whether two runs were trained on the same tokens in the same order.

M = micro-batches of a rank, B = rows of a micro-batch.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from megatron_ext.device import device
from pipeline.data.dataset import TokenRows


def gather_data_hash(rows: Sequence[TokenRows], group: dist.ProcessGroup) -> str:
    """Return the hash of a global batch; all ranks of the data-parallel group call it together.

    Args:
        rows: this rank's micro-batches of the global batch.
        group: the data-parallel group, over which 32 bytes per row are sent.
    """
    own = torch.from_numpy(row_digests(rows).copy()).to(device())
    parts = [torch.empty_like(own) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, own, group=group)
    return combine_digests([part.cpu().numpy() for part in parts])


DIGEST_BYTES = hashlib.sha256().digest_size
_TOKEN = np.dtype("<i4")
_HASH_CHARACTERS = 16


def row_digests(micro_batches: Sequence[TokenRows]) -> NDArray[np.uint8]:
    """Hash each of a rank's rows of a global batch.

    Args:
        micro_batches: M times B rows.
    Returns:
        [M, B, 32]: SHA-256 of the row's token ids as little-endian int32, without padding.
    """
    digests = [
        hashlib.sha256(tokens[:length].astype(_TOKEN).tobytes()).digest()
        for rows in micro_batches
        for tokens, length in zip(rows.tokens, rows.lengths, strict=True)
    ]
    # [M * B * 32] -> [M, B, 32]
    return np.frombuffer(b"".join(digests), dtype=np.uint8).reshape(len(micro_batches), -1, DIGEST_BYTES)


def combine_digests(digests: Sequence[NDArray[np.uint8]]) -> str:
    """Combine the digests of rows to the hash of a global batch, the same for any number of ranks.

    Args:
        digests: [M, B, 32] of each data-parallel rank.
    Returns:
        The first 16 hexadecimal digits of the SHA-256 of all rows' digests in the order of the samples.
    """
    # Ranks take micro-batches in turn: ranks * [M, B, 32] -> [M, ranks, B, 32], which is the samples' order
    in_sample_order = np.stack(digests, axis=1)
    return hashlib.sha256(in_sample_order.tobytes()).hexdigest()[:_HASH_CHARACTERS]

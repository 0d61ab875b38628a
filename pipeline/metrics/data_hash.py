"""The hash of a global batch, of which every data-parallel rank has read a share."""

from collections.abc import Sequence

import torch
import torch.distributed as dist

from megatron_ext.device import device
from pipeline.data.dataset import TokenRows
from pipeline.data.fingerprint import combine_digests, row_digests


def gather_data_hash(rows: Sequence[TokenRows], group: dist.ProcessGroup) -> str:
    """Hash what all ranks of the data-parallel group have read together; all of them call it.

    Args:
        rows: this rank's micro-batches of one global batch.
        group: the data-parallel group; 32 bytes a row go over it.
    """
    own = torch.from_numpy(row_digests(rows).copy()).to(device())
    parts = [torch.empty_like(own) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, own, group=group)
    return combine_digests([part.cpu().numpy() for part in parts])

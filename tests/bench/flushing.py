"""The baseline of the pass pipeline: every pass goes through an empty pipeline.

All micro-batches go through pass r on all stages before pass r + 1 begins, and backward likewise: what one
gets who calls a pipelined model once per pass. The stage, what it sends, and the gradients are those of
`megatron_ext.schedule.pass_pipeline`; sends wait for nobody.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_ext.device import device
from megatron_ext.model.micro_batch import ForwardSettings, MicroBatch, ModelOutput, TokenBatch
from megatron_ext.model.model import PonderModel
from megatron_ext.schedule.transfer import decode, encode

NUM_SIZES = 3


def run_passes_flushing(
    ddp: Any,
    batches: Sequence[TokenBatch],
    settings: ForwardSettings,
    *,
    loss: Callable[[ModelOutput], Tensor],
) -> None:
    """Run forward and backward of all micro-batches and reduce the gradients; all ranks call it together.

    Args:
        ddp: Megatron's data-parallel wrapper around the stage.
        batches: micro-batches on the host, the same on all stages.
        settings: J and the like.
        loss: of a micro-batch's output; the mean over the micro-batches is differentiated.
    """
    stage: PonderModel = ddp.module
    neighbours = _Neighbours(stage.pp_group, stage.config.pipeline_dtype)
    under_way = [stage.begin(batch.to(device()), settings) for batch in batches]
    passes = range(under_way[0].context.plan.num_passes)
    done = []
    for index in passes:
        dist.barrier(stage.pp_group)
        done.append([_forward(stage, micro_batch, index, neighbours, loss) for micro_batch in under_way])
    for index in reversed(passes):
        dist.barrier(stage.pp_group)
        for received, result in done[index]:
            _backward(received, result, len(batches), neighbours)
    neighbours.wait()
    stage.config.finalize_model_grads_func([ddp], None)


def _forward(
    stage: PonderModel,
    micro_batch: MicroBatch,
    index: int,
    neighbours: "_Neighbours",
    loss: Callable[[ModelOutput], Tensor],
) -> tuple[Tensor | None, Tensor]:
    """Return what came in and what went out, which for the output of the final pass is its loss."""
    received = None
    if not (stage.pre_process and index == 0):
        received = neighbours.receive(from_next=False).requires_grad_()
    moving = stage.run_pass(
        micro_batch, index, None if received is None else decode(received, stage.config.hidden_size)
    )
    if isinstance(moving, ModelOutput):
        return received, loss(moving)
    sent = encode(moving)
    neighbours.send(sent.detach(), to_next=True)
    return received, sent


def _backward(
    received: Tensor | None, result: Tensor, num_micro_batches: int, neighbours: "_Neighbours"
) -> None:
    if result.dim() == 0:
        (result / num_micro_batches).backward()
    else:
        result.backward(neighbours.receive(from_next=True))
    if received is not None:
        assert received.grad is not None, "what a pass receives has a gradient"
        neighbours.send(received.grad, to_next=False)


class _Neighbours:
    """Sends and receives along the ring of pipeline stages; sizes travel ahead of the numbers."""

    def __init__(self, group: dist.ProcessGroup, dtype: torch.dtype) -> None:
        rank, size = group.rank(), group.size()
        self._group = group
        self._dtype = dtype
        self._next = dist.get_global_rank(group, (rank + 1) % size)
        self._previous = dist.get_global_rank(group, (rank - 1) % size)
        self._under_way: list[tuple[Any, Tensor]] = []

    def send(self, tensor: Tensor, *, to_next: bool) -> None:
        """Hand over, without waiting for the other to take it."""
        target = self._next if to_next else self._previous
        tensor = tensor.contiguous()
        for part in (torch.tensor(tensor.shape, device=tensor.device), tensor):
            self._under_way.append((dist.isend(part, target, group=self._group), part))

    def receive(self, *, from_next: bool) -> Tensor:
        """Wait for what the neighbour sends."""
        source = self._next if from_next else self._previous
        sizes = torch.empty(NUM_SIZES, dtype=torch.int64, device=device())
        dist.recv(sizes, source, group=self._group)
        tensor = torch.empty(sizes.tolist(), dtype=self._dtype, device=device())
        dist.recv(tensor, source, group=self._group)
        return tensor

    def wait(self) -> None:
        """Wait until everything that was sent has arrived."""
        for request, _ in self._under_way:
            request.wait()
        self._under_way.clear()

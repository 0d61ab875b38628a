"""Passes as virtual pipeline stages: one training step through Megatron's own schedules.

With p pipeline stages, the P passes of a forward are the P virtual stages of Megatron's interleaved 1F1B
schedule, which all share one module. The last stage's output enters the first stage again while other
micro-batches fill the time, so that with equal passes the bubble is (p - 1) / (P m) of m micro-batches' work
instead of (p - 1) / m for each pass. Passes that grow pair short with long ones and leave some of it. With
one stage, the same passes run one after another.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from megatron.core.pipeline_parallel.schedules import (
    forward_backward_no_pipelining,
    forward_backward_pipelining_with_interleaving,
    forward_backward_pipelining_without_interleaving,
)
from torch import Tensor, nn

from megatron_ext.device import device
from megatron_ext.methods.base import PassRows
from megatron_ext.model.batch import TokenBatch
from megatron_ext.model.micro_batch import ForwardSettings, MicroBatch, ModelOutput
from megatron_ext.model.model import PonderModel
from megatron_ext.schedule.transfer import decode, encode

LossFunction = Callable[[ModelOutput], Tensor]
OutputObserver = Callable[[TokenBatch, ModelOutput], None]


def run_passes(
    model: Any,
    batches: Sequence[TokenBatch],
    settings: ForwardSettings,
    *,
    loss: LossFunction,
    forward_only: bool = False,
    observe_output: OutputObserver | None = None,
    observe: Callable[[str, Tensor], None] | None = None,
) -> None:
    """Run forward and backward of all micro-batches of this rank; all ranks call it together.

    Args:
        model: a :class:`PonderModel`, or Megatron's data-parallel wrapper around one.
        batches: micro-batches on the host, the same on all stages of a pipeline; with several stages their
            number must be a multiple of the stages.
        settings: J and the like, the same on every rank.
        loss: what the last stage makes of a micro-batch's output; its gradient is accumulated after Megatron
            has divided it by the number of micro-batches.
        forward_only: no gradients.
        observe_output: called on the last stage with every micro-batch and its output.
        observe: called with the name and value of intermediate results on the stage that has them.
    """
    module = model.module if hasattr(model, "ddp_config") else model
    plan = module.ponder.under(settings.limits).plan(settings.num_jacobi_iterations)
    num_stages = module.pp_group.size()
    chain = range(plan.num_passes)
    groups = [chain] if num_stages == 1 else [range(index, index + 1) for index in chain]
    under_way = [_UnderWay(batch) for batch in batches]
    views = [_PassView(module, passes, vp_stage) for vp_stage, passes in enumerate(groups)]

    def forward_step(iterator: Iterator[_UnderWay], view: _PassView) -> tuple[Tensor, Any]:
        item = next(iterator)
        if view.passes[0] == 0:
            item.start(module, settings, observe)
        moving = view(item.micro_batch)
        if plan.is_final(view.passes[-1]):
            item.finish()
        if not isinstance(moving, ModelOutput):
            return encode(moving), None
        if observe_output is not None:
            observe_output(item.batch, moving)
        return loss(moving), lambda value: (value, {})

    schedule = _schedule(num_stages, len(views))
    with _virtual_stages(module.config, num_stages, len(views)), _gradients_of(model, forward_only):
        schedule(
            forward_step_func=forward_step,
            data_iterator=[iter(under_way) for _ in views],
            model=views,
            num_microbatches=len(batches),
            seq_length=batches[0].tokens.shape[1],
            micro_batch_size=batches[0].tokens.shape[0],
            forward_only=forward_only,
        )


@dataclass(slots=True)
class _UnderWay:
    """A micro-batch, and what its passes share while they run."""

    batch: TokenBatch
    _micro_batch: MicroBatch | None = None

    def start(self, module: PonderModel, settings: ForwardSettings, observe: Any) -> None:
        self._micro_batch = module.begin(self.batch.to(device()), settings, observe)

    @property
    def micro_batch(self) -> MicroBatch:
        assert self._micro_batch is not None, "the first pass starts a micro-batch"
        return self._micro_batch

    def finish(self) -> None:
        """Let go on every stage after its last pass; the graph holds what backward needs."""
        self._micro_batch = None


class _PassView(nn.Module):
    """Some consecutive passes of the rank's stage, in the shape of a Megatron model chunk.

    It has no parameters of its own: all views share the stage.
    """

    def __init__(self, module: PonderModel, passes: range, vp_stage: int) -> None:
        super().__init__()
        self.config = module.config
        self.model_type = module.model_type
        self.vp_stage = vp_stage
        self.passes = passes
        # In a tuple, so that torch does not register it as a part.
        self._stage = (module,)
        self._received: Tensor | None = None

    def set_input_tensor(self, input_tensor: list[Tensor | None]) -> None:
        """Take what Megatron's schedule has received for the next call."""
        self._received = input_tensor[0]

    def forward(self, micro_batch: MicroBatch) -> PassRows | ModelOutput:
        """Run the passes of this view on this rank's stage."""
        (stage,) = self._stage
        received, self._received = self._received, None
        moving: Any = None if received is None else decode(received, self.config.hidden_size)
        for index in self.passes:
            moving = stage.run_pass(micro_batch, index, moving)
        result: PassRows | ModelOutput = moving
        return result


def _schedule(num_stages: int, num_views: int) -> Callable[..., Any]:
    if num_stages == 1:
        chosen = forward_backward_no_pipelining
    elif num_views == 1:
        chosen = forward_backward_pipelining_without_interleaving
    else:
        chosen = forward_backward_pipelining_with_interleaving
    return chosen  # type: ignore[no-any-return]


@contextmanager
def _virtual_stages(config: Any, num_stages: int, num_views: int) -> Iterator[None]:
    """Tell the interleaved schedule how many virtual stages this step has; layers are placed without any."""
    if num_stages == 1 or num_views == 1:
        yield
        return
    config.virtual_pipeline_model_parallel_size = num_views
    config.microbatch_group_size_per_vp_stage = num_stages
    config.overlap_p2p_comm = True
    try:
        yield
    finally:
        config.virtual_pipeline_model_parallel_size = None
        config.overlap_p2p_comm = False


@contextmanager
def _gradients_of(model: Any, forward_only: bool) -> Iterator[None]:
    """Let Megatron finalize the gradients of the one module behind all views, not of every view."""
    config = model.config
    finalize = config.finalize_model_grads_func
    if forward_only or finalize is None:
        yield
        return

    def finalize_once(views: Any, *args: Any, **kwargs: Any) -> None:
        del views
        finalize([model], *args, **kwargs)

    config.finalize_model_grads_func = finalize_once
    try:
        yield
    finally:
        config.finalize_model_grads_func = finalize

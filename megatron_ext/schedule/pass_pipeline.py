"""Passes as virtual pipeline stages: one training step through Megatron's own schedules.

With p pipeline stages, the P passes of a forward are the P virtual stages of Megatron's interleaved 1F1B
schedule, all of which share one module. The last stage's output re-enters the first stage while other
micro-batches keep the stages busy, so with passes of equal cost the bubble is (p - 1) / (P m) of the work of
m micro-batches instead of (p - 1) / m for each pass. Where passes grow, short ones run beside long ones, and
some idle time remains. With one stage, the same passes run one after another.

Passes without gradients come first, as a forward-only schedule of their own: nothing of them is kept for
backward, and no gradients are communicated. What the last of them hands on goes from the last stage to the
first for all micro-batches, then the others follow; the pipeline is flushed once in between.
"""

import weakref
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
from megatron_ext.model.config import PonderTransformerConfig
from megatron_ext.model.memory import PassMemory
from megatron_ext.model.micro_batch import ForwardSettings, MicroBatch, ModelOutput, TokenBatch
from megatron_ext.model.model import PonderModel
from megatron_ext.ponder.decode.think import Observer
from megatron_ext.ponder.passes import PassPlan
from megatron_ext.protocols import WrappedModel
from megatron_ext.schedule.known_shapes import KnownShapes, sent_shapes
from megatron_ext.schedule.transfer import decode, encode

LossFunction = Callable[[ModelOutput], Tensor]
OutputObserver = Callable[[TokenBatch, ModelOutput], None]


def run_passes(
    model: PonderModel | WrappedModel,
    batches: Sequence[TokenBatch],
    settings: ForwardSettings,
    *,
    loss: LossFunction,
    forward_only: bool = False,
    observe_output: OutputObserver | None = None,
    observe: Observer | None = None,
    progress: Callable[[], None] | None = None,
) -> None:
    """Run forward and backward of all micro-batches of this rank; all ranks call it together.

    Args:
        model: a :class:`PonderModel`, or Megatron's data-parallel wrapper around one.
        batches: micro-batches on the host, the same on all stages of a pipeline; with several stages their
            number must be a multiple of the stages.
        settings: settings of the forward, the same on every rank.
        loss: computes the scalar to differentiate from a micro-batch's output, on the last stage; Megatron
            divides it by the number of micro-batches.
        forward_only: compute no gradients.
        observe_output: called on the last stage with every micro-batch and its output.
        observe: called with the name and value of intermediate results on the stage that computes them.
        progress: called at the start of every pass of every micro-batch on this stage.
    """
    module = model if isinstance(model, PonderModel) else model.module
    assert isinstance(module, PonderModel), "the wrapper must be around a PonderModel"
    plan = module.ponder.under(settings.limits).plan(settings.num_jacobi_iterations)
    plan = plan.truncated(settings.gradient_passes)
    in_flight = [_InFlight(batch) for batch in batches]
    done: list[_InFlight] = []

    def forward_step(iterator: Iterator[_InFlight], view: _PassView) -> tuple[Tensor, Any]:
        # Called by the schedule once per micro-batch and view, on each stage in an order of its own, but
        # always with the passes of a micro-batch in their order.
        item = next(iterator)
        if progress is not None:
            progress()
        if view.passes[0] == 0:
            if module.pp_group.size() == 1:
                # Megatron's schedule holds the graph of the one before until this one's forward is done.
                for earlier in done:
                    earlier.release()
                done[:] = [item]
            item.start(module, settings, observe)
        moving = view(item.micro_batch, item.take_handed())
        if plan.is_final(view.passes[-1]):
            item.finish()
        if not isinstance(moving, ModelOutput):
            return encode(moving), item.hand_on
        if observe_output is not None:
            observe_output(item.batch, moving)
        return loss(moving), lambda value: (value, {})

    first = 0 if forward_only or module.pp_group.size() == 1 else plan.first_with_gradient
    if first > 0:
        _schedule_passes(model, module, plan, range(first), in_flight, forward_step, forward_only=True)
        _hand_round(module, plan, first, in_flight)
    passes = range(first, plan.num_passes)
    _schedule_passes(model, module, plan, passes, in_flight, forward_step, forward_only=forward_only)


def _schedule_passes(
    model: PonderModel | WrappedModel,
    module: PonderModel,
    plan: PassPlan,
    passes: range,
    in_flight: "Sequence[_InFlight]",
    forward_step: Callable[..., Any],
    *,
    forward_only: bool,
) -> None:
    """Run consecutive passes of all micro-batches through one of Megatron's schedules."""
    num_stages = module.pp_group.size()
    # With one stage a single view runs all passes in one graph; with several, each pass is a chunk of its own
    # that Megatron schedules forward and backward separately.
    passes_of_views = [passes] if num_stages == 1 else [range(index, index + 1) for index in passes]
    views = [_PassView(module, own, vp_stage) for vp_stage, own in enumerate(passes_of_views)]
    schedule = _schedule(num_stages, len(views))
    batch_size, length = in_flight[0].batch.tokens.shape
    with _virtual_stages(module.config, num_stages, len(views)), _gradients_of(model, forward_only):
        neighbours: dict[str, Any] = {}
        if num_stages > 1:
            neighbours = {
                "p2p_communicator": _communicator(module, plan, passes, in_flight),
                "pg_collection": module.pg_collection,
            }
        schedule(
            forward_step_func=forward_step,
            data_iterator=[iter(in_flight) for _ in views],
            model=views,
            num_microbatches=len(in_flight),
            seq_length=length,
            micro_batch_size=batch_size,
            forward_only=forward_only,
            **neighbours,
        )


def _hand_round(module: PonderModel, plan: PassPlan, first: int, in_flight: "Sequence[_InFlight]") -> None:
    """Send what the last stage has kept of each micro-batch to the first stage, for its pass `first`."""
    # To the first stage they are what it receives between this pass and the one before.
    stages = _communicator(module, plan, range(first - 1, first + 1), in_flight)
    shape = (0, 0, 0)  # Asked for, but not used.
    for item in in_flight:
        if module.post_process:
            stages.send_forward(item.take_handed(), is_last_stage=False)
        if module.pre_process:
            item.hand_on(stages.recv_forward(shape, is_first_stage=False).detach())


def _communicator(
    module: PonderModel, plan: PassPlan, passes: range, in_flight: "Sequence[_InFlight]"
) -> KnownShapes:
    batch_size, length = in_flight[0].batch.tokens.shape
    shapes = sent_shapes(module, plan, seq_length=length, batch_size=batch_size)
    return KnownShapes(module, shapes, passes, num_micro_batches=len(in_flight))


@dataclass(slots=True)
class _InFlight:
    """A micro-batch, and what its passes share on this stage while they run."""

    batch: TokenBatch
    _micro_batch: MicroBatch | None = None
    _memory: weakref.ref[PassMemory] | None = None
    _handed: Tensor | None = None

    def start(self, module: PonderModel, settings: ForwardSettings, observe: Observer | None) -> None:
        self._micro_batch = module.begin(self.batch.to(device()), settings, observe)
        # Weak: without functions that recompute a pass, it ends with the micro-batch.
        self._memory = weakref.ref(self._micro_batch.context.memory)

    @property
    def micro_batch(self) -> MicroBatch:
        assert self._micro_batch is not None, "the first pass starts a micro-batch"
        return self._micro_batch

    def hand_on(self, encoded: Tensor) -> tuple[Tensor, dict[str, Any]]:
        """Keep what the passes of a schedule have ended with, in place of the loss it asks for."""
        self._handed = encoded
        return encoded.new_zeros(()), {}

    def take_handed(self) -> Tensor | None:
        """Return what the passes of an earlier schedule have ended with, once."""
        handed, self._handed = self._handed, None
        return handed

    def finish(self) -> None:
        """Release it after the last pass on this stage; the graph keeps what backward needs."""
        self._micro_batch = None

    def release(self) -> None:
        """Release what its passes have kept for each other, after its backward.

        Functions that recompute a pass refer to it for as long as the graph lives.
        """
        memory = None if self._memory is None else self._memory()
        if memory is not None:
            memory.clear()


class _PassView(nn.Module):
    """Consecutive passes of the rank's stage, with the interface of a Megatron model chunk.

    It has no parameters of its own: all views share the stage.
    """

    def __init__(self, module: PonderModel, passes: range, vp_stage: int) -> None:
        super().__init__()
        self.config = module.config
        self.model_type = module.model_type
        self.vp_stage = vp_stage
        self.passes = passes
        # In a tuple, so that torch does not register it as a submodule.
        self._stage = (module,)
        self._received: Tensor | None = None

    def set_input_tensor(self, input_tensor: list[Tensor | None]) -> None:
        """Take the tensor that Megatron's schedule has received for the next call."""
        self._received = input_tensor[0]

    def forward(self, micro_batch: MicroBatch, handed: Tensor | None) -> PassRows | ModelOutput:
        """Run the passes of this view on this rank's stage.

        Args:
            micro_batch: from :meth:`PonderModel.begin`.
            handed: encoded rows of the pass before, on the first stage where an earlier schedule has run it.
        """
        (stage,) = self._stage
        received, self._received = self._received, None
        entering = handed if received is None else received
        moving = None if entering is None else decode(entering, self.config.hidden_size)
        return stage.run_remaining(micro_batch, self.passes[0], moving, last=self.passes[-1])


def _schedule(num_stages: int, num_views: int) -> Callable[..., Any]:
    if num_stages == 1:
        chosen = forward_backward_no_pipelining
    elif num_views == 1:
        chosen = forward_backward_pipelining_without_interleaving
    else:
        chosen = forward_backward_pipelining_with_interleaving
    return chosen  # type: ignore[no-any-return]


@contextmanager
def _virtual_stages(config: PonderTransformerConfig, num_stages: int, num_views: int) -> Iterator[None]:
    """Tell the interleaved schedule how many virtual stages this step has.

    Only for the step: how many there are changes with J, and with the setting in place Megatron would also
    distribute the layers over virtual stages.
    """
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
def _gradients_of(model: PonderModel | WrappedModel, forward_only: bool) -> Iterator[None]:
    """Let Megatron finalize the gradients of the one module behind all views, once, and not of every view."""
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

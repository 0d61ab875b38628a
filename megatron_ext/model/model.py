"""The pondering language model: the passes of a pondering method through the stages of a language model.

A rank holds one pipeline stage and runs one pass at a time; with a single stage, forward runs them all.
S = tokens, n = slots in a pass, R = S * n rows, B = micro-batch, H = hidden size. With sequence parallelism a
rank holds R / tp of the rows outside of attention and MLP. Context-parallel ranks share the tokens of a
sequence: S and R count this rank's, S_all those of all ranks, and every rank outputs whole sequences.
"""

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from megatron_ext.device import to_device
from megatron_ext.methods.base import Column, PassContext, PassRows, PonderMethod, Readout
from megatron_ext.model.attention import IterationKeys, PassKeys, RowContext, StepKeys
from megatron_ext.model.memory import PassMemory
from megatron_ext.model.micro_batch import ForwardSettings, MicroBatch, ModelOutput, TokenBatch
from megatron_ext.model.needed_rows import ReadSlots, RepeatedSlot
from megatron_ext.model.packed_rows import PackedRows, pack_rows
from megatron_ext.model.stage import ModelStage
from megatron_ext.parallel.context_attention import SharedRows
from megatron_ext.parallel.vocabulary import IGNORED_LABEL, label_is_first, token_losses
from megatron_ext.ponder.attention import Segments
from megatron_ext.ponder.chunks import chunks_of_documents, pieces_of_rank
from megatron_ext.ponder.decode.think import Observer
from megatron_ext.ponder.masks import document_segments, scale_segments
from megatron_ext.ponder.penalties import LabelScores
from megatron_ext.ponder.slots import keys_of_slots, merge_slots, slots_up_to, split_slots, take_slots
from megatron_ext.ponder.start import added_log_weight, blend
from megatron_ext.ponder.step_limits import UNLIMITED, StepLimits

# What the trained model would read, kept from pass 0 where a token has only one row.
_FIRST_HIDDEN = "first_hidden"


class PonderModel(ModelStage):
    """One pipeline stage of a GPT-NeoX or Llama language model that ponders by the configured method."""

    def forward(
        self,
        batch: TokenBatch,
        *,
        num_jacobi_iterations: int,
        prune: bool = False,
        damped: bool = True,
        bottom_k_fraction: float | None = None,
        limits: StepLimits = UNLIMITED,
        pondering_share: float = 1.0,
        holds_decisions: bool = False,
        measures_steps: bool = False,
        gradient_passes: int | None = None,
        sweep_tolerance: float | None = None,
        skips_pruned_rows: bool = False,
        observe: Observer | None = None,
    ) -> ModelOutput:
        """Run all passes of a model that has a single pipeline stage.

        Args:
            batch: B rows of S tokens.
            num_jacobi_iterations, prune, damped, bottom_k_fraction, limits, pondering_share, holds_decisions,
                measures_steps, gradient_passes, sweep_tolerance, skips_pruned_rows: see
                :class:`ForwardSettings`.
            observe: called with the name and value of intermediate results.
        """
        assert self.pp_group.size() == 1, "several stages are run by Megatron's schedule"
        settings = ForwardSettings(
            num_jacobi_iterations=num_jacobi_iterations,
            prune=prune,
            damped=damped,
            bottom_k_fraction=bottom_k_fraction,
            limits=limits,
            pondering_share=pondering_share,
            holds_decisions=holds_decisions,
            measures_steps=measures_steps,
            gradient_passes=gradient_passes,
            sweep_tolerance=sweep_tolerance,
            skips_pruned_rows=skips_pruned_rows,
        )
        micro_batch = self.begin(batch, settings, observe)
        output = self.run_remaining(micro_batch, 0, None)
        assert isinstance(output, ModelOutput), "the final pass returns an output"
        return output

    def run_remaining(
        self, micro_batch: MicroBatch, first: int, received: PassRows | None, *, last: int | None = None
    ) -> PassRows | ModelOutput:
        """Run pass after pass of a micro-batch, as many as its plan has by then.

        Args:
            micro_batch, received: see :meth:`run_pass`.
            first: pass to begin with.
            last: pass to end with, unless the final one comes before; None: the final one.
        """
        moving: PassRows | ModelOutput = self.run_pass(micro_batch, first, received)
        index = first
        while not micro_batch.context.plan.is_final(index) and index != last:
            index += 1
            assert isinstance(moving, PassRows), "only the final pass returns an output"
            moving = self.run_pass(micro_batch, index, moving)
        return moving

    def begin(
        self, batch: TokenBatch, settings: ForwardSettings, observe: Observer | None = None
    ) -> MicroBatch:
        """Return what all passes of a micro-batch share on this stage.

        Args:
            batch: B rows of S tokens.
            settings: of the forward.
            observe: called with the name and value of intermediate results.
        """
        assert settings.limits.signal is None, "only decoders halt by a signal"
        method = self.ponder.under(settings.limits)
        own = batch.share(partial(self.context_axis.own_tokens, dim=1))
        fraction, labels = settings.bottom_k_fraction, own.labels.transpose(0, 1)
        context = PassContext(
            plan=method.plan(settings.num_jacobi_iterations).truncated(settings.gradient_passes),
            real=to_device(batch.is_real).transpose(0, 1),
            has_label=batch.labels.transpose(0, 1) != IGNORED_LABEL,
            axis=self.token_axes,
            mix_embeddings=self.mix_embeddings,
            score_labels=partial(self._score_labels, labels=labels),
            memory=PassMemory(by_leaves=self._cuts_graph and torch.is_grad_enabled()),
            prune=settings.prune,
            damped=settings.damped,
            bottom_k_fraction=method.config.bottom_k_fraction if fraction is None else fraction,
            pondering_share=settings.pondering_share,
            holds_decisions=settings.holds_decisions,
            measures_steps=settings.measures_steps,
            # [B, S] -> [S, B] -> [N], found on the host
            real_rows=to_device(batch.is_real.transpose(0, 1).flatten().nonzero().squeeze(1)),
            sweep_tolerance=settings.sweep_tolerance,
            skips_pruned_rows=settings.skips_pruned_rows,
            observe=observe or (lambda name, value: None),
        )
        segments = document_segments(batch.document_ids)
        return MicroBatch(batch=own, segments=segments, method=method, context=context)

    def run_pass(
        self, micro_batch: MicroBatch, index: int, received: PassRows | None
    ) -> PassRows | ModelOutput:
        """Run this stage's part of one pass.

        Args:
            micro_batch: from :meth:`begin`.
            index: 0-based.
            received: from the previous stage, or on the first stage from the end of the previous pass; None
                for the first pass on the first stage.
        Returns:
            Rows for the next stage, or from the last stage for the next pass; the last stage returns the
            output of the final pass.
        """
        has_gradient = torch.is_grad_enabled() and micro_batch.context.plan.has_gradient(index)
        with torch.set_grad_enabled(has_gradient):
            return self._run_pass(micro_batch, index, received)

    def _run_pass(
        self, micro_batch: MicroBatch, index: int, received: PassRows | None
    ) -> PassRows | ModelOutput:
        context, method = micro_batch.context, micro_batch.method
        if self.pre_process:
            tokens = method.tokens_of_rows(micro_batch.batch.tokens)
            entered = method.enter(index, partial(self.embed, tokens), received, context)
        else:
            assert received is not None, "a later stage receives the rows of every pass"
            entered = received
        hidden = self._run_layers_of_pass(micro_batch, index, entered)
        if not self.post_process:
            return PassRows(rows=hidden, column=entered.column)
        context.observe(f"stack_outputs/repeat_{index:02d}", hidden)
        if method.normalizes(index, context.plan):
            hidden = self.final_norm(hidden)
        if context.skips_pruned_rows:
            hidden = self._only_run(index, hidden, micro_batch)
        ended = PassRows(rows=hidden, column=entered.column)
        if not context.plan.is_final(index):
            return method.leave(index, self._keep_first(index, ended, micro_batch), context)
        context.observe("last_hidden", hidden)
        return self._output(self._blend(method.read(ended, context), ended, micro_batch), micro_batch)

    def statistics_layout(self, limits: StepLimits = UNLIMITED) -> dict[str, int]:
        """Return names and sizes of the sums in :attr:`ModelOutput.statistics` of a forward under limits."""
        return _statistics_layout(self.ponder.under(limits))

    @property
    def _cuts_graph(self) -> bool:
        """Whether passes have graphs of their own: on several stages, or under recompute."""
        recomputes = self.config.recompute_passes or self.config.recompute_granularity is not None
        return recomputes or self.pp_group.size() > 1

    def _run_layers_of_pass(self, micro_batch: MicroBatch, index: int, entered: PassRows) -> Tensor:
        context = micro_batch.context
        num_slots = context.plan.slots[index]
        log_weight = self._key_weight(entered, index, micro_batch)
        if context.skips_pruned_rows:
            return self._run_without_pruned_rows(index, entered.rows, log_weight, micro_batch)
        segments = scale_segments(micro_batch.segments, num_slots)
        shared = self._shared_rows(micro_batch, num_slots, segments)
        return self.run_layers(
            entered.rows,
            micro_batch.batch.position_ids,
            num_slots=num_slots,
            log_weight=log_weight,
            context=RowContext(
                segments=segments,
                passes=self._pass_keys(entered, index, context, shared),
                shared=shared,
                num_slots=num_slots,
                read=self._read_slots(index, micro_batch),
                repeated=self._repeated_slot(index, micro_batch),
            ),
        )

    def _shared_rows(
        self, micro_batch: MicroBatch, num_slots: int, segments: Segments | None
    ) -> SharedRows | None:
        """Return what the rows of a pass attend to where several ranks share them."""
        if self.context_axis.size == 1:
            return None
        of_rows = self._rows_of_ranks(micro_batch, num_slots, segments)
        if num_slots == 1:
            return of_rows
        return replace(of_rows, of_tokens=self._rows_of_ranks(micro_batch, 1, micro_batch.segments))

    def _rows_of_ranks(
        self, micro_batch: MicroBatch, num_slots: int, segments: Segments | None
    ) -> SharedRows:
        axis = self.context_axis
        batch_size, length = micro_batch.batch.tokens.shape
        pieces, chunks = (
            cut(
                axis.rank,
                axis.size,
                batch_size=batch_size,
                num_rows=length * axis.size * num_slots,
                segments=segments,
            )
            for cut in (pieces_of_rank, chunks_of_documents)
        )
        return SharedRows(exchange=axis, pieces=pieces, chunks=chunks)

    def _run_without_pruned_rows(
        self, index: int, rows: Tensor, log_weight: Tensor | None, micro_batch: MicroBatch
    ) -> Tensor:
        """Run the rows of a pass that are not pruned: [S * n, B, H] -> those that are read of the same."""
        context, num_slots = micro_batch.context, micro_batch.context.plan.slots[index]
        last_slot = context.last_slot
        if last_slot is None:
            last_slot = torch.zeros_like(context.real, dtype=torch.int64)
        packed = pack_rows(last_slot, num_slots, micro_batch.segments)
        if log_weight is not None:
            # [B, S * n] -> [S * n, B] -> [R, B] -> [B, R]
            weight = packed.take(log_weight.transpose(0, 1))
            # What fills up a sequence is hidden from all others, and sees keys that are not.
            log_weight = torch.where(packed.runs, weight, 0.0).transpose(0, 1)
        hidden = self.run_layers(
            packed.take(rows),
            packed.positions(micro_batch.batch.position_ids),
            log_weight=log_weight,
            context=RowContext(segments=packed.segments, has_fixed_rows=False),
        )
        self._count_thoughts(num_slots, packed, context)
        return take_slots(packed.put(hidden), num_slots, micro_batch.method.slots_read(index, context))

    def _count_thoughts(self, num_slots: int, packed: PackedRows, context: PassContext) -> None:
        """Count the rows of thoughts of a pass, and those of them that ran."""
        num_tokens = context.real.numel()
        counts = {
            "thought_rows": num_tokens * (num_slots - 1),
            "thought_rows_run": packed.order.numel() - num_tokens,
        }
        for name, number in counts.items():
            total = context.statistics.setdefault(
                name, torch.zeros(1, dtype=torch.float32, device=context.real.device)
            )
            total += number

    def _only_run(self, index: int, hidden: Tensor, micro_batch: MicroBatch) -> Tensor:
        """Set the states of slots that do not run to 0: the norm adds its bias to them."""
        context, num_slots = micro_batch.context, micro_batch.context.plan.slots[index]
        if context.last_slot is None:
            return hidden
        runs = slots_up_to(context.last_slot, num_slots)
        read = micro_batch.method.slots_read(index, context)
        return torch.where(merge_slots(runs[:, read.start : read.stop]).unsqueeze(-1), hidden, 0.0)

    def _read_slots(self, index: int, micro_batch: MicroBatch) -> ReadSlots | None:
        if not self.post_process:
            return None
        context = micro_batch.context
        return ReadSlots(
            layer_number=self.config.num_layers,
            num_slots=context.plan.slots[index],
            slots=micro_batch.method.slots_read(index, context),
        )

    def _repeated_slot(self, index: int, micro_batch: MicroBatch) -> RepeatedSlot | None:
        context = micro_batch.context
        repeats = context.plan.num_passes > 1 and micro_batch.method.facts.repeats_embeddings
        if not self.pre_process or not repeats:
            return None
        return RepeatedSlot(is_computed=index in (0, context.plan.first_with_gradient), memory=context.memory)

    def _key_weight(self, entered: PassRows, index: int, micro_batch: MicroBatch) -> Tensor | None:
        """[R or R / tp, B] -> [B, R], ready for this rank's heads."""
        context = micro_batch.context
        num_slots = context.plan.slots[index]
        added = None
        if context.pondering_share < 1 and num_slots > 1:
            added = added_log_weight(context.pondering_share, num_slots, entered.rows)
        if self.ponder.column is not Column.LOG_WEIGHT or entered.column is None:
            if added is None:
                return None
            batch_size, length = micro_batch.batch.tokens.shape
            return keys_of_slots(added[None, :, None].expand(length, num_slots, batch_size))
        log_weight = split_slots(entered.column, num_slots)
        if added is not None:
            log_weight = log_weight + added[:, None]
        context.observe(f"log_w/pass_{index:02d}", log_weight)
        return self.axis.to_partial_use(merge_slots(log_weight)).transpose(0, 1)

    def _keep_first(self, index: int, ended: PassRows, micro_batch: MicroBatch) -> PassRows:
        """Keep the end of pass 0 for a blended readout, unless the final pass has it in slot 0."""
        context, facts = micro_batch.context, micro_batch.method.facts
        if index > 0 or context.pondering_share == 1 or facts.has_slots:
            return ended
        return replace(ended, rows=context.memory.keep(_FIRST_HIDDEN, ended.rows))

    def _blend(self, readout: Readout, ended: PassRows, micro_batch: MicroBatch) -> Readout:
        """Blend what the method reads with what the trained model reads (definitions 2.9)."""
        context, method = micro_batch.context, micro_batch.method
        if context.pondering_share == 1 or method.config.num_latent_thoughts == 0:
            return readout
        if method.facts.has_slots:
            first = split_slots(ended.rows, method.config.num_slots)[:, 0]
        else:
            first = context.memory.recall(_FIRST_HIDDEN)
            first = first if method.normalizes(0, context.plan) else self.final_norm(first)
        return replace(readout, hidden=blend(first, readout.hidden, context.pondering_share))

    def _pass_keys(
        self, entered: PassRows, index: int, context: PassContext, shared: SharedRows | None
    ) -> PassKeys | None:
        if self.ponder.column is not Column.ACTIVE:
            return None
        active = None if entered.column is None else self.axis.to_full_use(entered.column.detach()) > 0
        kind: type[PassKeys] = IterationKeys
        if self.ponder.facts.sees_earlier_steps:
            kind = StepKeys
            active = None if active is None else self.context_axis.gather(active)
        return kind(
            index=index,
            num_passes=context.plan.num_passes,
            active=active,
            memory=context.memory,
            shared=shared,
        )

    def _output(self, readout: Readout, micro_batch: MicroBatch) -> ModelOutput:
        context = micro_batch.context
        logits = self.logits(readout.hidden)
        context.observe("logits", logits)
        labels = micro_batch.batch.labels.transpose(0, 1)
        penalty = readout.penalty
        # From here on every rank works on all tokens.
        whole = self.context_axis.to_full_use
        if readout.penalty_of is None:
            losses = whole(self._token_losses(logits, labels))
        else:
            # Before the losses, which work on the logits in place.
            is_first = self.context_axis.gather(label_is_first(logits, labels, self.axis))
            losses = whole(self._token_losses(logits, labels))
            penalty = readout.penalty_of(LabelScores(nll=losses.detach(), is_first=is_first))
        # The losses keep what they need of them, and each step has logits of its own.
        del logits
        of_steps = self._losses_of_steps(readout, micro_batch)
        self._record_losses(losses, readout.steps, micro_batch)
        weight = micro_batch.method.config.step_loss_weight
        return ModelOutput(
            token_losses=losses,
            penalty=penalty,
            steps=readout.steps,
            step_scores=readout.step_scores,
            statistics=context.statistics,
            step_losses=None if of_steps is None or weight == 0 else weight * of_steps.mean(dim=0),
            regularizer=readout.regularizer,
            num_sweeps=context.plan.num_sweeps,
        )

    def _losses_of_steps(self, readout: Readout, micro_batch: MicroBatch) -> Tensor | None:
        """Return the losses of reading each step alone, [K + 1, S_all, B], where they are needed."""
        if readout.of_steps is None:
            return None
        labels, whole = micro_batch.batch.labels.transpose(0, 1), self.context_axis.to_full_use
        losses = torch.stack(
            [
                whole(self._token_losses(self.logits(hidden.contiguous()), labels))
                for hidden in readout.of_steps.unbind(1)
            ]
        )
        if readout.one_step_more is not None:
            more = whole(self._token_losses(self.logits(readout.one_step_more), labels))
            micro_batch.context.statistics |= {
                "measured_tokens": micro_batch.context.has_label.sum().reshape(1).to(losses.dtype),
                "step_nll": losses.detach().sum(dim=(1, 2)),
                "one_more_nll": more.detach().sum().reshape(1),
            }
        return losses

    def _token_losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        return token_losses(logits, labels, self.axis, fuses=self.config.fuses)

    @torch.no_grad()
    def _score_labels(self, hidden: Tensor, *, labels: Tensor) -> LabelScores:
        """Predict labels, [S, B], from hidden states, [S or S / tp, B, H]; the scores are of all tokens."""
        logits, whole = self.logits(hidden), self.context_axis.gather
        is_first = whole(label_is_first(logits, labels, self.axis))
        return LabelScores(nll=whole(self._token_losses(logits, labels)), is_first=is_first)

    @torch.no_grad()
    def _record_losses(self, losses: Tensor, steps: Tensor | None, micro_batch: MicroBatch) -> None:
        context = micro_batch.context
        has_label, losses = context.has_label, losses.detach()
        context.statistics |= {
            "real_tokens": context.real.sum().reshape(1).to(losses.dtype),
            "labelled_tokens": has_label.sum().reshape(1).to(losses.dtype),
            "nll": losses.sum().reshape(1),
        }
        if steps is not None:
            size = micro_batch.method.config.num_slots
            index = steps.flatten()
            context.statistics |= {
                "nll_by_steps": losses.new_zeros(size).index_add_(0, index, losses.flatten()),
                "labelled_by_steps": losses.new_zeros(size).index_add_(
                    0, index, has_label.flatten().to(losses.dtype)
                ),
            }
        # A forward without sweeps has no residuals; they are zero, so that every forward has the same names.
        for name, size in _statistics_layout(micro_batch.method).items():
            context.statistics.setdefault(name, losses.new_zeros(size))


def _statistics_layout(method: PonderMethod) -> dict[str, int]:
    layout = {"real_tokens": 1, "labelled_tokens": 1, "nll": 1} | method.statistics_layout()
    if "steps_count" in layout:
        layout |= dict.fromkeys(("nll_by_steps", "labelled_by_steps"), method.config.num_slots)
    if method.facts.weighs_slots:
        layout |= {"measured_tokens": 1, "step_nll": method.config.num_slots, "one_more_nll": 1}
        layout |= {"thought_rows": 1, "thought_rows_run": 1}
    return layout

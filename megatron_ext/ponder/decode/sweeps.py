"""Read prompts by Jacobi sweeps over the slots that their tokens need (definitions 2.3, 2.5).

Each pass runs all current rows of all prompts that have not settled, refreshes all thoughts at once, and
decides again which slots a token takes. A pruned slot has no row in the next pass; a slot that comes back
grows from the slot before it, one slot a pass, as in the build-up. What no longer moves is what reading token
by token gives, and the rows of the last pass stay stored.

Nothing that a pass has computed is changed in place, so that the training-type forward of an exported model
can use the same sweeps and has gradients.

N = tokens of all prompts, K = latent thoughts, H = hidden size.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from megatron_ext.ponder.decode.think import FeedBack, RowRunner, SlotDecision, Thought, every_step


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweeps:
    """How a prompt is read by Jacobi iteration: a fixed number of sweeps, or until they change nothing.

    Attributes:
        number: J, sweeps after the build-up; None sweeps until a prompt has settled: the steps of its tokens
            no longer change, and neither its thoughts, relative to their size, nor their log weights move by
            more than `tolerance`.
        tolerance: see there.
    """

    number: int | None = None
    tolerance: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptTokens:
    """The N tokens of some prompts, one prompt after another.

    Attributes:
        sequences: which prompt each token belongs to, [N] int64, rising from 0.
        sweeps: how a method of latent thoughts reads them.
    """

    sequences: Tensor
    sweeps: Sweeps


@dataclass(frozen=True, slots=True, kw_only=True)
class Slots:
    """The slots of tokens after their last pass.

    Attributes:
        inputs: what entered the layers, [N, K + 1, H].
        hidden: what came out, after the final norm, in the same layout; 0 in slots that did not run.
        decision: by the slot 0 of that pass.
    """

    inputs: Tensor
    hidden: Tensor
    decision: SlotDecision


def read_all_rows(rows: Tensor, run: RowRunner, *, num_slots: int) -> Thought:
    """Run all rows of all tokens at once and read the last row of each (pause).

    Args:
        rows: [1, N * n, H], token by token.
        run: runs and stores rows.
        num_slots: n.
    """
    tokens = torch.arange(rows.shape[1] // num_slots, device=rows.device)
    hidden = run(rows, tokens=tokens.repeat_interleave(num_slots))[:, num_slots - 1 :: num_slots]
    return Thought(hidden=hidden, steps=every_step(hidden, num_slots - 1))


def read_by_sweeps(
    embeddings: Tensor,
    prompts: PromptTokens,
    *,
    num_thoughts: int,
    run: RowRunner,
    decide: Callable[[Tensor], SlotDecision],
    next_thought: FeedBack,
) -> Slots:
    """Sweep until every prompt has settled, or as often as `prompts.sweeps` says.

    Args:
        embeddings: slot 0 of all tokens, [N, H].
        prompts: whose tokens they are.
        num_thoughts: K.
        run: runs and stores rows; those of a prompt replace its rows of the pass before.
        decide: slot 0 after the final norm, [1, N, H], to the slots that the tokens take; called once after
            every pass.
        next_thought: makes a slot from the slot before it.
    """
    state = _State(embeddings, num_thoughts)
    live = torch.ones(len(embeddings), dtype=torch.bool, device=embeddings.device)
    for last in _last_passes(prompts, num_thoughts):
        state.run(live, run)
        decision = decide(state.hidden[:, 0].unsqueeze(0))
        if last:
            decision = replace(decision, steps=torch.minimum(decision.steps, state.last_slot))
            break
        refresh = state.refresh(live, decision, next_thought)
        if prompts.sweeps.number is None:
            live = live & _of_moving_prompts(refresh, prompts)
            if not bool(live.any()):
                break
    return Slots(inputs=state.inputs, hidden=state.hidden, decision=decision)


def _last_passes(prompts: PromptTokens, num_thoughts: int) -> list[bool]:
    """Return for every pass that there can be whether it is the last one.

    A token is exact K + 1 passes after all tokens before it are.
    """
    if num_thoughts == 0:
        return [True]
    if prompts.sweeps.number is None:
        num_passes = int(prompts.sequences.bincount().max()) * (num_thoughts + 1) + 1
    else:
        num_passes = num_thoughts + prompts.sweeps.number + 1
    return [index == num_passes - 1 for index in range(num_passes)]


@dataclass(frozen=True, slots=True)
class _Refresh:
    """The thoughts before and after a refresh.

    Attributes:
        old, new: thoughts that were renewed, [N, K + 1, H]; 0 in all other slots.
        weight_change: of the log weights of these, [N, K + 1], or None where there are none.
        is_growing: whether the slots of a token changed, or will, [N] bool.
    """

    old: Tensor
    new: Tensor
    weight_change: Tensor | None
    is_growing: Tensor


class _State:
    """The rows of the next pass, and the hidden states of the last one."""

    def __init__(self, embeddings: Tensor, num_thoughts: int) -> None:
        # [N, H] -> [N, K + 1, H]
        self.inputs = torch.nn.functional.pad(embeddings.unsqueeze(1), (0, 0, 0, num_thoughts))
        self.hidden = torch.zeros_like(self.inputs)
        self.last_slot = torch.zeros(len(embeddings), dtype=torch.int64, device=embeddings.device)
        self._slot = torch.arange(num_thoughts + 1, device=embeddings.device)
        self._log_weight: Tensor | None = None

    def run(self, live: Tensor, run: RowRunner) -> None:
        """Run all rows of live tokens, [N] bool."""
        keep = self._slots_up_to(self.last_slot) & live.unsqueeze(1)
        log_weight = None if self._log_weight is None else self._log_weight[keep]
        # [N, K + 1, H] -> [1, R, H]
        rows = run(self.inputs[keep].unsqueeze(0), tokens=keep.nonzero()[:, 0], log_weight=log_weight)
        hidden = rows.new_zeros(self.inputs.shape)
        hidden[keep] = rows[0]
        self.hidden = torch.where(live[:, None, None], hidden, self.hidden)

    def refresh(self, live: Tensor, decision: SlotDecision, next_thought: FeedBack) -> _Refresh:
        """Make the thoughts of the next pass from the hidden states of this one."""
        last_slot = torch.minimum(decision.steps, self.last_slot + 1)
        # Slot k of the next pass is made from slot k - 1, which ran.
        renewed = self._slots_up_to(last_slot) & live.unsqueeze(1) & (self._slot > 0)
        sources = self.hidden[:, :-1][renewed[:, 1:]]
        new = torch.zeros_like(self.inputs)
        if len(sources) > 0:
            new[renewed] = next_thought(sources.unsqueeze(0))[0]
        refresh = _Refresh(
            old=torch.where(renewed.unsqueeze(-1), self.inputs, 0.0),
            new=new,
            weight_change=self._weight_change(decision, renewed),
            is_growing=(last_slot != self.last_slot) | (decision.steps != last_slot),
        )
        self.inputs = torch.where(renewed.unsqueeze(-1), new, self.inputs)
        self.last_slot = torch.where(live, last_slot, self.last_slot)
        self._log_weight = decision.log_weight
        return refresh

    def _weight_change(self, decision: SlotDecision, renewed: Tensor) -> Tensor | None:
        # Before there are weights there are no thoughts: all that is renewed is growing.
        if decision.log_weight is None or self._log_weight is None:
            return None
        return torch.where(renewed, (decision.log_weight - self._log_weight).abs(), 0.0)

    def _slots_up_to(self, last_slot: Tensor) -> Tensor:
        """[N] -> [N, K + 1] bool."""
        return self._slot <= last_slot.unsqueeze(1)


def _of_moving_prompts(refresh: _Refresh, prompts: PromptTokens) -> Tensor:
    """Return whether a token belongs to a prompt that has not settled, [N] bool."""
    num_prompts = int(prompts.sequences[-1]) + 1
    tolerance = prompts.sweeps.tolerance

    def total(per_token: Tensor) -> Tensor:
        sums = per_token.new_zeros(num_prompts)
        return sums.index_add_(0, prompts.sequences, per_token)

    wide = torch.promote_types(refresh.new.dtype, torch.float32)
    old, new = refresh.old.to(wide), refresh.new.to(wide)
    change, norm = ((new - old).square().sum(dim=(1, 2)), new.square().sum(dim=(1, 2)))
    moves = total(change) > tolerance**2 * total(norm)
    is_restless = refresh.is_growing
    if refresh.weight_change is not None:
        is_restless = is_restless | (refresh.weight_change.amax(dim=1) > tolerance)
    return (moves | (total(is_restless.long()) > 0))[prompts.sequences]

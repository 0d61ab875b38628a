"""Read prompts by sweeps over the slots that their tokens need (definitions 2.3, 2.5).

Each pass runs all current rows of all prompts that have not settled, refreshes all thoughts at once, and
decides again which slots a token takes. A pruned slot has no row in the next pass; a slot that comes back
grows from the slot before it, one slot a pass, as in the build-up. What no longer moves is what reading token
by token gives, and the rows of the last pass stay stored.

Sweeps are Jacobi iterations unless settings say otherwise. Damped ones go only a part of the way.
Gauss-Seidel sweeps run the rows of a prompt in a few groups, one after another, each against what the groups
before it have just left. All have the same fixed point, because there a pass changes nothing.

Nothing that a pass has computed is changed in place, so that the training-type forward of an exported model
can use the same sweeps and has gradients.

N = tokens of all prompts, K = latent thoughts, H = hidden size.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from megatron_ext.ponder.decode.think import (
    FeedBack,
    RowRunner,
    SlotDecision,
    StepHalting,
    Thought,
    every_step,
)

# Damped sweeps end at the latest when they have left so much of what the first one missed.
SMALLEST_REMAINDER = 1e-12


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweeps:
    """How a prompt is read by sweeps: a fixed number of them, or until they change nothing.

    Attributes:
        number: J, sweeps after the build-up; None sweeps until a prompt has settled: the steps of its tokens
            no longer change, and neither its thoughts, relative to their size, nor their log weights move by
            more than `tolerance`.
        tolerance: see there; of what a sweep would change without damping.
        damping: share of a thought that a sweep keeps, at least 0, below 1; new thoughts are taken outright.
        num_groups: of tokens in a sweep, at least 1: tokens 0, G, 2G, .. of a prompt, then 1, G + 1, .. and
            so on. While slots come and go, all run together.
        by_slot: groups are slots: slot 0 of all tokens, then slot 1, made from what just came out, and so on.
    """

    number: int | None = None
    tolerance: float = 0.0
    damping: float = 0.0
    num_groups: int = 1
    by_slot: bool = False

    def __post_init__(self) -> None:
        """Reject sweeps that get nowhere.

        Raises:
            ValueError: naming the setting.
        """
        if not 0 <= self.damping < 1:
            raise ValueError(f"damping must be at least 0 and below 1, but is {self.damping}; 0 is none")
        if self.num_groups < 1:
            raise ValueError(f"num_groups must be at least 1, but is {self.num_groups}; 1 runs all together")
        if self.by_slot and self.num_groups > 1:
            raise ValueError(f"num_groups must be 1 by slot, but is {self.num_groups}; choose one of the two")


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
    halting: StepHalting | None = None,
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
        halting: ends the slots of a token earlier.
    """
    state = _State(embeddings, prompts, num_thoughts)
    live = torch.ones(len(embeddings), dtype=torch.bool, device=embeddings.device)
    for last in _last_passes(prompts, num_thoughts):
        groups = [state.rows_of(live)] if last else state.groups(live)
        refresh: _Refresh | None = None
        for group in groups:
            state.run(group, run, is_partial=len(groups) > 1)
            decision = decide(state.hidden[:, 0].unsqueeze(0))
            if halting is not None:
                decision = decision.ended_at(_last_slots(state, halting))
            if not last:
                refreshed = state.refresh(group, decision, next_thought, slots_stand=len(groups) > 1)
                refresh = refreshed if refresh is None else refresh.joined_by(refreshed)
        if refresh is None:
            decision = replace(decision, steps=torch.minimum(decision.steps, state.last_slot))
            break
        if prompts.sweeps.number is None:
            live = live & _of_moving_prompts(refresh, prompts)
            if not bool(live.any()):
                break
    return Slots(inputs=state.inputs, hidden=state.hidden, decision=decision)


def _last_slots(state: "_State", halting: StepHalting) -> Tensor:
    """Return the last slot that each token takes, as far as those that ran can tell: K where nothing ends."""
    num_thoughts = state.hidden.shape[1] - 1
    steps = torch.full_like(state.last_slot, num_thoughts)
    for step in range(num_thoughts, 0, -1):
        ends = (state.last_slot >= step - 1) & halting.ends_before(step, state.hidden)
        steps = torch.where(ends, step - 1, steps)
    return steps


def _last_passes(prompts: PromptTokens, num_thoughts: int) -> list[bool]:
    """Return for every pass that there can be whether it is the last one.

    A token is exact K + 1 passes after all tokens before it are. Damped, what is missing of it shrinks only
    by the damping in each pass.
    """
    sweeps = prompts.sweeps
    if num_thoughts == 0:
        return [True]
    if sweeps.number is None:
        num_passes = int(prompts.sequences.bincount().max()) * (num_thoughts + 1) + 1
        if sweeps.damping > 0:
            num_passes *= 1 + math.ceil(math.log(SMALLEST_REMAINDER) / math.log(sweeps.damping))
    else:
        num_passes = num_thoughts + sweeps.number + 1
    return [index == num_passes - 1 for index in range(num_passes)]


@dataclass(frozen=True, slots=True)
class _Refresh:
    """The thoughts before and after a refresh.

    Attributes:
        old, new: thoughts that were renewed, without damping, [N, K + 1, H]; 0 in all other slots.
        weight_change: of the log weights of these, [N, K + 1], or None where there are none.
        is_growing: whether the slots of a token that ran changed, or will, [N] bool.
    """

    old: Tensor
    new: Tensor
    weight_change: Tensor | None
    is_growing: Tensor

    def joined_by(self, other: "_Refresh") -> "_Refresh":
        """Return this refresh with that of other tokens in the same sweep."""
        change = self.weight_change
        if change is not None and other.weight_change is not None:
            change = change + other.weight_change
        return _Refresh(
            old=self.old + other.old,
            new=self.new + other.new,
            weight_change=change,
            is_growing=self.is_growing | other.is_growing,
        )


class _State:
    """The rows of the next pass, and the hidden states of the last one."""

    def __init__(self, embeddings: Tensor, prompts: PromptTokens, num_thoughts: int) -> None:
        # [N, H] -> [N, K + 1, H]
        self.inputs = torch.nn.functional.pad(embeddings.unsqueeze(1), (0, 0, 0, num_thoughts))
        self.hidden = torch.zeros_like(self.inputs)
        self.last_slot = torch.zeros(len(embeddings), dtype=torch.int64, device=embeddings.device)
        self._slot = torch.arange(num_thoughts + 1, device=embeddings.device)
        self._log_weight: Tensor | None = None
        self._sweeps, self._sequences = prompts.sweeps, prompts.sequences
        self._position = _starts(torch.ones_like(self._sequences), self._sequences)
        # The last slots as of the last pass in which all tokens ran; -1 before there was one.
        self._placed = self.last_slot - 1
        self._wants_others = torch.zeros_like(self.last_slot, dtype=torch.bool)

    def rows_of(self, live: Tensor) -> Tensor:
        """Return the rows of live tokens, [N] -> [N, K + 1] bool."""
        return self._slots_up_to(self.last_slot) & live.unsqueeze(1)

    def groups(self, live: Tensor) -> list[Tensor]:
        """Return the rows that run together in the next sweep, one group after another, [N, K + 1] bool."""
        num_groups, rows = self._sweeps.num_groups, self.rows_of(live)
        stand = (self._placed == self.last_slot) & ~self._wants_others
        if (num_groups == 1 and not self._sweeps.by_slot) or not bool(stand[live].all()):
            return [rows]
        if self._sweeps.by_slot:
            groups = [rows & (self._slot == slot) for slot in self._slot]
        else:
            group_of = (self._position % num_groups).unsqueeze(1)
            groups = [rows & (group_of == group) for group in range(num_groups)]
        return [group for group in groups if bool(group.any())]

    def run(self, keep: Tensor, run: RowRunner, *, is_partial: bool) -> None:
        """Run rows, [N, K + 1] bool: all of a prompt, or a part of them against the rest."""
        log_weight = None if self._log_weight is None else self._log_weight[keep]
        places = None
        if is_partial:
            # [N] -> [N, K + 1] -> [R]
            places = (_starts(self.last_slot + 1, self._sequences).unsqueeze(1) + self._slot)[keep]
        else:
            self._placed = torch.where(keep[:, 0], self.last_slot, self._placed)
        # [N, K + 1, H] -> [1, R, H]
        rows = run(
            self.inputs[keep].unsqueeze(0),
            tokens=keep.nonzero()[:, 0],
            log_weight=log_weight,
            places=places,
        )
        hidden = rows.new_zeros(self.inputs.shape)
        hidden[keep] = rows[0]
        # Where all rows of a token run, slots that do not are empty.
        ran = keep if is_partial else keep[:, :1]
        self.hidden = torch.where(ran.unsqueeze(-1), hidden, self.hidden)

    def refresh(
        self, ran: Tensor, decision: SlotDecision, next_thought: FeedBack, *, slots_stand: bool
    ) -> _Refresh:
        """Make the thoughts of the next pass from the hidden states of this one.

        Args:
            ran: rows that ran, [N, K + 1] bool.
            decision: on their slots.
            next_thought: makes a slot from the slot before it.
            slots_stand: change no slots yet: rows of the same sweep are still to be stored behind them.
        """
        live = ran.any(dim=1)
        last_slot = torch.minimum(decision.steps, self.last_slot + 1)
        last_slot = self.last_slot if slots_stand else last_slot
        thoughts = self._slots_up_to(last_slot) & live.unsqueeze(1) & (self._slot > 0)
        # Slot k of the next pass is made from slot k - 1, which ran.
        renewed = thoughts & ran.roll(1, dims=1)
        sources = self.hidden[:, :-1][renewed[:, 1:]]
        new = torch.zeros_like(self.inputs)
        if len(sources) > 0:
            new[renewed] = next_thought(sources.unsqueeze(0))[0]
        refresh = _Refresh(
            old=torch.where(renewed.unsqueeze(-1), self.inputs, 0.0),
            new=new,
            weight_change=self._weight_change(decision, thoughts),
            is_growing=live & ((last_slot != self.last_slot) | (decision.steps != last_slot)),
        )
        self._wants_others = torch.where(live, refresh.is_growing, self._wants_others)
        self.inputs = torch.where(renewed.unsqueeze(-1), self._damped(new), self.inputs)
        self.last_slot = torch.where(live, last_slot, self.last_slot)
        self._log_weight = decision.log_weight
        return refresh

    def _damped(self, new: Tensor) -> Tensor:
        """Go a part of the way to thoughts, [N, K + 1, H], in slots that had one before."""
        if self._sweeps.damping == 0:
            return new
        had_one = self._slots_up_to(self.last_slot).unsqueeze(-1)
        return torch.where(had_one, torch.lerp(new, self.inputs, self._sweeps.damping), new)

    def _weight_change(self, decision: SlotDecision, thoughts: Tensor) -> Tensor | None:
        # Before there are weights there are no thoughts: all that is renewed is growing.
        if decision.log_weight is None or self._log_weight is None:
            return None
        return torch.where(thoughts, (decision.log_weight - self._log_weight).abs(), 0.0)

    def _slots_up_to(self, last_slot: Tensor) -> Tensor:
        """[N] -> [N, K + 1] bool."""
        return self._slot <= last_slot.unsqueeze(1)


def _starts(counts: Tensor, sequences: Tensor) -> Tensor:
    """Return how much the tokens before each one in its sequence count: [N] -> [N]."""
    before = counts.cumsum(0) - counts
    _, sizes = sequences.unique_consecutive(return_counts=True)
    first_tokens = sizes.cumsum(0) - sizes
    return before - before[first_tokens].repeat_interleave(sizes)


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

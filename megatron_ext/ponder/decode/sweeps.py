"""Read prompts by Jacobi sweeps over the slots that their tokens need (definitions 2.3, 2.5).

Every pass runs all current rows of all prompts that have not settled, refreshes every thought at once, and
asks anew which slots a token takes. A pruned slot has no row in the next pass; a slot that comes back grows
from the slot before it, one slot a pass, as in the build-up. What does not move any more is what reading
token by token gives, and the rows of the last pass are what stays stored.

N = tokens of all prompts, K = latent thoughts, H = hidden size.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from megatron_ext.methods.base import PromptTokens, RowRunner


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotDecision:
    """Which slots tokens take.

    Attributes:
        steps: the last slot of every token, [N] int64, in 0..K.
        log_weight: of every slot's key, [N, K + 1], or None where the method weighs none.
        shares: of the slots in what is read, [N, K + 1], or None where the last slot is read.
    """

    steps: Tensor
    log_weight: Tensor | None = None
    shares: Tensor | None = None


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


def read_by_sweeps(
    embeddings: Tensor,
    prompts: PromptTokens,
    *,
    num_thoughts: int,
    run: RowRunner,
    decide: Callable[[Tensor], SlotDecision],
    next_thought: Callable[[Tensor], Tensor],
) -> Slots:
    """Sweep until every prompt has settled, or as often as `prompts.sweeps` says.

    Args:
        embeddings: slot 0 of all tokens, [N, H].
        prompts: whose tokens they are.
        num_thoughts: K.
        run: see :class:`RowRunner`.
        decide: slot 0 after the layers, [1, N, H], to what the tokens take.
        next_thought: a slot after the layers, [1, R, H], to the thought that follows it.
    """
    sweep = _Sweep(embeddings, num_thoughts)
    live = torch.ones(len(embeddings), dtype=torch.bool, device=embeddings.device)
    for last in _last_passes(prompts, num_thoughts):
        sweep.run(live, run)
        decision = decide(sweep.hidden[:, 0].unsqueeze(0))
        if last:
            decision = replace(decision, steps=torch.minimum(decision.steps, sweep.last_slot))
            break
        moved = sweep.refresh(live, decision, next_thought)
        if prompts.sweeps.number is None:
            live = live & _of_moving_prompts(moved, prompts)
            if not bool(live.any()):
                break
    return Slots(inputs=sweep.inputs, hidden=sweep.hidden, decision=decision)


def _last_passes(prompts: PromptTokens, num_thoughts: int) -> list[bool]:
    """Whether a pass is the last one, for every pass that there can be.

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
class _Movement:
    """How far one refresh moved every token.

    Attributes:
        change, norm: squared change and squared size of its thoughts, [N].
        log_weight: largest change of a log weight, [N].
        is_growing: whether its slots are others than before, [N] bool.
    """

    change: Tensor
    norm: Tensor
    log_weight: Tensor
    is_growing: Tensor


class _Sweep:
    """The rows of the next pass, and the hidden states of the last one."""

    def __init__(self, embeddings: Tensor, num_thoughts: int) -> None:
        self.inputs = embeddings.new_zeros(len(embeddings), num_thoughts + 1, embeddings.shape[-1])
        self.inputs[:, 0] = embeddings
        self.hidden = torch.zeros_like(self.inputs)
        self._slot = torch.arange(num_thoughts + 1, device=embeddings.device)
        self.last_slot = torch.zeros(len(embeddings), dtype=torch.int64, device=embeddings.device)
        self._log_weight: Tensor | None = None

    def run(self, live: Tensor, run: RowRunner) -> None:
        """Run all rows of live tokens, [N] bool."""
        keep = self._slots_up_to(self.last_slot) & live.unsqueeze(1)
        tokens = keep.nonzero()[:, 0]
        log_weight = None if self._log_weight is None else self._log_weight[keep]
        # [N, K + 1, H] -> [1, R, H]
        hidden = run(self.inputs[keep].unsqueeze(0), tokens=tokens, log_weight=log_weight)
        self.hidden[live] = 0.0
        self.hidden[keep] = hidden[0]

    def refresh(
        self, live: Tensor, decision: SlotDecision, next_thought: Callable[[Tensor], Tensor]
    ) -> _Movement:
        """Make the thoughts of the next pass from this one's hidden states; return what that moved."""
        last_slot = torch.minimum(decision.steps, self.last_slot + 1)
        is_growing = (last_slot != self.last_slot) | (decision.steps != last_slot)
        # Slot k of the next pass is made from slot k - 1, which ran.
        renewed = self._slots_up_to(last_slot) & live.unsqueeze(1) & (self._slot > 0)
        sources = self.hidden[:, :-1][renewed[:, 1:]]
        new = torch.zeros_like(self.inputs)
        if len(sources) > 0:
            new[renewed] = next_thought(sources.unsqueeze(0))[0]
        old = torch.where(renewed.unsqueeze(-1), self.inputs, 0.0)
        wide = torch.promote_types(new.dtype, torch.float32)
        movement = _Movement(
            change=(new.to(wide) - old.to(wide)).square().sum(dim=(1, 2)),
            norm=new.to(wide).square().sum(dim=(1, 2)),
            log_weight=self._weight_change(decision, renewed),
            is_growing=is_growing,
        )
        self.inputs = torch.where(renewed.unsqueeze(-1), new, self.inputs)
        self.last_slot = torch.where(live, last_slot, self.last_slot)
        self._log_weight = decision.log_weight
        return movement

    def _weight_change(self, decision: SlotDecision, renewed: Tensor) -> Tensor:
        # Before there are weights there are no thoughts: all that is renewed is growing.
        if decision.log_weight is None or self._log_weight is None:
            return torch.zeros(len(renewed), device=renewed.device)
        change = (decision.log_weight - self._log_weight).abs()
        return torch.where(renewed, change, 0.0).amax(dim=1)

    def _slots_up_to(self, last_slot: Tensor) -> Tensor:
        """[N] -> [N, K + 1] bool."""
        return self._slot <= last_slot.unsqueeze(1)


def _of_moving_prompts(moved: _Movement, prompts: PromptTokens) -> Tensor:
    """Whether a token belongs to a prompt that has not settled, [N] bool."""
    num_prompts = int(prompts.sequences[-1]) + 1
    tolerance = prompts.sweeps.tolerance

    def total(per_token: Tensor) -> Tensor:
        sums = per_token.new_zeros(num_prompts)
        return sums.index_add_(0, prompts.sequences, per_token)

    moves = total(moved.change) > tolerance**2 * total(moved.norm)
    is_restless = moved.is_growing | (moved.log_weight > tolerance)
    return (moves | (total(is_restless.long()) > 0))[prompts.sequences]

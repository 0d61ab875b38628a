"""Thinking per token, on a toy model in place of the layers."""

import pytest
import torch
from torch import Tensor

from megatron_ext.ponder.decode.think import (
    SlotDecision,
    all_slots,
    slots_above,
    think,
    think_by_feedback,
    think_in_loops,
    think_in_rows,
    think_in_slots,
    think_until_halted,
)
from tests.support.toy_rows import ToyRunner, toy_tokens


def same(hidden: Tensor) -> Tensor:
    return hidden


def test_rows_run_one_after_another_and_the_last_one_is_read() -> None:
    rows, run = toy_tokens(6).unflatten(0, (3, 2)), ToyRunner([0, 1])

    thought = think(think_in_rows(rows), run)

    again = ToyRunner([0, 1])
    expected = [again(row.unsqueeze(0)) for row in rows][-1]
    assert torch.equal(thought.hidden, expected)
    assert thought.steps.tolist() == [2, 2]


def test_loops_run_on_their_own_output_and_only_the_last_one_is_normalized() -> None:
    first, run = toy_tokens(2).unsqueeze(0), ToyRunner([0, 1], iterates=True)

    thought = think(think_in_loops(first, num_iterations=2), run)

    hidden, again = first, ToyRunner([0, 1], iterates=True)
    for iteration in range(3):
        hidden = again(hidden, version=iteration, normalize=iteration == 2)
    assert torch.equal(thought.hidden, hidden)
    assert thought.steps.tolist() == [2, 2]


@pytest.mark.parametrize("from_first", [False, True])
def test_feedback_is_added_to_the_last_or_to_the_first_input(from_first: bool) -> None:
    first, run = toy_tokens(2).unsqueeze(0), ToyRunner([0, 1], iterates=True)

    thinking = think_by_feedback(
        first, num_iterations=2, feed_back=lambda hidden: 3 * hidden, from_first=from_first
    )
    thought = think(thinking, run)

    again = ToyRunner([0, 1], iterates=True)
    second = first + 3 * again(first)
    hidden = again(second, version=1)
    third = (first if from_first else second) + 3 * hidden
    assert torch.equal(thought.hidden, again(third, version=2))


def test_a_token_iterates_until_its_gate_closes_and_keeps_its_last_output() -> None:
    first, run = toy_tokens(3).unsqueeze(0), ToyRunner([0, 1, 2], iterates=True)
    # The gates of tokens 0, 1, 2 close before iterations 1, 2 and never.
    gates = [torch.tensor([[-9.0, 9.0, 9.0]]), torch.tensor([[-9.0, 9.0]]), torch.tensor([[9.0]])]
    seen: list[str] = []

    thinking = think_until_halted(
        first,
        num_iterations=3,
        feed_back=same,
        gate=lambda index, hidden: gates[index],
        threshold=0.5,
        observe=lambda name, value: seen.append(name),
    )
    thought = think(thinking, run)

    assert thought.steps.tolist() == [0, 1, 3]
    assert run.calls == [[0, 1, 2], [1, 2], [2], [2]]
    assert seen == [f"gate_logits/{index}" for index in range(3)]
    assert torch.equal(thought.hidden[0, 0], ToyRunner([0, 1, 2], iterates=True)(first)[0, 0])


def test_a_slot_runs_for_the_tokens_that_take_it() -> None:
    rows, run = toy_tokens(3).unsqueeze(0), ToyRunner([0, 1, 2])
    steps = torch.tensor([2, 0, 1])
    shares = torch.tensor([[0.2, 0.3, 0.5]] * 3, dtype=torch.float64)

    thinking = think_in_slots(
        rows,
        num_thoughts=2,
        decide=lambda hidden: SlotDecision(steps=steps, shares=shares),
        next_thought=same,
    )
    thought = think(thinking, run)

    assert run.calls == [[0, 1, 2], [0, 2], [0]]
    assert torch.equal(thought.steps, steps)
    first = ToyRunner([0, 1, 2])(rows)
    # Token 1 takes slot 0 alone; the shares of its pruned slots are not redistributed.
    torch.testing.assert_close(thought.hidden[0, 1], 0.2 * first[0, 1])


def test_all_slots_are_taken_without_weights_and_the_last_one_is_read() -> None:
    decision = all_slots(toy_tokens(2).unsqueeze(0), 3)
    hidden = toy_tokens(8).unflatten(0, (2, 4))

    assert decision.steps.tolist() == [3, 3]
    assert decision.log_weight is None
    assert torch.equal(decision.read(hidden).hidden[0], hidden[:, -1])


def test_slots_are_taken_while_their_tail_mass_reaches_the_threshold() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.2], [0.9, 0.09, 0.01]], dtype=torch.float64).log().unsqueeze(0)

    decision = slots_above(logits, 0.15)

    assert decision.steps.tolist() == [2, 0]
    assert slots_above(logits, 0.0).steps.tolist() == [2, 2]
    assert decision.log_weight is not None
    expected = torch.tensor([[1.0, 0.5, 0.2], [1.0, 0.1, 0.01]], dtype=torch.float64)
    torch.testing.assert_close(decision.log_weight.exp(), expected)

"""Reading prompts by sweeps, on a toy model in place of the layers."""

import pytest
import torch
from torch import Tensor

from megatron_ext.ponder.decode.sweeps import PromptTokens, Slots, Sweeps, read_all_rows, read_by_sweeps
from megatron_ext.ponder.decode.think import SlotDecision, slots_above, think_in_slots
from tests.support.toy_rows import HIDDEN_SIZE, ToyRunner, toy_tokens

NUM_THOUGHTS = 2
# Two prompts, of three tokens and of one.
SEQUENCES = [0, 0, 0, 1]
ROUTER = 3 * toy_tokens(NUM_THOUGHTS + 1, seed=1)


def decide(token_hidden: Tensor) -> SlotDecision:
    return slots_above(token_hidden @ ROUTER.T, 0.3)


def next_thought(hidden: Tensor) -> Tensor:
    return hidden


def swept(run: ToyRunner, sweeps: Sweeps) -> Slots:
    prompts = PromptTokens(sequences=torch.tensor(SEQUENCES), sweeps=sweeps)
    return read_by_sweeps(
        toy_tokens(len(SEQUENCES)),
        prompts,
        num_thoughts=NUM_THOUGHTS,
        run=run,
        decide=decide,
        next_thought=next_thought,
    )


def test_sweeps_until_nothing_moves_give_what_reading_token_by_token_gives() -> None:
    run = ToyRunner(SEQUENCES, replaces=True)

    slots = swept(run, Sweeps())

    found = slots.decision.read(slots.hidden)
    hidden, steps = [], []
    # A runner for each sequence keeps its rows from token to token.
    runners = {sequence: ToyRunner([sequence]) for sequence in set(SEQUENCES)}
    for sequence, embedding in zip(SEQUENCES, toy_tokens(len(SEQUENCES)), strict=True):
        thought = think_in_slots(
            embedding.reshape(1, 1, -1),
            runners[sequence],
            num_thoughts=NUM_THOUGHTS,
            decide=decide,
            next_thought=next_thought,
        )
        hidden.append(thought.hidden[0, 0])
        steps.append(int(thought.steps))
    assert found.steps.tolist() == steps
    assert len(set(steps)) > 1
    torch.testing.assert_close(found.hidden[0], torch.stack(hidden), rtol=0, atol=1e-12)
    # A settled prompt is not swept again.
    assert run.calls[-1].count(3) == 0


def test_a_number_of_sweeps_gives_as_many_passes_and_gradients() -> None:
    run = ToyRunner(SEQUENCES, replaces=True)

    slots = swept(run, Sweeps(number=1))
    slots.decision.read(slots.hidden).hidden.sum().backward()

    assert len(run.calls) == NUM_THOUGHTS + 1 + 1
    assert run.own.grad is not None
    assert float(run.own.grad.abs().sum()) > 0


@pytest.mark.parametrize("num_slots", [1, 3])
def test_all_rows_run_in_one_call(num_slots: int) -> None:
    run, rows = ToyRunner([0, 1]), toy_tokens(2 * num_slots).unsqueeze(0)

    thought = read_all_rows(rows, run, num_slots=num_slots)

    assert run.calls == [[0] * num_slots + [1] * num_slots]
    assert thought.hidden.shape == (1, 2, HIDDEN_SIZE)
    assert thought.steps.tolist() == [num_slots - 1] * 2

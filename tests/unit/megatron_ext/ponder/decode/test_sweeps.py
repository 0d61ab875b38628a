"""Reading prompts by sweeps, on a toy model in place of the layers."""

import pytest
import torch
from torch import Tensor

from megatron_ext.ponder.decode.sweeps import PromptTokens, Slots, Sweeps, read_all_rows, read_by_sweeps
from megatron_ext.ponder.decode.think import SlotDecision, slots_above, think, think_in_slots
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


@pytest.mark.parametrize(
    "sweeps",
    [
        Sweeps(),
        Sweeps(damping=0.4, tolerance=1e-13),
        Sweeps(num_groups=2),
        Sweeps(num_groups=3),
        Sweeps(num_groups=9),
        Sweeps(num_groups=2, damping=0.4, tolerance=1e-13),
        Sweeps(by_slot=True),
        Sweeps(by_slot=True, damping=0.4, tolerance=1e-13),
    ],
)
def test_sweeps_until_nothing_moves_give_what_reading_token_by_token_gives(sweeps: Sweeps) -> None:
    run = ToyRunner(SEQUENCES, replaces=True)

    slots = swept(run, sweeps)

    found = slots.decision.read(slots.hidden)
    hidden, steps = [], []
    # A runner for each sequence keeps its rows from token to token.
    runners = {sequence: ToyRunner([sequence]) for sequence in set(SEQUENCES)}
    for sequence, embedding in zip(SEQUENCES, toy_tokens(len(SEQUENCES)), strict=True):
        thinking = think_in_slots(
            embedding.reshape(1, 1, -1),
            num_thoughts=NUM_THOUGHTS,
            decide=decide,
            next_thought=next_thought,
        )
        thought = think(thinking, runners[sequence])
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


def test_tokens_of_a_group_run_together_once_the_slots_stand() -> None:
    run = ToyRunner(SEQUENCES, replaces=True)

    swept(run, Sweeps(num_groups=2))

    tokens = [set(call) for call in run.calls]
    # Prompts of three tokens and of one: all together, then tokens 0 and 2 (and 3), then token 1.
    assert tokens[0] == {0, 1, 2, 3}
    in_groups = [number for number, call in enumerate(tokens) if call == {1}]
    assert in_groups
    assert all(tokens[number - 1] in ({0, 2}, {0, 2, 3}) for number in in_groups)


def test_sweeps_by_slot_make_a_thought_from_what_the_slot_before_it_just_came_to() -> None:
    by_slot, jacobi = ToyRunner(SEQUENCES, replaces=True), ToyRunner(SEQUENCES, replaces=True)

    swept(by_slot, Sweeps(by_slot=True))
    swept(jacobi, Sweeps())

    # Once the slots stand a call has at most one row of each token; all calls together have no more rows.
    assert all(len(call) == len({*call}) for call in by_slot.calls[-NUM_THOUGHTS:])
    assert len(by_slot.calls) > len(jacobi.calls)
    assert sum(map(len, by_slot.calls)) <= sum(map(len, jacobi.calls))


@pytest.mark.parametrize(
    "settings", [{"damping": 1.0}, {"damping": -0.1}, {"num_groups": 0}, {"num_groups": 2, "by_slot": True}]
)
def test_sweeps_that_get_nowhere_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        Sweeps(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("num_slots", [1, 3])
def test_all_rows_run_in_one_call(num_slots: int) -> None:
    run, rows = ToyRunner([0, 1]), toy_tokens(2 * num_slots).unsqueeze(0)

    thought = read_all_rows(rows, run, num_slots=num_slots)

    assert run.calls == [[0] * num_slots + [1] * num_slots]
    assert thought.hidden.shape == (1, 2, HIDDEN_SIZE)
    assert thought.steps.tolist() == [num_slots - 1] * 2

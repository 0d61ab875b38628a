"""Halting by a signal: what it measures, and that a decoder stops by it, whichever way it reads."""

import math

import pytest
import torch
from torch import Tensor

from megatron_ext.decoding import BatchDecoder
from megatron_ext.parallel.groups import ParallelGroups
from megatron_ext.ponder.config import Method
from megatron_ext.ponder.decode.signals import SignalHalting, prediction_signal
from megatron_ext.ponder.decode.sweeps import Sweeps
from megatron_ext.ponder.step_limits import HaltingSignal, StepLimits
from tests.support.ponder_models import random_tokens, tiny_model

NUM_THOUGHTS = 2
each_signal = pytest.mark.parametrize("signal", list(HaltingSignal))


def test_signals_of_a_prediction_by_hand() -> None:
    logits = torch.tensor([[0.5, 0.25, 0.25], [1.0, 0.0, 0.0]]).log()

    entropy = prediction_signal(logits.clamp_min(-50), HaltingSignal.ENTROPY)
    confidence = prediction_signal(logits.clamp_min(-50), HaltingSignal.CONFIDENCE)

    torch.testing.assert_close(entropy, torch.tensor([1.5 * math.log(2), 0.0]))
    torch.testing.assert_close(confidence, torch.tensor([0.5, 0.0]))


def test_thoughts_converge_when_they_move_little() -> None:
    hidden = torch.tensor([[[3.0, 4.0], [3.0, 5.0], [3.0, 5.0]]])
    halting = SignalHalting(
        signal=HaltingSignal.CONVERGENCE, threshold=0.5, of_prediction=lambda hidden: hidden
    )

    # The first step is always taken: nothing has moved before it.
    assert halting.scores(hidden).tolist() == [[math.inf, pytest.approx(0.2)]]
    assert [bool(halting.ends_before(step, hidden)) for step in (1, 2)] == [False, True]


def read(
    model_name: Method, groups: ParallelGroups, limits: StepLimits, sweeps: Sweeps | None
) -> list[Tensor]:
    """Return logits after the prompts and the steps of their tokens."""
    model = tiny_model(groups, model_name, num_latent_thoughts=NUM_THOUGHTS)
    model.eval()
    prompts = [random_tokens(1, length, seed=length)[0].tolist() for length in (7, 4)]
    decoder = BatchDecoder(model, num_sequences=2, max_tokens=7, limits=limits)
    found = decoder.read_prompts([0, 1], prompts, sweeps=sweeps)
    return [part for one in found for part in (one.logits, one.steps)]


@each_signal
@pytest.mark.parametrize("method", [Method.PONDERLM2, Method.PONDERLM3])
def test_sweeps_and_token_by_token_reading_stop_alike(
    groups: ParallelGroups, method: Method, signal: HaltingSignal
) -> None:
    limits = StepLimits(threshold=_median_score(groups, method, signal), signal=signal)

    one_by_one = read(method, groups, limits, None)
    swept = read(method, groups, limits, Sweeps(tolerance=1e-12))

    steps = torch.cat(one_by_one[1::2])
    assert 0 < int((steps < NUM_THOUGHTS).sum()) < len(steps)
    for found, expected in zip(swept, one_by_one, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


def _median_score(groups: ParallelGroups, method: Method, signal: HaltingSignal) -> float:
    model = tiny_model(groups, method, num_latent_thoughts=NUM_THOUGHTS)
    model.eval()
    decoder = BatchDecoder(model, num_sequences=1, max_tokens=7, limits=StepLimits(signal=signal))
    seen: dict[str, Tensor] = {}
    decoder.observe = lambda name, value: seen.update({name: value})
    decoder.read_prompts([0], random_tokens(1, 7, seed=7).tolist(), sweeps=Sweeps(tolerance=1e-12))
    assert decoder.halting is not None
    return float(decoder.halting.scores(seen["prompt_slots/hidden"])[:, -1].median())


@pytest.mark.parametrize("method", [Method.PONDERLM2, Method.PONDERLM3])
def test_a_signal_that_never_ends_a_token_changes_nothing(groups: ParallelGroups, method: Method) -> None:
    own = StepLimits() if method is Method.PONDERLM2 else StepLimits(threshold=0.0)
    expected = read(method, groups, own, None)

    found = read(method, groups, StepLimits(threshold=0.0, signal=HaltingSignal.ENTROPY), None)

    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


def test_a_token_that_stops_at_once_is_one_of_a_model_without_steps(groups: ParallelGroups) -> None:
    stopped = read(
        Method.PONDERLM3, groups, StepLimits(threshold=math.inf, signal=HaltingSignal.ENTROPY), None
    )
    without = read(Method.PONDERLM3, groups, StepLimits(num_steps=0), None)

    for one, other in zip(stopped, without, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)

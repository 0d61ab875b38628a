"""Training forward against cached decoding, on tiny models of every method, in float32."""

from typing import Any

import pytest
import torch

from megatron_ext.methods.ponderlm3 import PonderLM3
from megatron_ext.model.config import Architecture
from megatron_ext.model.micro_batch import TokenBatch
from megatron_ext.model.model import PonderModel
from megatron_ext.parallel.groups import ParallelGroups
from megatron_ext.ponder.config import Method
from megatron_ext.ponder.decode.think import SlotDecision
from pipeline.verification.result import JUDGED_THRESHOLD, Verification
from pipeline.verification.texts import pieces_of
from pipeline.verification.verify import sweeps_for, thresholds_for, verify_model
from tests.support.ponder_models import AUTHORS, batch_of, each_model, random_tokens, tiny_model

# Enough for every thought of the longest document to be exact: J >= K (S - 1).
EXACT_SWEEPS = 20
ROUNDING = 2e-4


def packed_batch() -> TokenBatch:
    """Two rows of 9 tokens: documents of 5 and 4 tokens, and one of 7 with padding behind it."""
    documents = torch.tensor([[0] * 5 + [1] * 4, [0] * 7 + [-1] * 2])
    return batch_of(random_tokens(2, 9, seed=26), documents)


def verified(model: PonderModel, *, sweeps: tuple[int, ...] = (0, EXACT_SWEEPS)) -> Verification:
    method = model.config.ponder.method
    return verify_model(
        model.eval(),
        [packed_batch(), packed_batch()],
        thresholds=thresholds_for(method, (1e-2, 0.5)),
        sweeps=sweeps_for(method, 2, sweeps),
    )


def test_documents_are_read_one_by_one() -> None:
    batch = packed_batch()

    pieces = pieces_of(batch)

    assert [(piece.first, len(piece.tokens)) for piece in pieces] == [(0, 5), (5, 4), (9, 7)]
    assert pieces[1].tokens == batch.tokens[0, 5:].tolist()
    assert pieces[2].tokens == batch.tokens[1, :7].tolist()


@each_model
def test_forward_and_decoding_are_one_function(
    groups: ParallelGroups, method: Method, architecture: Architecture
) -> None:
    found = verified(tiny_model(groups, method, architecture, dtype=torch.float32))

    assert found.num_tokens == 2 * 16
    assert found.settled.max_error < ROUNDING
    assert 0 < found.settled.mean_error <= found.settled.max_error
    assert found.settled.top1_agreement == 1.0
    judged = next(one for one in found.decodings if one.pruning_threshold in (None, JUDGED_THRESHOLD))
    assert judged.loss == pytest.approx(found.settled.forward_loss, abs=1e-4)
    assert sum(judged.steps_count) == found.num_tokens


@pytest.mark.parametrize("architecture", Architecture)
def test_the_form_of_the_authors_is_one_function_too(
    groups: ParallelGroups, architecture: Architecture
) -> None:
    model = tiny_model(groups, Method.PONDERLM3, architecture, dtype=torch.float32, ponder=AUTHORS)

    found = verified(model)

    judged = next(one for one in found.decodings if one.pruning_threshold == JUDGED_THRESHOLD)
    # The mixture of training is whole; what decoding drops of it is below tau.
    assert found.settled.max_error < 10 * JUDGED_THRESHOLD
    assert found.settled.top1_agreement == 1.0
    assert judged.loss == pytest.approx(found.settled.forward_loss, abs=1e-3)
    # The forward hides keys at the threshold that it is compared at.
    losses = {one.forward_loss for one in found.comparisons if one.num_jacobi_iterations == EXACT_SWEEPS}
    assert len(losses) == len(found.decodings)


@pytest.mark.parametrize("method", [Method.PONDERLM2, Method.PONDERLM3])
def test_too_few_sweeps_disagree_with_decoding(groups: ParallelGroups, method: Method) -> None:
    found = verified(tiny_model(groups, method, dtype=torch.float32))

    assert found.comparison(0).max_error > 100 * found.settled.max_error
    assert len(found.residuals) == EXACT_SWEEPS
    assert found.residuals[0] > 1e3 * found.residuals[-1]
    assert found.contraction is not None
    assert 0 < found.contraction < 1


def test_pruning_more_runs_fewer_steps_and_errs_more(groups: ParallelGroups) -> None:
    found = verified(tiny_model(groups, Method.PONDERLM3, dtype=torch.float32), sweeps=(EXACT_SWEEPS,))

    errors = [one.max_error for one in found.comparisons]
    steps = [one.mean_steps for one in found.decodings]
    assert [one.pruning_threshold for one in found.decodings] == [1e-4, 1e-2, 0.5]
    assert steps == sorted(steps, reverse=True)
    assert steps[0] > steps[-1]
    assert errors == sorted(errors)
    assert errors[-1] > 100 * errors[0]


@pytest.mark.parametrize("method", [method for method in Method if method.facts.halts_in_training])
def test_methods_that_halt_in_training_do_so_as_in_decoding_at_every_threshold(
    groups: ParallelGroups, method: Method
) -> None:
    found = verified(tiny_model(groups, method, dtype=torch.float32))

    assert {one.mean_steps for one in found.decodings} != {2.0}
    assert len({one.mean_steps for one in found.decodings}) > 1
    assert all(one.max_error < ROUNDING for one in found.comparisons)


class ForgetsTheWeights(PonderLM3):
    """Decodes without the log weights of the keys."""

    def _decide(self, *args: Any, **kwargs: Any) -> SlotDecision:
        decision = super()._decide(*args, **kwargs)
        assert decision.log_weight is not None
        return SlotDecision(
            steps=decision.steps,
            log_weight=torch.zeros_like(decision.log_weight),
            shares=decision.shares,
        )


def test_a_decoder_with_a_fault_is_found_out(groups: ParallelGroups) -> None:
    model = tiny_model(groups, Method.PONDERLM3, dtype=torch.float32)
    faulty = ForgetsTheWeights(model.ponder.config, model.ponder.hidden_size)
    faulty.load_state_dict(model.ponder.state_dict())
    model.ponder = faulty

    assert verified(model).settled.max_error > 0.05


def test_a_nan_logit_is_an_error(groups: ParallelGroups) -> None:
    model = tiny_model(groups, Method.VANILLA, dtype=torch.float32)
    with torch.no_grad():
        model.final_norm.weight[0] = float("nan")

    assert not verified(model).settled.max_error <= 1e9


def test_settings_of_the_method_are_as_before(groups: ParallelGroups) -> None:
    model = tiny_model(groups, Method.PONDERLM3, dtype=torch.float32)
    before = model.ponder.config

    verified(model)

    assert model.ponder.config is before


def test_thresholds_and_sweeps_are_those_that_a_method_has() -> None:
    assert thresholds_for(Method.PONDERLM2, (0.1,)) == (None,)
    assert thresholds_for(Method.ADAPONDERLM, (0.1,)) == (JUDGED_THRESHOLD, 0.1)
    assert sweeps_for(Method.LOOP, 2, (1,)) == (0,)
    assert sweeps_for(Method.PONDERLM3, 3) == (0, 1, 2, 3, 4, 8, 16)
    assert sweeps_for(Method.PONDERLM3, 3, (5, 1)) == (1, 5)

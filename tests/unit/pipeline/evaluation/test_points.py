"""Sweeps over steps and thresholds."""

import pytest
import torch

from megatron_ext.decoding import BatchDecoder
from megatron_ext.parallel.groups import ParallelGroups
from megatron_ext.ponder import halting
from megatron_ext.ponder.config import Method, Reading, RouterForm, TrainingMask
from megatron_ext.ponder.decode.sweeps import Sweeps
from megatron_ext.ponder.step_limits import UNLIMITED, StepLimits
from megatron_ext.weights import load_weights, whole_tensors
from pipeline.cost.account import flops_account
from pipeline.evaluation.points import LimitSettings, counted_steps, points_under_limits
from pipeline.step.evaluate import evaluate
from tests.support.layout_steps import built_model, own_batches
from tests.support.layouts import LARGEST_J, MODELS, ONE_PROCESS, VOCAB_SIZE
from tests.support.limit_points import TAUS, limit_points_on
from tests.support.ponder_models import batch_of, random_tokens, tiny_model

STEADY = ("loop, llama tied", "ponderlm2, llama")
HALTING = ("adaponderlm, llama", "ponderlm3, llama")


@pytest.mark.parametrize(
    "method", [Method.LOOP, Method.PAUSE, Method.PONDERLM, Method.PONDERLM2, Method.ADAPONDERLM]
)
@pytest.mark.parametrize("num_steps", [0, 1])
def test_a_limited_model_computes_what_one_built_so_small_does(
    groups: ParallelGroups, method: Method, num_steps: int
) -> None:
    large = tiny_model(groups, method, num_latent_thoughts=2)
    small = tiny_model(groups, method, num_latent_thoughts=num_steps)
    weights = whole_tensors(large, lambda parameter: parameter)
    needed = whole_tensors(small, lambda parameter: parameter)
    load_weights(small, {name: weights[name] for name in needed})
    batch = batch_of(random_tokens())

    with torch.no_grad():
        expected = small(batch, num_jacobi_iterations=2).token_losses
        whole = large(batch, num_jacobi_iterations=2).token_losses
        limits = StepLimits(num_steps=num_steps)
        found = large(batch, num_jacobi_iterations=2, limits=limits).token_losses
        again = large(batch, num_jacobi_iterations=2).token_losses

    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)
    assert not torch.allclose(found, whole)
    assert torch.equal(again, whole)


@pytest.mark.parametrize(
    "method",
    [Method.LOOP, Method.PAUSE, Method.PONDERLM, Method.PONDERLM2, Method.ADAPTIVE_LATENT_COT],
)
def test_a_model_takes_more_steps_than_it_was_trained_with_as_one_built_so(
    groups: ParallelGroups, method: Method
) -> None:
    trained = tiny_model(groups, method, num_latent_thoughts=1)
    larger = tiny_model(groups, method, num_latent_thoughts=3)
    load_weights(larger, whole_tensors(trained, lambda parameter: parameter))
    tokens = random_tokens()
    batch, limits = batch_of(tokens), StepLimits(num_steps=3)

    with torch.no_grad():
        expected = larger(batch, num_jacobi_iterations=2).token_losses
        found = trained(batch, num_jacobi_iterations=2, limits=limits).token_losses
    decoders = [
        BatchDecoder(model, num_sequences=1, max_tokens=9, limits=own)
        for model, own in ((larger, UNLIMITED), (trained, limits))
    ]
    whole, limited = (
        decoder.read_prompts([0], tokens[:1].tolist(), sweeps=Sweeps(tolerance=1e-12))[0].logits
        for decoder in decoders
    )

    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)
    torch.testing.assert_close(limited, whole, rtol=0, atol=1e-9)


@pytest.mark.parametrize("num_steps", [0, 1, 2])
def test_a_limited_router_gives_what_is_left_out_to_its_last_step(
    groups: ParallelGroups, num_steps: int
) -> None:
    model = tiny_model(groups, Method.PONDERLM3, num_latent_thoughts=3)
    hidden = torch.randn(5, 2, model.config.hidden_size, dtype=torch.float64)
    whole = halting.step_distribution(model.ponder.route(hidden))

    limited = model.ponder.under(StepLimits(num_steps=num_steps))
    found = halting.step_distribution(limited.route(hidden))

    torch.testing.assert_close(found[:, :num_steps], whole[:, :num_steps])
    torch.testing.assert_close(found[:, num_steps], whole[:, num_steps:].sum(dim=1))


@pytest.mark.parametrize("model", STEADY + HALTING)
def test_a_sweep_has_a_point_for_each_number_of_steps(groups: ParallelGroups, model: str) -> None:
    points = [point for point in limit_points_on(groups, model, ONE_PROCESS) if point.kind == "steps"]

    assert [point.value for point in points] == [0, 1, 2]
    assert points[0].mean_steps == 0
    halts_in_training = model == "adaponderlm, llama"
    assert all((point.mean_steps == point.value) != halts_in_training for point in points[1:])
    costs = [point.flops_per_token for point in points]
    assert costs == sorted(set(costs))
    assert len({point.loss for point in points}) == 3


@pytest.mark.parametrize("model", HALTING)
def test_steps_fall_as_the_threshold_rises(groups: ParallelGroups, model: str) -> None:
    points = [point for point in limit_points_on(groups, model, ONE_PROCESS) if point.kind == "tau"]

    assert [point.value for point in points] == list(TAUS)
    steps = [point.mean_steps for point in points]
    assert steps == sorted(set(steps), reverse=True)


def test_hard_pruning_at_a_tiny_threshold_changes_next_to_nothing(groups: ParallelGroups) -> None:
    points = limit_points_on(groups, "ponderlm3, llama", ONE_PROCESS)
    (at_tiny,) = (point for point in points if (point.kind, point.value) == ("tau", TAUS[0]))
    (soft,) = (point for point in points if (point.kind, point.value) == ("steps", 2))
    (at_large,) = (point for point in points if (point.kind, point.value) == ("tau", TAUS[-1]))

    assert at_tiny.loss == pytest.approx(soft.loss, abs=1e-4)
    assert abs(at_large.loss - soft.loss) > 1e-3


@pytest.mark.parametrize(("reading", "reads_all"), [(Reading.MIXTURE, True), (Reading.LAST_STEP, False)])
def test_a_hard_mask_without_pruning_counts_the_steps_that_are_read(
    groups: ParallelGroups, reading: Reading, reads_all: bool
) -> None:
    form = RouterForm(mask_in_training=TrainingMask.HARD)
    settings = {"form": form, "pruning_threshold": 0.3, "reading": reading}
    model = tiny_model(groups, Method.PONDERLM3, ponder=settings)
    found = evaluate(model, [[batch_of(random_tokens())]], num_jacobi_iterations=LARGEST_J, groups=groups)
    assert found is not None
    assert sum(found.sums["steps_count"][:2]) > 0

    assert (counted_steps(StepLimits(num_steps=2), model, found) is None) == reads_all


def test_a_sweep_that_is_cut_short_has_no_points(groups: ParallelGroups) -> None:
    config = MODELS["ponderlm3, llama"].config(ONE_PROCESS)
    module, _ = built_model(config, groups)
    batches = [own_batches(groups)]
    whole = evaluate(module, batches, num_jacobi_iterations=LARGEST_J, groups=groups)
    assert whole is not None
    settings = LimitSettings(over_steps=True, taus=(), num_jacobi_iterations=LARGEST_J)

    points = points_under_limits(
        module,
        batches,
        settings,
        groups=groups,
        flops=flops_account(config, VOCAB_SIZE),
        unlimited=whole,
        is_cut_short=lambda: True,
    )

    assert points is None

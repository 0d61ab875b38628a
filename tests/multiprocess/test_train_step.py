"""A training step is the same however its micro-batches are spread over ranks."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from tests.support.ranks import run_on_ranks

if TYPE_CHECKING:
    from megatron_ext.batch import TokenBatch
    from megatron_ext.model import PonderModel
    from megatron_ext.parallel.groups import ParallelGroups
    from pipeline.config.schema import RunConfig

pytestmark = pytest.mark.multiprocess

RECIPE = Path(__file__).parents[2] / "pipeline" / "recipes" / "tiny_ponderlm3.yaml"
OVERRIDES = (
    "ponder.num_latent_thoughts=2",
    "ponder.penalty=bottom_k",
    "model.vocab_size=64",
    # Every rank keeps the whole gradient, so that it can be compared.
    "parallel.use_distributed_optimizer=false",
)
PENALTY_WEIGHT = 0.1
NUM_MICRO_BATCHES = 4
NUM_TOKENS = 12


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    """The step on one rank."""
    step: dict[str, Any] = run_on_ranks(gradients_of_a_step, 1)[0]
    return step


def test_data_parallel_step_equals_one_rank(alone: dict[str, Any]) -> None:
    spread = run_on_ranks(gradients_of_a_step, 2)
    for rank in spread:
        assert rank["statistics"] == pytest.approx(alone["statistics"], rel=1e-6)
        assert rank["gradients"].keys() == alone["gradients"].keys()
        for name, gradient in rank["gradients"].items():
            expected = alone["gradients"][name]
            difference = abs(gradient - expected).max() / abs(expected).max()
            assert difference < 1e-5, f"{name} differs by {difference:.1e}"


def test_loss_of_a_step_is_the_mean_over_all_labelled_tokens_plus_the_weighted_penalty(
    alone: dict[str, Any],
) -> None:
    for name, gradient in alone["gradients"].items():
        expected = alone["by_definition"][name]
        assert abs(gradient - expected).max() < 1e-5 * abs(expected).max(), name


def gradients_of_a_step() -> dict[str, Any]:
    """Run the schedule of one step and return reduced gradients, statistics, and gradients by definition."""
    from megatron_ext.host import prepare_host

    prepare_host()
    from megatron_ext.optimizer import build_optimizer, connect_schedule, wrap_ddp
    from megatron_ext.parallel.groups import initialize_groups
    from pipeline.config.load import load_config
    from pipeline.megatron_config import optimizer_settings
    from pipeline.metrics.statistics import StatisticsAccumulator
    from pipeline.step_settings import StepSettings
    from pipeline.train_step import run_schedule

    groups = initialize_groups(tensor=1)
    config = load_config(RECIPE, OVERRIDES)
    model = build_tiny(config, groups)
    batches = uneven_batches()
    by_definition = gradients_by_definition(model, batches)
    ddp = wrap_ddp(model, use_distributed_optimizer=False)
    optimizer = build_optimizer([ddp], optimizer_settings(config))
    connect_schedule(ddp, optimizer)
    ddp.zero_grad_buffer()
    statistics = StatisticsAccumulator(model.statistics_layout(), device=torch.device("cpu"))
    settings = StepSettings(num_jacobi_iterations=1, penalty_weight=PENALTY_WEIGHT)
    own = batches[groups.dp_rank :: groups.dp_size]
    run_schedule(ddp, own, settings, groups=groups, statistics=statistics)
    sums = statistics.reduce(groups.dp)
    return {
        # As arrays: a tensor would be sent as a handle to the memory of a rank that is gone by then.
        "gradients": {name: p.main_grad.numpy() for name, p in model.named_parameters()},
        "statistics": [value for values in sums.values() for value in values],
        "by_definition": {name: gradient.numpy() for name, gradient in by_definition.items()},
    }


def build_tiny(config: "RunConfig", groups: "ParallelGroups") -> "PonderModel":
    """Build the recipe's model with a router that decides differently for every token."""
    from pipeline.build import build_module

    model = build_module(config, 64, groups)
    with torch.no_grad():
        for parameter in model.ponder.parameters():
            parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(1))
    return model


def uneven_batches() -> "list[TokenBatch]":
    """Four micro-batches, each with another number of labels and of padding."""
    from megatron_ext.batch import TokenBatch

    generator = torch.Generator().manual_seed(7)
    batches = []
    for number in range(NUM_MICRO_BATCHES):
        tokens = torch.randint(64, (2, NUM_TOKENS + 1), generator=generator)
        labels = tokens[:, 1:].clone()
        labels[0, : 2 * number] = -100
        documents = torch.zeros(2, NUM_TOKENS, dtype=torch.int64)
        documents[1, NUM_TOKENS - number :] = -1
        labels[documents == -1] = -100
        positions = torch.arange(NUM_TOKENS).expand(2, -1)
        batches.append(
            TokenBatch(tokens=tokens[:, :-1], labels=labels, position_ids=positions, document_ids=documents)
        )
    return batches


def gradients_by_definition(model: "PonderModel", batches: "list[TokenBatch]") -> dict[str, torch.Tensor]:
    """Differentiate the loss as definitions 2.5 words it, in one graph over all micro-batches."""
    outputs = [model(batch, num_jacobi_iterations=1) for batch in batches]
    labelled = sum((batch.labels != -100).sum() for batch in batches)
    real = [batch.is_real.sum() for batch in batches]
    cross_entropy = sum(output.token_losses.sum() for output in outputs) / labelled
    penalty = sum(output.penalty * count for output, count in zip(outputs, real, strict=True)) / sum(real)
    parameters = dict(model.named_parameters())
    gradients = torch.autograd.grad(cross_entropy + PENALTY_WEIGHT * penalty, list(parameters.values()))
    return dict(zip(parameters, gradients, strict=True))

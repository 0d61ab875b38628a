"""The loss of a step follows the definitions: the reference of all comparisons between layouts."""

import pytest
import torch
from torch import Tensor

from megatron_ext.model.micro_batch import TokenBatch
from megatron_ext.model.model import PonderModel
from megatron_ext.parallel.groups import destroy_groups, initialize_groups
from megatron_ext.parallel.vocabulary import IGNORED_LABEL
from megatron_ext.weights import whole_tensors
from tests.support.layout_steps import (
    PENALTY_WEIGHT,
    Compared,
    Values,
    built_model,
    compare,
    own_batches,
    run_step,
    values_of_step,
    wrapped,
)
from tests.support.layouts import MODELS, ONE_PROCESS
from tests.support.ranks import run_alone

pytestmark = pytest.mark.multiprocess

NUM_SWEEPS = 2
LARGEST_ERROR = 1e-5


@pytest.mark.parametrize(
    "model", ["vanilla, llama", "ponderlm3, llama", "ponderlm3, neox tied", "adaponderlm, llama"]
)
def test_a_step_minimizes_the_mean_over_all_labelled_tokens_plus_the_weighted_penalty(model: str) -> None:
    compared = run_alone(_compare_with_definition, model)

    assert not compared.complaint(LARGEST_ERROR)
    assert compared.zero == []


def _compare_with_definition(name: str) -> Compared:
    groups = initialize_groups()
    try:
        module, _ = built_model(MODELS[name].config(ONE_PROCESS), groups)
        expected = _values_by_definition(module, own_batches(groups))
        ddp = wrapped(module)
        found = values_of_step(ddp, run_step(ddp, NUM_SWEEPS, groups), groups)
        return compare({name: found[name] for name in expected}, expected)
    finally:
        destroy_groups()


def _values_by_definition(module: PonderModel, batches: list[TokenBatch]) -> Values:
    """Differentiate the loss of section 2.5 of the definitions in one graph over all micro-batches."""
    outputs = [module(batch, num_jacobi_iterations=NUM_SWEEPS) for batch in batches]
    labelled = sum((batch.labels != IGNORED_LABEL).sum() for batch in batches)
    loss: Tensor = sum(output.token_losses.sum() for output in outputs) / labelled
    if outputs[0].penalty is not None:
        real = [batch.is_real.sum() for batch in batches]
        penalties = [output.penalty * count for output, count in zip(outputs, real, strict=True)]
        loss = loss + PENALTY_WEIGHT * sum(penalties) / sum(real)
    parameters = list(module.parameters())
    gradients = dict(zip(parameters, torch.autograd.grad(loss, parameters), strict=True))
    whole = whole_tensors(module, lambda parameter: gradients[parameter])
    return {"loss": loss.detach()} | {f"gradient of {name}": value for name, value in whole.items()}

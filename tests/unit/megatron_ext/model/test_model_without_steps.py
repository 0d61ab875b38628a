"""Special cases of a method: vanilla without steps, and its simpler relative without halting."""

import pytest
import torch
from torch import Tensor

from megatron_ext.model.config import Architecture
from megatron_ext.model.model import PonderModel
from megatron_ext.parallel.groups import ParallelGroups
from megatron_ext.ponder.config import Method, Penalty
from megatron_ext.ponder.masks import PADDING_DOCUMENT
from tests.support.ponder_models import (
    METHODS,
    batch_of,
    each_backbone,
    gradients_of,
    observed,
    random_tokens,
    tiny_model,
)

BATCH = batch_of(random_tokens(length=8), torch.tensor([[0] * 3 + [1] * 5, [0] * 6 + [PADDING_DOCUMENT] * 2]))
# Far beyond every threshold: exp(-200) and 1 - sigmoid(200) are nothing in float64.
SURE = 200.0


def logits_of(model: PonderModel, *, num_jacobi_iterations: int = 2) -> Tensor:
    return observed(model, BATCH, num_jacobi_iterations=num_jacobi_iterations)[1]["logits"]


def copy_shared_weights(source: PonderModel, target: PonderModel) -> None:
    target.load_state_dict(source.state_dict(), strict=False)


@each_backbone
@pytest.mark.parametrize("sweeps", [0, 3])
@pytest.mark.parametrize("method", [method for method in METHODS if method is not Method.VANILLA])
def test_without_steps_and_scale_every_method_is_vanilla(
    groups: ParallelGroups, method: Method, architecture: Architecture, sweeps: int
) -> None:
    vanilla = tiny_model(groups, "vanilla", architecture)
    model = tiny_model(groups, method, architecture, num_latent_thoughts=0, ponder={"scale_embeds": False})
    copy_shared_weights(vanilla, model)

    assert torch.equal(logits_of(model, num_jacobi_iterations=sweeps), logits_of(vanilla))

    gradients = gradients_of(model, BATCH, num_jacobi_iterations=sweeps)
    for name, expected in gradients_of(vanilla, BATCH).items():
        assert torch.equal(gradients[name], expected), name


@each_backbone
def test_a_router_that_never_halts_is_ponderlm2(groups: ParallelGroups, architecture: Architecture) -> None:
    halting, plain = (tiny_model(groups, method, architecture) for method in ("ponderlm3", "ponderlm2"))
    with torch.no_grad():
        halting.ponder.router[2].weight.zero_()
        halting.ponder.router[2].bias.copy_(torch.tensor([0.0, 0.0, SURE]))
    copy_shared_weights(halting, plain)

    torch.testing.assert_close(logits_of(halting), logits_of(plain), rtol=1e-11, atol=1e-11)


@each_backbone
def test_gates_that_are_fully_open_are_ponderlm(groups: ParallelGroups, architecture: Architecture) -> None:
    halting, plain = (tiny_model(groups, method, architecture) for method in ("adaponderlm", "ponderlm"))
    with torch.no_grad():
        for gate in halting.ponder.gates:
            gate[2].weight.zero_()
            gate[2].bias.fill_(SURE)
    copy_shared_weights(halting, plain)

    torch.testing.assert_close(logits_of(halting), logits_of(plain), rtol=1e-11, atol=1e-11)


@each_backbone
@pytest.mark.parametrize("method", [Method.PONDERLM3, Method.ADAPONDERLM])
def test_halting_at_once_is_the_model_without_steps(
    groups: ParallelGroups, method: Method, architecture: Architecture
) -> None:
    halting = tiny_model(groups, method, architecture)
    without = tiny_model(groups, method, architecture, num_latent_thoughts=0)
    networks = [halting.ponder.router] if method is Method.PONDERLM3 else halting.ponder.gates
    with torch.no_grad():
        for network in networks:
            network[2].weight.zero_()
            network[2].bias.fill_(-SURE)
            network[2].bias[0] += SURE if method is Method.PONDERLM3 else 0.0

    output, seen = observed(halting, BATCH, prune=True)

    assert output.steps is not None
    assert output.steps.max() == 0
    torch.testing.assert_close(seen["logits"], logits_of(without), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("penalty", list(Penalty))
def test_without_steps_nothing_is_penalised(groups: ParallelGroups, penalty: Penalty) -> None:
    model = tiny_model(groups, Method.PONDERLM3, num_latent_thoughts=0, ponder={"penalty": penalty})

    output, _ = observed(model, BATCH)

    assert output.penalty is not None
    assert output.penalty.item() == 0.0


def test_loops_and_pauses_are_not_vanilla_with_steps(groups: ParallelGroups) -> None:
    vanilla = logits_of(tiny_model(groups, "vanilla"))

    for method in METHODS[1:]:
        model = tiny_model(groups, method, num_latent_thoughts=1, ponder={"scale_embeds": False})
        assert not torch.allclose(logits_of(model), vanilla, atol=1e-3), method

"""Gradients against finite differences in float64, and the three ways in which the router learns."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn

from megatron_ext.methods.base import PassContext
from megatron_ext.methods.ponderlm3 import PonderLM3
from megatron_ext.model import PonderModel
from megatron_ext.parallel.groups import ParallelGroups
from megatron_ext.parallel.tensor import TensorAxis
from megatron_ext.ponder.config import Method, Penalty, PonderConfig
from megatron_ext.ponder.masks import PADDING_DOCUMENT
from tests.support.ponder_models import batch_of, mean_loss, observed, random_tokens, tiny_model

STEP = 1e-6
BACKBONES = ["llama", "gpt_neox"]
# Padding, two documents and unlabelled positions.
BATCH = batch_of(random_tokens(2, 6), torch.tensor([[0, 0, 0, 1, 1, 1], [2, 2, 2, 2, 2, PADDING_DOCUMENT]]))


def slopes(
    function: Callable[[], Tensor], parameters: Sequence[nn.Parameter], seed: int
) -> tuple[float, float]:
    """Slope of a scalar function along a random direction: by backward, and by a central difference."""
    generator = torch.Generator().manual_seed(seed)
    directions = [torch.randn(p.shape, dtype=p.dtype, generator=generator) for p in parameters]
    gradients = torch.autograd.grad(function(), parameters, allow_unused=True)
    analytic = sum(
        float((gradient * direction).sum())
        for gradient, direction in zip(gradients, directions, strict=True)
        if gradient is not None
    )
    return analytic, _central_difference(function, parameters, directions)


@torch.no_grad()
def _central_difference(
    function: Callable[[], Tensor], parameters: Sequence[nn.Parameter], directions: Sequence[Tensor]
) -> float:
    values = []
    for factor in (STEP, -2 * STEP):
        for parameter, direction in zip(parameters, directions, strict=True):
            parameter.add_(direction, alpha=factor)
        values.append(float(function()))
    for parameter, direction in zip(parameters, directions, strict=True):
        parameter.add_(direction, alpha=STEP)
    return (values[0] - values[1]) / (2 * STEP)


def assert_slope(function: Callable[[], Tensor], parameters: Sequence[nn.Parameter]) -> None:
    for seed in range(3):
        analytic, numeric = slopes(function, parameters, seed)
        assert abs(analytic) > 1e-5, "a slope of zero proves nothing"
        assert analytic == pytest.approx(numeric, rel=2e-5)


def mild_model(
    groups: ParallelGroups, method: str, architecture: str = "llama", **ponder: object
) -> PonderModel:
    """A model whose router decides softly: saturated it would have no gradient to look at."""
    model = tiny_model(groups, method, architecture, ponder=ponder)
    if method == "ponderlm3":
        with torch.no_grad():
            model.ponder.router[2].weight.mul_(0.1)
    return model


@pytest.mark.parametrize("architecture", BACKBONES)
@pytest.mark.parametrize("method", ["vanilla", "ponderlm2", "ponderlm3"])
def test_the_loss_has_the_right_slope_in_all_weights(
    groups: ParallelGroups, method: str, architecture: str
) -> None:
    model = mild_model(groups, method, architecture)

    assert_slope(
        lambda: mean_loss(observed(model, BATCH)[0], BATCH, penalty_weight=0.3), list(model.parameters())
    )


@pytest.mark.parametrize("topk", [None, 7])
def test_mixtures_of_embeddings_have_the_right_slope(groups: ParallelGroups, topk: int | None) -> None:
    model = mild_model(groups, "ponderlm2", interpolation=True, interpolation_topk=topk)

    assert_slope(lambda: mean_loss(observed(model, BATCH)[0], BATCH), list(model.parameters()))


@pytest.mark.parametrize("architecture", BACKBONES)
def test_no_pass_is_cut_off_from_the_gradient(groups: ParallelGroups, architecture: str) -> None:
    # Each thought reaches the loss only through the passes after it.
    model = mild_model(groups, "ponderlm3", architecture)
    output, seen = observed(model, BATCH, num_jacobi_iterations=2)
    thoughts = [value for name, value in seen.items() if name.startswith("thoughts/")]
    masks = [value for name, value in seen.items() if name.startswith("log_w/")]
    assert (len(thoughts), len(masks)) == (4, 4)

    gradients = torch.autograd.grad(mean_loss(output, BATCH), [*thoughts, *masks])

    assert all(float(gradient.abs().max()) > 1e-8 for gradient in gradients)


@pytest.mark.parametrize("architecture", BACKBONES)
def test_the_router_learns_through_the_mask(groups: ParallelGroups, architecture: str) -> None:
    # The hidden states of the final pass lie before readout and penalty: the mask alone reaches them.
    model = mild_model(groups, "ponderlm3", architecture)
    weights = torch.randn(observed(model, BATCH)[1]["last_hidden"].shape, dtype=torch.float64)

    assert_slope(
        lambda: (observed(model, BATCH)[1]["last_hidden"] * weights).sum(), list(model.ponder.parameters())
    )


@pytest.mark.parametrize("kind", Penalty)
def test_the_router_learns_through_the_penalty_of_the_whole_model(
    groups: ParallelGroups, kind: Penalty
) -> None:
    model = mild_model(groups, "ponderlm3", penalty=kind)

    def penalty() -> Tensor:
        value = observed(model, BATCH)[0].penalty
        assert value is not None
        return value

    assert_slope(penalty, list(model.parameters()))


def fixed_final_pass(groups: ParallelGroups, kind: Penalty) -> tuple[PonderLM3, Tensor, PassContext]:
    """A method, and hidden states [S * n, B, H] that no mask can change."""
    config = PonderConfig(method=Method.PONDERLM3, num_latent_thoughts=2, penalty=kind)
    method = PonderLM3(config, 8).double()
    nn.init.normal_(method.router[2].weight)
    context = PassContext(
        real=torch.tensor([[True, True], [True, True], [True, False]]),
        axis=TensorAxis(groups.tp, False),
        mix_embeddings=lambda rows: rows,
    )
    return method, torch.randn(9, 2, 8, dtype=torch.float64), context


def test_the_router_learns_through_the_readout_alone(groups: ParallelGroups) -> None:
    method, hidden, context = fixed_final_pass(groups, Penalty.EXPECTED_STEPS)
    weights = torch.randn(3, 2, 8, dtype=torch.float64)

    assert_slope(lambda: (method.read(hidden, context).hidden * weights).sum(), list(method.parameters()))


@pytest.mark.parametrize("kind", Penalty)
def test_the_router_learns_through_the_penalty_alone(groups: ParallelGroups, kind: Penalty) -> None:
    method, hidden, context = fixed_final_pass(groups, kind)

    def penalty() -> Tensor:
        value = method.read(hidden, context).penalty
        assert value is not None
        return value

    assert_slope(penalty, list(method.parameters()))


@pytest.mark.parametrize("num_thoughts", [1, 2, 3, 5])
def test_the_router_starts_with_nine_tenths_on_the_last_step(
    groups: ParallelGroups, num_thoughts: int
) -> None:
    method = PonderLM3(PonderConfig(method=Method.PONDERLM3, num_latent_thoughts=num_thoughts), 16)

    distribution = torch.softmax(method.route(torch.randn(4, 2, 16)), dim=-1)

    torch.testing.assert_close(distribution[..., -1], torch.full((4, 2), 0.9))
    torch.testing.assert_close(distribution[..., :-1], torch.full((4, 2, num_thoughts), 0.1 / num_thoughts))


def test_a_bfloat16_router_decides_in_float32() -> None:
    config = PonderConfig(method=Method.PONDERLM3, num_latent_thoughts=2)
    method = PonderLM3(config, 16)
    nn.init.normal_(method.router[2].weight)
    rounded = PonderLM3(config, 16).bfloat16()
    rounded.load_state_dict(method.state_dict())
    method.load_state_dict(rounded.state_dict())
    hidden = torch.randn(4, 2, 16).bfloat16()

    logits = rounded.route(hidden)

    assert logits.dtype == torch.float32
    assert torch.equal(logits, method.route(hidden.float()))


def test_a_look_up_of_the_padding_token_trains_no_embedding(groups: ParallelGroups) -> None:
    tokens = random_tokens()
    tokens[:, 3] = 7
    gradients = []
    for padding_token_id in (None, 7):
        model = tiny_model(groups, "ponderlm2", padding_token_id=padding_token_id)
        mean_loss(observed(model, batch_of(tokens))[0], batch_of(tokens)).backward()
        gradients.append(model.embedding.word_embeddings.weight.grad)

    plain, without = gradients
    assert float(plain[7].abs().max()) > 1e-6
    assert (without[7] == 0).all()
    others = torch.arange(len(plain)) != 7
    assert torch.equal(plain[others], without[others])

"""The router of PonderLM-3: where it starts, how it learns, what its weights do (definitions 2.5, 2.7)."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from megatron_ext.methods.base import PassContext, PassRows
from megatron_ext.methods.ponderlm3 import PonderLM3
from megatron_ext.model.config import Architecture
from megatron_ext.model.memory import PassMemory
from megatron_ext.model.model import PonderModel
from megatron_ext.parallel.context import ContextAxis, TokenAxes
from megatron_ext.parallel.groups import ParallelGroups
from megatron_ext.parallel.tensor import TensorAxis
from megatron_ext.ponder import halting
from megatron_ext.ponder.config import (
    Method,
    Penalty,
    PonderConfig,
    RouterForm,
    RouterKind,
    RouterStart,
)
from megatron_ext.ponder.penalties import LabelScores
from tests.support.ponder_models import (
    VOCAB_SIZE,
    batch_of,
    each_backbone,
    observed,
    random_tokens,
    tiny_model,
)
from tests.support.slopes import assert_slope

LENGTH = 5
# Of labels that every readout predicts alike.
SCORES = LabelScores(
    nll=torch.full((3, 2), 0.7, dtype=torch.float64), is_first=torch.ones(3, 2, dtype=torch.bool)
)
BATCH = batch_of(random_tokens(2, LENGTH))


def method_alone(num_thoughts: int, hidden_size: int = 16, penalty: Penalty = Penalty.BOTTOM_K) -> PonderLM3:
    return PonderLM3(
        PonderConfig(method=Method.PONDERLM3, num_latent_thoughts=num_thoughts, penalty=penalty), hidden_size
    )


@pytest.mark.parametrize("num_thoughts", [1, 2, 3, 5])
def test_the_router_starts_with_nine_tenths_on_the_last_step(num_thoughts: int) -> None:
    distribution = torch.softmax(method_alone(num_thoughts).route(torch.randn(4, 2, 16)), dim=-1)

    torch.testing.assert_close(distribution[..., -1], torch.full((4, 2), 0.9))
    torch.testing.assert_close(distribution[..., :-1], torch.full((4, 2, num_thoughts), 0.1 / num_thoughts))


@pytest.mark.parametrize("kind", RouterKind)
def test_a_router_may_start_with_about_equal_shares(kind: RouterKind) -> None:
    form = RouterForm(router=kind, router_start=RouterStart.RANDOM)
    config = PonderConfig(method=Method.PONDERLM3, num_latent_thoughts=3, form=form)
    method = PonderLM3(config, 512)

    last = method.router if kind is RouterKind.LINEAR else method.router[2]
    std = math.sqrt(2 / (5 * last.in_features))
    assert (last.bias == 0).all()
    # A normal distribution that is cut at three deviations has 0.987 of its own.
    assert float(last.weight.std()) == pytest.approx(std, rel=0.1)
    assert float(last.weight.abs().max()) <= 3 * std
    distribution = torch.softmax(method.route(torch.randn(64, 1, 512)), dim=-1)
    torch.testing.assert_close(distribution.mean(dim=(0, 1)), torch.full((4,), 0.25), rtol=0, atol=0.1)


def test_a_linear_router_may_start_with_nine_tenths_on_the_last_step() -> None:
    config = PonderConfig(
        method=Method.PONDERLM3, num_latent_thoughts=3, form=RouterForm(router=RouterKind.LINEAR)
    )
    method = PonderLM3(config, 16)

    distribution = torch.softmax(method.route(torch.randn(4, 2, 16)), dim=-1)

    assert dict(method.named_parameters()).keys() == {"router.weight", "router.bias"}
    torch.testing.assert_close(distribution[..., -1], torch.full((4, 2), 0.9))


def test_a_bfloat16_router_decides_in_float32() -> None:
    method, rounded = method_alone(2), method_alone(2).bfloat16()
    nn.init.normal_(rounded.router[2].weight)
    method.load_state_dict(rounded.state_dict())
    hidden = torch.randn(4, 2, 16).bfloat16()

    logits = rounded.route(hidden)

    assert logits.dtype == torch.float32
    assert torch.equal(logits, method.route(hidden.float()))


def test_stages_that_do_not_decide_hold_no_router() -> None:
    config = PonderConfig(method=Method.PONDERLM3, num_latent_thoughts=2)

    assert list(PonderLM3(config, 16, decides=False).parameters()) == []


def fixed_final_pass(groups: ParallelGroups, kind: Penalty) -> tuple[PonderLM3, PassRows, PassContext]:
    """A method, and the end of a final pass that no mask can change: 3 tokens of 3 slots."""
    method = method_alone(2, 8, kind).double()
    nn.init.normal_(method.router[2].weight)
    context = PassContext(
        plan=method.plan(0),
        real=torch.tensor([[True, True], [True, True], [True, False]]),
        has_label=torch.ones(3, 2, dtype=torch.bool),
        axis=TokenAxes(TensorAxis(groups.tp, False), ContextAxis(groups.cp)),
        mix_embeddings=lambda rows: rows,
        score_labels=lambda hidden: SCORES,
        memory=PassMemory(),
        prune=False,
        damped=True,
        bottom_k_fraction=0.25,
        observe=lambda name, value: None,
    )
    return method, PassRows(rows=torch.randn(9, 2, 8, dtype=torch.float64)), context


def test_the_router_learns_through_the_readout_alone(groups: ParallelGroups) -> None:
    method, ended, context = fixed_final_pass(groups, Penalty.EXPECTED_STEPS)
    weights = torch.randn(3, 2, 8, dtype=torch.float64)

    assert_slope(lambda: (method.read(ended, context).hidden * weights).sum(), list(method.parameters()))


@pytest.mark.parametrize("kind", Penalty)
def test_the_router_learns_through_the_penalty_alone(groups: ParallelGroups, kind: Penalty) -> None:
    method, ended, context = fixed_final_pass(groups, kind)

    def penalty() -> Tensor:
        readout = method.read(ended, context)
        value = readout.penalty if readout.penalty_of is None else readout.penalty_of(SCORES)
        assert value is not None
        return value

    assert_slope(penalty, list(method.parameters()))


@given(spread=st.floats(0, 1e4), num_thoughts=st.integers(1, 4), bits=st.sampled_from([16, 32, 64]))
def test_log_w_is_finite_however_sure_the_router_is(spread: float, num_thoughts: int, bits: int) -> None:
    dtype = {16: torch.bfloat16, 32: torch.float32, 64: torch.float64}[bits]
    logits = spread * torch.randn(
        3, 2, num_thoughts + 1, generator=torch.Generator().manual_seed(num_thoughts)
    )

    mass = halting.tail_mass(halting.step_distribution(logits.to(dtype)))

    # Sums of shares are rounded: at most one unit in the last place for each.
    assert (mass >= 0).all()
    assert (mass <= 1 + 1e-6).all()
    assert (mass[:, 2:] <= mass[:, 1:-1]).all()
    for log_mass in (halting.log_tail_mass(mass), halting.hard_log_tail_mass(mass, 1e-4)):
        assert torch.isfinite(log_mass).all()
        assert (log_mass[:, 0] == 0).all()


@each_backbone
def test_a_models_log_w_is_finite_and_falls_with_the_slots(
    groups: ParallelGroups, architecture: Architecture
) -> None:
    model = tiny_model(groups, "ponderlm3", architecture, num_latent_thoughts=3, dtype=torch.float32)
    with torch.no_grad():
        model.ponder.router[2].weight.mul_(100)

    _, seen = observed(model, BATCH)

    masks = [value for name, value in seen.items() if name.startswith("log_w/")]
    assert len(masks) == model.ponder.plan(2).num_passes - 1
    for log_weight in masks:
        assert (log_weight[:, 0] == 0).all()
        assert (log_weight[:, 1:] <= 1e-6).all()
        assert (log_weight[:, 2:] <= log_weight[:, 1:-1]).all()
    lowest = min(float(log_weight.min()) for log_weight in masks)
    assert lowest == pytest.approx(math.log(1e-9)), "the clamp must be reached"
    assert torch.isfinite(seen["logits"][..., :VOCAB_SIZE]).all()


def with_share(model: PonderModel, last_logit: float) -> PonderModel:
    """Give the last step of every token a logit of its own; the others stay as they are."""
    with torch.no_grad():
        model.ponder.router[2].weight[-1] = 0.0
        model.ponder.router[2].bias[-1] = last_logit
    return model


def without_last_step(groups: ParallelGroups, model: PonderModel) -> PonderModel:
    """The same weights with one step less."""
    shorter = tiny_model(groups, "ponderlm3", model.config.architecture, num_latent_thoughts=1)
    weights = model.state_dict()
    router = {
        f"ponder.router.2.{name}": weights[f"ponder.router.2.{name}"][:-1] for name in ("weight", "bias")
    }
    shorter.load_state_dict({**weights, **router})
    return shorter


@each_backbone
def test_a_slot_loses_its_influence_with_its_mass(groups: ParallelGroups, architecture: Architecture) -> None:
    model = with_share(tiny_model(groups, "ponderlm3", architecture), 0.0)
    with torch.no_grad():
        # Near 0, so that the mass of the last step is about its exponential.
        model.ponder.router[2].weight.mul_(0.1)
    shorter = without_last_step(groups, model)

    def distance(last_logit: float, *, prune: bool = False) -> float:
        longer, limit = (
            observed(each, BATCH, num_jacobi_iterations=2 * (LENGTH - 1), prune=prune)[1]["logits"]
            for each in (with_share(model, last_logit), shorter)
        )
        return float((longer - limit)[..., :VOCAB_SIZE].abs().max())

    distances = [distance(last_logit) for last_logit in (-5.0, -10.0, -15.0)]
    assert distances[0] > 1e-3
    for larger, smaller in pairwise(distances):
        # In proportion to the mass, that is by e^-5.
        assert smaller == pytest.approx(larger * math.exp(-5), rel=0.1)
    # Where a slot is pruned, it is as if it were not there; its share is dropped, which e^-40 does not show.
    assert distance(-40.0, prune=True) < 1e-12

"""Halting in AdaPonderLM: a halted token stays frozen, and skipping it changes nothing (3.2)."""

import math
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor, nn

from megatron_ext.methods.adaponderlm import AdaPonderLM
from megatron_ext.model import attention
from megatron_ext.model.attention import RowContext
from megatron_ext.model.config import Architecture
from megatron_ext.model.model import PonderModel
from megatron_ext.parallel.groups import ParallelGroups
from megatron_ext.ponder.config import Method, PonderConfig
from megatron_ext.ponder.masks import PADDING_DOCUMENT
from tests.support.ponder_models import (
    VOCAB_SIZE,
    batch_of,
    decode_one_by_one,
    each_backbone,
    halting_tokens,
    observed,
    random_tokens,
    tiny_model,
)

NUM_THOUGHTS, NUM_LAYERS = 3, 2
# The logit of tau.
CLOSED = math.log(1e-2 / (1 - 1e-2))
BATCH = batch_of(
    torch.cat([halting_tokens(), random_tokens(1, 9)]),
    torch.tensor([[0] * 9, [0] * 3 + [1] * 4 + [PADDING_DOCUMENT] * 2]),
)


@dataclass(kw_only=True)
class Watched:
    """One forward, pass by pass.

    Attributes:
        seen: what the model shows.
        steps: [S, B].
        penalty: the bottom-k penalty.
        active: [S, B] bool of each pass, as attention is told it.
        keys, values: [S, B, G, d] that attention works with, by pass and layer.
    """

    seen: dict[str, Tensor] = field(default_factory=dict)
    steps: Tensor = field(default_factory=Tensor)
    penalty: Tensor = field(default_factory=Tensor)
    active: list[Tensor] = field(default_factory=list)
    keys: list[list[Tensor]] = field(default_factory=list)
    values: list[list[Tensor]] = field(default_factory=list)


def model_of(groups: ParallelGroups, architecture: Architecture, **ponder: object) -> PonderModel:
    return tiny_model(groups, "adaponderlm", architecture, num_latent_thoughts=NUM_THOUGHTS, ponder=ponder)


def watch(model: PonderModel, monkeypatch: pytest.MonkeyPatch) -> Watched:
    """Run the batch and look at the mask, the keys and the values of every pass."""
    watched = Watched()
    attend = attention.key_weighted_attention

    def watch_mask(module: nn.Module, inputs: object, arguments: dict[str, RowContext]) -> None:
        keys = arguments["packed_seq_params"].passes
        assert keys is not None
        everything = torch.ones_like(BATCH.is_real.T)
        watched.active.append(everything if keys.active is None else keys.active)
        watched.keys.append([])
        watched.values.append([])

    def watch_rows(query: Tensor, key: Tensor, value: Tensor, *rest: object, **options: object) -> Tensor:
        # [B, G, S, d] -> [S, B, G, d]
        watched.keys[-1].append(key.permute(2, 0, 1, 3))
        watched.values[-1].append(value.permute(2, 0, 1, 3))
        return attend(query, key, value, *rest, **options)  # type: ignore[arg-type]

    model.decoder.register_forward_pre_hook(watch_mask, with_kwargs=True)
    monkeypatch.setattr(attention, "key_weighted_attention", watch_rows)
    with torch.no_grad():
        output, watched.seen = observed(model, BATCH)
    assert output.steps is not None
    assert output.penalty is not None
    watched.steps, watched.penalty = output.steps, output.penalty
    assert sorted(output.steps.unique().tolist())[0] == 0
    assert len(output.steps.unique()) > 2, "tokens must halt at different iterations"
    return watched


@each_backbone
def test_the_mask_falls_and_never_rises(
    groups: ParallelGroups, architecture: Architecture, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = watch(model_of(groups, architecture), monkeypatch)

    assert len(watched.active) == NUM_THOUGHTS + 1
    assert watched.active[0].all()
    for iteration in range(NUM_THOUGHTS):
        before, after = watched.active[iteration], watched.active[iteration + 1]
        stays = torch.sigmoid(watched.seen["gate_logits"][..., iteration]) >= 1e-2
        assert torch.equal(after, before & stays)
    # Some gate opens again behind a closed one, and that changes nothing.
    assert ((torch.sigmoid(watched.seen["gate_logits"]) >= 1e-2).sum(dim=-1) > watched.steps).any()
    assert torch.equal(torch.stack(watched.active[1:]).sum(dim=0), watched.steps)


@each_backbone
def test_a_halted_tokens_keys_and_values_never_change_again(
    groups: ParallelGroups, architecture: Architecture, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = watch(model_of(groups, architecture), monkeypatch)

    for iteration in range(1, NUM_THOUGHTS + 1):
        active = watched.active[iteration]
        for kind in (watched.keys, watched.values):
            assert len(kind[iteration]) == NUM_LAYERS
            for before, after in zip(kind[iteration - 1], kind[iteration], strict=True):
                same = (before == after).flatten(2).all(dim=-1)
                assert torch.equal(same, ~active)


@each_backbone
def test_a_halted_tokens_input_and_hidden_state_never_change_again(
    groups: ParallelGroups, architecture: Architecture, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = watch(model_of(groups, architecture), monkeypatch)
    seen = watched.seen
    inputs = [seen[f"pass_inputs/pass_{index:02d}"] for index in range(NUM_THOUGHTS + 1)]
    hidden = [seen[f"hidden/iteration_{index:02d}"] for index in range(NUM_THOUGHTS)] + [seen["last_hidden"]]

    for states in (inputs, hidden):
        for iteration in range(1, NUM_THOUGHTS + 1):
            same = (states[iteration] == states[iteration - 1]).all(dim=-1)
            assert torch.equal(same, ~watched.active[iteration])


@each_backbone
def test_skipping_halted_tokens_gives_what_computing_them_gives(
    groups: ParallelGroups, architecture: Architecture
) -> None:
    model, tokens = model_of(groups, architecture), halting_tokens()
    rows: list[int] = []
    with torch.no_grad():
        output, seen = observed(model, batch_of(tokens))
    model.decoder.register_forward_hook(lambda module, inputs, result: rows.append(result.shape[0]))

    logits, steps, _ = decode_one_by_one(model, tokens[0].tolist())

    torch.testing.assert_close(logits, seen["logits"][:, 0, :VOCAB_SIZE], rtol=0, atol=1e-10)
    assert output.steps is not None
    assert steps == output.steps[:, 0].tolist()
    assert sum(rows) == tokens.shape[1] + int(output.steps.sum()) < tokens.shape[1] * (NUM_THOUGHTS + 1)


@each_backbone
@pytest.mark.parametrize(
    ("fraction", "count", "floor"),
    [(0.25, 12, -math.inf), (0.01, 1, -math.inf), (0.0, 0, CLOSED), (0.25, 12, CLOSED)],
)
def test_the_penalty_pools_all_gates_of_real_tokens_halted_ones_included(
    groups: ParallelGroups,
    architecture: Architecture,
    monkeypatch: pytest.MonkeyPatch,
    fraction: float,
    count: int,
    floor: float,
) -> None:
    settings = {"bottom_k_fraction": fraction, "bottom_k_floor": floor == CLOSED}
    watched = watch(model_of(groups, architecture, **settings), monkeypatch)
    real = BATCH.is_real.T

    pooled = sorted(watched.seen["gate_logits"][real].flatten().tolist())
    assert len(pooled) == 16 * NUM_THOUGHTS
    counted = [max(logit, floor) for logit in pooled[:count]]
    assert watched.penalty.item() == pytest.approx(sum(counted) / max(count, 1))
    if fraction == 0.25:
        asked = torch.stack(watched.active[:-1], dim=-1) & real.unsqueeze(-1)
        smallest = watched.seen["gate_logits"] <= pooled[count - 1]
        assert (smallest & ~asked & real.unsqueeze(-1)).any(), "a halted token must be among the smallest"


@pytest.mark.parametrize("has_floor", [True, False])
def test_the_penalty_pushes_a_closed_gate_no_further_unless_asked(
    groups: ParallelGroups, has_floor: bool
) -> None:
    model = model_of(groups, Architecture.LLAMA, bottom_k_fraction=0.5, bottom_k_floor=has_floor)
    output, seen = observed(model, BATCH)
    assert output.penalty is not None

    (pushed,) = torch.autograd.grad(output.penalty, seen["gate_logits"])

    is_closed = torch.sigmoid(seen["gate_logits"]) < 1e-2
    assert (is_closed & BATCH.is_real.T.unsqueeze(-1)).any()
    assert (pushed[is_closed] != 0).any() == (not has_floor)


def test_gates_of_halted_tokens_read_their_frozen_state(
    groups: ParallelGroups, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of(groups, Architecture.LLAMA)
    watched = watch(model, monkeypatch)
    frozen = watched.seen["hidden/iteration_00"]

    halted = watched.steps == 0
    for iteration in range(NUM_THOUGHTS):
        logits = model.ponder.gates[iteration](frozen).squeeze(-1)
        torch.testing.assert_close(watched.seen["gate_logits"][..., iteration][halted], logits[halted])


def test_gates_start_at_nine_tenths_and_are_independent() -> None:
    method = AdaPonderLM(PonderConfig(method=Method.ADAPONDERLM, num_latent_thoughts=3), 8)

    assert len(method.gates) == 3
    assert [tuple(p.shape) for p in method.gates[0].parameters()] == [(32, 8), (32,), (1, 32), (1,)]
    assert not torch.equal(method.gates[0][0].weight, method.gates[1][0].weight)
    for gate in method.gates:
        torch.testing.assert_close(torch.sigmoid(gate(torch.randn(5, 2, 8))), torch.full((5, 2, 1), 0.9))


def test_bfloat16_gates_decide_in_float32() -> None:
    config = PonderConfig(method=Method.ADAPONDERLM, num_latent_thoughts=2)
    method, rounded = AdaPonderLM(config, 16), AdaPonderLM(config, 16).bfloat16()
    nn.init.normal_(rounded.gates[1][2].weight)
    method.load_state_dict(rounded.state_dict())
    hidden = torch.randn(4, 2, 16).bfloat16()

    logits = rounded._gate(1, hidden)

    assert logits.dtype == torch.float32
    assert torch.equal(logits, method._gate(1, hidden.float()))


def test_stages_that_do_not_decide_hold_no_gates() -> None:
    config = PonderConfig(method=Method.ADAPONDERLM, num_latent_thoughts=2)

    assert list(AdaPonderLM(config, 16, decides=False).parameters()) == []

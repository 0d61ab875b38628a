"""The rules of the oracle against each other, on tiny random backbones."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from megatron_ext.ponder.config import Method, Mixture, PonderConfig, Residual
from megatron_ext.ponder.reference.backbone import Backbone
from megatron_ext.ponder.reference.iterations import AdaptiveLatentCoT
from megatron_ext.ponder.reference.method import TokenResult
from megatron_ext.ponder.reference.sequential import SequentialOracle

VOCAB_SIZE, HIDDEN_SIZE, FFN_SIZE, NUM_HEADS, NUM_LAYERS = 11, 16, 20, 4, 2
NUM_THOUGHTS = 3
PAUSE = 9
TOKENS = [3, 1, 4, 1, 5, 10, 2, 6]
BACKBONES = ["llama", "neox"]

OUTSIDE = {
    "llama": ("model.embed_tokens", "lm_head", "model.norm", "model.layers"),
    "neox": ("gpt_neox.embed_in", "embed_out", "gpt_neox.final_layer_norm", "gpt_neox.layers"),
}
INSIDE = {
    "llama": {
        "self_attn.q_proj": (HIDDEN_SIZE, HIDDEN_SIZE),
        "self_attn.k_proj": (HIDDEN_SIZE, HIDDEN_SIZE),
        "self_attn.v_proj": (HIDDEN_SIZE, HIDDEN_SIZE),
        "self_attn.o_proj": (HIDDEN_SIZE, HIDDEN_SIZE),
        "mlp.gate_proj": (FFN_SIZE, HIDDEN_SIZE),
        "mlp.up_proj": (FFN_SIZE, HIDDEN_SIZE),
        "mlp.down_proj": (HIDDEN_SIZE, FFN_SIZE),
    },
    "neox": {
        "attention.query_key_value": (3 * HIDDEN_SIZE, HIDDEN_SIZE),
        "attention.dense": (HIDDEN_SIZE, HIDDEN_SIZE),
        "mlp.dense_h_to_4h": (FFN_SIZE, HIDDEN_SIZE),
        "mlp.dense_4h_to_h": (HIDDEN_SIZE, FFN_SIZE),
    },
}
NORMS = ("input_layernorm", "post_attention_layernorm")


@pytest.fixture(autouse=True)
def no_graphs() -> Iterator[None]:
    with torch.no_grad():
        yield


def random_backbone(architecture: str) -> Backbone:
    """Two layers in float64, with a router and gates that halt tokens at different steps."""
    embedding, head, final_norm, layers = OUTSIDE[architecture]
    shapes: dict[str, tuple[int, ...]] = {
        embedding: (VOCAB_SIZE, HIDDEN_SIZE),
        head: (VOCAB_SIZE, HIDDEN_SIZE),
    }
    shapes |= {final_norm: (HIDDEN_SIZE,)}
    for index in range(NUM_LAYERS):
        shapes |= {f"{layers}.{index}.{name}": shape for name, shape in INSIDE[architecture].items()}
        shapes |= {f"{layers}.{index}.{name}": (HIDDEN_SIZE,) for name in NORMS}
    deciders = {"ponder.router": NUM_THOUGHTS + 1} | {f"ponder.gates.{i}": 1 for i in range(NUM_THOUGHTS)}
    for name, size in deciders.items():
        shapes |= {f"{name}.0": (5, HIDDEN_SIZE), f"{name}.2": (size, 5)}
    shapes |= {"ponder.router": (1, HIDDEN_SIZE)}
    weights = {}
    for name, shape in shapes.items():
        spread = 8.0 if name.endswith(".2") else 0.6
        weights[f"{name}.weight"] = spread * torch.randn(shape, dtype=torch.float64)
        if architecture == "neox" or name.startswith("ponder"):
            weights[f"{name}.bias"] = 0.3 * torch.randn(shape[0], dtype=torch.float64)
    return Backbone(
        is_neox=architecture == "neox",
        weights=weights,
        num_layers=NUM_LAYERS,
        num_heads=NUM_HEADS,
        num_key_value_heads=NUM_HEADS,
        rotary_size=2 if architecture == "neox" else 4,
        rotary_base=100.0,
        norm_epsilon=1e-5,
    )


def with_weights(backbone: Backbone, weights: Mapping[str, Tensor]) -> Backbone:
    return replace(backbone, weights={**backbone.weights, **weights})


def with_decision(backbone: Backbone, name: str, logits: list[float]) -> Backbone:
    """Let a router or gate give the same logits for every token."""
    constant = torch.tensor(logits, dtype=torch.float64)
    return with_weights(
        backbone,
        {f"{name}.weight": torch.zeros_like(backbone.weights[f"{name}.weight"]), f"{name}.bias": constant},
    )


def with_scaled_embeddings(backbone: Backbone, factor: float) -> Backbone:
    (name,) = (name for name in backbone.weights if name.endswith(("embed_in.weight", "embed_tokens.weight")))
    return with_weights(backbone, {name: factor * backbone.weights[name]})


def settings(method: str, num_thoughts: int = NUM_THOUGHTS, **changes: Any) -> PonderConfig:
    values = {"num_latent_thoughts": num_thoughts, "mixture_top_k": 4, "pause_token_id": PAUSE}
    return PonderConfig(method=Method(method), **{**values, **changes})


def consume(backbone: Backbone, ponder: PonderConfig, *, start: int = 0) -> list[TokenResult]:
    oracle = SequentialOracle(backbone, ponder)
    return [oracle.consume(token, start + index) for index, token in enumerate(TOKENS)]


def logits(backbone: Backbone, ponder: PonderConfig) -> Tensor:
    """[tokens, V]."""
    return torch.stack([result.logits for result in consume(backbone, ponder)])


def assert_same(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


def assert_different(found: Tensor, expected: Tensor) -> None:
    assert (found - expected).abs().max() > 1e-3


@pytest.mark.parametrize("architecture", BACKBONES)
def test_pausing_is_consuming_the_pause_token_at_the_same_position(architecture: str) -> None:
    backbone = random_backbone(architecture)
    plain = SequentialOracle(backbone, settings("vanilla", 0))
    expected = []
    for position, token in enumerate(TOKENS):
        results = [plain.consume(one, position) for one in [token] + [PAUSE] * NUM_THOUGHTS]
        expected.append(results[-1].logits)

    assert_same(logits(backbone, settings("pause", scale_embeds=False)), torch.stack(expected))


def test_pause_tokens_need_an_embedding() -> None:
    oracle = SequentialOracle(random_backbone("llama"), settings("pause", pause_token_id=None))

    with pytest.raises(AssertionError, match="pause_token_id"):
        oracle.consume(TOKENS[0], 0)


@pytest.mark.parametrize("architecture", BACKBONES)
def test_looping_is_a_stack_with_every_layer_repeated(architecture: str) -> None:
    backbone, layers = random_backbone(architecture), OUTSIDE[architecture][3]
    repeated = {
        name.replace(f"{layers}.{index}.", f"{layers}.{trip * NUM_LAYERS + index}."): weight
        for name, weight in backbone.weights.items()
        for index in range(NUM_LAYERS)
        if name.startswith(f"{layers}.{index}.")
        for trip in range(NUM_THOUGHTS + 1)
    }
    deep = replace(with_weights(backbone, repeated), num_layers=NUM_LAYERS * (NUM_THOUGHTS + 1))

    assert_same(logits(backbone, settings("loop", scale_embeds=False)), logits(deep, settings("vanilla", 0)))


@pytest.mark.parametrize("mixture", Mixture)
@pytest.mark.parametrize("architecture", BACKBONES)
def test_ponderlm3_that_never_halts_is_ponderlm2(architecture: str, mixture: Mixture) -> None:
    backbone = random_backbone(architecture)
    pinned = with_decision(backbone, "ponder.router.2", [0.0] * NUM_THOUGHTS + [99.0])

    found = consume(pinned, settings("ponderlm3", mixture=mixture))
    expected = consume(backbone, settings("ponderlm2", mixture=mixture))

    for one, other in zip(found, expected, strict=True):
        assert_same(one.logits, other.logits)
        assert_same(one.thoughts, other.thoughts)
        assert one.rows == other.rows == NUM_THOUGHTS + 1


@pytest.mark.parametrize("mixture", Mixture)
@pytest.mark.parametrize("architecture", BACKBONES)
def test_adaponderlm_with_open_gates_is_ponderlm(architecture: str, mixture: Mixture) -> None:
    opened = random_backbone(architecture)
    for iteration in range(NUM_THOUGHTS):
        opened = with_decision(opened, f"ponder.gates.{iteration}.2", [99.0])

    assert_same(
        logits(opened, settings("adaponderlm", mixture=mixture)),
        logits(opened, settings("ponderlm", mixture=mixture)),
    )


@pytest.mark.parametrize("architecture", BACKBONES)
def test_tokens_that_halt_at_once_take_one_row(architecture: str) -> None:
    backbone = random_backbone(architecture)
    closed = with_decision(backbone, "ponder.gates.0.2", [-99.0])
    pinned = with_decision(backbone, "ponder.router.2", [99.0] + [0.0] * NUM_THOUGHTS)

    for halting, plain, name in ((closed, "ponderlm", "adaponderlm"), (pinned, "ponderlm2", "ponderlm3")):
        results = consume(halting, settings(name))
        assert [(result.rows, result.steps, len(result.thoughts)) for result in results] == [(1, 0, 0)] * len(
            TOKENS
        )
        assert_same(torch.stack([result.logits for result in results]), logits(backbone, settings(plain, 0)))


@pytest.mark.parametrize("architecture", BACKBONES)
def test_a_latent_cot_that_always_goes_on_reads_its_last_step(architecture: str) -> None:
    # Each step of a token alone sees what the trips of a loop with a norm after each would leave.
    backbone = with_decision(random_backbone(architecture), "ponder.router", [99.0])
    oracle = AdaptiveLatentCoT(backbone, settings("adaptive_latent_cot"))

    result = oracle.consume(TOKENS[0], 0)

    hidden, seen = oracle.embed(TOKENS[0]), []
    zero = hidden.new_zeros(())
    for _ in range(NUM_THOUGHTS + 1):
        hidden, kept = backbone.run_layers(hidden, 0, seen, log_weight=zero)
        hidden = backbone.final_norm(hidden)
        seen = [*seen, kept]
    assert result.steps == NUM_THOUGHTS
    assert_same(result.logits, backbone.head @ hidden)


@pytest.mark.parametrize("architecture", BACKBONES)
def test_a_latent_cot_that_stops_at_once_is_one_pass(architecture: str) -> None:
    backbone = with_decision(random_backbone(architecture), "ponder.router", [-99.0])

    results = consume(backbone, settings("adaptive_latent_cot"))

    assert [result.steps for result in results] == [0] * len(TOKENS)
    found = torch.stack([result.logits for result in results])
    assert_same(found, logits(backbone, settings("adaptive_latent_cot", 0)))


@pytest.mark.parametrize("architecture", BACKBONES)
def test_the_masses_of_a_latent_cot_are_those_of_a_coin_thrown_at_each_step(architecture: str) -> None:
    # With 1/2 at each of three steps: 1/2, 1/4, and both halves of the last quarter.
    backbone = with_decision(random_backbone(architecture), "ponder.router", [0.0])
    oracle = AdaptiveLatentCoT(backbone, settings("adaptive_latent_cot", 2))
    hidden: list[Tensor] = []
    norm = Backbone.final_norm

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Backbone, "final_norm", lambda self, row: hidden.append(norm(self, row)) or hidden[-1])
        result = oracle.consume(TOKENS[0], 0)

    assert len(hidden) == 3
    assert_same(result.logits, backbone.head @ (hidden[0] / 2 + hidden[1] / 4 + hidden[2] / 4))


@pytest.mark.parametrize("architecture", BACKBONES)
def test_a_closed_gate_halts_for_good(architecture: str) -> None:
    backbone = with_decision(random_backbone(architecture), "ponder.gates.0.2", [99.0])
    backbone = with_decision(backbone, "ponder.gates.1.2", [-99.0])
    backbone = with_decision(backbone, "ponder.gates.2.2", [99.0])

    results = consume(backbone, settings("adaponderlm"))

    assert [result.steps for result in results] == [1] * len(TOKENS)
    assert [result.gate_logits.tolist() for result in results] == [[99.0, -99.0]] * len(TOKENS)
    assert_same(torch.stack([result.logits for result in results]), logits(backbone, settings("ponderlm", 1)))


@pytest.mark.parametrize("method", ["ponderlm3", "adaponderlm", "adaptive_latent_cot"])
@pytest.mark.parametrize("architecture", BACKBONES)
def test_the_threshold_itself_goes_on(architecture: str, method: str) -> None:
    # Tail masses 3/4, 1/2, 1/4 and gates of 1/2 are exact in binary.
    backbone = with_decision(random_backbone(architecture), "ponder.router.2", [0.0] * (NUM_THOUGHTS + 1))
    for iteration in range(NUM_THOUGHTS):
        backbone = with_decision(backbone, f"ponder.gates.{iteration}.2", [0.0])

    backbone = with_decision(backbone, "ponder.router", [0.0])

    at_threshold = consume(backbone, settings(method, pruning_threshold=0.5))
    above = consume(backbone, settings(method, pruning_threshold=0.51))

    # The reach of a second step is 1/4.
    ends = {"ponderlm3": (2, 1), "adaponderlm": (NUM_THOUGHTS, 0), "adaptive_latent_cot": (1, 0)}
    goes_on, halts = ends[method]
    assert {result.steps for result in at_threshold} == {goes_on}
    assert {result.steps for result in above} == {halts}


@pytest.mark.parametrize(
    ("method", "mixture", "factor"),
    [
        ("vanilla", Mixture.HIDDEN, 1.0),
        ("loop", Mixture.HIDDEN, 2.5 * HIDDEN_SIZE),
        ("pause", Mixture.HIDDEN, HIDDEN_SIZE),
        ("ponderlm", Mixture.HIDDEN, HIDDEN_SIZE),
        ("ponderlm", Mixture.SOFTMAX, HIDDEN_SIZE),
        ("adaponderlm", Mixture.TOP_K, HIDDEN_SIZE),
        ("ponderlm2", Mixture.HIDDEN, 2.5 * HIDDEN_SIZE),
        ("ponderlm2", Mixture.SOFTMAX, HIDDEN_SIZE),
        ("ponderlm2", Mixture.TOP_K, HIDDEN_SIZE),
        ("ponderlm3", Mixture.HIDDEN, 2.5 * HIDDEN_SIZE),
        ("ponderlm3", Mixture.SOFTMAX, HIDDEN_SIZE),
        ("ponderlm3", Mixture.TOP_K, HIDDEN_SIZE),
    ],
)
@pytest.mark.parametrize("architecture", BACKBONES)
def test_scaling_is_another_table_of_embeddings(
    architecture: str, method: str, mixture: Mixture, factor: float
) -> None:
    backbone = random_backbone(architecture)
    scaled = with_scaled_embeddings(backbone, math.sqrt(factor))

    assert_same(
        logits(backbone, settings(method, mixture=mixture)),
        logits(scaled, settings(method, mixture=mixture, scale_embeds=False)),
    )


@pytest.mark.parametrize("architecture", BACKBONES)
def test_multiplied_embeddings_enter_once(architecture: str) -> None:
    # Where the hidden state is fed back, nothing else reads the embeddings.
    backbone = random_backbone(architecture)
    multiplied = with_scaled_embeddings(backbone, NUM_THOUGHTS)
    hidden = settings("ponderlm", mixture=Mixture.HIDDEN)
    mixed = settings("ponderlm", mixture=Mixture.SOFTMAX)

    assert_same(logits(backbone, replace(hidden, multiply_embedding=True)), logits(multiplied, hidden))
    assert_different(logits(backbone, replace(mixed, multiply_embedding=True)), logits(multiplied, mixed))


def test_the_residual_matters_from_the_second_iteration_on() -> None:
    backbone = random_backbone("llama")

    def with_residual(num_iterations: int, residual: Residual) -> Tensor:
        return logits(backbone, settings("ponderlm", num_iterations, residual=residual))

    assert_same(with_residual(1, Residual.FROM_EMBEDDING), with_residual(1, Residual.ACCUMULATE))
    assert_different(with_residual(2, Residual.FROM_EMBEDDING), with_residual(2, Residual.ACCUMULATE))


@pytest.mark.parametrize("method", ["ponderlm", "ponderlm2", "ponderlm3", "adaponderlm"])
def test_a_mixture_of_all_embeddings_is_the_softmax(method: str) -> None:
    backbone = random_backbone("llama")

    found = logits(backbone, settings(method, mixture=Mixture.TOP_K, mixture_top_k=VOCAB_SIZE))

    assert_same(found, logits(backbone, settings(method, mixture=Mixture.SOFTMAX)))
    assert_different(found, logits(backbone, settings(method, mixture=Mixture.TOP_K, mixture_top_k=2)))


def test_a_mixture_of_one_is_the_likeliest_embedding() -> None:
    backbone = random_backbone("neox")
    first = logits(backbone, settings("ponderlm2", 0, mixture=Mixture.TOP_K))

    results = consume(backbone, settings("ponderlm2", 1, mixture=Mixture.TOP_K, mixture_top_k=1))

    likeliest = int(first[0].argmax())
    assert_same(results[0].thoughts[0], math.sqrt(HIDDEN_SIZE) * backbone.embeddings[likeliest])


@pytest.mark.parametrize("method", ["ponderlm", "adaponderlm"])
def test_a_cold_softmax_picks_the_likeliest_embedding(method: str) -> None:
    backbone = random_backbone("llama")
    cold = settings(method, mixture=Mixture.SOFTMAX, softmax_temperature=1e-6)

    assert_same(
        logits(backbone, cold), logits(backbone, settings(method, mixture=Mixture.TOP_K, mixture_top_k=1))
    )
    assert_different(logits(backbone, cold), logits(backbone, replace(cold, softmax_temperature=1.0)))


@pytest.mark.parametrize("method", Method)
@pytest.mark.parametrize("architecture", BACKBONES)
def test_only_distances_of_positions_matter(architecture: str, method: Method) -> None:
    backbone = random_backbone(architecture)

    for one, other in zip(
        consume(backbone, settings(method)), consume(backbone, settings(method), start=7), strict=True
    ):
        assert_same(one.logits, other.logits)


@pytest.mark.parametrize("method", ["ponderlm3", "adaponderlm"])
def test_halting_differs_from_token_to_token(method: str) -> None:
    results = consume(random_backbone("llama"), settings(method, pruning_threshold=0.1))

    assert len({result.rows for result in results}) > 1
    assert all(result.rows == 1 + result.steps for result in results)


def test_query_heads_side_by_side_share_keys_and_values() -> None:
    backbone = random_backbone("llama")
    shared, repeated = {}, {}
    for index in range(NUM_LAYERS):
        for part in ("k_proj", "v_proj"):
            name = f"model.layers.{index}.self_attn.{part}.weight"
            first, second, _, _ = backbone.weights[name].chunk(NUM_HEADS)
            shared[name] = torch.cat([first, second])
            repeated[name] = torch.cat([first, first, second, second])

    assert_same(
        logits(replace(with_weights(backbone, shared), num_key_value_heads=2), settings("ponderlm2")),
        logits(with_weights(backbone, repeated), settings("ponderlm2")),
    )

"""The account by hand: phases, rows, parameters. What torch counts is in `test_flops_counted.py`."""

import dataclasses

import pytest

from megatron_ext.ponder.config import Method, Penalty, ReadoutFrom, RouterForm, RouterKind
from pipeline.cost.flops import FlopsAccount
from pipeline.cost.shape import ModelShape

SHAPE = ModelShape(
    architecture="llama",
    num_layers=2,
    hidden_size=32,
    ffn_hidden_size=72,
    num_attention_heads=4,
    num_query_groups=2,
    kv_channels=8,
    vocab_size=90,
    padded_vocab_size=96,
    seq_length=24,
)


def test_phases_of_a_hand_computed_model() -> None:
    shape = ModelShape(
        architecture="gpt_neox",
        num_layers=1,
        hidden_size=4,
        ffn_hidden_size=8,
        num_attention_heads=2,
        num_query_groups=2,
        kv_channels=2,
        vocab_size=10,
        padded_vocab_size=10,
        seq_length=5,
    )
    flops = FlopsAccount(
        shape=shape, method=Method.PONDERLM3, num_latent_thoughts=1, recompute="full"
    ).training_flops(2)
    # Five rows see 1, 2, .. 5 rows; ten rows see 55, eleven for each of the five tokens. What slot 0 is
    # multiplied with in the first pass, it is not in the others; in a sweep only keys and values of slot 1
    # are of use, from the product that gives its query too.
    heads, output, mlp = 4 * 12, 4 * 4, 2 * 4 * 8
    one_row = 2 * (heads + output + mlp) + 4 * 3 * 4
    sweep = 2 * (output + heads) + 4 * 11 * 4
    two_rows = 2 * (output + heads + output + mlp) + 4 * 11 * 4
    assert flops.build_up == 3 * one_row
    assert flops.sweeps == 3 * 2 * sweep
    assert flops.final == 3 * two_rows
    assert flops.head == 3 * 2 * 4 * 10
    assert flops.decider == 3 * 4 * 2 * (4 * 1 + 1 * 2)
    assert flops.recompute == one_row + 2 * sweep + two_rows
    # A head of two channels takes six more for the weights; two heads; forward, backward and once again.
    assert flops.weight_columns == 4 * 4 * (3 * 11) * 2 * 6
    assert flops.masked == 4 * 4 * ((5 - 3) * 4 + 3 * (20 - 11) * (4 + 2 * 6))
    assert flops.hardware - flops.model == flops.recompute + flops.weight_columns
    assert flops.dense - flops.hardware == flops.masked


def test_gates_and_mixtures_of_a_hand_computed_model() -> None:
    account = FlopsAccount(shape=SHAPE, method=Method.ADAPONDERLM, num_latent_thoughts=2, mixture="top_k")
    head, mixture, gate = 2 * 32 * 96, 2 * 2 * 32 * 96, 2 * (32 * 128 + 128)
    one_pass = 2 * (2 * (32 * 64 + 32 * 32 + 3 * 32 * 72) + 4 * 12.5 * 32)
    flops = account.training_flops(2)
    assert (flops.build_up, flops.sweeps, flops.final) == (3 * 2 * one_pass, 0, 3 * one_pass)
    assert (flops.mixture, flops.decider) == (3 * 2 * mixture, 3 * 2 * gate)
    assert flops.model == 3 * (3 * one_pass + head + 2 * mixture + 2 * gate)
    assert account.inference_per_token(0) == one_pass + head + gate
    assert account.inference_per_token(1) == 2 * one_pass + head + mixture + 2 * gate
    # Half of the tokens stop at once and read one gate, the others take both steps and read two.
    assert (
        account.inference_per_token(1, shares=(0.5, 0.0, 0.5)) == 2 * one_pass + head + mixture + 1.5 * gate
    )
    assert account.inference_per_token(2) == 3 * one_pass + head + 2 * mixture + 2 * gate
    assert account.parameters().decider == 2 * (32 * 128 + 128 + 128 + 1)


def test_the_form_of_the_authors_asks_a_smaller_router_less_often_and_reads_more_heads() -> None:
    form = RouterForm(
        router=RouterKind.LINEAR, pre_pass=True, readout_from=ReadoutFrom.LAST_SWEEP, router_damping=0.1
    )
    account = FlopsAccount(
        shape=SHAPE,
        method=Method.PONDERLM3,
        num_latent_thoughts=3,
        form=form,
        penalty=Penalty.ACCURACY_BOTTOM,
    )
    usual = FlopsAccount(shape=SHAPE, method=Method.PONDERLM3, num_latent_thoughts=3)
    flops, others = account.training_flops(2), usual.training_flops(2)
    # After the first pass and both sweeps, of six passes.
    assert flops.decider == 3 * 3 * 2 * 32 * 4
    # Heads after 0, 1 and 2 steps, forward alone.
    assert flops.predictions == 3 * 2 * 32 * 96
    assert others.predictions == 0
    differing = flops.predictions + flops.decider - others.decider
    assert flops.model - others.model == pytest.approx(differing)
    assert account.num_passes(2) == usual.num_passes(2)
    assert account.inference_flops(1).decider == 2 * 32 * 4
    assert account.parameters().decider == 32 * 4 + 4
    # Linear in the number of sweeps, so that a drawn J can be accounted by its mean.
    assert account.training_flops(4.5).model == pytest.approx(
        (account.training_flops(4).model + account.training_flops(5).model) / 2
    )


def test_steps_that_see_all_earlier_ones_of_a_hand_computed_model() -> None:
    account = FlopsAccount(shape=SHAPE, method=Method.ADAPTIVE_LATENT_COT, num_latent_thoughts=2)
    head, router = 2 * 32 * 96, 2 * 32
    layers = 2 * 2 * (32 * 64 + 32 * 32 + 3 * 32 * 72)
    square = 2 * 4 * 12.5 * 32
    flops = account.training_flops(0)
    assert (flops.build_up, flops.sweeps) == (3 * (2 * layers + (1 + 2) * square), 0)
    assert flops.final == 3 * (layers + 3 * square)
    # What the head says of steps 0 and 1 has no gradient; the router is asked after them.
    assert (flops.head, flops.predictions, flops.decider) == (3 * head, 2 * head, 3 * 2 * router)
    assert flops.model == 3 * (3 * layers + 6 * square + head + 2 * router) + 2 * head
    # Half of the tokens stop at once; a step sees, of 11.5 tokens on average, those that ran it.
    spent = account.inference_flops(1, shares=(0.5, 0.0, 0.5))
    pairs = (11.5 + 1) + 0.5 * (11.5 * 1.5 + 2) + 0.5 * (11.5 * 2 + 3)
    assert spent.layers == 2 * layers
    assert spent.attention == 2 * 4 * pairs * 32
    assert spent.decider == 1.5 * router
    assert account.inference_per_token(2) == spent.model + layers + 0.5 * router + 2 * 4 * 32 * (
        6 * 11.5 + 6 - pairs
    )


@pytest.mark.parametrize("method", Method)
def test_recomputation_by_passes_is_as_much_as_by_layers(method: str) -> None:
    costs = [
        FlopsAccount(
            shape=SHAPE, method=Method(method), num_latent_thoughts=2, recompute=kind
        ).training_flops(1)
        for kind in ("per_pass", "full", "none", "selective")
    ]
    assert costs[0] == costs[1]
    # Norms, activations and copies have no products.
    assert costs[2] == costs[3]
    assert costs[2].recompute == 0
    # Everything but the head is gone through once more, a third of forward and backward.
    again = (costs[1].build_up + costs[1].sweeps + costs[1].final) / 3
    assert costs[1].recompute == pytest.approx(again)


@pytest.mark.parametrize(
    ("method", "thoughts", "sweeps", "passes", "rows"),
    [
        ("vanilla", 0, 0, 1, 1),
        ("loop", 3, 0, 4, 4),
        ("pause", 3, 0, 1, 4),
        ("ponderlm", 3, 0, 4, 4),
        ("ponderlm2", 0, 2, 1, 1),
        ("ponderlm2", 1, 3, 5, 9),
        ("ponderlm2", 3, 2, 6, 18),
        ("adaponderlm", 2, 0, 3, 3),
        ("ponderlm3", 3, 2, 6, 18),
        ("adaptive_latent_cot", 2, 0, 3, 3),
    ],
)
def test_passes_and_rows_follow_the_schedule(
    method: str, thoughts: int, sweeps: int, passes: int, rows: int
) -> None:
    account = FlopsAccount(shape=SHAPE, method=Method(method), num_latent_thoughts=thoughts)
    assert account.num_passes(sweeps) == passes
    assert account.training_rows_per_token(sweeps) == rows


@pytest.mark.parametrize(
    ("method", "thoughts", "rows", "depth"),
    [
        ("vanilla", 0, 1, 2),
        ("loop", 3, 4, 8),
        ("pause", 3, 4, 2),
        ("ponderlm", 3, 4, 8),
        ("ponderlm2", 3, 4, 8),
        ("adaponderlm", 3, 2.5, 5),
        ("ponderlm3", 3, 2.5, 5),
        ("adaptive_latent_cot", 3, 2.5, 5),
    ],
)
def test_rows_and_depth_of_a_decoder_follow_the_steps_taken_where_tokens_halt(
    method: str, thoughts: int, rows: float, depth: float
) -> None:
    account = FlopsAccount(shape=SHAPE, method=Method(method), num_latent_thoughts=thoughts)
    assert account.inference_rows_per_token(1.5) == rows
    assert account.effective_depth(1.5) == depth
    assert account.halts is (rows == 2.5)


@pytest.mark.parametrize("method", ["ponderlm3", "adaponderlm", "adaptive_latent_cot"])
def test_halting_saves_nothing_when_every_step_is_taken_and_more_the_earlier_it_comes(method: str) -> None:
    account = FlopsAccount(shape=SHAPE, method=Method(method), num_latent_thoughts=3)
    assert account.saved_fraction(3.0) == 0.0
    assert 0 < account.saved_fraction(2.0) < account.saved_fraction(1.0) < 1


@pytest.mark.parametrize(
    ("layers", "hidden", "heads", "non_embedding", "total"),
    [
        (6, 512, 8, 18_915_328, 70_426_624),
        (24, 1024, 16, 302_311_424, 405_334_016),
        (24, 2048, 16, 1_208_602_624, 1_414_647_808),
        (32, 2560, 32, 2_517_652_480, 2_775_208_960),
    ],
)
def test_parameters_are_those_of_pythia(
    layers: int, hidden: int, heads: int, non_embedding: int, total: int
) -> None:
    shape = ModelShape(
        architecture="gpt_neox",
        num_layers=layers,
        hidden_size=hidden,
        ffn_hidden_size=4 * hidden,
        num_attention_heads=heads,
        num_query_groups=heads,
        kv_channels=hidden // heads,
        vocab_size=50_277,
        padded_vocab_size=50_304,
        seq_length=2048,
    )
    count = FlopsAccount(shape=shape, method=Method.VANILLA).parameters()
    assert (count.non_embedding, count.total) == (non_embedding, total)


def test_parameters_are_those_of_ponderlm2s_llama_410m() -> None:
    shape = ModelShape(
        architecture="llama",
        num_layers=24,
        hidden_size=1024,
        ffn_hidden_size=2752,
        num_attention_heads=16,
        num_query_groups=16,
        kv_channels=64,
        vocab_size=50_304,
        padded_vocab_size=50_304,
        seq_length=2048,
    )
    count = FlopsAccount(shape=shape, method=Method.PONDERLM2, num_latent_thoughts=1).parameters()
    assert (count.non_embedding, count.total) == (303_612_928, 406_635_520)


def test_router_and_tied_embeddings_are_counted() -> None:
    account = FlopsAccount(
        shape=dataclasses.replace(SHAPE, tied_embeddings=True), method=Method.PONDERLM3, num_latent_thoughts=3
    )
    assert account.parameters().decider == 32 * 8 + 8 + 8 * 4 + 4
    assert account.parameters().head == 0

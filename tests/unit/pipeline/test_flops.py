"""The account is compared with what torch counts on a plain twin of the model."""

import dataclasses

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from megatron_ext.ponder.config import Method
from pipeline.flops import FlopsAccount
from pipeline.model_shape import ModelShape

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


class TwinLayer(nn.Module):
    """Attention and MLP of a layer, without the norms, which cost no products."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.shape = shape
        self.query_key_value = nn.Linear(shape.hidden_size, shape.query_size + shape.key_value_size)
        self.projection = nn.Linear(shape.query_size, shape.hidden_size)
        self.up = nn.Linear(shape.hidden_size, shape.ffn_hidden_size * (2 if shape.is_gated else 1))
        self.down = nn.Linear(shape.ffn_hidden_size, shape.hidden_size)

    def forward(self, rows: Tensor) -> Tensor:
        shape = self.shape
        sizes = [shape.query_size, shape.key_value_size // 2, shape.key_value_size // 2]
        # [M, heads * d] -> [heads, M, d]
        query, key, value = (
            part.unflatten(-1, (-1, shape.kv_channels)).transpose(0, 1)
            for part in self.query_key_value(rows).split(sizes, dim=-1)
        )
        repeats = shape.num_attention_heads // shape.num_query_groups
        key, value = key.repeat_interleave(repeats, 0), value.repeat_interleave(repeats, 0)
        scores = (query @ key.transpose(1, 2)).softmax(-1)
        rows = rows + self.projection((scores @ value).transpose(0, 1).flatten(1))
        hidden = self.up(rows)
        if shape.is_gated:
            gate, hidden = hidden.chunk(2, dim=-1)
            hidden = hidden * gate.sigmoid()
        return rows + self.down(hidden)


class Twin(nn.Module):
    """The passes of every method, in a few lines of plain torch."""

    def __init__(self, account: FlopsAccount) -> None:
        super().__init__()
        shape, self.account = account.shape, account
        self.embedding = nn.Embedding(shape.padded_vocab_size, shape.hidden_size)
        self.head = nn.Linear(shape.hidden_size, shape.padded_vocab_size, bias=False)
        self.layers = nn.ModuleList(TwinLayer(shape) for _ in range(shape.num_layers))
        hidden, steps = shape.hidden_size, account.num_latent_thoughts + 1
        self.router = nn.Sequential(nn.Linear(hidden, hidden // 4), nn.Linear(hidden // 4, steps))
        self.gates = nn.ModuleList(
            nn.Sequential(nn.Linear(hidden, 4 * hidden), nn.Linear(4 * hidden, 1)) for _ in range(steps - 1)
        )

    def forward(self, tokens: Tensor, num_jacobi_iterations: int) -> Tensor:
        """Return the logits of a training forward, plus what router and gates add to the graph."""
        if self.account.method == "pause":
            return self.head(self.run_layers([self.embedding(tokens)] * (1 + self.steps))[-1])
        if self.account.method in ("ponderlm2", "ponderlm3"):
            return self.refine(tokens, num_jacobi_iterations)
        return self.iterate(tokens, self.steps)

    @property
    def steps(self) -> int:
        return self.account.num_latent_thoughts

    def refine(self, tokens: Tensor, num_jacobi_iterations: int) -> Tensor:
        """Build up latent thoughts and refine them in sweeps."""
        slots = [self.embedding(tokens)]
        routed = torch.zeros(())
        sweeps = num_jacobi_iterations if self.steps else 0
        for _ in range(self.steps + sweeps):
            hidden = self.run_layers(slots)
            routed = routed + self.route(hidden[0])
            slots = [slots[0]] + [self.thought(state) for state in hidden[: self.steps]]
        hidden = self.run_layers(slots)
        return self.head(hidden[-1]) + routed + self.route(hidden[0])

    def iterate(self, tokens: Tensor, active: int) -> Tensor:
        """Go through the layers again and again, as long as a token is active."""
        rows = self.embedding(tokens)
        for iteration in range(active):
            (hidden,) = self.run_layers([rows])
            rows = rows + self.thought(hidden) * self.gate(hidden, iteration)
        (hidden,) = self.run_layers([rows])
        # A token that halts early has been told so by one more gate.
        last = self.gate(hidden, active) if active < self.steps else 1
        return self.head(hidden) * last

    def run_layers(self, slots: list[Tensor]) -> list[Tensor]:
        rows = torch.cat(slots)
        for layer in self.layers:
            rows = layer(rows)
        return list(rows.chunk(len(slots)))

    def route(self, state: Tensor) -> Tensor:
        return self.router(state).sum() if self.account.method == "ponderlm3" else torch.zeros(())

    def gate(self, state: Tensor, iteration: int) -> Tensor | int:
        return self.gates[iteration](state) if self.account.method == "adaponderlm" else 1

    def thought(self, state: Tensor) -> Tensor:
        if self.account.mixture == "hidden":
            return state
        return self.head(state).softmax(-1) @ self.embedding.weight


def counted_per_token(account: FlopsAccount, num_jacobi_iterations: int) -> float:
    """Let torch count one training step of the twin."""
    twin = Twin(account)
    tokens = torch.arange(account.shape.seq_length)
    with FlopCounterMode(display=False) as counter:
        twin(tokens, num_jacobi_iterations).sum().backward()
    return counter.get_total_flops() / account.shape.seq_length


@pytest.mark.parametrize("architecture", ["gpt_neox", "llama"])
@pytest.mark.parametrize(
    ("method", "num_latent_thoughts", "num_jacobi_iterations", "mixture"),
    [
        ("vanilla", 0, 0, "hidden"),
        ("loop", 2, 0, "hidden"),
        ("pause", 3, 0, "hidden"),
        ("ponderlm", 0, 0, "softmax"),
        ("ponderlm", 2, 0, "hidden"),
        ("ponderlm", 3, 0, "softmax"),
        ("ponderlm2", 1, 0, "hidden"),
        ("ponderlm2", 3, 2, "hidden"),
        ("ponderlm2", 2, 1, "softmax"),
        ("adaponderlm", 1, 0, "hidden"),
        ("adaponderlm", 3, 0, "softmax"),
        ("ponderlm3", 3, 2, "hidden"),
        ("ponderlm3", 2, 0, "softmax"),
    ],
)
def test_training_flops_equal_what_torch_counts(
    architecture: str, method: str, num_latent_thoughts: int, num_jacobi_iterations: int, mixture: str
) -> None:
    shape = dataclasses.replace(SHAPE, architecture=architecture)
    account = FlopsAccount(
        shape=shape, method=Method(method), num_latent_thoughts=num_latent_thoughts, mixture=mixture
    )
    counted = counted_per_token(account, num_jacobi_iterations)
    assert account.training_per_token(num_jacobi_iterations) == pytest.approx(counted, rel=0.01)


@pytest.mark.parametrize(
    ("method", "thoughts", "steps"),
    [("vanilla", 0, 0), ("pause", 2, 2), ("ponderlm2", 3, 3), ("ponderlm3", 3, 2)],
)
def test_inference_flops_equal_one_pass_over_the_kept_rows(method: str, thoughts: int, steps: int) -> None:
    account = FlopsAccount(shape=SHAPE, method=Method(method), num_latent_thoughts=thoughts)
    twin = Twin(account)
    tokens = torch.arange(SHAPE.seq_length)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        hidden = twin.run_layers([twin.embedding(tokens)] * (steps + 1))
        twin.route(hidden[0])
        twin.head(hidden[-1])
    counted = counter.get_total_flops() / SHAPE.seq_length
    assert account.inference_per_token(float(steps)) == pytest.approx(counted, rel=0.01)


@pytest.mark.parametrize(
    ("method", "thoughts", "steps", "mixture"),
    [
        ("loop", 2, 2, "hidden"),
        ("ponderlm", 3, 3, "softmax"),
        ("adaponderlm", 3, 0, "softmax"),
        ("adaponderlm", 3, 1, "hidden"),
        ("adaponderlm", 3, 2, "softmax"),
        ("adaponderlm", 3, 3, "softmax"),
    ],
)
def test_inference_flops_equal_the_iterations_that_run(
    method: str, thoughts: int, steps: int, mixture: str
) -> None:
    account = FlopsAccount(shape=SHAPE, method=Method(method), num_latent_thoughts=thoughts, mixture=mixture)
    twin = Twin(account)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        twin.iterate(torch.arange(SHAPE.seq_length), steps)
    counted = counter.get_total_flops() / SHAPE.seq_length
    assert account.inference_per_token(float(steps)) == pytest.approx(counted, rel=0.001)


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
    one_row = 2 * (4 * 12 + 4 * 4 + 2 * 4 * 8) + 4 * 1 * 5 * 4
    two_rows = 2 * 2 * (4 * 12 + 4 * 4 + 2 * 4 * 8) + 4 * 4 * 5 * 4
    assert flops.build_up == 3 * one_row
    assert flops.sweeps == 3 * 2 * two_rows
    assert flops.final == 3 * two_rows
    assert flops.head == 3 * 2 * 4 * 10
    assert flops.router == 3 * 4 * 2 * (4 * 1 + 1 * 2)
    assert flops.recompute == one_row + 3 * two_rows
    assert flops.hardware - flops.model == flops.recompute


def test_gates_and_mixtures_of_a_hand_computed_model() -> None:
    account = FlopsAccount(shape=SHAPE, method=Method.ADAPONDERLM, num_latent_thoughts=2, mixture="top_k")
    head, mixture, gate = 2 * 32 * 96, 2 * 2 * 32 * 96, 2 * (32 * 128 + 128)
    one_pass = 2 * (2 * (32 * 64 + 32 * 32 + 3 * 32 * 72) + 4 * 24 * 32)
    flops = account.training_flops(2)
    assert (flops.build_up, flops.sweeps, flops.final) == (3 * 2 * one_pass, 0, 3 * one_pass)
    assert (flops.mixture, flops.gates, flops.router) == (3 * 2 * mixture, 3 * 2 * gate, 0)
    assert flops.model == 3 * (3 * one_pass + head + 2 * mixture + 2 * gate)
    assert account.inference_per_token(0) == one_pass + head + gate
    assert account.inference_per_token(1) == 2 * one_pass + head + mixture + 2 * gate
    assert account.inference_per_token(2) == 3 * one_pass + head + 2 * mixture + 2 * gate
    assert account.parameters().gates == 2 * (32 * 128 + 128 + 128 + 1)


@pytest.mark.parametrize("method", Method)
def test_recomputation_by_passes_is_as_much_as_by_layers(method: str) -> None:
    costs = [
        FlopsAccount(
            shape=SHAPE, method=Method(method), num_latent_thoughts=2, recompute=kind
        ).training_flops(1)
        for kind in ("per_pass", "full", "none")
    ]
    assert costs[0] == costs[1]
    assert costs[2].recompute == 0
    # Everything but the head is gone through once more, a third of forward and backward.
    assert costs[1].recompute == (costs[1].build_up + costs[1].sweeps + costs[1].final) / 3


def test_selective_recompute_repeats_the_attention_only() -> None:
    account = FlopsAccount(shape=SHAPE, method=Method.PONDERLM2, num_latent_thoughts=1, recompute="selective")
    pairs = (1 + 2 * 4) * SHAPE.seq_length
    assert account.training_flops(1).recompute == SHAPE.num_layers * 4 * pairs * SHAPE.query_size


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
    ],
)
def test_rows_and_depth_of_a_decoder_follow_the_steps_taken_where_tokens_halt(
    method: str, thoughts: int, rows: float, depth: float
) -> None:
    account = FlopsAccount(shape=SHAPE, method=Method(method), num_latent_thoughts=thoughts)
    assert account.inference_rows_per_token(1.5) == rows
    assert account.effective_depth(1.5) == depth
    assert account.halts is (rows == 2.5)


@pytest.mark.parametrize("method", ["ponderlm3", "adaponderlm"])
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
    assert account.parameters().router == 32 * 8 + 8 + 8 * 4 + 4
    assert account.parameters().head == 0
    assert account.parameters().gates == 0

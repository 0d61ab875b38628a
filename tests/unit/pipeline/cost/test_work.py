"""What the plan takes a layer to do, beside what a rehearsed one does."""

from typing import Any

import pytest

from pipeline.config.load import build_config
from pipeline.config.schema import RunConfig
from pipeline.cost.flops import Phase
from pipeline.cost.rank_sizes import rank_sizes
from pipeline.cost.work import program_of
from pipeline.rehearsal.rehearse import rehearse_rank

VOCAB_SIZE = 64
# So many that nothing else counts, neither weights nor what happens once in a step.
NUM_TOKENS = 2**15
NUM_MICRO_BATCHES = 1000
PHASES: tuple[Phase, ...] = ("forward", "backward")


def run_of(ponder: dict[str, Any], architecture: str, fused: str, num_layers: int) -> RunConfig:
    """A run with long rows and many micro-batches, of which two are rehearsed."""
    return build_config(
        {
            "name": "rehearsed",
            "model": {
                "architecture": architecture,
                "num_layers": num_layers,
                "hidden_size": 256,
                "ffn_hidden_size": 640,
                "num_attention_heads": 8,
                "kv_channels": 64,
                "max_position_embeddings": NUM_TOKENS,
            },
            "ponder": ponder,
            "training": {
                "seq_length": NUM_TOKENS,
                "micro_batch_size": 1,
                "global_batch_size": NUM_MICRO_BATCHES,
                "train_iters": 2,
                "precision": "bf16",
                "fused": fused,
            },
            "optimizer": {"lr": 1e-3},
            "data": {"path": "not-read"},
        }
    )


@pytest.mark.parametrize("fused", ["auto", "never"])
@pytest.mark.parametrize(
    ("ponder", "architecture"),
    [
        ({"method": "vanilla"}, "llama"),
        ({"method": "vanilla"}, "gpt_neox"),
        ({"method": "ponderlm3", "num_latent_thoughts": 1, "num_jacobi_iterations": 1}, "llama"),
    ],
    ids=["llama", "gpt_neox", "weighted"],
)
def test_a_layer_moves_and_launches_as_much_as_planned(
    ponder: dict[str, Any], architecture: str, fused: str
) -> None:
    # The first and the last layer are left out: rows that nobody reads are spared there.
    fewer, more = (
        rehearse_rank(run_of(ponder, architecture, fused, number), VOCAB_SIZE, 0) for number in (2, 3)
    )
    sizes = rank_sizes(run_of(ponder, architecture, fused, 3), VOCAB_SIZE)
    program = program_of(sizes)
    planned = [(index, phase) for index in range(sizes.num_passes) for phase in PHASES]

    moved, launches = (
        sum(count(sizes, index, phase) for index, phase in planned)
        for count in (program.layer_bytes, program.layer_launches)
    )
    assert (more.moved_bytes - fewer.moved_bytes) / NUM_MICRO_BATCHES == pytest.approx(moved, rel=0.03)
    assert (more.kernels - fewer.kernels) / NUM_MICRO_BATCHES == pytest.approx(launches, rel=0.05)


@pytest.mark.parametrize("fused", ["auto", "never"])
def test_a_loss_and_a_mixture_move_as_much_of_the_vocabulary_as_planned(fused: str) -> None:
    ponder = {"method": "ponderlm", "num_latent_thoughts": 1}
    run = run_of(ponder, "llama", fused, 1)
    # With rows that pad the vocabulary, as in the recipes: to 1,024 and 2,048.
    smaller, larger = (rehearse_rank(run, size, 0) for size in (1000, 2000))
    program = program_of(rank_sizes(run, VOCAB_SIZE))

    moved = (larger.moved_bytes - smaller.moved_bytes) / NUM_MICRO_BATCHES / NUM_TOKENS / 1024
    planned = sum(program.loss(phase) + program.mixture(phase) for phase in PHASES)
    assert moved == pytest.approx(planned, rel=0.03)

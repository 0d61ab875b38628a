"""The planned memory against the tensors that are alive on every rank of a layout."""

from dataclasses import replace
from typing import Any

import pytest

from pipeline.config.load import build_config
from pipeline.config.schema import RunConfig
from pipeline.cost.memory import rank_memories
from pipeline.cost.rank_sizes import rank_sizes
from tests.bench.memory import measure_steps
from tests.support.ranks import SharedRanks

pytestmark = pytest.mark.multiprocess
VOCAB_SIZE = 1000


def run_of(
    method: str,
    parallel: dict[str, Any],
    *,
    num_micro_batches: int = 4,
    vocab_size: int = VOCAB_SIZE,
    optimizer: str = "adamw",
    **further: Any,
) -> RunConfig:
    ponder = {} if method == "vanilla" else {"num_latent_thoughts": 2} | further
    return build_config(
        {
            "model": {
                "architecture": "gpt_neox",
                "num_layers": 4,
                "hidden_size": 128,
                "ffn_hidden_size": 512,
                "num_attention_heads": 4,
                "vocab_size": vocab_size,
            },
            "ponder": {"method": method, **ponder},
            "parallel": parallel,
            "training": {
                "seq_length": 128,
                "micro_batch_size": 2,
                "global_batch_size": 2 * num_micro_batches * parallel.get("data", 1),
                "train_iters": 2,
                "precision": "bf16",
            },
            "optimizer": {"name": optimizer, "lr": 1e-3},
            "data": {"path": "not-read"},
        }
    )


@pytest.mark.parametrize("method", ["vanilla", "adaponderlm", "ponderlm3", "adaptive_latent_cot"])
@pytest.mark.parametrize(
    "parallel",
    [
        {"tensor": 2},
        {"tensor": 2, "sequence_parallel": True},
        {"pipeline": 2},
        {"pipeline": 2, "recompute": "full"},
        {"data": 2},
        {"context": 2},
    ],
    ids=str,
)
def test_every_rank_has_the_planned_peak_within_a_tenth(
    ranks: SharedRanks, method: str, parallel: dict[str, Any]
) -> None:
    assert_planned_peaks(ranks, run_of(method, parallel))


@pytest.mark.parametrize("parallel", [{"tensor": 2}, {"data": 2}], ids=str)
def test_the_state_of_muon_is_planned(ranks: SharedRanks, parallel: dict[str, Any]) -> None:
    config = run_of("ponderlm3", parallel, optimizer="muon")
    (memory,) = rank_memories(
        replace(rank_sizes(config, VOCAB_SIZE, has_fused_norms=False), separates_documents=False)
    )

    measured = ranks.run(measure_steps, 2, config, VOCAB_SIZE)

    # Data-parallel ranks hold different weights; the plan is that of the one which holds most.
    assert memory.between_steps == pytest.approx(max(state for state, _ in measured), rel=0.03)
    assert memory.peak == pytest.approx(max(peak for _, peak in measured), rel=0.1)


def test_the_weighted_keys_of_a_blended_start_are_planned(ranks: SharedRanks) -> None:
    assert_planned_peaks(ranks, run_of("ponderlm2", {"tensor": 2}, blended_start_iterations=2))


@pytest.mark.parametrize("parallel", [{"data": 2}, {"pipeline": 2}], ids=str)
def test_passes_without_gradients_are_planned(ranks: SharedRanks, parallel: dict[str, Any]) -> None:
    assert_planned_peaks(ranks, run_of("ponderlm3", parallel, gradient_passes=2))


def test_the_logits_of_every_step_are_planned(ranks: SharedRanks) -> None:
    # So large that the readings of three more steps are more than the tolerance.
    vocab_size = 12000
    plain = run_of("ponderlm3", {"tensor": 2}, vocab_size=vocab_size)
    config = run_of("ponderlm3", {"tensor": 2}, vocab_size=vocab_size, step_loss_weight=0.5)

    (more,), (less,) = (
        rank_memories(rank_sizes(each, vocab_size, has_fused_norms=False)) for each in (config, plain)
    )
    assert more.peak > 1.2 * less.peak
    assert_planned_peaks(ranks, config)


def assert_planned_peaks(ranks: SharedRanks, config: RunConfig) -> None:
    vocab_size = config.model.vocab_size or VOCAB_SIZE
    sizes = rank_sizes(config, vocab_size, has_fused_norms=False)
    planned = rank_memories(replace(sizes, separates_documents=False))

    measured = ranks.run(measure_steps, 2, config, vocab_size)

    for rank, (state, peak) in enumerate(measured):
        memory = planned[rank if len(planned) > 1 else 0]
        assert memory.between_steps == pytest.approx(state, rel=0.03)
        assert memory.peak == pytest.approx(peak, rel=0.1)


def test_a_stage_holds_no_more_with_more_micro_batches(ranks: SharedRanks) -> None:
    few, many = (
        ranks.run(
            measure_steps, 2, run_of("adaponderlm", {"pipeline": 2}, num_micro_batches=number), VOCAB_SIZE
        )
        for number in (8, 24)
    )

    for (_, peak), (_, peak_of_many) in zip(few, many, strict=True):
        # The tokens themselves stay.
        assert peak_of_many == pytest.approx(peak, rel=0.02)

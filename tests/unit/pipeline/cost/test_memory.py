from dataclasses import replace
from typing import Any

import pytest

from megatron_ext.ponder.config import Method
from pipeline.config.load import build_config
from pipeline.cost.account import flops_account
from pipeline.cost.memory import rank_memories
from pipeline.cost.parameters import rank_parameters, state_bytes
from pipeline.cost.rank_sizes import RankSizes, rank_sizes
from tests.unit.pipeline.config.settings import changed_settings

VOCAB_SIZE = 1000


def sizes_of(**changes: Any) -> RankSizes:
    changes = {"training__precision": "bf16", **changes}
    return rank_sizes(build_config(changed_settings(**changes)), VOCAB_SIZE)


@pytest.mark.parametrize("architecture", ["gpt_neox", "llama"])
@pytest.mark.parametrize("method", Method)
@pytest.mark.parametrize("is_untied", [True, False])
def test_one_rank_holds_all_parameters(architecture: str, method: Method, is_untied: bool) -> None:
    config = build_config(
        changed_settings(
            model__architecture=architecture,
            model__untie_embeddings_and_output_weights=is_untied,
            ponder={"method": method.value},
        )
    )

    found = rank_parameters(rank_sizes(config, VOCAB_SIZE), 0)

    assert found.total == flops_account(config, VOCAB_SIZE).parameters().total


def test_stages_share_the_parameters_and_mixtures_need_the_embedding_twice() -> None:
    alone = sizes_of(ponder={"method": "adaponderlm"})
    staged = sizes_of(
        ponder={"method": "adaponderlm"}, parallel={"pipeline": 2}, training__micro_batch_size=1
    )

    total = sum(rank_parameters(staged, stage).total for stage in (0, 1))

    assert total == rank_parameters(alone, 0).total + alone.shape.vocabulary_weights


@pytest.mark.parametrize(
    ("precision", "data", "is_shared", "bytes_per_parameter"),
    [
        ("bf16", 1, True, 2 + 4 + 4 + 8),
        ("bf16", 4, True, 2 + 4 + (4 + 8) / 4),
        ("bf16", 4, False, 2 + 4 + 4 + 8),
        ("fp32", 2, True, 4 + 4 + 8 / 2),
    ],
)
def test_bytes_of_a_parameter_follow_precision_and_data_parallel_ranks(
    precision: str, data: int, is_shared: bool, bytes_per_parameter: float
) -> None:
    sizes = sizes_of(
        training__precision=precision,
        parallel={"data": data, "use_distributed_optimizer": is_shared},
        training__micro_batch_size=1,
    )
    parameters = rank_parameters(sizes, 0)

    assert state_bytes(sizes, parameters).total == pytest.approx(bytes_per_parameter * parameters.total)


def test_every_pass_keeps_as_much_as_it_has_rows() -> None:
    (memory,) = rank_memories(
        sizes_of(
            ponder={"method": "ponderlm2", "num_latent_thoughts": 2, "num_jacobi_iterations": 1},
            training__micro_batch_size=8,
            # So many that rows which the first and the last one do not compute hardly count.
            model__num_layers=96,
        )
    )

    first, second, third, fourth = memory.fullest.by_pass
    # 1, 2, 3, 3 rows per token.
    assert second / first == pytest.approx(2, rel=0.02)
    assert third / first == pytest.approx(3, rel=0.02)
    assert fourth / first == pytest.approx(3, rel=0.02)


def test_what_is_computed_again_is_not_kept() -> None:
    peaks = {
        recompute: rank_memories(
            sizes_of(parallel={"recompute": recompute}, model__num_layers=8, training__micro_batch_size=8)
        )[0].peak
        for recompute in ("none", "selective", "full", "per_pass")
    }

    assert peaks["full"] < peaks["per_pass"] < peaks["selective"] < peaks["none"]


def test_a_graph_of_several_passes_collects_weights_gradients() -> None:
    sizes = sizes_of(
        ponder={"method": "loop"},
        training__seq_length=1,
        model__vocab_size=50,
        training__micro_batch_size=1,
        training__fused="never",
    )
    (memory,) = rank_memories(sizes)
    parameters = rank_parameters(sizes, 0)

    # With hardly any rows the gradients are what counts.
    assert memory.fullest.gradient_sums == 2 * (parameters.layers + parameters.method)
    (recomputed,) = rank_memories(replace(sizes, recompute="full"))
    assert recomputed.fullest.gradient_sums < memory.fullest.gradient_sums
    # Products add the gradients of their weights to the state.
    (fused,) = rank_memories(replace(sizes, fuses=True, accumulates=True))
    assert fused.fullest.gradient_sums == 2 * parameters.method


@pytest.mark.parametrize("method", ["vanilla", "adaponderlm", "ponderlm3"])
def test_fused_functions_keep_less(method: str) -> None:
    never, auto = (
        rank_memories(sizes_of(ponder={"method": method}, training__fused=fused))[0].peak
        for fused in ("never", "auto")
    )

    assert auto < never


def test_sequence_parallelism_splits_what_tensor_parallelism_leaves_whole() -> None:
    split = {"model__hidden_size": 256, "model__num_layers": 8, "training__micro_batch_size": 8}
    whole, sharded = (
        rank_memories(sizes_of(parallel={"tensor": 4, "sequence_parallel": shards}, **split))[0]
        for shards in (False, True)
    )

    assert sharded.fullest.activations < 0.8 * whole.fullest.activations
    assert sharded.fullest.communication > 0
    assert whole.fullest.communication == 0

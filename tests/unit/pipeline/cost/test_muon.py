from typing import Any

import pytest

from pipeline.config.load import build_config
from pipeline.cost.memory import rank_memories
from pipeline.cost.muon import rank_weights, state_bytes, update_bytes, update_flops
from pipeline.cost.parameters import rank_parameters
from pipeline.cost.peaks import DEVICES, GIB
from pipeline.cost.plan import Assumptions, plan_run
from pipeline.cost.rank_sizes import RankSizes, rank_sizes
from pipeline.cost.traffic import rank_traffic
from tests.unit.pipeline.config.settings import changed_settings

VOCAB_SIZE = 1000


def sizes_of(**changes: Any) -> RankSizes:
    changes = {"training__precision": "bf16", "optimizer__name": "muon", **changes}
    return rank_sizes(build_config(changed_settings(**changes)), VOCAB_SIZE)


@pytest.mark.parametrize("architecture", ["gpt_neox", "llama"])
@pytest.mark.parametrize("method", ["vanilla", "adaponderlm", "ponderlm3"])
@pytest.mark.parametrize("layout", [{}, {"tensor": 2}, {"pipeline": 2}], ids=str)
def test_the_weights_of_a_rank_are_all_its_parameters(
    architecture: str, method: str, layout: dict[str, int]
) -> None:
    sizes = sizes_of(model__architecture=architecture, ponder={"method": method}, parallel=layout)

    for stage in range(sizes.num_stages):
        weights = rank_weights(sizes, stage)
        assert sum(weight.elements for weight in weights) == rank_parameters(sizes, stage).total
        assert all(weight.elements for weight in weights)
        matrices = [weight for weight in weights if weight.matrices]
        assert len(matrices) == 4 * sizes.stage_layers[stage]
        of_layers = sum(weight.elements for weight in matrices)
        assert of_layers == sizes.stage_layers[stage] * sizes.shape.layer_weights / sizes.tensor


def test_matrices_have_one_moment_and_other_weights_two() -> None:
    sizes = sizes_of()
    matrices = 2 * sizes.shape.layer_weights
    total = rank_parameters(sizes, 0).total

    state = state_bytes(sizes, 0)

    assert state.moments == 4 * matrices + 8 * (total - matrices)
    assert (state.weights, state.gradients, state.main_weights) == (2 * total, 4 * total, 4 * total)


def test_data_parallel_ranks_share_the_state_by_whole_weights() -> None:
    layout = {"parallel": {"data": 4}, "training__micro_batch_size": 1, "model__num_layers": 8}
    alone, shared = sizes_of(model__num_layers=8), sizes_of(**layout)
    one, four = state_bytes(alone, 0), state_bytes(shared, 0)

    # The embedding and the head, 64 x 1024 each, cannot be divided further.
    assert one.moments / 4 < four.moments < one.moments / 2
    assert four.gradients == one.gradients
    assert rank_memories(shared)[0].state == four


def test_iterations_of_a_known_shape_are_counted() -> None:
    # Two layers of 64: query 64 x 64, key and value 64 x 64, projection 64 x 64, three of 176 x 64.
    square, wide = 2 * 3 * 64**3, 2 * (2 * 64 * 64 * 176 + 64**3)

    assert update_flops(sizes_of()) == 5 * 2 * (4 * square + 3 * wide)
    assert update_flops(sizes_of(optimizer__muon_num_ns_steps=2)) == 2 * 2 * (4 * square + 3 * wide)


def test_the_update_needs_room_for_the_largest_matrix() -> None:
    # Gate and up are one weight of two matrices: the direction of both, and the iteration of one.
    direction, elements = 4 * 2 * 176 * 64, 176 * 64

    assert update_bytes(sizes_of(), 0) == direction + 2 * (3 * elements + 2 * 64 * 64)


def test_gradients_and_weights_go_to_all_and_matrices_over_the_tensor_axis() -> None:
    layout = {"parallel": {"tensor": 2, "data": 2}, "training__micro_batch_size": 1}
    adamw, muon = (rank_traffic(sizes_of(optimizer__name=name, **layout)) for name in ("adamw", "muon"))
    sizes = sizes_of(**layout)

    # Gradients once more in float32, a half of them; in bfloat16 a half of the matrices in this rank's share.
    assert muon.data - adamw.data == 4 * rank_parameters(sizes, 0).total / 2
    assert muon.tensor - adamw.tensor == pytest.approx(2 * 2 * sizes.shape.layer_weights / 2 / 2)
    assert (muon.context, muon.pipeline) == (adamw.context, adamw.pipeline)


def test_the_update_takes_time_in_the_plan() -> None:
    assumptions = Assumptions(device=DEVICES["h100-80g"], mfu=0.4, reserve_bytes=6 * GIB)
    adamw, muon = (
        plan_run(
            build_config(changed_settings(optimizer__name=name, training__precision="bf16")),
            VOCAB_SIZE,
            assumptions,
        )
        for name in ("adamw", "muon")
    )

    assert adamw.update_flops == 0
    assert muon.update_flops == update_flops(sizes_of())
    tokens = 8 * 64
    more = muon.update_flops / (0.4 * 989.4e12)
    assert tokens / muon.tokens_per_second == pytest.approx(tokens / adamw.tokens_per_second + more)
    assert muon.training_flops == adamw.training_flops

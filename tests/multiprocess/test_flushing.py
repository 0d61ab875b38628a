"""The baseline of `python -m tests.bench pipeline` computes what the pass pipeline computes."""

from typing import Any

import pytest

from tests.support.ranks import SharedRanks

pytestmark = pytest.mark.multiprocess


@pytest.mark.parametrize(
    ("method", "num_stages"),
    [("vanilla", 2), ("ponderlm2", 3), ("ponderlm3", 2), ("ponderlm3", 3), ("adaponderlm", 2)],
)
def test_both_ways_give_the_same_gradients_on_all_stages(
    ranks: SharedRanks, method: str, num_stages: int
) -> None:
    found = ranks.run(compare_ways, num_stages, method, num_stages)

    for rank in found:
        assert 0 <= rank["difference"] < 2e-5
        assert rank["difference"] == found[0]["difference"]
        assert rank["seconds"] > 0
        assert rank["largest_gradient"] > 0


def compare_ways(method: str, num_stages: int) -> dict[str, Any]:
    """Time one step both ways and compare the gradients."""
    from megatron_ext.host import prepare_host

    prepare_host()
    from megatron_ext.parallel.groups import destroy_groups, initialize_groups
    from tests.bench.pipeline import load_bench_config
    from tests.bench.pipeline_worker import build_bench, gradients_of, time_both

    sizes = (
        "model.num_layers=3",
        "model.hidden_size=32",
        "model.ffn_hidden_size=48",
        "training.seq_length=8",
    )
    thoughts = 0 if method == "vanilla" else 2
    sweeps = "2" if method.startswith("ponderlm") and method[-1] in "23" else "0"
    config = load_bench_config(
        None,
        [
            *sizes,
            f"ponder.method={method}",
            f"ponder.num_latent_thoughts={thoughts}",
            f"ponder.num_jacobi_iterations={sweeps}",
            "ponder.random_jacobi_iterations=null",
        ],
        num_stages=num_stages,
    )
    groups = initialize_groups(pipeline=num_stages)
    try:
        bench = build_bench(config, groups)
        times = time_both(bench, 2 * num_stages, repeats=1)
        return {
            "difference": times.largest_difference,
            "seconds": min(times.looping_seconds, times.flushing_seconds),
            "largest_gradient": max(float(gradient.abs().max()) for gradient in gradients_of(bench)),
        }
    finally:
        destroy_groups()

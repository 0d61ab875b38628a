"""The start-up table lists for every stage what its ranks hold."""

from typing import Any

import pytest

from tests.support.ranks import SharedRanks

pytestmark = pytest.mark.multiprocess


@pytest.mark.parametrize(
    ("method", "tied", "first", "last"),
    [
        ("vanilla", False, ["embedding"], ["final norm", "head"]),
        ("ponderlm3", True, ["embedding"], ["final norm", "head (a copy of the embedding)", "router"]),
        ("adaptive_latent_cot", False, ["embedding"], ["final norm", "head", "router"]),
        (
            "adaponderlm",
            False,
            ["embedding"],
            ["a copy of the embedding for mixtures", "final norm", "head", "gates"],
        ),
    ],
)
def test_every_rank_knows_the_parts_of_all_stages(
    ranks: SharedRanks, method: str, tied: bool, first: list[str], last: list[str]
) -> None:
    found = ranks.run(look_at_stages, 4, method, tied)

    for rank in found:
        assert [stage["modules"] for stage in rank["stages"]] == [first, last]
        assert [(stage["first_layer"], stage["num_layers"]) for stage in rank["stages"]] == [(0, 1), (1, 2)]
        assert rank["written"][rank["stage"]] == rank["members"]
    for stage in (0, 1):
        counts = [rank["own_parameters"] for rank in found if rank["stage"] == stage]
        assert counts == [found[0]["stages"][stage]["parameters"]] * 2


def look_at_stages(method: str, tied: bool) -> dict[str, Any]:
    """Build three layers on two stages of two tensor-parallel ranks and describe them."""
    from dataclasses import asdict

    import torch.distributed

    from megatron_ext.host import prepare_host

    prepare_host()
    from megatron_ext.parallel.groups import destroy_groups, initialize_groups
    from pipeline.config.schema import RunConfig
    from pipeline.run.layout import stage_ranks, stages_of
    from pipeline.step.build import build_module
    from tests.unit.pipeline.config.settings import changed_settings

    config = RunConfig(
        **changed_settings(
            model__num_layers=3,
            model__untie_embeddings_and_output_weights=not tied,
            ponder={"method": method},
            parallel={"tensor": 2, "pipeline": 2, "layers_per_stage": [1, 2]},
        )
    )
    groups = initialize_groups(tensor=2, pipeline=2)
    try:
        module = build_module(config, 60, groups)
        stages = [asdict(stage) for stage in stages_of(module, groups)]
        members = torch.distributed.get_process_group_ranks(groups.tp)
        return {
            "stage": groups.pp_rank,
            "stages": [stage | {"modules": list(stage["modules"])} for stage in stages],
            "own_parameters": sum(parameter.numel() for parameter in module.parameters()),
            "written": [stage_ranks(config.parallel, stage) for stage in (0, 1)],
            "members": " ".join(map(str, members)),
        }
    finally:
        destroy_groups()

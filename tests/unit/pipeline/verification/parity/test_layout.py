import pytest

from pipeline.config.load import build_config, setting_paths
from pipeline.config.overrides import apply_overrides
from pipeline.config.schema import ParallelConfig
from pipeline.verification.parity.layout import ONE_PROCESS, parse_layout, render_layout
from tests.unit.pipeline.config.settings import changed_settings


@pytest.mark.parametrize(
    ("text", "sizes"),
    [
        ("tensor=2", (2, 1, 1, 1, "false")),
        ("tensor=2,pipeline=4,data=3,sequence_parallel=true", (2, 1, 4, 3, "true")),
        ("tp=2,pp=4,dp=3,sp=true", (2, 1, 4, 3, "true")),
        (" dp=2 , pp = 2", (1, 1, 2, 2, "false")),
        ("cp=2,tp=4", (4, 2, 1, 1, "false")),
        ("context=3", (1, 3, 1, 1, "false")),
    ],
)
def test_axes_become_settings_and_absent_ones_have_size_one(
    text: str, sizes: tuple[int, int, int, int, str]
) -> None:
    tensor, context, pipeline, data, sequence = sizes

    assert parse_layout(text) == (
        [
            f"parallel.tensor={tensor}",
            f"parallel.context={context}",
            f"parallel.pipeline={pipeline}",
            f"parallel.data={data}",
            f"parallel.sequence_parallel={sequence}",
        ],
        [],
    )


def test_all_mistakes_are_reported_together() -> None:
    settings, problems = parse_layout("tp=two,pipeline=0,ep=4,dp=2,data=3,sp=1,")

    values = ["'tp=two'", "'pipeline=0'", "'ep=4'", "'data=3'", "'sp=1'", "''"]
    assert [problem.value for problem in problems] == values
    assert {problem.path for problem in problems} == {"--layout"}
    assert settings == [
        "parallel.tensor=1",
        "parallel.context=1",
        "parallel.pipeline=1",
        "parallel.data=2",
        "parallel.sequence_parallel=false",
    ]


def test_a_layout_is_written_as_it_is_given() -> None:
    parallel = ParallelConfig(tensor=2, pipeline=4, sequence_parallel=True)

    assert render_layout(parallel) == "tensor=2,pipeline=4,data=1,sequence_parallel=true"
    assert render_layout(ParallelConfig(data=3)) == "tensor=1,pipeline=1,data=3"
    assert render_layout(ParallelConfig(tensor=2, context=4)) == "tensor=2,pipeline=1,data=1,context=4"


def test_one_process_takes_the_place_of_every_layout() -> None:
    layout = {"tensor": 2, "context": 2, "pipeline": 2, "data": 2}
    layout |= {"sequence_parallel": True, "layers_per_stage": [1, 1]}
    settings = changed_settings(parallel=layout, training__global_batch_size=16)
    assert apply_overrides(settings, ONE_PROCESS, setting_paths()) == []

    config = build_config(settings)

    assert config.parallel.world_size == 1
    assert config.stage_layers == (2,)
    assert not config.parallel.sequence_parallel

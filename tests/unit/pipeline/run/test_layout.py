import pytest
from rich.console import Console

from pipeline.config.schema import RunConfig
from pipeline.run.layout import StageParts, gradient_reduction, render_layout, stage_ranks
from tests.unit.pipeline.config.settings import changed_settings

STAGES = (
    StageParts(first_layer=0, num_layers=3, modules=("embedding",), parameters=1_234),
    StageParts(first_layer=3, num_layers=1, modules=("final norm", "head", "router"), parameters=567),
)


def run(**changes: object) -> RunConfig:
    return RunConfig(**changed_settings(model__num_layers=4, **changes))


def on_layout(tensor: int, pipeline: int, data: int) -> RunConfig:
    return run(
        parallel__tensor=tensor,
        parallel__pipeline=pipeline,
        parallel__data=data,
        training__global_batch_size=4 * pipeline * data,
    )


@pytest.mark.parametrize(
    ("tensor", "data", "ranks"),
    [(1, 1, "1"), (4, 1, "4 5 6 7"), (1, 3, "3 | 4 | 5"), (2, 2, "4 5 | 6 7"), (4, 8, "32 to 63")],
)
def test_ranks_of_a_stage_are_written_by_tensor_and_data_axis(tensor: int, data: int, ranks: str) -> None:
    assert stage_ranks(on_layout(tensor, 2, data).parallel, 1) == ranks


def test_ranks_that_share_sequences_are_neighbours() -> None:
    layout = run(parallel__context=2, parallel__data=2, training__global_batch_size=8)

    assert stage_ranks(layout.parallel, 0) == "0 | 1 | 2 | 3"
    console = Console(width=120)
    with console.capture() as captured:
        console.print(render_layout(layout, STAGES[:1]))
    assert "ranks (context | data)" in captured.get()


def test_the_parallel_layout_shows_what_each_stage_holds() -> None:
    console = Console(width=120)
    with console.capture() as captured:
        console.print(render_layout(on_layout(2, 2, 2), STAGES))
    lines = captured.get().splitlines()

    first, second = (next(line for line in lines if line.split()[:1] == [stage]) for stage in "01")
    assert " ".join(first.split()) == "0 0 1 | 2 3 0 to 2 embedding 1,234"
    assert " ".join(second.split()) == "1 4 5 | 6 7 3 final norm, head, router 567"
    assert any("ranks (tensor | data)" in line for line in lines)
    assert any("gradients: reduced once" in line for line in lines)


@pytest.mark.parametrize(
    ("changes", "described"),
    [
        ({"parallel__recompute": "full"}, "last backward, because weights are used in several passes"),
        ({"parallel__pipeline": 2}, "last backward, because weights are used in several passes"),
        ({"ponder__freeze_backbone_tokens": 9}, "because weights are frozen at first"),
        ({}, "parallel.overlap_grad_reduce is false"),
        ({"parallel__overlap_grad_reduce": True}, "during backward"),
        (
            {
                "ponder": {"method": "vanilla"},
                "parallel__recompute": "full",
                "parallel__overlap_grad_reduce": True,
            },
            "during backward",
        ),
        ({"ponder": {"method": "vanilla"}, "parallel__pipeline": 2}, "parallel.overlap_grad_reduce is false"),
    ],
)
def test_the_reduction_of_gradients_is_described_with_its_reason(
    changes: dict[str, object], described: str
) -> None:
    assert described in gradient_reduction(run(**changes))


@pytest.mark.parametrize("method", ["vanilla", "pause", "loop", "ponderlm3"])
@pytest.mark.parametrize("pipeline", [1, 2])
@pytest.mark.parametrize("recompute", ["none", "full"])
def test_overlap_is_refused_exactly_where_the_layout_rules_it_out(
    method: str, pipeline: int, recompute: str
) -> None:
    changes = {"ponder": {"method": method}, "parallel__pipeline": pipeline, "parallel__recompute": recompute}
    is_impossible = "because" in gradient_reduction(run(**changes))

    if is_impossible:
        with pytest.raises(ValueError, match="overlap_grad_reduce"):
            run(**changes, parallel__overlap_grad_reduce=True)
    else:
        run(**changes, parallel__overlap_grad_reduce=True)

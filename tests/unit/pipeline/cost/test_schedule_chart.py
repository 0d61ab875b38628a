import pytest
from rich.console import Console

from megatron_ext.ponder.config import Method
from pipeline.config.schema import RunConfig
from pipeline.cost.schedule import flushing_timeline, looping_timeline
from pipeline.cost.schedule_chart import chart_lines, fits_a_chart, render_schedule, show_schedule
from tests.unit.pipeline.config.settings import changed_settings


def shown(config: RunConfig, *, width: int = 120) -> str:
    console = Console(width=width)
    with console.capture() as captured:
        show_schedule(config, console)
    return captured.get()


def run_on_stages(method: str = "ponderlm2", **changes: object) -> RunConfig:
    thoughts = {} if method == "vanilla" else {"num_latent_thoughts": 2}
    settings = {
        "parallel__pipeline": 2,
        "training__micro_batch_size": 2,
        "ponder": {"method": method, **thoughts},
    }
    return RunConfig(**changed_settings(**settings | changes))


def test_a_chart_shows_pass_micro_batch_direction_and_waiting() -> None:
    lines = chart_lines(looping_timeline(2, 2, (1, 2)), width=80)

    assert [line.plain for line in lines] == [
        "stage 0 a0b0a1--b1--........A1------....B1------A0--B0--",
        "stage 1 ..a0b0..a1--A1------b1--B1------A0--....B0--....",
    ]


def test_a_chart_goes_on_below_where_the_width_ends() -> None:
    timeline = looping_timeline(2, 2, (1, 2))
    whole = [line.plain for line in chart_lines(timeline, width=80)]
    lines = [line.plain for line in chart_lines(timeline, width=28)]

    assert [len(line) for line in lines] == [28, 28, 0, 28, 28, 0, 16, 16]
    for stage in (0, 1):
        label = f"stage {stage} "
        assert label + "".join(line.removeprefix(label) for line in lines[stage::3]) == whole[stage]


def test_large_steps_have_figures_alone() -> None:
    large = {"looping": looping_timeline(4, 64, (1, 2, 3)), "flushing": flushing_timeline(4, 64, (1, 2, 3))}
    console = Console(width=120)
    with console.capture() as captured:
        console.print(render_schedule(large, width=120))

    assert not fits_a_chart(large["looping"])
    assert "stage 0" not in captured.get()
    assert f"{large['looping'].bubble_share:.1%}" in captured.get()
    assert f"{large['flushing'].duration:,}" in captured.get()


@pytest.mark.parametrize(
    ("method", "rows"),
    [
        ("vanilla", "1"),
        ("loop", "1, 1, 1"),
        ("pause", "3"),
        ("ponderlm", "1, 1, 1"),
        ("ponderlm2", "1, 2, 3, 3, 3"),
        ("adaponderlm", "1, 1, 1"),
        ("ponderlm3", "1, 2, 3, 3, 3"),
        ("adaptive_latent_cot", "1, 1, 1"),
    ],
)
def test_every_method_shows_its_passes(method: Method, rows: str) -> None:
    text = shown(run_on_stages(method), width=200)

    assert f"rows per token by pass: {rows}; micro-batches: 4; pipeline stages: 2" in text
    assert "passes as virtual stages" in text
    assert "flushed between passes" in text


def test_the_first_step_decides_the_sweeps() -> None:
    planned = run_on_stages(
        ponder={"method": "ponderlm2", "num_latent_thoughts": 1, "jacobi_schedule": [[0, 3], [5, 9]]}
    )

    assert "J = 3; rows per token by pass: 1, 2, 2, 2, 2;" in shown(planned, width=200)


def test_recompute_makes_backward_longer() -> None:
    plain, again = (shown(run_on_stages("loop", parallel__recompute=kind)) for kind in ("none", "full"))

    # 12 passes of micro-batches, and one more of waiting: forward 1, backward 2 or 3.
    assert " 39 " in plain
    assert " 52 " in again

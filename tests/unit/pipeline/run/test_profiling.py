import gzip
import json
from pathlib import Path

import pytest
import torch

from pipeline.config.schema import ProfileSection
from pipeline.run.profiling import Operation, StepProfiler, render_operations
from pipeline.shared.console import open_console


def run(profiler: StepProfiler, iterations: range) -> None:
    for iteration in iterations:
        profiler.start_step(iteration)
        torch.ones(8, 8) @ torch.ones(8, 8)
        profiler.end_step(iteration)
    profiler.close()


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def test_the_chosen_iterations_are_in_the_trace(tmp_path: Path) -> None:
    profiler = StepProfiler(ProfileSection(steps=(3, 4)), tmp_path / "profile", rank=0)
    run(profiler, range(1, 7))

    stem = "iterations_3-4_rank_0"
    assert files(tmp_path / "profile") == [f"{stem}.pt.trace.json.gz", f"{stem}_operations.txt"]
    with gzip.open(tmp_path / "profile" / f"{stem}.pt.trace.json.gz") as file:
        events = json.load(file)["traceEvents"]
    names = [event["name"] for event in events if event.get("cat") in ("cpu_op", "user_annotation")]
    assert [name for name in names if name.startswith("ProfilerStep")] == ["ProfilerStep#3", "ProfilerStep#4"]
    assert names.count("aten::matmul") == 2
    (product,) = [one for one in profiler.operations if one.name == "aten::mm"]
    assert product.calls == 2
    assert product.host_seconds > 0
    assert "aten::mm" in (tmp_path / "profile" / f"{stem}_operations.txt").read_text()


@pytest.mark.parametrize(
    ("steps", "ranks", "iterations", "recorded"),
    [
        # A run that ends early, and one that has resumed in between.
        ((3, 9), (0,), range(1, 5), ["iterations_3-4_rank_0"]),
        ((3, 4), (0,), range(4, 7), ["iterations_4-4_rank_0"]),
        ((3, 4), (0,), range(5, 7), []),
        ((3, 4), (1,), range(1, 7), []),
        (None, (0,), range(1, 7), []),
    ],
)
def test_only_what_is_asked_for_is_recorded(
    tmp_path: Path,
    steps: tuple[int, int] | None,
    ranks: tuple[int, ...],
    iterations: range,
    recorded: list[str],
) -> None:
    profiler = StepProfiler(ProfileSection(steps=steps, ranks=ranks), tmp_path / "profile", rank=0)
    run(profiler, iterations)
    assert [name.partition(".")[0] for name in files(tmp_path / "profile")][::2] == recorded
    assert bool(profiler.operations) == bool(recorded)


def test_a_profile_that_cannot_be_written_ends_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "profile").write_text("in the way")
    run(StepProfiler(ProfileSection(steps=(1, 1)), tmp_path / "profile", rank=0), range(1, 3))
    assert len(caplog.records) == 1


def test_operations_are_shown_by_the_time_of_the_device_where_there_is_one() -> None:
    operations = [
        Operation(name="gemm", calls=4, host_seconds=0.0, device_seconds=0.75),
        Operation(name="aten::add", calls=2, host_seconds=0.5, device_seconds=0.25),
    ]
    console = open_console(width=80)
    with console.capture() as captured:
        console.print(render_operations(operations))
    assert "75.0%" in captured.get()
    assert "DEVICE MS" in captured.get()

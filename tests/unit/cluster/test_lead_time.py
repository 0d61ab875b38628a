import json
from pathlib import Path

import pytest

from cluster.lead_time import signal_lead_seconds
from pipeline.checkpoint.save_times import SAVE_TIMES_NAME, read_save_seconds, record_save_seconds
from pipeline.config.submit_section import wall_seconds
from pipeline.metrics.leaving_time import stop_timeout_seconds


def write_steps(folder: Path, *seconds: float) -> None:
    events = [{"event": "training", "iteration-time": value} for value in seconds]
    lines = [json.dumps(event) for event in events]
    (folder / "metrics.jsonl").write_text("\n".join([*lines, '{"event": "validation"}', '{"eve']))


def test_a_run_without_an_earlier_start_has_the_default(tmp_path: Path) -> None:
    assert signal_lead_seconds(tmp_path, wall_time=None) == 300
    write_steps(tmp_path, 2.0)
    assert signal_lead_seconds(tmp_path, wall_time="1-00:00:00") == 300


def test_the_lead_is_twice_a_step_and_two_saves_and_half_a_minute(tmp_path: Path) -> None:
    write_steps(tmp_path, 900.0, *[2.0] * 49, 5.5)
    record_save_seconds(tmp_path / SAVE_TIMES_NAME, iteration=1, seconds=40.0)
    record_save_seconds(tmp_path / SAVE_TIMES_NAME, iteration=2, seconds=30.0)
    # The step of 900 s is older than the 50 that count.
    assert signal_lead_seconds(tmp_path, wall_time=None) == 2 * 5.5 + 4 * 40 + 30


def test_the_limit_of_a_stop_follows_measured_saves_and_is_never_short(tmp_path: Path) -> None:
    assert stop_timeout_seconds(tmp_path) == 3600
    write_steps(tmp_path, 2.0)
    record_save_seconds(tmp_path / SAVE_TIMES_NAME, iteration=1, seconds=1.0)
    assert stop_timeout_seconds(tmp_path) == 600
    record_save_seconds(tmp_path / SAVE_TIMES_NAME, iteration=2, seconds=1000.0)
    assert stop_timeout_seconds(tmp_path) == 2 * 2 + 4 * 1000 + 30


def test_half_of_a_short_wall_time_is_left_for_training(tmp_path: Path) -> None:
    assert signal_lead_seconds(tmp_path, wall_time="00:04:00") == 120


def test_slurm_takes_no_longer_lead(tmp_path: Path) -> None:
    write_steps(tmp_path, 1e6)
    record_save_seconds(tmp_path / SAVE_TIMES_NAME, iteration=1, seconds=1.0)
    assert signal_lead_seconds(tmp_path, wall_time=None) == 65535


@pytest.mark.parametrize(
    ("text", "seconds"), [("00:00:59", 59), ("01:02:03", 3723), ("2-00:00:00", 172800), ("36:00:00", 129600)]
)
def test_wall_times_are_read(text: str, seconds: int) -> None:
    assert wall_seconds(text) == seconds


def test_a_line_cut_off_by_a_crash_is_skipped(tmp_path: Path) -> None:
    path = tmp_path / SAVE_TIMES_NAME
    assert read_save_seconds(path) == []
    record_save_seconds(path, iteration=1, seconds=1.25)
    with path.open("a") as file:
        file.write('{"iteration": 2, "sec')
    assert read_save_seconds(path) == [1.25]

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.checkpoint.origin import Origin, commit_of_checkout, origin_of_this_process
from pipeline.metrics.history import HISTORY_FILE, read_history, record_end, record_start

ORIGIN = Origin(
    version="0.1.0",
    commit="0123456789abcdef+changes",
    python="3.11.9",
    torch="2.13.0",
    megatron_core="0.16.1",
    host="node-1",
    device="NVIDIA H200",
    num_ranks=8,
    started_at="2026-01-02T03:04:05+00:00",
)


def test_a_run_without_a_history_has_no_starts(tmp_path: Path) -> None:
    assert read_history(tmp_path) == []


def test_starts_and_ends_belong_together(tmp_path: Path) -> None:
    record_start(tmp_path, ORIGIN, iteration=0)
    record_start(tmp_path, replace(ORIGIN, host="node-2"), iteration=4)
    record_end(tmp_path, iteration=9, exit_code=75)
    record_start(tmp_path, ORIGIN, iteration=9)

    killed, ended, running = read_history(tmp_path)
    assert (killed.origin, killed.first_iteration, killed.ended_at) == (ORIGIN, 0, None)
    assert (ended.origin.host, ended.first_iteration) == ("node-2", 4)
    assert (ended.last_iteration, ended.exit_code) == (9, 75)
    assert ended.ended_at is not None
    assert (running.first_iteration, running.exit_code) == (9, None)


def test_a_line_that_a_crash_has_cut_hides_no_later_one(tmp_path: Path) -> None:
    record_start(tmp_path, ORIGIN, iteration=0)
    with (tmp_path / HISTORY_FILE).open("a") as file:
        file.write('{"event": "en')
    record_start(tmp_path, ORIGIN, iteration=3)
    assert [session.first_iteration for session in read_history(tmp_path)] == [0, 3]


def test_an_end_that_cannot_be_written_is_no_error_but_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    record_end(tmp_path / "absent", iteration=1, exit_code=0)
    assert len(caplog.records) == 1


def test_the_lines_of_an_origin_name_versions_and_machine() -> None:
    assert all(word in ORIGIN.program for word in ("0.1.0", "0123456789ab+changes", "2.13.0", "0.16.1"))
    assert all(word in ORIGIN.machine for word in ("NVIDIA H200", "8", "node-1"))


def test_this_process_has_an_origin() -> None:
    origin = origin_of_this_process(device="CPU", num_ranks=2)
    assert origin.torch is not None
    assert origin.megatron_core is not None
    assert (origin.device, origin.num_ranks) == ("CPU", 2)


def test_a_checkout_is_known_by_its_commit_and_whether_it_was_changed(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        identity = ("-c", "user.name=n", "-c", "user.email=n@example.org")
        return subprocess.run(
            ["git", *identity, *arguments], cwd=root, check=True, capture_output=True, text=True
        ).stdout.strip()

    assert commit_of_checkout(tmp_path) is None
    root = tmp_path / "checkout"
    root.mkdir()
    git("init", "--quiet")
    (root / "file").write_text("1")
    git("add", "file")
    git("commit", "--quiet", "-m", "first")
    commit = git("rev-parse", "HEAD")
    assert commit_of_checkout(root) == commit
    (root / "file").write_text("2")
    commit_of_checkout.cache_clear()
    assert commit_of_checkout(root) == f"{commit}+changes"

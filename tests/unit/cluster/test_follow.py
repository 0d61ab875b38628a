import io
from pathlib import Path

import pytest

from cluster.follow import LogTail, follow, newest_lines
from cluster.job_record import JobState
from pipeline.shared.errors import ClusterError
from tests.support.local_jobs import local_jobs


def test_the_newest_lines_of_a_rank_are_its_last(tmp_path: Path) -> None:
    files = [tmp_path / "0", tmp_path / "1"]
    for file in files:
        file.write_text("".join(f"{file.name}-{number}\n" for number in range(5)))
    assert newest_lines(files, lines=2, rank=1) == "1-3\n1-4\n"
    assert newest_lines(files, lines=0, rank=0) == ""
    with pytest.raises(ClusterError, match="rank 2"):
        newest_lines(files, lines=1, rank=2)


def test_a_tail_copies_what_is_added_and_a_new_file_from_its_beginning(tmp_path: Path) -> None:
    first, second, output = tmp_path / "1", tmp_path / "2", io.BytesIO()
    first.write_bytes(b"a\nb\nc\n")
    second.write_bytes(b"d\ne\n")
    tail = LogTail(output, num_lines=1)
    tail.copy(None)
    assert output.getvalue() == b""
    for file in (first, None, second, second):
        tail.copy(file)
    assert output.getvalue() == b"c\nd\ne\n"
    with second.open("ab") as log:
        log.write(b"\xff\x1b\xc3")
    tail.copy(second)
    with second.open("ab") as log:
        log.write(b"\xa9\n")
    tail.copy(second)
    # Raw bytes must not reach the terminal; a character that was written in two pieces is one.
    assert output.getvalue() == b"c\nd\ne\n\\xff\\x1b\xc3\xa9\n"


def test_following_shows_every_start_to_the_end_and_gives_the_jobs_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with local_jobs(tmp_path) as jobs:
        record = jobs.start("print('at work')\nsys.exit(1 if starts == 0 else 93)")
        code = follow(jobs.target, record, lines=50, rank=0)
        assert code == 93
        assert capsys.readouterr().out.endswith("start 1 of rank 0\nat work\n")
        # After its end, its last start is shown.
        assert follow(jobs.target, record, lines=1, rank=0) == 93
        assert capsys.readouterr().out == "at work\n"
        assert jobs.target.status(record).state == JobState.FAILED

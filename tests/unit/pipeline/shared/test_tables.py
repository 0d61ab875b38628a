import io
from collections.abc import Sequence

import pytest
from rich.box import SIMPLE_HEAD

from pipeline.shared.console import FILE_WIDTH, open_console
from pipeline.shared.tables import Table, fitted_widths

ID = "slurm:1234567"
RUN = "a-run-with-a-name-of-many-characters"
REASON = "the ranks left with exit code 1: see megaponder jobs logs of this job for all that was said"
HEADINGS = ("JOB", "RUN", "STATE", "REQUEUES", "SUBMITTED (UTC)", "REASON")
ROW = (ID, RUN, "FAILED", "3", "2026-01-02 03:04:05", REASON)


def printed(table: Table, width: int | None, monkeypatch: pytest.MonkeyPatch) -> str:
    file = io.StringIO()
    monkeypatch.setattr("sys.stdout", file)
    monkeypatch.delenv("COLUMNS", raising=False)
    open_console(width=width).print(table)
    return file.getvalue()


def table(optional: Sequence[str] = ()) -> Table:
    made = Table(*HEADINGS, box=SIMPLE_HEAD, title=f"folder/{RUN}", optional=optional)
    made.add_row(*ROW)
    return made


@pytest.mark.parametrize("width", [40, 60, 80, 90, 110, 300])
@pytest.mark.parametrize("optional", [(), ("REQUEUES", "SUBMITTED (UTC)")])
def test_no_line_is_wider_than_the_terminal_and_no_word_is_cut(
    width: int, optional: Sequence[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = printed(table(optional), width, monkeypatch)
    assert max(map(len, text.splitlines())) <= width
    assert f"folder/{RUN}"[: width - 1] in text
    for word in (ID, "FAILED", *REASON.split()):
        assert word in text.split()
    assert RUN in text.split()


def test_optional_columns_are_dropped_in_their_order_and_only_if_they_must(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    optional = ("REQUEUES", "SUBMITTED (UTC)")
    wide, narrower, narrow = (printed(table(optional), width, monkeypatch) for width in (120, 94, 85))
    assert "2026-01-02" in wide
    assert "REQUEUES" in wide.splitlines()[2]
    assert "not shown" in narrower.splitlines()[-1]
    assert "REQUEUES" in narrower.splitlines()[-1]
    assert "2026-01-02" in narrower
    assert "2026-01-02" not in narrow
    assert ID in narrow


def test_without_room_each_row_becomes_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = printed(table(), 60, monkeypatch).splitlines()
    assert [line.split()[0] for line in lines[1:4]] == ["JOB", "RUN", "STATE"]
    assert lines[1].split()[-1] == ID


def test_a_file_gets_a_table_of_its_real_width(monkeypatch: pytest.MonkeyPatch) -> None:
    text = printed(table(), None, monkeypatch)
    assert any(REASON in line and ID in line for line in text.splitlines())
    assert max(map(len, text.splitlines())) < FILE_WIDTH / 2


def test_the_last_column_of_a_table_without_headings_is_folded(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Table(box=SIMPLE_HEAD, show_header=False)
    made.add_row("folder", "x" * 100)
    text = printed(made, 60, monkeypatch)
    assert max(map(len, text.splitlines())) <= 60
    assert text.count("x") == 100


@pytest.mark.parametrize(
    ("measured", "room", "widths"),
    [
        ([(2, 5), (3, 30)], 40, [5, 30]),
        ([(2, 5), (3, 30)], 20, [5, 15]),
        ([(2, 12), (3, 30)], 10, [5, 5]),
        ([(2, 5), (3, 30)], 5, [2, 3]),
        ([(2, 5), (3, 30)], 4, None),
        ([], 4, []),
    ],
)
def test_the_widest_columns_become_narrower_first(
    measured: list[tuple[int, int]], room: int, widths: list[int] | None
) -> None:
    assert fitted_widths(measured, room) == widths

from pipeline.ranks.watchdog import RankReport, describe_fault, ranks_at_fault


def report(*, waits: bool) -> RankReport:
    return RankReport(doing="iteration 7", waits=waits, place="layers.py:12 in forward")


def test_the_rank_that_does_not_wait_is_at_fault_and_its_place_is_named() -> None:
    reports = {0: report(waits=True), 1: report(waits=False), 2: report(waits=True)}
    assert ranks_at_fault(reports, 3) == [1]
    assert "rank 1 (iteration 7, at layers.py:12 in forward)" in describe_fault(reports, 3)


def test_ranks_without_a_report_come_before_busy_ones() -> None:
    reports = {1: report(waits=False), 2: report(waits=True)}
    assert ranks_at_fault(reports, 4) == [0, 3]
    assert "[0, 3]" in describe_fault(reports, 4)


def test_nobody_is_at_fault_where_all_wait_for_each_other() -> None:
    reports = {0: report(waits=True), 1: report(waits=True)}
    assert ranks_at_fault(reports, 2) == []
    assert "rank 0" not in describe_fault(reports, 2)

from pipeline.ranks.watchdog import RankReport, at_fault


def report(*, waits: bool) -> RankReport:
    return RankReport(doing="iteration 7", waits=waits, place="layers.py:12 in forward")


def test_the_rank_that_does_not_wait_is_named_with_its_place() -> None:
    reports = {0: report(waits=True), 1: report(waits=False), 2: report(waits=True)}
    assert at_fault(reports, 3) == (
        "all other ranks wait for rank 1 (iteration 7, at layers.py:12 in forward)"
    )


def test_ranks_that_do_not_answer_come_first() -> None:
    assert "ranks [0, 3] do not answer" in at_fault({1: report(waits=False), 2: report(waits=True)}, 4)


def test_ranks_that_all_wait_are_said_to() -> None:
    assert "wait for each other" in at_fault({0: report(waits=True), 1: report(waits=True)}, 2)

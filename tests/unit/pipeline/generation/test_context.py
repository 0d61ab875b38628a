import logging

import pytest

from pipeline.generation.context import fit_prompts
from pipeline.shared.errors import DataError

PROMPTS = [[1, 2, 3], list(range(20))]


def fit(prompts: list[list[int]], num_tokens: int, *, cuts: bool) -> list[list[int]]:
    return fit_prompts(prompts, num_tokens=num_tokens, max_positions=16, trained_length=8, cuts=cuts)


def test_prompts_that_fit_are_as_they_were(caplog: pytest.LogCaptureFixture) -> None:
    assert fit([[1, 2, 3]], 5, cuts=False) == [[1, 2, 3]]
    assert not caplog.records


def test_a_text_beyond_the_trained_length_is_reported_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert fit([[1], [1, 2, 3], [1, 2, 3, 4]], 6, cuts=False) == [[1], [1, 2, 3], [1, 2, 3, 4]]
    (record,) = caplog.records
    assert (record.args or ())[:2] == (2, 3)


def test_a_prompt_beyond_the_positions_is_refused() -> None:
    with pytest.raises(DataError, match="16"):
        fit(PROMPTS, 4, cuts=False)


def test_the_beginning_of_a_prompt_is_cut_where_that_is_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert fit(PROMPTS, 4, cuts=True) == [[1, 2, 3], list(range(8, 20))]
    assert len(caplog.records) == 2


@pytest.mark.parametrize("num_tokens", [16, 100])
def test_tokens_that_leave_no_room_for_a_prompt_are_refused(num_tokens: int) -> None:
    with pytest.raises(DataError, match=str(num_tokens)):
        fit([[1]], num_tokens, cuts=True)

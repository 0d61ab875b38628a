"""Generated texts: stop strings and JSON lines."""

import json

import pytest

from pipeline.evaluation.results import SampleToken
from pipeline.generation.files import json_line
from pipeline.generation.texts import Ending, GeneratedText, _cut, _first_stop


@pytest.mark.parametrize(
    ("pieces", "stop", "kept"),
    [
        (["ab", "cd", "ef"], ("de",), ["ab", "c"]),
        (["ab", "cd", "ef"], ("cd",), ["ab"]),
        (["ab", "cd"], ("abcd",), []),
        (["ab", "", "cd"], ("d", "bc"), ["a"]),
    ],
)
def test_a_text_is_cut_where_the_first_stop_string_begins(
    pieces: list[str], stop: tuple[str, ...], kept: list[str]
) -> None:
    start = _first_stop(pieces, stop)

    assert start is not None
    assert _cut(pieces, start) == kept


def test_a_text_without_a_stop_string_goes_on() -> None:
    assert _first_stop(["ab", "c"], ("cd", "x")) is None


def test_a_line_of_json_has_all_fields_of_a_text() -> None:
    tokens = (
        SampleToken(piece="def ", steps=0, nll=None, is_prompt=True),
        SampleToken(piece="f\n", steps=2, nll=1.5, is_prompt=False),
        SampleToken(piece="\u00e9", steps=1, nll=0.5, is_prompt=False),
    )
    line = json_line(GeneratedText(number=4, tokens=tokens, ending=Ending.STOP))

    assert "\n" not in line
    assert json.loads(line) == {
        "number": 4,
        "prompt": "def ",
        "continuation": "f\n\u00e9",
        "ending": "stop",
        "num_prompt_tokens": 1,
        "num_tokens": 2,
        "mean_steps": 1.0,
        "pieces": ["def ", "f\n", "\u00e9"],
        "steps": [0, 2, 1],
        "nll": [None, 1.5, 0.5],
    }

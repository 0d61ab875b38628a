"""A text in the terminal while it grows."""

from io import StringIO

import pytest
from rich.console import Console

from pipeline.commands.text_stream import TextStream, possible_stop
from pipeline.evaluation.results import SampleToken
from pipeline.generation.texts import Ending, GeneratedText


def text_of(*pieces: str, ending: Ending | None = None) -> GeneratedText:
    """The first piece is the prompt."""
    tokens = tuple(
        SampleToken(piece=piece, steps=1, nll=None, is_prompt=index == 0)
        for index, piece in enumerate(pieces)
    )
    return GeneratedText(number=0, tokens=tokens, ending=ending)


def shown(*texts: GeneratedText, stop: tuple[str, ...] = ()) -> list[str]:
    """What is on the terminal after each of the texts."""
    file = StringIO()
    stream = TextStream(Console(file=file, width=20), styles=["", "bold"], stop=stop)
    seen = []
    for text in texts:
        stream.show(text)
        seen.append(file.getvalue())
    return seen


def test_every_token_is_shown_once_and_long_lines_are_not_broken() -> None:
    texts = (text_of("a " * 30), text_of("a " * 30, "b"), text_of("a " * 30, "b", "c", ending=Ending.LENGTH))

    assert shown(*texts) == ["a " * 30, "a " * 30 + "b", "a " * 30 + "bc\n"]


def test_an_unfinished_character_waits_for_its_rest() -> None:
    texts = (
        text_of("a", "\ufffd"),
        text_of("a", "", "\u00e9"),
        text_of("a", "", "\u00e9", ending=Ending.EOD),
    )

    assert shown(*texts) == ["a", "a\u00e9", "a\u00e9\n"]


def test_what_may_become_a_stop_string_is_held_back() -> None:
    texts = (
        text_of("x", "ab"),
        text_of("x", "ab", "c\n"),
        text_of("x", "ab", "c\n", "d"),
        text_of("x", "ab", "c\n", "d", "\n"),
        text_of("x", "ab", "c\n", "d", ending=Ending.STOP),
    )

    assert shown(*texts, stop=("\n\n",)) == ["xab", "xab", "xabc\nd", "xabc\nd", "xabc\nd\n"]


@pytest.mark.parametrize(
    ("text", "stop", "length"),
    [("abc", ("cd",), 1), ("ab", ("abc", "b"), 2), ("abc", ("abc",), 0), ("", ("a",), 0), ("aa", (), 0)],
)
def test_the_longest_beginning_of_a_stop_string_counts(text: str, stop: tuple[str, ...], length: int) -> None:
    assert possible_stop(text, stop) == length

"""Texts in the terminal, while they grow and once they have ended."""

from io import StringIO

import pytest
from rich.color import ColorSystem
from rich.console import Console

from pipeline.commands.generate_output import (
    TextStream,
    has_basic_colors,
    possible_stop,
    render_legend,
    render_tokens,
    step_styles,
)
from pipeline.evaluation.results import SampleToken, TextSample
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


def sample(*, pruning_threshold: float | None = 1e-4) -> TextSample:
    return TextSample(
        checkpoint="runs/x/checkpoints/iter_0000010",
        num_latent_thoughts=2,
        pruning_threshold=pruning_threshold,
        tokens_per_second=None,
        tokens=(
            SampleToken(piece="def", steps=0, nll=None, is_prompt=True),
            SampleToken(piece=" [red]x", steps=2, nll=1.5, is_prompt=False),
            SampleToken(piece="(", steps=2, nll=0.1, is_prompt=False),
        ),
    )


def test_the_text_is_shown_letter_by_letter() -> None:
    assert render_tokens(sample().tokens, step_styles(2)).plain == "def [red]x("


def test_equal_steps_have_equal_colours_and_other_steps_others() -> None:
    styles = [str(span.style) for span in render_tokens(sample().tokens, step_styles(2)).spans]

    assert styles[1] == styles[2]
    assert styles[0].removeprefix("dim ") != styles[1]
    assert styles[0].startswith("dim ")


@pytest.mark.parametrize("num_steps", [1, 3, 5, 16])
def test_steps_differ_on_a_terminal_of_16_colours(num_steps: int) -> None:
    console = Console(file=StringIO(), force_terminal=True, color_system="standard")
    assert has_basic_colors(console)
    styles = step_styles(num_steps, is_basic=True)
    codes = [console.get_style(style).render("x", color_system=ColorSystem.STANDARD) for style in styles]
    assert len(set(codes)) == num_steps + 1


def test_the_legend_counts_tokens_by_steps() -> None:
    legend = render_legend(sample().tokens, step_styles(2)).plain

    assert [part.strip() for part in legend.strip().split("  ")] == [
        "0 steps: 1 tokens",
        "1 steps: 0 tokens",
        "2 steps: 2 tokens",
    ]


def test_a_method_that_does_not_halt_has_no_colours() -> None:
    assert not render_legend(sample(pruning_threshold=None).tokens, [])
    assert {str(span.style) for span in render_tokens(sample(pruning_threshold=None).tokens, []).spans} <= {
        "",
        "dim ",
    }

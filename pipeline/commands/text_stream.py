"""Show a text in the terminal while it grows."""

from collections.abc import Sequence

from rich.console import Console

from pipeline.commands.sample_text import render_tokens
from pipeline.generation.texts import GeneratedText

UNFINISHED = "\ufffd"


class TextStream:
    """Prints the tokens of one text as they come, each once, in the style of its steps."""

    def __init__(self, console: Console, *, styles: Sequence[str], stop: Sequence[str]) -> None:
        """Start with nothing shown.

        Args:
            console: where to print.
            styles: by number of steps; empty for none.
            stop: strings that end the text: what may become one of them is held back.
        """
        self._console = console
        self._styles = styles
        self._stop = stop
        self._num_shown = 0

    def show(self, text: GeneratedText) -> None:
        """Print what is new and will stay: all of it once the text has ended."""
        end = len(text.tokens) if text.ending is not None else self._num_settled(text)
        shown = render_tokens(text.tokens[self._num_shown : end], self._styles)
        self._console.print(shown, end="\n" if text.ending is not None else "", soft_wrap=True)
        self._num_shown = max(self._num_shown, end)

    def _num_settled(self, text: GeneratedText) -> int:
        """How many tokens no later token can change."""
        end = len(text.tokens)
        while end > 0 and text.tokens[end - 1].piece.endswith(UNFINISHED):
            end -= 1
        held = possible_stop(text.continuation, self._stop)
        while end > 0 and held > 0 and not text.tokens[end - 1].is_prompt:
            end -= 1
            held -= len(text.tokens[end].piece)
        return end


def possible_stop(text: str, stop: Sequence[str]) -> int:
    """How many letters at the end of a text may be the beginning of a stop string."""
    lengths = (length for one in stop for length in range(1, len(one)) if text.endswith(one[:length]))
    return max(lengths, default=0)

"""Show generated texts in the terminal, each token on the colour of its steps, and write them."""

import signal
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from rich.console import Console
from rich.text import Text

from pipeline.evaluation.opened import OpenedCheckpoint
from pipeline.evaluation.results import SampleToken, TextSample, save_json
from pipeline.generation.files import json_line
from pipeline.generation.texts import GeneratedText, GenerationSettings, generate, text_sample
from pipeline.ranks.signals import StopFlag, StopRequest
from pipeline.report.colors import BASIC_STYLES, DARK_RAMP, step_colors
from pipeline.shared.console import open_console
from pipeline.shared.exit_codes import ExitCode

# Ends a piece that is not a complete character yet.
UNFINISHED = "\ufffd"
# Of steps on a terminal of 16 colours, each time its colours have been used up.
_MARKS = ("", "underline ", "bold ", "bold underline ")


def generate_to(
    opened: OpenedCheckpoint,
    prompts: Sequence[str | Sequence[int]],
    *,
    settings: GenerationSettings,
    stop: StopFlag,
    json_lines: Path | None,
    sample_file: Path | None,
    show_steps: bool,
    speaks: bool,
    console: Console | None = None,
) -> ExitCode:
    """Generate texts, show them and write them.

    Args:
        opened: the model.
        prompts: at least one.
        settings: what to generate.
        stop: ends the generation.
        json_lines: file that gets a line for each text that has ended.
        sample_file: file that gets the single text, for the report.
        show_steps: colour the tokens.
        speaks: whether this rank shows and writes anything.
        console: where texts are shown.
    Returns:
        DONE; INTERRUPTED or REQUEUE where the keyboard or a signal ended it.
    """
    output = _Output(opened, settings, console or open_console(quiet=not speaks), show_steps=show_steps)
    was_stopped = False

    def should_stop() -> bool:
        nonlocal was_stopped
        was_stopped = was_stopped or stop.agreed() is not StopRequest.NONE
        return was_stopped

    watch = output.stream.show if len(prompts) == 1 and output.console.is_terminal else None
    with _opened(json_lines if speaks else None) as lines:
        for text in generate(opened, prompts, settings, watch=watch, should_stop=should_stop):
            output.show(text, is_shown=watch is not None, has_number=len(prompts) > 1)
            if lines is not None:
                print(json_line(text), file=lines, flush=True)
            if sample_file is not None and speaks:
                save_json(output.sample(text), sample_file)
    if not was_stopped:
        return ExitCode.DONE
    return ExitCode.INTERRUPTED if stop.received is signal.SIGINT else ExitCode.REQUEUE


class _Output:
    """Shows the texts of one call."""

    def __init__(
        self, opened: OpenedCheckpoint, settings: GenerationSettings, console: Console, *, show_steps: bool
    ) -> None:
        ponder = opened.module.ponder.under(settings.limits).config
        self.console = console
        self._opened, self._settings = opened, settings
        self._styles = (
            step_styles(ponder.num_latent_thoughts, is_basic=has_basic_colors(console))
            if show_steps and ponder.method.halts
            else []
        )
        self._started = time.monotonic()
        self.stream = TextStream(console, styles=self._styles, stop=settings.stop)

    def show(self, text: GeneratedText, *, is_shown: bool, has_number: bool) -> None:
        """Show a text that has ended.

        Args:
            text: the text.
            is_shown: whether it was shown while it grew.
            has_number: whether there are others.
        """
        if has_number:
            self.console.rule(f"{text.number}: {text.ending}, {text.mean_steps:.2f} steps per token")
        if not is_shown:
            self.console.print(render_tokens(text.tokens, self._styles))
        if self._styles and not has_number:
            self.console.print(render_legend(text.tokens, self._styles))

    def sample(self, text: GeneratedText) -> TextSample:
        """Return a text in the form of the report."""
        return text_sample(self._opened, text, self._settings, seconds=time.monotonic() - self._started)


@contextmanager
def _opened(path: Path | None) -> Iterator[TextIO | None]:
    if path is None:
        yield None
        return
    with path.open("w", encoding="utf-8") as file:
        yield file


class TextStream:
    """Prints the tokens of one text as they are generated, each once, in the style of its steps."""

    def __init__(self, console: Console, *, styles: Sequence[str], stop: Sequence[str]) -> None:
        """Start with nothing shown.

        Args:
            console: where to print.
            styles: by number of steps; empty for none.
            stop: strings that end the text: a possible beginning of one is held back.
        """
        self._console = console
        self._styles = styles
        self._stop = stop
        self._num_shown = 0

    def show(self, text: GeneratedText) -> None:
        """Print the new tokens that are final: all of them once the text has ended."""
        end = len(text.tokens) if text.ending is not None else self._num_settled(text)
        shown = render_tokens(text.tokens[self._num_shown : end], self._styles)
        self._console.print(shown, end="\n" if text.ending is not None else "", soft_wrap=True)
        self._num_shown = max(self._num_shown, end)

    def _num_settled(self, text: GeneratedText) -> int:
        """Return the number of tokens that no later token can change."""
        end = len(text.tokens)
        while end > 0 and text.tokens[end - 1].piece.endswith(UNFINISHED):
            end -= 1
        held = possible_stop(text.continuation, self._stop)
        while end > 0 and held > 0 and not text.tokens[end - 1].is_prompt:
            end -= 1
            held -= len(text.tokens[end].piece)
        return end


def possible_stop(text: str, stop: Sequence[str]) -> int:
    """Return how many letters at the end of a text may be the beginning of a stop string."""
    lengths = (length for one in stop for length in range(1, len(one)) if text.endswith(one[:length]))
    return max(lengths, default=0)


def render_tokens(tokens: Sequence[SampleToken], styles: Sequence[str]) -> Text:
    """Join tokens in the styles of their steps; without styles, only the prompt is dimmed."""
    text = Text()
    for token in tokens:
        style = styles[token.steps] if styles else ""
        text.append(token.piece, style=f"dim {style}" if token.is_prompt else style)
    return text


def render_legend(tokens: Sequence[SampleToken], styles: Sequence[str]) -> Text:
    """Return the legend of the colours, with token counts; empty without styles."""
    counts = Counter(token.steps for token in tokens)
    legend = Text()
    for steps, style in enumerate(styles):
        legend.append(f" {steps} steps: {counts[steps]} tokens ", style=style)
        legend.append(" ")
    return legend


def has_basic_colors(console: Console) -> bool:
    """Whether a terminal has 16 colours, of which the ramp of steps would be the same two or three."""
    return console.color_system in ("standard", "windows")


def step_styles(num_latent_thoughts: int, *, is_basic: bool = False) -> list[str]:
    """Return a style for each number of steps, 0..K.

    Args:
        num_latent_thoughts: K.
        is_basic: for a terminal of 16 colours.
    """
    if not is_basic:
        return [f"white on {color}" for color in step_colors(DARK_RAMP, num_latent_thoughts + 1)]
    rounds = (divmod(step, len(BASIC_STYLES)) for step in range(num_latent_thoughts + 1))
    return [f"{_MARKS[turn % len(_MARKS)]}{BASIC_STYLES[index]}" for turn, index in rounds]

"""What `megaponder generate` shows and writes."""

import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from rich.console import Console

from pipeline.commands.sample_text import render_legend, render_tokens, step_styles
from pipeline.commands.text_stream import TextStream
from pipeline.evaluation.opened import OpenedCheckpoint
from pipeline.evaluation.results import TextSample, save_json
from pipeline.generation.output import json_line
from pipeline.generation.texts import GeneratedText, GenerationSettings, generate, text_sample
from pipeline.ranks.signals import StopFlag, StopRequest
from pipeline.shared.exit_codes import ExitCode


def generate_to(
    opened: OpenedCheckpoint,
    prompts: Sequence[str | Sequence[int]],
    settings: GenerationSettings,
    *,
    stop: StopFlag,
    json_lines: Path | None,
    sample_file: Path | None,
    show_steps: bool,
    speaks: bool,
    console: Console | None = None,
) -> ExitCode:
    """Generate, show and write.

    Args:
        opened: the model.
        prompts: at least one.
        settings: what to generate.
        stop: ends it.
        json_lines: a line for each text that has ended.
        sample_file: the one text, for the report.
        show_steps: colour the tokens.
        speaks: whether this rank shows and writes anything.
        console: where the text goes.
    Returns:
        DONE; INTERRUPTED or REQUEUE where the keyboard or a signal ended it.
    """
    output = _Output(opened, settings, console or Console(quiet=not speaks), show_steps=show_steps)
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
        ponder = opened.config.ponder
        self.console = console
        self._opened = opened
        self._styles = step_styles(ponder.num_latent_thoughts) if show_steps and ponder.method.halts else []
        self._started = time.monotonic()
        self.stream = TextStream(console, styles=self._styles, stop=settings.stop)

    def show(self, text: GeneratedText, *, is_shown: bool, has_number: bool) -> None:
        """Show a text that has ended.

        Args:
            text: the text.
            is_shown: it has been shown while it grew.
            has_number: there are others.
        """
        if has_number:
            self.console.rule(f"{text.number}: {text.ending}, {text.mean_steps:.2f} steps per token")
        if not is_shown:
            self.console.print(render_tokens(text.tokens, self._styles))
        if self._styles and not has_number:
            self.console.print(render_legend(self.sample(text)))

    def sample(self, text: GeneratedText) -> TextSample:
        """A text in the form of the report."""
        return text_sample(self._opened, text, seconds=time.monotonic() - self._started)


@contextmanager
def _opened(path: Path | None) -> Iterator[TextIO | None]:
    if path is None:
        yield None
        return
    with path.open("w", encoding="utf-8") as file:
        yield file

"""Prompts that are asked for one after the other."""

import os
import signal
from collections.abc import Sequence

from pipeline.commands.asking import answer_prompts, asks_for_prompts
from pipeline.ranks.signals import StopFlag
from pipeline.shared.errors import DataError
from pipeline.shared.exit_codes import ExitCode

END, KEYBOARD = EOFError(), KeyboardInterrupt()


def talk(
    lines: Sequence[str | BaseException], answers: Sequence[ExitCode | Exception] = ()
) -> tuple[ExitCode, list[object]]:
    """Return the code, and the prompts that were continued."""
    typed, codes, prompts = iter(lines), iter(answers), []

    def ask(_invitation: str) -> str:
        line = next(typed)
        if isinstance(line, BaseException):
            raise line
        return line

    def answer(texts: Sequence[str | Sequence[int]], *, stop: StopFlag) -> ExitCode:
        assert stop.received is None
        prompts.extend(texts)
        code = next(codes, ExitCode.DONE)
        if isinstance(code, Exception):
            raise code
        if code is ExitCode.INTERRUPTED:
            os.kill(os.getpid(), signal.SIGINT)
            assert stop.received is signal.SIGINT
        return code

    with StopFlag() as flag:
        return answer_prompts(answer, lambda: [7, 8], stop=flag, ask=ask), prompts


def test_prompts_are_continued_until_the_input_ends_and_an_empty_one_is_from_the_heldout_text() -> None:
    assert talk(["one", "", "two", END]) == (ExitCode.DONE, ["one", [7, 8], "two"])


def test_the_keyboard_ends_a_text_and_while_a_prompt_is_asked_for_everything() -> None:
    assert talk(["one", "two", KEYBOARD], [ExitCode.INTERRUPTED]) == (ExitCode.INTERRUPTED, ["one", "two"])


def test_what_is_wrong_with_a_prompt_does_not_end_the_conversation() -> None:
    assert talk(["long", "short", END], [DataError("too long")]) == (ExitCode.DONE, ["long", "short"])


def test_a_stop_signal_ends_it() -> None:
    assert talk(["one", "two", END], [ExitCode.REQUEUE]) == (ExitCode.REQUEUE, ["one"])


def test_nobody_is_asked_without_a_terminal() -> None:
    assert not asks_for_prompts()

"""Earlier spellings of options, which scripts may use: they are replaced by those of the help."""

from collections.abc import Sequence
from itertools import zip_longest

__all__ = ["STANDARD_OUTPUT", "current_spelling"]

STANDARD_OUTPUT = "-"
# By command; an option that became an argument has no name any more.
_RENAMED: dict[tuple[str, ...], dict[str, str | None]] = {
    ("eval",): dict.fromkeys(("--output", "--output-json", "-o"), "--json"),
    ("verify",): dict.fromkeys(("--output", "-o"), "--json"),
    ("compare",): {"--anew": "--reevaluate"},
    ("rehearse",): {"--world-size": "--gpus"},
    ("convert", "from-hf"): {"--set": None},
}
# Their --json took no file, so that a word behind it may be an argument.
_PRINTED_JSON = ("checkpoint", "config", "jobs")
_JSON = "--json"


def current_spelling(words: Sequence[str]) -> list[str]:
    """Return a command line in the spelling of the help.

    ``--json`` without a file prints on standard output.

    Args:
        words: after the name of the program.
    """
    ending = list(words[words.index("--") :]) if "--" in words else []
    options = list(words[: len(words) - len(ending)])
    renamed = next(
        (names for command, names in _RENAMED.items() if tuple(options[: len(command)]) == command), {}
    )
    if renamed:
        options = _with_renamed(options, renamed)
    return _with_json_file(options, prints=bool(options) and options[0] in _PRINTED_JSON) + ending


def _with_renamed(words: Sequence[str], renamed: dict[str, str | None]) -> list[str]:
    result: list[str] = []
    arguments: list[str] = []
    rest = iter(words)
    for word in rest:
        name, equals, value = word.partition("=")
        if name not in renamed:
            result.append(word)
        elif (new := renamed[name]) is not None:
            result.append(f"{new}{equals}{value}")
        else:
            # Behind the other arguments, where settings are.
            arguments += [value] if equals else [following for following in (next(rest, None),) if following]
    return [*result, *arguments]


def _with_json_file(words: Sequence[str], *, prints: bool) -> list[str]:
    result = []
    for word, following in zip_longest(words, words[1:]):
        result.append(word)
        if word == _JSON and not _is_file(following, prints=prints):
            result.append(STANDARD_OUTPUT)
    return result


def _is_file(word: str | None, *, prints: bool) -> bool:
    if word is None or word == STANDARD_OUTPUT:
        return word is not None
    return not word.startswith("-") and (not prints or word.endswith(".json"))

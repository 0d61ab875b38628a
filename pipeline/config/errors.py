"""Problems of a configuration, in terms a user can act on."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from pipeline.shared.errors import UserError

# Characters of a value that an error quotes.
_LONGEST_VALUE = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigProblem:
    """One broken rule of a configuration.

    Attributes:
        path: dotted path of the setting, such as `parallel.tensor`.
        rule: what must hold.
        value: what was found, written as in YAML.
        cure: what to write instead; empty if the rule suffices.
    """

    path: str
    rule: str
    value: str
    cure: str = ""

    def __str__(self) -> str:
        sentence = f"{self.path}: {self.rule}, but is {self.value}"
        return f"{sentence}; {self.cure}" if self.cure else sentence


class ConfigError(UserError, ValueError):
    """All problems of a configuration, reported together so that one round of editing fixes them."""

    def __init__(self, problems: Sequence[ConfigProblem], *, source: str = "") -> None:
        if not problems:
            raise ValueError("a ConfigError needs at least one problem")
        self.problems = tuple(problems)
        self.source = source
        super().__init__(self._text())

    def _text(self) -> str:
        count = len(self.problems)
        headline = f"{count} problem{'s' if count > 1 else ''} in the configuration"
        origin = f" ({self.source})" if self.source else ""
        return "\n".join([f"{headline}{origin}:", *(f"  - {problem}" for problem in self.problems)])


def as_written(value: object) -> str:
    """Return a value as it is written in YAML: `true`, `null`, `[0, 60]`; text in quotes; long ones cut."""
    written = _as_written(value)
    return written if len(written) <= _LONGEST_VALUE else f"{written[:_LONGEST_VALUE]}..."


def _as_written(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return f"[{', '.join(_as_written(item) for item in value)}]"
    return repr(value) if isinstance(value, str) and not isinstance(value, StrEnum) else str(value)

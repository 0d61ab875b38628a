"""A parallel layout in one word: `tp=2,pp=2,dp=1,sp=true`."""

from collections.abc import Callable
from dataclasses import dataclass

from pipeline.config.errors import ConfigProblem
from pipeline.config.schema import ParallelConfig

OPTION = "--layout"


@dataclass(frozen=True, slots=True)
class Axis:
    """One word of a layout.

    Attributes:
        setting: what it sets.
        default: its value where the layout does not set it.
        rule: what values it takes.
        is_valid: whether a text is such a value.
    """

    setting: str
    default: str
    rule: str
    is_valid: Callable[[str], bool]


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdigit() and int(text) >= 1


def _is_switch(text: str) -> bool:
    return text in ("true", "false")


AXES = {
    "tp": Axis("parallel.tensor", "1", "must be an integer of at least 1", _is_count),
    "cp": Axis("parallel.context", "1", "must be an integer of at least 1", _is_count),
    "pp": Axis("parallel.pipeline", "1", "must be an integer of at least 1", _is_count),
    "dp": Axis("parallel.data", "1", "must be an integer of at least 1", _is_count),
    "sp": Axis("parallel.sequence_parallel", "false", "must be true or false", _is_switch),
}
# Everything runs on one process; initial weights and data are the same on every layout.
ONE_PROCESS = (
    *(f"{axis.setting}={axis.default}" for axis in AXES.values()),
    "parallel.layers_per_stage=null",
)


def parse_layout(text: str) -> tuple[list[str], list[ConfigProblem]]:
    """Translate a layout into settings.

    Args:
        text: axes and values, comma-separated; an axis that is not named has size 1.

    Returns:
        overrides for all axes, those that are wrong at their default; and everything that is wrong.
    """
    values: dict[str, str] = {}
    problems = []
    for word in text.split(","):
        name, _, value = (part.strip() for part in word.partition("="))
        problem = _problem_of(name, value, word, is_again=name in values)
        if problem is None:
            values[name] = value
        else:
            problems.append(problem)
    return [f"{axis.setting}={values.get(name, axis.default)}" for name, axis in AXES.items()], problems


def render_layout(parallel: ParallelConfig) -> str:
    """Return a layout in the syntax of the option."""
    sizes = f"tp={parallel.tensor},pp={parallel.pipeline},dp={parallel.data}"
    sizes += f",cp={parallel.context}" if parallel.context > 1 else ""
    return f"{sizes},sp=true" if parallel.sequence_parallel else sizes


def _problem_of(name: str, value: str, word: str, *, is_again: bool) -> ConfigProblem | None:
    axis = AXES.get(name)
    if axis is None:
        rule, cure = f"must name {', '.join(AXES)} only", "for example tp=2,pp=2,dp=1,sp=true"
    elif is_again:
        rule, cure = f"must name {name} once", ""
    elif not axis.is_valid(value):
        rule, cure = f"{name} {axis.rule}", f"for example {name}={'true' if name == 'sp' else 2}"
    else:
        return None
    return ConfigProblem(path=OPTION, rule=rule, value=repr(word), cure=cure)

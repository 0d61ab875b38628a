"""A parallel layout in one word, by the names of its settings: `tensor=2,pipeline=2,data=1`."""

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
        example: of another value.
        rule: what values it takes.
        is_valid: whether a text is such a value.
    """

    setting: str
    default: str
    example: str
    rule: str
    is_valid: Callable[[str], bool]


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdigit() and int(text) >= 1


def _is_switch(text: str) -> bool:
    return text in ("true", "false")


_COUNT, _SWITCH = "must be an integer of at least 1", "must be true or false"
AXES = {
    "tensor": Axis("parallel.tensor", "1", "2", _COUNT, _is_count),
    "context": Axis("parallel.context", "1", "2", _COUNT, _is_count),
    "pipeline": Axis("parallel.pipeline", "1", "2", _COUNT, _is_count),
    "data": Axis("parallel.data", "1", "2", _COUNT, _is_count),
    "sequence_parallel": Axis("parallel.sequence_parallel", "false", "true", _SWITCH, _is_switch),
}
# As papers call them.
SHORT_NAMES = {"tp": "tensor", "cp": "context", "pp": "pipeline", "dp": "data", "sp": "sequence_parallel"}
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
        name = SHORT_NAMES.get(name, name)
        problem = _problem_of(name, value, word, is_again=name in values)
        if problem is None:
            values[name] = value
        else:
            problems.append(problem)
    return [f"{axis.setting}={values.get(name, axis.default)}" for name, axis in AXES.items()], problems


def render_layout(parallel: ParallelConfig) -> str:
    """Return a layout in the syntax of the option."""
    sizes = f"tensor={parallel.tensor},pipeline={parallel.pipeline},data={parallel.data}"
    sizes += f",context={parallel.context}" if parallel.context > 1 else ""
    return f"{sizes},sequence_parallel=true" if parallel.sequence_parallel else sizes


def _problem_of(name: str, value: str, word: str, *, is_again: bool) -> ConfigProblem | None:
    axis = AXES.get(name)
    if axis is None:
        rule, cure = f"must name {', '.join(AXES)} only", "for example tensor=2,pipeline=2"
    elif is_again:
        rule, cure = f"must name {name} once", ""
    elif not axis.is_valid(value):
        rule, cure = f"{name} {axis.rule}", f"for example {name}={axis.example}"
    else:
        return None
    return ConfigProblem(path=OPTION, rule=rule, value=repr(word), cure=cure)

"""Pydantic's findings, said as rule, value and cure."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pydantic_core import ErrorDetails

from pipeline.config.aliases import find_successor
from pipeline.config.errors import ConfigProblem, as_written
from pipeline.config.suggestions import nearest_name

# A default that depends on an invalid setting; the invalid setting has its own message.
FOLLOW_UP_ERRORS = frozenset({"default_factory_not_called"})

_RULES: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "missing": lambda _: "must be given",
    "int_type": lambda _: "must be an integer",
    "float_type": lambda _: "must be a number",
    "bool_type": lambda _: "must be true or false",
    "string_type": lambda _: "must be text",
    "path_type": lambda _: "must be a path",
    "finite_number": lambda _: "must be a finite number",
    "tuple_type": lambda _: "must be a list",
    "too_long": lambda context: f"must have at most {_entries(context['max_length'])}",
    "too_short": lambda context: f"must have at least {_entries(context['min_length'])}",
    "model_type": lambda _: "must be a group of settings",
    "dict_type": lambda _: "must be a group of settings",
    "greater_than_equal": lambda context: f"must be at least {context['ge']:g}",
    "greater_than": lambda context: f"must be above {context['gt']:g}",
    "less_than_equal": lambda context: f"must be at most {context['le']:g}",
    "less_than": lambda context: f"must be below {context['lt']:g}",
    "literal_error": lambda context: f"must be one of {_unquoted(context['expected'])}",
    "enum": lambda context: f"must be one of {_unquoted(context['expected'])}",
    "string_too_short": lambda context: f"must have at least {context['min_length']} characters",
    "string_pattern_mismatch": lambda _: "must be letters, digits, '.', '_' and '-', as it names a folder",
}


def problem_of(error: ErrorDetails, known_paths: Sequence[str]) -> ConfigProblem:
    """Translate one finding of pydantic.

    Args:
        error: an item of `ValidationError.errors()`.
        known_paths: dotted paths of all settings.
    """
    path = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        return unknown_setting(path, known_paths)
    context = error.get("ctx", {})
    describe = _RULES.get(error["type"])
    rule = describe(context) if describe else f"is not valid ({error['msg']})"
    if error["type"] == "missing":
        return ConfigProblem(path=path, rule=rule, value="missing", cure="add it")
    return ConfigProblem(path=path, rule=rule, value=as_written(error["input"]), cure=_cure(error, context))


def unknown_setting(path: str, known_paths: Sequence[str]) -> ConfigProblem:
    """Make the problem for a setting that does not exist, with the nearest that does."""
    meant = _meant(path, known_paths)
    return ConfigProblem(
        path=path,
        rule="must be a known setting",
        value="unknown",
        cure=f"did you mean {meant}?" if meant else "the recipes in pipeline/recipes show the settings",
    )


def _meant(path: str, known_paths: Sequence[str]) -> str | None:
    section, _, leaf = path.rpartition(".")
    successor = find_successor(leaf)
    if successor is not None:
        return successor
    by_leaf = {known.rpartition(".")[2]: known for known in known_paths}
    if leaf in by_leaf:
        return by_leaf[leaf]
    if section:
        siblings = [known for known in known_paths if known.startswith(f"{section}.")]
        return nearest_name(path, siblings) or nearest_name(path, known_paths)
    groups = {known.partition(".")[0]: known.partition(".")[0] for known in known_paths}
    candidates = by_leaf | groups
    nearest = nearest_name(path, candidates)
    return candidates[nearest] if nearest else None


def _cure(error: ErrorDetails, context: Mapping[str, Any]) -> str:
    found = error["input"]
    if error["type"] == "int_type" and isinstance(found, float) and found.is_integer():
        return f"write {int(found)}"
    if error["type"] in ("int_type", "float_type", "bool_type") and isinstance(found, str):
        return "write it without quotes" if _looks_like_a_value(found) else ""
    if error["type"] in ("literal_error", "enum") and isinstance(found, str):
        meant = nearest_name(found, _unquoted(context["expected"]).replace(" or ", ", ").split(", "))
        return f"did you mean {meant}?" if meant else ""
    return ""


def _looks_like_a_value(text: str) -> bool:
    return text.lower() in ("true", "false") or text.replace(".", "", 1).replace("-", "").isdigit()


def _entries(number: int) -> str:
    return f"{number} entry" if number == 1 else f"{number} entries"


def _unquoted(expected: str) -> str:
    return expected.replace("'", "")

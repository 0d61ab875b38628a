"""Pydantic's errors as rule, value and cure; suggestions of the nearest name or number that fits."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from pydantic_core import ErrorDetails

from pipeline.config.aliases import find_successor
from pipeline.config.errors import ConfigProblem, as_written
from pipeline.shared.secrets import mask_variable

_RULES: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "missing": lambda _: "must be given",
    "int_type": lambda _: "must be an integer",
    "float_type": lambda _: "must be a number",
    "bool_type": lambda _: "must be true or false",
    "string_type": lambda _: "must be text",
    "path_type": lambda _: "must be a path",
    "path_syntax": lambda _: "must be a path",
    "all_or_count": lambda _: "must be all or a whole number of at least 1",
    "path_name": lambda _: "must name variables and home folders that exist",
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
    "string_pattern_mismatch": lambda context: f"must match {context['pattern']}",
}

# What YAML 1.1 takes for true and false.
_OTHER_WORDS = dict.fromkeys(("yes", "on", "y", "1"), "true") | dict.fromkeys(
    ("no", "off", "n", "0"), "false"
)


def problems_of(errors: Sequence[ErrorDetails], known_paths: Sequence[str]) -> list[ConfigProblem]:
    """Translate the errors of pydantic, without those that only follow from others.

    Args:
        errors: `ValidationError.errors()`.
        known_paths: dotted paths of all settings.
    """
    return [_problem_of(error, known_paths) for error in errors if not _is_follow_up(error, errors)]


def _is_follow_up(error: ErrorDetails, errors: Sequence[ErrorDetails]) -> bool:
    place = error["loc"]
    # Pydantic does not count invalid entries of a list: it may call the list too short as well.
    misses_invalid_entries = error["type"] == "too_short" and any(
        len(other["loc"]) > len(place) and other["loc"][: len(place)] == place for other in errors
    )
    # The default depends on an invalid setting, which has an error of its own.
    return misses_invalid_entries or error["type"] == "default_factory_not_called"


def _problem_of(error: ErrorDetails, known_paths: Sequence[str]) -> ConfigProblem:
    path = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        return unknown_setting(path, known_paths)
    context = error.get("ctx", {})
    describe = (lambda _: error["msg"]) if error["type"] == "no_use" else _RULES.get(error["type"])
    rule = describe(context) if describe else f"is not valid ({error['msg']})"
    if error["type"] == "missing":
        return ConfigProblem(path=path, rule=rule, value="missing", cure="add it")
    value = as_written(error["input"])
    if path.startswith("submit.environment."):
        # What is wrong with a password is not shown either.
        value = mask_variable(path.rpartition(".")[2], value)
    return ConfigProblem(path=path, rule=rule, value=value, cure=_cure(error, context))


def unknown_setting(path: str, known_paths: Sequence[str]) -> ConfigProblem:
    """Return the problem for a setting that does not exist; its cure suggests the nearest one that does."""
    meant = _meant(path, known_paths)
    return ConfigProblem(
        path=path,
        rule="must be a known setting",
        value="unknown",
        cure=f"did you mean {meant}?" if meant else "see the recipes in pipeline/recipes",
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
    if error["type"] == "no_use":
        return str(context["cure"])
    if error["type"] == "path_name":
        return str(context["reason"])
    if error["type"] == "bool_type" and str(found).lower() in _OTHER_WORDS:
        return f"write {_OTHER_WORDS[str(found).lower()]}"
    if error["type"] == "int_type" and isinstance(found, float) and found.is_integer():
        return f"write {int(found)}"
    if error["type"] == "int_type" and isinstance(found, str) and found.isdecimal() and found[0] == "0":
        return f"write {found.lstrip('0') or '0'}, or 0o{found.lstrip('0')} for an octal number"
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


def nearest_name(name: str, known: Iterable[str]) -> str | None:
    """Return the known name most similar to `name`, or None if none is similar."""
    matches = get_close_matches(name.replace("-", "_").lower(), list(known), n=1, cutoff=0.6)
    return matches[0] if matches else None


def nearest_multiples(value: int, divisor: int) -> str:
    """Return the positive multiples of `divisor` around `value` as text: `96 or 128`."""
    below = value // divisor * divisor
    above = below + divisor
    return f"{below} or {above}" if below > 0 else str(above)


def largest_common_divisor_up_to(limit: int, numbers: Iterable[int]) -> int:
    """Return the largest number of at most `limit` that divides all `numbers` (1 always does)."""
    values = list(numbers)
    return next(
        candidate for candidate in range(limit, 0, -1) if all(value % candidate == 0 for value in values)
    )

"""Overrides from the command line: `group.key=value`.

The value of a setting that is text or a path is taken as it is typed, with every `#`, `:`, quote and space.
Values of other settings are YAML without comments: numbers, `true`, `[1, 2]`.
"""

from collections.abc import Callable, Collection, Sequence
from typing import Any

import yaml

from pipeline.config.aliases import find_alias, given_under_both_names, notify_renamed, present_name
from pipeline.config.config_file import parse_value
from pipeline.config.errors import ConfigProblem, as_written
from pipeline.config.messages import unknown_setting
from pipeline.config.recipes import find_recipe


def apply_overrides(
    settings: dict[str, Any],
    overrides: Sequence[str],
    known_paths: Sequence[str],
    *,
    text_paths: Collection[str] = (),
) -> list[ConfigProblem]:
    """Apply overrides to nested settings; the last of two overrides of a setting counts.

    Args:
        settings: nested groups as read from YAML; changed in place.
        overrides: `name=value`; the name is a present or earlier dotted path, or Megatron's name.
        known_paths: dotted paths of all settings.
        text_paths: those of settings that are text or a path.

    Returns:
        a problem for every override that could not be applied.
    """
    problems = _names_given_twice(overrides)
    for override in overrides:
        problem = _apply(settings, override, known_paths, text_paths)
        if problem is not None:
            problems.append(problem)
    return problems


def value_of(text: str) -> Any:
    """Return the value of an override as YAML; the text itself where it is none."""
    try:
        return parse_value(text)
    except yaml.YAMLError:
        return text


def _names_given_twice(overrides: Sequence[str]) -> list[ConfigProblem]:
    """Report renamed settings that are given under both names."""
    values = {_name(override): override.partition("=")[2] for override in overrides}
    return [
        given_under_both_names(name, present_name(name), repr(value))
        for name, value in values.items()
        if present_name(name) != name and present_name(name) in values
    ]


def _name(override: str) -> str:
    return override.partition("=")[0].strip()


def _apply(
    settings: dict[str, Any], override: str, known_paths: Sequence[str], text_paths: Collection[str]
) -> ConfigProblem | None:
    name, text = _name(override), override.partition("=")[2]
    if "=" not in override or not name:
        return ConfigProblem(
            path=name or "override",
            rule="must have the form group.key=value",
            value=as_written(override),
            cure=_meant_without_value(override),
        )
    path, convert = _resolve(name, known_paths)
    if path in text_paths and convert is None:
        value: Any = None if text in ("", "null") else text
    else:
        try:
            value = parse_value(text)
        except yaml.YAMLError as error:
            return ConfigProblem(
                path=name, rule="must have a YAML value", value=as_written(text), cure=_reason(error)
            )
    if convert is not None:
        value = convert(value)
    if any(known.startswith(f"{path}.") for known in known_paths):
        return ConfigProblem(
            path=path,
            rule="must not be set as a whole",
            value="a group",
            cure=f"set {path}.name=value",
        )
    if path not in known_paths:
        return unknown_setting(path, known_paths)
    return _write(settings, path.split("."), value)


def _meant_without_value(word: str) -> str:
    """Return what was probably meant by a word that sets nothing."""
    if word.endswith((".yaml", ".yml")) or find_recipe(word) is not None:
        return f"did you mean --config {word}?"
    return "for example training.train_iters=100"


def _reason(error: yaml.YAMLError) -> str:
    problem = str(getattr(error, "problem", None) or error)
    return "a value has no comments" if "'#'" in problem else problem


def _resolve(name: str, known_paths: Sequence[str]) -> tuple[str, Callable[[Any], Any] | None]:
    """Return the path of a setting, and how its value is converted if the name is another program's."""
    renamed = present_name(name)
    if renamed != name:
        notify_renamed(name, renamed, source="overrides")
        return renamed, None
    alias = None if name in known_paths else find_alias(name)
    return (alias.path, alias.convert) if alias else (name, None)


def _write(settings: dict[str, Any], path: Sequence[str], value: Any) -> ConfigProblem | None:
    *groups, leaf = path
    target = settings
    for group in groups:
        inner = target.get(group)
        if inner is None:
            inner = target[group] = {}
        if not isinstance(inner, dict):
            # Not a group: build_config reports it.
            return None
        target = inner
    target[leaf] = value
    return None

"""Overrides from the command line: `group.key=value`."""

from collections.abc import Sequence
from typing import Any

import yaml

from pipeline.config.aliases import find_alias, given_under_both_names, notify_renamed, present_name
from pipeline.config.config_file import parse_yaml, quote_yaml
from pipeline.config.errors import ConfigProblem
from pipeline.config.messages import unknown_setting


def apply_overrides(
    settings: dict[str, Any], overrides: Sequence[str], known_paths: Sequence[str]
) -> list[ConfigProblem]:
    """Apply overrides to nested settings; the last of two overrides of a setting counts.

    Args:
        settings: nested groups as read from YAML; changed in place.
        overrides: `name=value`; the name is a present or earlier dotted path, or Megatron's name; the value
            is YAML.
        known_paths: dotted paths of all settings.

    Returns:
        a problem for every override that could not be applied.
    """
    problems = _names_given_twice(overrides)
    for override in overrides:
        problem = _apply(settings, override, known_paths)
        if problem is not None:
            problems.append(problem)
    return problems


def render_override(name: str, text: str) -> str:
    """Return an override that sets a setting to a text, whatever the text holds."""
    try:
        is_read_back = parse_yaml(text) == text
    except yaml.YAMLError:
        is_read_back = False
    return f"{name}={text}" if is_read_back else f"{name}={quote_yaml(text)}"


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


def _apply(settings: dict[str, Any], override: str, known_paths: Sequence[str]) -> ConfigProblem | None:
    name, text = _name(override), override.partition("=")[2]
    if "=" not in override or not name:
        return ConfigProblem(
            path=name or "override",
            rule="must have the form group.key=value",
            value=repr(override),
            cure="for example training.train_iters=100",
        )
    try:
        value = parse_yaml(text)
    except yaml.YAMLError:
        return ConfigProblem(
            path=name, rule="must have a YAML value", value=repr(text), cure="quote it: key='\"text\"'"
        )
    path, value = _resolve(name, value, known_paths)
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


def _resolve(name: str, value: Any, known_paths: Sequence[str]) -> tuple[str, Any]:
    renamed = present_name(name)
    if renamed != name:
        notify_renamed(name, renamed, source="overrides")
        return renamed, value
    alias = None if name in known_paths else find_alias(name)
    return (alias.path, alias.convert(value)) if alias else (name, value)


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

"""Plain nested values to a `RunConfig`, or to the list of everything that is wrong with them."""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from pydantic import BaseModel, ValidationError

from pipeline.config.errors import ConfigError, ConfigProblem
from pipeline.config.messages import FOLLOW_UP_ERRORS, problem_of
from pipeline.config.rules import broken_rules_of_part
from pipeline.config.schema import RunConfig

Recorded = dict[type[BaseModel], dict[str, Any]]


def setting_paths() -> list[str]:
    """Return the dotted path of every setting, in the order of the schema."""
    paths = []
    for name, field in RunConfig.model_fields.items():
        section = _section_type(field.annotation)
        paths += [f"{name}.{inner}" for inner in section.model_fields] if section else [name]
    return paths


def build_config(settings: Mapping[str, Any]) -> RunConfig:
    """Check nested settings.

    Raises:
        ConfigError: with every problem: types, ranges, unknown names, and all rules between settings that
            can be checked in spite of them.
    """
    recorded: Recorded = {}
    try:
        return RunConfig.model_validate(dict(settings), context=recorded)
    except ValidationError as error:
        raise ConfigError(_all_problems(error, recorded)) from None


def _all_problems(error: ValidationError, recorded: Recorded) -> list[ConfigProblem]:
    known_paths = setting_paths()
    problems: list[ConfigProblem] = []
    for detail in error.errors(include_url=False):
        cause = detail.get("ctx", {}).get("error")
        if isinstance(cause, ConfigError):
            # Types and ranges hold: these are the broken rules of a complete configuration.
            return list(cause.problems)
        if detail["type"] not in FOLLOW_UP_ERRORS:
            problems.append(problem_of(detail, known_paths))
    return problems + broken_rules_of_part(_valid_part(recorded))


def _valid_part(recorded: Recorded) -> SimpleNamespace:
    """Gather the valid settings of an invalid configuration."""
    part = SimpleNamespace()
    for name, field in RunConfig.model_fields.items():
        complete = recorded.get(RunConfig, {}).get(name)
        section = _section_type(field.annotation)
        if complete is not None:
            setattr(part, name, complete)
        elif section is not None:
            setattr(part, name, _valid_section(section, recorded.get(section, {})))
    return part


def _valid_section(section: type[BaseModel], values: dict[str, Any]) -> SimpleNamespace:
    known = dict(values)
    for name, field in section.model_fields.items():
        if name not in known and field.default_factory_takes_validated_data:
            # Pydantic computes no dependent default once any setting of the section is invalid.
            try:
                known[name] = field.get_default(call_default_factory=True, validated_data=known)
            except KeyError:
                continue
    return SimpleNamespace(**known)


def _section_type(annotation: Any) -> type[BaseModel] | None:
    is_section = isinstance(annotation, type) and issubclass(annotation, BaseModel)
    return annotation if is_section else None

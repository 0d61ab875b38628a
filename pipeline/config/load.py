"""The configuration of a run from a YAML file and overrides, checked; and back to YAML."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import NoneType, SimpleNamespace, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from pipeline.config.config_file import read_settings, render_yaml
from pipeline.config.errors import ConfigError, ConfigProblem
from pipeline.config.messages import problems_of
from pipeline.config.overrides import apply_overrides
from pipeline.config.rules import broken_rules_of_part
from pipeline.config.schema import RunConfig
from pipeline.config.section import SHOW_SECRETS
from pipeline.config.short_runs import fit_to_short_run
from pipeline.shared.files import write_private

Recorded = dict[type[BaseModel], dict[str, Any]]


def load_config(path: Path | None, overrides: Sequence[str] = ()) -> RunConfig:
    """Read, override and check a configuration.

    The warm-up of a run that ends before it is shortened, see `pipeline.config.short_runs`.

    Args:
        path: a YAML file of groups, see `pipeline.config.config_file`; None starts from the defaults.
        overrides: `group.key=value` or Megatron's names; they take precedence over the file, and later ones
            over earlier ones.

    Raises:
        ConfigError: with all problems of the file and the overrides.
    """
    settings, problems = read_settings(path) if path else ({}, [])
    return _checked(settings, problems, overrides, source=str(path) if path else "overrides")


def _checked(
    settings: dict[str, Any], problems: list[ConfigProblem], overrides: Sequence[str], *, source: str
) -> RunConfig:
    problems += apply_overrides(settings, overrides, setting_paths(), text_paths=text_paths())
    fit_to_short_run(settings)
    try:
        config = build_config(settings)
    except ConfigError as error:
        raise ConfigError([*problems, *error.problems], source=source) from None
    if problems:
        raise ConfigError(problems, source=source)
    return config


def build_config(settings: Mapping[str, Any]) -> RunConfig:
    """Check nested settings.

    Raises:
        ConfigError: with every problem: types, ranges, unknown names, and each rule between settings that
            the remaining, valid settings suffice to check.
    """
    recorded: Recorded = {}
    try:
        return RunConfig.model_validate(dict(settings), context=recorded)
    except ValidationError as error:
        raise ConfigError(_all_problems(error, recorded)) from None


def setting_paths() -> list[str]:
    """Return the dotted path of every setting, in the order of the schema."""
    return [path for path, _ in _annotations()]


def text_paths() -> frozenset[str]:
    """Return the dotted path of every setting that is text or a path."""
    return frozenset(path for path, annotation in _annotations() if _is_text(annotation))


def render_config(config: RunConfig) -> str:
    """Return a resolved configuration as YAML; `load_config` reads it back equal, but for masked secrets."""
    return render_yaml(config.model_dump(mode="json"))


def changed_settings(config: RunConfig) -> dict[str, Any]:
    """Return the settings that differ from their defaults, nested, as they are written in files."""
    changed: dict[str, Any] = {}
    dumped = config.model_dump(mode="json")
    for name, field in RunConfig.model_fields.items():
        section, value = section_type(field.annotation), getattr(config, name)
        if section is None:
            if not _is_default(config, name):
                changed[name] = dumped[name]
            continue
        inner = {key: dumped[name][key] for key in section.model_fields if not _is_default(value, key)}
        if inner:
            changed[name] = inner
    return changed


def render_changes(config: RunConfig) -> str:
    """Return the settings that differ from their defaults as YAML, which builds an equal configuration."""
    return render_yaml(changed_settings(config))


def _is_default(section: BaseModel, name: str) -> bool:
    """Tell whether a setting has the value that it gets when only the others are given."""
    given = {other: getattr(section, other) for other in type(section).model_fields}
    default = type(section).model_fields[name].get_default(call_default_factory=True, validated_data=given)
    return bool(default == given[name])


def dump_config(config: RunConfig, path: Path) -> None:
    """Write a resolved configuration to a YAML file, with its secrets masked."""
    path.write_text(render_config(config), encoding="ascii")


def dump_private_config(config: RunConfig, path: Path) -> None:
    """Write a resolved configuration with its secrets to a YAML file that only this user can read."""
    values = config.model_dump(mode="json", context={SHOW_SECRETS: True})
    write_private(path, render_yaml(values))


def _all_problems(error: ValidationError, recorded: Recorded) -> list[ConfigProblem]:
    errors = error.errors(include_url=False)
    for detail in errors:
        cause = detail.get("ctx", {}).get("error")
        if isinstance(cause, ConfigError):
            # Types and ranges are valid: these are the broken rules of a complete configuration.
            return list(cause.problems)
    return problems_of(errors, setting_paths()) + broken_rules_of_part(_valid_part(recorded))


def _valid_part(recorded: Recorded) -> SimpleNamespace:
    """Gather the valid settings of an invalid configuration."""
    part = SimpleNamespace()
    for name, field in RunConfig.model_fields.items():
        complete = recorded.get(RunConfig, {}).get(name)
        section = section_type(field.annotation)
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


def _annotations() -> Iterator[tuple[str, Any]]:
    for name, field in RunConfig.model_fields.items():
        section = section_type(field.annotation)
        if section is None:
            yield name, field.annotation
        else:
            yield from ((f"{name}.{inner}", part.annotation) for inner, part in section.model_fields.items())


def _is_text(annotation: Any) -> bool:
    """Return whether a type is text or a path, which may be absent."""
    if isinstance(annotation, type):
        return annotation is str or issubclass(annotation, Path)
    parts = [part for part in get_args(annotation) if part is not NoneType]
    if get_origin(annotation) is Annotated:
        return _is_text(parts[0])
    return get_origin(annotation) in (Union, UnionType) and all(_is_text(part) for part in parts)


def section_type(annotation: Any) -> type[BaseModel] | None:
    """Return the class of a group of settings; None for a single setting."""
    is_section = isinstance(annotation, type) and issubclass(annotation, BaseModel)
    return annotation if is_section else None

"""A run's configuration from a YAML file and overrides, and back to YAML."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from pipeline.config.errors import ConfigError, ConfigProblem
from pipeline.config.overrides import apply_overrides
from pipeline.config.schema import RunConfig
from pipeline.config.validate import build_config, setting_paths
from pipeline.config.yaml_text import parse_yaml, render_yaml


def load_config(path: Path | None, overrides: Sequence[str] = ()) -> RunConfig:
    """Read, override and check a configuration.

    Args:
        path: a YAML file of groups; None starts from the defaults.
        overrides: `group.key=value` or Megatron's names, later ones over earlier ones and all over the file.

    Raises:
        ConfigError: with all problems at once.
    """
    source = str(path) if path else "overrides"
    settings = _read(path) if path else {}
    problems = apply_overrides(settings, overrides, setting_paths())
    try:
        config = build_config(settings)
    except ConfigError as error:
        raise ConfigError([*problems, *error.problems], source=source) from None
    if problems:
        raise ConfigError(problems, source=source)
    return config


def render_config(config: RunConfig) -> str:
    """Write a resolved configuration as YAML; `load_config` reads it back equal."""
    return render_yaml(config.model_dump(mode="json"))


def dump_config(config: RunConfig, path: Path) -> None:
    """Write a resolved configuration to a YAML file."""
    path.write_text(render_config(config), encoding="ascii")


def _read(path: Path) -> dict[str, Any]:
    try:
        settings = parse_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise _file_error(path, "must be an existing file", "not there", _recipe_hint()) from None
    except (OSError, UnicodeDecodeError) as error:
        raise _file_error(path, "must be a readable text file", str(error), "") from error
    except yaml.YAMLError as error:
        raise _file_error(path, "must be YAML", " ".join(str(error).split()), "") from error
    if settings is None:
        return {}
    if not isinstance(settings, dict):
        raise _file_error(
            path, "must hold groups of settings", f"a {type(settings).__name__}", _recipe_hint()
        )
    return settings


def _file_error(path: Path, rule: str, value: str, cure: str) -> ConfigError:
    return ConfigError([ConfigProblem(path=str(path), rule=rule, value=value, cure=cure)])


def _recipe_hint() -> str:
    recipes = Path(__file__).parent.parent / "recipes"
    return f"examples are in {recipes}"

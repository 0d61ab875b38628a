"""A run's configuration from a YAML file and overrides, and back to YAML."""

from collections.abc import Sequence
from pathlib import Path

from pipeline.config.config_file import read_settings
from pipeline.config.errors import ConfigError
from pipeline.config.overrides import apply_overrides
from pipeline.config.schema import RunConfig
from pipeline.config.validate import build_config, setting_paths
from pipeline.config.yaml_text import render_yaml


def load_config(path: Path | None, overrides: Sequence[str] = ()) -> RunConfig:
    """Read, override and check a configuration.

    Args:
        path: a YAML file of groups, see `pipeline.config.config_file`; None starts from the defaults.
        overrides: `group.key=value` or Megatron's names, later ones over earlier ones and all over the file.

    Raises:
        ConfigError: with all problems at once.
    """
    source = str(path) if path else "overrides"
    settings, problems = read_settings(path) if path else ({}, [])
    problems += apply_overrides(settings, overrides, setting_paths())
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

"""The settings in a YAML file, which may build on those of another.

A file may begin with `base: other.yaml`, a path from its own folder. It then has the settings of that file,
except for those that it gives itself; `null` gives a setting back its default. A base has no base: what a run
consists of stands in two files at most.
"""

from pathlib import Path
from typing import Any

import yaml

from pipeline.config.aliases import rename_settings
from pipeline.config.errors import ConfigError, ConfigProblem, as_written
from pipeline.config.yaml_text import parse_yaml

BASE = "base"


def read_settings(path: Path) -> tuple[dict[str, Any], list[ConfigProblem]]:
    """Read nested settings, over those of the file's base if it has one.

    Renamed settings are under their present names, see `pipeline.config.aliases`.

    Returns:
        the settings, and the problems that do not keep them from being checked further.

    Raises:
        ConfigError: a file is missing, unreadable or no YAML of groups, or a base has a base.
    """
    settings, problems = _read(path)
    if BASE not in settings:
        return settings, problems
    base = settings.pop(BASE)
    if not isinstance(base, str):
        raise _file_error(
            path, "must name one other file as its base", as_written(base), "for example base.yaml"
        )
    base_path = path.parent / base
    if not base_path.is_file():
        raise _file_error(
            path, "must have a base that is there", as_written(base), f"it is looked for in {path.parent}"
        )
    foundation, base_problems = _read(base_path)
    if BASE in foundation:
        raise _file_error(
            base_path,
            f"must not have a base itself, as it is the base of {path}",
            f"on {as_written(foundation[BASE])}",
            "put the settings of both into one file",
        )
    return _over(foundation, settings), base_problems + problems


def _over(foundation: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """Put settings over others, group by group."""
    merged = dict(foundation)
    for name, value in settings.items():
        below = merged.get(name)
        merged[name] = below | value if isinstance(below, dict) and isinstance(value, dict) else value
    return merged


def _read(path: Path) -> tuple[dict[str, Any], list[ConfigProblem]]:
    try:
        settings = parse_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise _file_error(path, "must be an existing file", "not there", _recipe_hint()) from None
    except (OSError, UnicodeDecodeError) as error:
        raise _file_error(path, "must be a readable text file", str(error), "") from error
    except yaml.YAMLError as error:
        raise _file_error(path, "must be YAML", " ".join(str(error).split()), "") from error
    if settings is None:
        return {}, []
    if not isinstance(settings, dict):
        raise _file_error(
            path, "must hold groups of settings", f"a {type(settings).__name__}", _recipe_hint()
        )
    # Before files are merged: a file may use the present name of a setting whose base uses the earlier one.
    return settings, rename_settings(settings, source=str(path))


def _file_error(path: Path, rule: str, value: str, cure: str) -> ConfigError:
    return ConfigError([ConfigProblem(path=str(path), rule=rule, value=value, cure=cure)])


def _recipe_hint() -> str:
    recipes = Path(__file__).parent.parent / "recipes"
    return f"examples are in {recipes}"

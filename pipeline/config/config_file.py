"""YAML in and out: the settings in a file, which may build on those of another.

A file may begin with `base: other.yaml`, a path relative to its own folder. It then has the settings of that
file, except for those that it sets itself; `null` resets a setting to its default. A base has no base: the
settings of a run are in two files at most.

Scalars follow YAML 1.2. PyYAML implements YAML 1.1, where `3e-4` is text, `no` is false and `010` is eight;
here `3e-4` is a number, and only `true` and `false` are booleans. A duplicate key is an error.
"""

import re
from collections.abc import Hashable, Iterable
from pathlib import Path
from typing import Any

import yaml

from pipeline.config.aliases import rename_settings
from pipeline.config.errors import ConfigError, ConfigProblem, as_written

BASE = "base"


def read_settings(path: Path) -> tuple[dict[str, Any], list[ConfigProblem]]:
    """Read nested settings, merged over those of the file's base if it has one.

    Renamed settings are returned under their present names, see `pipeline.config.aliases`.

    Returns:
        the settings, and the problems that do not prevent the settings from being checked further.

    Raises:
        ConfigError: a file is missing, unreadable or not YAML of groups, or a base has a base.
    """
    settings, problems = _read(path)
    if BASE not in settings:
        return settings, problems
    base = settings.pop(BASE)
    if not isinstance(base, str):
        raise _file_error(
            path, "must give one other file as its base", as_written(base), "for example base.yaml"
        )
    base_path = path.parent / base
    if not base_path.is_file():
        raise _file_error(
            path, "must have a base that exists", as_written(base), f"it is looked up in {path.parent}"
        )
    base_settings, base_problems = _read(base_path)
    if BASE in base_settings:
        raise _file_error(
            base_path,
            f"must not have a base itself, as it is the base of {path}",
            f"based on {as_written(base_settings[BASE])}",
            "put the settings of both into one file",
        )
    return _merge(base_settings, settings), base_problems + problems


def parse_yaml(text: str) -> Any:
    """Parse one YAML document.

    Raises:
        yaml.YAMLError: the text is not YAML, holds several documents, or has a duplicate key.
    """
    # The loader derives from SafeLoader: it builds plain values only.
    return yaml.load(text, Loader=_Loader)


def render_yaml(values: Any) -> str:
    """Return plain values as YAML that `parse_yaml` reads back equal; keys keep their order."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=False)


def quote_yaml(text: str) -> str:
    """Return a text in quotes, on one line, that `parse_yaml` reads back equal."""
    return yaml.dump(text, default_style='"', width=len(text) * 10 + 80, allow_unicode=False).rstrip("\n")


def _merge(base: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a base with those of a file over them, group by group."""
    merged = dict(base)
    for name, value in settings.items():
        below = merged.get(name)
        merged[name] = below | value if isinstance(below, dict) and isinstance(value, dict) else value
    return merged


def _read(path: Path) -> tuple[dict[str, Any], list[ConfigProblem]]:
    try:
        settings = parse_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise _file_error(path, "must be an existing file", "missing", _recipe_hint()) from None
    except (OSError, UnicodeDecodeError) as error:
        raise _file_error(path, "must be a readable text file", str(error), "") from error
    except yaml.YAMLError as error:
        raise _file_error(path, "must be YAML", " ".join(str(error).split()), "") from error
    if settings is None:
        return {}, []
    if not isinstance(settings, dict):
        raise _file_error(
            path, "must contain groups of settings", f"a {type(settings).__name__}", _recipe_hint()
        )
    # Before files are merged: a file may use the present name of a setting whose base uses the earlier one.
    return settings, rename_settings(settings, source=str(path))


def _file_error(path: Path, rule: str, value: str, cure: str) -> ConfigError:
    return ConfigError([ConfigProblem(path=str(path), rule=rule, value=value, cure=cure)])


def _recipe_hint() -> str:
    recipes = Path(__file__).parent.parent / "recipes"
    return f"examples are in {recipes}"


class _Loader(yaml.SafeLoader):
    """Loader for the core schema of YAML 1.2."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 (PyYAML's name)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen:
                line = key.start_mark.line + 1
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} is given twice (line {line})", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep=deep)


class _Dumper(yaml.SafeDumper):
    """Dumper that writes lists, such as a range of iterations, on one line."""

    def represent_list(self, data: Iterable[Any]) -> yaml.SequenceNode:
        return self.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=True)


_Dumper.add_representer(list, _Dumper.represent_list)

for _tag, _pattern, _first in (
    ("tag:yaml.org,2002:null", r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("tag:yaml.org,2002:bool", r"^(?:true|True|TRUE|false|False|FALSE)$", list("tTfF")),
    ("tag:yaml.org,2002:int", r"^[-+]?(?:0|[1-9][0-9_]*)$", list("-+0123456789")),
    (
        "tag:yaml.org,2002:float",
        r"^(?:[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+)"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$",
        list("-+0123456789."),
    ),
):
    _Loader.add_implicit_resolver(_tag, re.compile(_pattern), _first)
    # Quote text that would be read as a value here, and text that a YAML 1.1 parser would read as one.
    _Dumper.add_implicit_resolver(_tag, re.compile(_pattern), _first)

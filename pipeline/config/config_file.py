"""YAML in and out: the settings in a file, which may build on those of another.

A file may begin with `base: other.yaml`, a path relative to its own folder, or the name of a recipe. It then
has the settings of that file, except for those that it sets itself; `null` resets a setting to its default. A
base may have a base, but not one that builds on it.

Scalars follow YAML 1.2. PyYAML implements YAML 1.1, where `3e-4` is text, `no` is false and `010` is eight;
here `3e-4`, `.5e-3` and `0x10` are numbers, and only `true` and `false` are booleans. Keys are words, and a
duplicate one is an error. Files, numbers, nesting and what aliases unfold to have a largest size.
"""

import math
import os
import re
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

import yaml

from pipeline.config.aliases import rename_settings
from pipeline.config.errors import ConfigError, ConfigProblem, as_written
from pipeline.config.recipes import find_recipe, nearest_recipe
from pipeline.shared.paths import UnknownNameError, expand_path

BASE = "base"

# Far above what settings need, and read within a second.
LARGEST_FILE_BYTES = 200_000
_DEEPEST_NESTING = 20
_MOST_VALUES = 100_000
_MOST_DIGITS = 40


def read_settings(path: Path) -> tuple[dict[str, Any], list[ConfigProblem]]:
    """Read nested settings, merged over those of the file's base if it has one.

    Renamed settings are returned under their present names, see `pipeline.config.aliases`.

    Returns:
        the settings, and the problems that do not prevent the settings from being checked further.

    Raises:
        ConfigError: a file is missing, unreadable or not YAML of groups, or builds on itself.
    """
    return _read_with_bases(settings_file(path), above=())


def settings_file(path: Path) -> Path:
    """Return the file of settings at a path, or that of the recipe which a path without a file names."""
    return path if path.exists() else find_recipe(str(path)) or path


def _read_with_bases(path: Path, *, above: tuple[Path, ...]) -> tuple[dict[str, Any], list[ConfigProblem]]:
    """Read a file over its bases.

    Args:
        path: the file.
        above: the files that build on it, in full.
    """
    settings, problems = _read(path)
    if BASE not in settings:
        return settings, problems
    base, chain = settings.pop(BASE), (*above, path.resolve())
    base_path = _base_file(path, base)
    if base_path.resolve() in chain:
        raise _file_error(
            path,
            "must not build on itself",
            f"based on {as_written(base)}, which builds on it",
            "leave out one of the bases",
        )
    base_settings, base_problems = _read_with_bases(base_path, above=chain)
    return _merge(base_settings, settings), base_problems + problems


def _base_file(path: Path, base: Any) -> Path:
    """Return the file of a base: a path relative to the file that names it, or the name of a recipe."""
    if not isinstance(base, str):
        raise _file_error(
            path, "must give one other file as its base", as_written(base), "for example base.yaml"
        )
    try:
        found = path.parent / expand_path(base)
    except UnknownNameError as error:
        raise _file_error(path, "must have a base that exists", as_written(base), str(error)) from None
    if not found.is_file():
        found = find_recipe(base) or found
    if not found.is_file():
        raise _file_error(
            path,
            "must have a base that exists",
            as_written(base),
            f"it is looked up in {path.parent}, and among the recipes ({_recipe_hint(base)})",
        )
    return found


def parse_yaml(text: str) -> Any:
    """Parse one YAML document.

    Raises:
        yaml.YAMLError: the text is not YAML, holds several documents, has a duplicate key or one that is no
            word, or is too large.
    """
    # The loader derives from SafeLoader: it builds plain values only.
    return yaml.load(text, Loader=_Loader)


def parse_value(text: str) -> Any:
    """Parse one YAML value in which `#` begins no comment: a part of it would be lost without a word.

    Raises:
        yaml.YAMLError: see `parse_yaml`.
    """
    return yaml.load(text, Loader=_ValueLoader)


def render_yaml(values: Any) -> str:
    """Return plain values as YAML that `parse_yaml` reads back equal; keys keep their order."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=False)


def _merge(base: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a base with those of a file over them, group by group."""
    merged = dict(base)
    for name, value in settings.items():
        below = merged.get(name)
        merged[name] = below | value if isinstance(below, dict) and isinstance(value, dict) else value
    return merged


def _read(path: Path) -> tuple[dict[str, Any], list[ConfigProblem]]:
    text = _read_text(path)
    try:
        settings = parse_yaml(text)
    except yaml.YAMLError as error:
        cure = "indent with spaces, not with tabs" if r"'\t'" in str(error) else ""
        raise _file_error(path, "must be YAML", " ".join(str(error).split()), cure) from error
    if settings is None:
        return {}, []
    if not isinstance(settings, dict):
        raise _file_error(
            path, "must contain groups of settings", f"a {type(settings).__name__}", _recipe_hint()
        )
    # Before files are merged: a file may use the present name of a setting whose base uses the earlier one.
    return settings, rename_settings(settings, source=str(path))


def _read_text(path: Path) -> str:
    """Read a file of settings, which must not be a device or a pipe that never ends."""
    try:
        # Not to wait for a writer if it is a pipe.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:  # noqa: PTH123
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise _file_error(path, "must be a file", "a folder, a device or a pipe", _file_in(path))
            content = file.read(LARGEST_FILE_BYTES + 1)
        if len(content) > LARGEST_FILE_BYTES:
            size = f"at least {len(content):,} bytes long"
            raise _file_error(
                path, f"must have at most {LARGEST_FILE_BYTES:,} bytes", size, "is it the file?"
            )
        return content.decode("utf-8-sig")
    except FileNotFoundError:
        raise _file_error(
            path, "must be an existing file or the name of a recipe", "missing", _recipe_hint(str(path))
        ) from None
    except IsADirectoryError:
        raise _file_error(path, "must be a file", "a folder", _file_in(path)) from None
    except UnicodeDecodeError as error:
        raise _file_error(path, "must be text in UTF-8", str(error), "save it as UTF-8") from error
    except (OSError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise _file_error(path, "must be a readable text file", str(error), "") from error


def _file_error(path: Path, rule: str, value: str, cure: str) -> ConfigError:
    return ConfigError([ConfigProblem(path=str(path), rule=rule, value=value, cure=cure)])


def _recipe_hint(name: str = "") -> str:
    nearest = nearest_recipe(name)
    return "see `megaponder recipes list`" if nearest is None else f"did you mean {nearest}?"


def _file_in(folder: Path) -> str:
    """Return which file was probably meant by a folder."""
    stored = folder / "run_config.yaml"
    if stored.is_file():
        return f"did you mean {stored}?"
    files = sorted(folder.glob("*.yaml"))[:3] if folder.is_dir() else []
    return f"did you mean {' or '.join(map(str, files))}?" if files else _recipe_hint()


class _Loader(yaml.SafeLoader):
    """Loader for the core schema of YAML 1.2, within limits."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 (PyYAML's name)
    yaml_constructors: ClassVar[dict[str | None, Any]] = {
        f"tag:yaml.org,2002:{kind}": yaml.SafeLoader.yaml_constructors[f"tag:yaml.org,2002:{kind}"]
        for kind in ("null", "seq", "map", "str")
    } | {None: yaml.SafeLoader.yaml_constructors[None]}

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._depth = 0
        # Values of each node, those of its aliases included.
        self._num_values: dict[int, int] = {}

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
        is_alias = self.check_event(yaml.AliasEvent)
        self._depth += 1
        if self._depth > _DEEPEST_NESTING:
            raise yaml.composer.ComposerError(
                None, None, f"values must be nested at most {_DEEPEST_NESTING} deep", mark
            )
        node = super().compose_node(parent, index)
        self._depth -= 1
        if node is None or (is_alias and id(node) in self._num_values):
            return node
        if is_alias:
            raise yaml.composer.ComposerError(None, None, "a value must not hold itself", mark)
        self._num_values[id(node)] = 1 + sum(self._num_values[id(child)] for child in _children(node))
        if self._num_values[id(node)] > _MOST_VALUES:
            raise yaml.composer.ComposerError(
                None, None, f"there must be at most {_MOST_VALUES:,} values, aliases unfolded", mark
            )
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        mapping = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _unusable(key, "a key must be a word; is it a template that was not filled in?")
            if key.value in mapping:
                raise _unusable(key, f"the key {key.value!r} is given twice (line {key.start_mark.line + 1})")
            mapping[key.value] = self.construct_object(value, deep=deep)
        return mapping

    def construct_number(self, node: yaml.ScalarNode) -> int | float:
        """Return the number that a scalar stands for."""
        text = str(node.value)
        try:
            if len(text) > _MOST_DIGITS:
                raise _unusable(node, f"a number must have at most {_MOST_DIGITS} digits")
            if node.tag.endswith("int"):
                return int(text.replace("_", ""), 0)
            return _SPECIAL_NUMBERS.get(text.lower().lstrip("+")) or float(text)
        except ValueError:
            raise _unusable(node, f"{text!r} is no number") from None

    def construct_switch(self, node: yaml.ScalarNode) -> bool:
        """Return what `true` or `false` stands for."""
        if str(node.value).lower() not in ("true", "false"):
            raise _unusable(node, f"{node.value!r} is neither true nor false")
        return str(node.value).lower() == "true"


_SPECIAL_NUMBERS = {".inf": math.inf, "-.inf": -math.inf, ".nan": math.nan}
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_number)
_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.construct_number)
_Loader.add_constructor("tag:yaml.org,2002:bool", _Loader.construct_switch)


class _ValueLoader(_Loader):
    """Loader that finds no comments: to PyYAML's scanner, what begins with `#` is then no value."""

    def scan_to_next_token(self) -> None:
        while self.peek() in " \n\ufeff":
            self.forward()


def _children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []


def _unusable(node: yaml.Node, problem: str) -> yaml.constructor.ConstructorError:
    return yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


class _Dumper(yaml.SafeDumper):
    """Dumper that writes lists, such as a range of iterations, on one line."""

    def represent_list(self, data: Iterable[Any]) -> yaml.SequenceNode:
        return self.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=True)


_Dumper.add_representer(list, _Dumper.represent_list)

for _tag, _pattern, _first in (
    ("tag:yaml.org,2002:null", r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("tag:yaml.org,2002:bool", r"^(?:true|True|TRUE|false|False|FALSE)$", list("tTfF")),
    (
        "tag:yaml.org,2002:int",
        r"^(?:[-+]?(?:0|[1-9][0-9]*|[1-9][0-9]{0,2}(?:_[0-9]{3})+)|0x[0-9a-fA-F]+|0o[0-7]+)$",
        list("-+0123456789"),
    ),
    (
        "tag:yaml.org,2002:float",
        r"^(?:[-+]?(?:\.[0-9]+(?:[eE][-+]?[0-9]+)?|[0-9]+\.[0-9]*(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+)"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$",
        list("-+0123456789."),
    ),
):
    _Loader.add_implicit_resolver(_tag, re.compile(_pattern), _first)
    # Quote text that would be read as a value here, and text that a YAML 1.1 parser would read as one.
    _Dumper.add_implicit_resolver(_tag, re.compile(_pattern), _first)

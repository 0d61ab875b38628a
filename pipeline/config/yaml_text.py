"""YAML in and out, with the scalar rules of YAML 1.2.

PyYAML follows YAML 1.1, where `3e-4` is text, `no` is false and `010` is eight. Settings are read as their
author means them: `3e-4` is a number, only `true` and `false` are switches. A key given twice is an error.
"""

import re
from collections.abc import Hashable, Iterable
from typing import Any

import yaml


class _Loader(yaml.SafeLoader):
    """Reads the core schema of YAML 1.2."""

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
    """Writes short lists of numbers on one line."""

    def represent_list(self, data: Iterable[Any]) -> yaml.SequenceNode:
        """Keep a list, such as a range of iterations, on its line."""
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
    # Text that reads like a value here is quoted, and so is what YAML 1.1 would take for one.
    _Dumper.add_implicit_resolver(_tag, re.compile(_pattern), _first)


def parse_yaml(text: str) -> Any:
    """Read one YAML document.

    Raises:
        yaml.YAMLError: the text is no YAML, holds several documents, or a key twice.
    """
    # The loader derives from SafeLoader: it builds plain values only.
    return yaml.load(text, Loader=_Loader)


def render_yaml(values: Any) -> str:
    """Write plain values as YAML that `parse_yaml` reads back equal; keys stay in their order."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=False)

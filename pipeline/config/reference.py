"""Every setting explained: type, range, default, description, and which methods use it.

All of it comes from the schema, so that it cannot disagree with what is accepted.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from megatron_ext.ponder.config import Method
from pipeline.config.aliases import ALIASES
from pipeline.config.errors import ConfigError, ConfigProblem, as_written
from pipeline.config.load import section_type
from pipeline.config.rules_ponder import methods_with
from pipeline.config.schema import RunConfig
from pipeline.config.section import LARGEST_COUNT

__all__ = ["Explained", "config_schema", "explain_settings", "find_settings", "render_reference"]

_NULL = {"type": "null"}
_ENDS = (
    ("minimum", "at least"),
    ("exclusiveMinimum", "above"),
    ("maximum", "at most"),
    ("exclusiveMaximum", "below"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Explained:
    """A setting.

    Attributes:
        path: such as `optimizer.lr`.
        accepts: type and range, in words.
        default: as it is written in a file; None where the setting must be given.
        description: what it is, with its unit, and a default that depends on other settings.
        methods: that use it; empty where all do.
        other_names: Megatron's or other programs' names for it, on the command line.
    """

    path: str
    accepts: str
    default: str | None
    description: str
    methods: tuple[Method, ...]
    other_names: tuple[str, ...]


def explain_settings() -> list[Explained]:
    """Return all settings in the order of the schema."""
    schema = config_schema()
    definitions = schema["$defs"]
    found = []
    for name, field in RunConfig.model_fields.items():
        section = section_type(field.annotation)
        if section is None:
            found.append(_explained(name, field, schema["properties"][name], definitions))
            continue
        properties = definitions[section.__name__]["properties"]
        found += [
            _explained(f"{name}.{inner}", part, properties[inner], definitions)
            for inner, part in section.model_fields.items()
        ]
    return found


def find_settings(key: str) -> list[Explained]:
    """Return the settings of a path, a group, a last part, or another program's name.

    Raises:
        ConfigError: there are none.
    """
    settings = explain_settings()
    wanted = key.replace("-", "_")
    by_rule = (
        [one for one in settings if one.path == wanted],
        [one for one in settings if one.path.startswith(f"{wanted}.")],
        [one for one in settings if wanted in (one.path.rpartition(".")[2], *_plain(one.other_names))],
    )
    for found in by_rule:
        if found:
            return found
    names = {name for one in settings for name in (one.path, one.path.rpartition(".")[2])}
    close = get_close_matches(wanted, sorted(names), n=3)
    cure = f"try {', '.join(close)}" if close else "`megaponder config explain` lists all of them"
    raise ConfigError(
        [ConfigProblem(path="KEY", rule="must be a setting or a group of them", value=key, cure=cure)]
    )


def config_schema() -> dict[str, Any]:
    """Return the JSON Schema of a configuration file, in which any setting may be left to its base file."""
    schema = RunConfig.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "MegaPonder run"
    schema["properties"]["base"] = {
        "type": "string",
        "description": "another file, relative to this one, whose settings this one changes",
    }
    for part in (schema, *(schema["$defs"][name] for name in _sections())):
        part.pop("required", None)
        for field in part["properties"].values():
            # `null` means "not given" everywhere.
            accepted = field.pop("anyOf", None) or [_taken(field)]
            field["anyOf"] = [*(one for one in accepted if one != _NULL), _NULL]
    return schema


def render_reference(settings: Sequence[Explained]) -> str:
    """Return the page of all settings, in Markdown."""
    lines = [
        "# Settings",
        "",
        "Made by `megaponder config explain --markdown`; a test keeps it current. How files and overrides",
        "are written is in [configuration.md](configuration.md). A setting that names no methods is used by",
        "all of them.",
    ]
    group = None
    for one in settings:
        own, _, _ = one.path.rpartition(".")
        if own != group:
            lines += [
                "",
                f"## {own or 'run'}",
                "",
                "| setting | accepts | default | meaning |",
                "|---|---|---|---|",
            ]
            group = own
        methods = f" Used by {', '.join(one.methods)}." if one.methods else ""
        names = f" Also: {', '.join(f'`{name}`' for name in one.other_names)}." if one.other_names else ""
        meaning = f"{one.description}.{methods}{names}"
        default = "required" if one.default is None else f"`{one.default}`" if one.default else "see meaning"
        cells = (f"`{one.path}`", one.accepts, default, meaning)
        escaped = [cell.replace("|", "&#124;").replace("<", "&lt;") for cell in cells]
        lines.append(f"| {' | '.join(escaped)} |")
    return "\n".join(lines) + "\n"


def _sections() -> Iterator[str]:
    for field in RunConfig.model_fields.values():
        section = section_type(field.annotation)
        if section is not None:
            yield section.__name__


def _taken(field: dict[str, Any]) -> dict[str, Any]:
    """Take what restricts the value out of a field, and leave what describes it."""
    kept = ("title", "description", "default", "anyOf")
    return {name: field.pop(name) for name in list(field) if name not in kept}


def _explained(path: str, field: Any, schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> Explained:
    group, _, name = path.rpartition(".")
    methods = methods_with(name) if group == "ponder" and name != "method" else ()
    return Explained(
        path=path,
        accepts=_accepts(schema, definitions),
        default=_default(field),
        description=field.description or "",
        methods=() if len(methods) == len(Method) else methods,
        other_names=_names_of_others(path),
    )


def _names_of_others(path: str) -> tuple[str, ...]:
    """Return names of other programs, without those that equal the last part of the path."""
    last = path.rpartition(".")[2]
    return tuple(sorted(name for name, alias in ALIASES.items() if alias.path == path and name != last))


def _default(field: Any) -> str | None:
    """Return the default; empty where it depends on other settings, as the description says."""
    if field.is_required():
        return None
    value = field.default
    if value is PydanticUndefined or value is None or isinstance(value, BaseModel):
        return ""
    if isinstance(value, str | Path):
        return str(value)
    return as_written(list(value) if isinstance(value, tuple) else value)


def _accepts(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    if "anyOf" in schema:
        parts = [_accepts(one, definitions) for one in schema["anyOf"] if one.get("type") != "null"]
        return " or ".join(dict.fromkeys(parts))
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return _accepts(definitions[name], definitions)
    if "enum" in schema or "const" in schema:
        return ", ".join(map(str, schema.get("enum", [schema.get("const")])))
    match schema.get("type"):
        case "array":
            return _accepts_list(schema, definitions)
        case "object":
            names = ", ".join(schema.get("properties", ()))
            return f"a group of {names}" if names else "names and values"
        case "boolean":
            return "true or false"
        case "string":
            return {"path": "a path"}.get(schema.get("format", ""), "text")
        case kind:
            name = "a whole number" if kind == "integer" else "a number"
            ends = [
                f"{word} {schema[end]:g}"
                for end, word in _ENDS
                if schema.get(end, LARGEST_COUNT) != LARGEST_COUNT
            ]
            return " ".join([name, " and ".join(ends)]).strip()


def _accepts_list(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    if "prefixItems" in schema:
        return f"[{', '.join(_accepts(one, definitions) for one in schema['prefixItems'])}]"
    items = schema.get("items", {})
    return "a list of steps" if "discriminator" in items else f"a list of: {_accepts(items, definitions)}"


def _plain(names: Sequence[str]) -> list[str]:
    return [name.replace("-", "_") for name in names]

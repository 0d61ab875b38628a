"""Hyper-parameter sweeps: from `--sweep KEY=A,B` options to the runs of a grid.

A run is named by its settings and their values, whatever their spelling: `lr=1e-3` and `optimizer.lr=0.001`
are one run, `optimizer.lr=0.001` and `optimizer.min_lr=0.001` are two.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from cluster.job_spec import SweepMember
from pipeline.config.load import setting_paths, text_paths
from pipeline.config.overrides import apply_overrides, value_of
from pipeline.config.schema import RunConfig
from pipeline.shared.errors import ClusterError
from pipeline.shared.files import resolved_output

_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9._-]+")
_OPENING, _CLOSING, _QUOTES = "[{(", "]})", "'\""
# File systems allow 255 bytes for a name; this one has that of the run before it, and others after it.
_LONGEST_LABEL = 120


@dataclass(frozen=True, slots=True, kw_only=True)
class _Variation:
    """One value of one setting.

    Attributes:
        path: dotted path of the setting.
        value: as it is read.
        override: as the user has written it.
    """

    path: str
    value: Any
    override: str


def sweep_members(config: RunConfig, options: Sequence[str]) -> tuple[SweepMember, ...]:
    """Return the runs of all combinations; each has its own name and its own folder next to the run's.

    Args:
        config: of the run that is varied.
        options: `key=value,value,...`, each a dimension of the grid.

    Raises:
        ClusterError: an option has no key or no values, two combinations or settings are the same, or the
            target takes one run only.
    """
    if not options:
        return ()
    if config.submit.target == "local" or config.submit.chain > 1:
        raise ClusterError(
            f"a sweep needs --target slurm or ray without a chain, but has {config.submit.target} with "
            f"submit.chain={config.submit.chain}; submit one run, or set both"
        )
    dimensions = [_variations(option) for option in options]
    paths = [dimension[0].path for dimension in dimensions]
    if len(set(paths)) < len(paths):
        raise ClusterError(f"each setting of a sweep must be given once, but they are {', '.join(paths)}")
    members = [_member(config, variations) for variations in product(*dimensions)]
    names = [member.name for member in members]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ClusterError(
            f"each run of a sweep must differ from the others, but {len(names)} runs are called "
            f"{', '.join(repeated)}; give every value once"
        )
    return tuple(members)


def _variations(option: str) -> list[_Variation]:
    key, separator, text = option.partition("=")
    values = [value.strip() for value in _split(text)]
    if not separator or not key.strip() or not all(values):
        raise ClusterError(f"--sweep must be KEY=VALUE,VALUE..., but is {option!r}; for example lr=1e-3,3e-4")
    return [_read(f"{key.strip()}={value}") for value in values]


def _split(text: str) -> list[str]:
    """Split at the commas outside of brackets and quotes: `betas=[0.9,0.95],[0.9,0.99]` are two values."""
    parts, depth, quote = [""], 0, ""
    for letter in text:
        if letter == "," and depth == 0 and not quote:
            parts.append("")
            continue
        if quote:
            quote = "" if letter == quote else quote
        elif letter in _QUOTES and (depth or not parts[-1].strip()):
            quote = letter
        else:
            depth = max(depth + (letter in _OPENING) - (letter in _CLOSING), 0)
        parts[-1] += letter
    return parts


def _read(override: str) -> _Variation:
    """Return the setting of an override by its present name, with its value.

    One that does not exist, or that is no YAML, is reported with all other problems of the run.
    """
    settings: dict[str, Any] = {}
    paths = setting_paths()
    if apply_overrides(settings, [override], paths, text_paths=text_paths()):
        name, _, text = override.partition("=")
        return _Variation(path=name, value=value_of(text), override=override)
    path: list[str] = []
    value: Any = settings
    while ".".join(path) not in paths:
        ((name, value),) = value.items()
        path.append(name)
    return _Variation(path=".".join(path), value=value, override=override)


def _member(config: RunConfig, variations: Sequence[_Variation]) -> SweepMember:
    label = _label(variations)
    name = f"{config.name}-{label}"
    output = resolved_output(config.output_dir)
    folder = output.with_name(f"{output.name}-{label}")
    own = (f"name={name}", f"output_dir={folder}")
    overrides = tuple(variation.override for variation in variations)
    return SweepMember(name=name, run_folder=folder, overrides=(*overrides, *own))


def _label(variations: Sequence[_Variation]) -> str:
    """Return what tells a run from all others; a digest helps where values cannot stand in a name."""
    texts = [(_short(variation.path), _text(variation.value)) for variation in variations]
    label = "-".join(part for pair in texts for part in pair)
    short = _NOT_IN_NAMES.sub("-", label)[:_LONGEST_LABEL].strip("-")
    if short == label:
        return label
    content = json.dumps([[variation.path, variation.value] for variation in variations], default=str)
    return f"{short}-{hashlib.sha256(content.encode()).hexdigest()[:8]}"


def _short(path: str) -> str:
    """Return the last part of a setting's path, or all of it where another setting has the same."""
    leaf = path.rpartition(".")[2]
    namesakes = [other for other in setting_paths() if other.rpartition(".")[2] == leaf]
    return leaf if len(namesakes) <= 1 else path


def _text(value: Any) -> str:
    """Return a value as a part of a name, the same for every spelling of it.

    A list of numbers is joined; of lists within lists the text cannot be a name, so that a digest tells them
    apart.
    """
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    if isinstance(value, int | float):
        return repr(float(value)).removesuffix(".0").replace("e+", "e") if _is_exact(value) else str(value)
    if isinstance(value, list) and value and all(type(item) in (int, float) for item in value):
        return "-".join(_text(item) for item in value)
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _is_exact(value: float) -> bool:
    """Return whether a number is the same as a float: large integers are not."""
    return type(value) is float or abs(value) < 2**53

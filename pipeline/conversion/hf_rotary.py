"""The rotation of queries and keys as a ``config.json`` describes it, under old names and new ones."""

import json
from collections.abc import Mapping
from typing import Any

from pipeline.config.errors import as_written
from pipeline.conversion.hf_keys import ConfigKeys

DEFAULT_ROTARY_BASE = 10000


def rotary_settings(keys: ConfigKeys, architecture: str) -> dict[str, Any]:
    """Base and share of the rotation, under whichever of their names; scaling is refused."""
    is_neox = architecture == "gpt_neox"
    new = _unscaled(keys, "rope_parameters")
    scaled = _unscaled(keys, "rope_scaling")
    names = ("rope_theta", "rotary_emb_base") if is_neox else ("rope_theta",)
    bases = {name: keys.take(name) for name in names} | {
        "rope_parameters.rope_theta": new.get("rope_theta"),
        "rope_scaling.rope_theta": scaled.get("rope_theta"),
    }
    names = ("rotary_pct", "partial_rotary_factor") if is_neox else ("partial_rotary_factor",)
    shares = {name: keys.take(name) for name in names} | {
        "rope_parameters.partial_rotary_factor": new.get("partial_rotary_factor")
    }
    base = _agreed(keys, bases, DEFAULT_ROTARY_BASE)
    if not isinstance(base, int | float) or base != int(base) or base < 1:
        keys.problems.append(f"rope_theta: must be a whole number of at least 1, but is {as_written(base)}")
        base = DEFAULT_ROTARY_BASE
    share = _agreed(keys, shares, 0.25 if is_neox else 1.0)
    if not is_neox and share != 1:
        keys.problems.append(f"partial_rotary_factor: must be 1 for llama, but is {as_written(share)}")
    return {"rotary_base": int(base), "rotary_percent": float(share)}


def _unscaled(keys: ConfigKeys, key: str) -> Mapping[str, Any]:
    """Return a description of the rotation that scales nothing."""
    given = keys.take(key)
    if given is None:
        return {}
    if not isinstance(given, dict):
        keys.problems.append(f"{key}: must be null or a group, but is {as_written(given)}")
        return {}
    kind = given.get("rope_type", given.get("type", "default"))
    others = sorted(given.keys() - {"rope_type", "type", "rope_theta", "partial_rotary_factor"})
    if kind != "default" or others:
        keys.problems.append(
            f"{key}: must not scale rotary positions, but is {json.dumps(given)}; such a model cannot be "
            "converted"
        )
    return given


def _agreed(keys: ConfigKeys, given: Mapping[str, Any], default: float) -> Any:
    """Return the one value that a setting with several names has."""
    values = {name: value for name, value in given.items() if value is not None}
    if len(set(values.values())) > 1:
        listed = ", ".join(f"{name} {as_written(value)}" for name, value in values.items())
        keys.problems.append(
            f"{next(iter(values))}: must be said once or everywhere the same, but there is {listed}"
        )
    return next(iter(values.values()), default)

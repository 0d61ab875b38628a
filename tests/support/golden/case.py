"""Golden test vectors on disk: each case is a JSON file and a safetensors file of the same name."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from megatron_ext.ponder.config import (
    Method,
    Penalty,
    ReadoutFrom,
    RouterForm,
    RouterKind,
    TrainingMask,
)

# The vectors call PonderLM-2 by the name of its published flag.
METHOD_NAMES: Mapping[str, Method] = {
    "vanilla": Method.VANILLA,
    "ours": Method.PONDERLM2,
    "ponderlm3": Method.PONDERLM3,
    "adaponderlm": Method.ADAPONDERLM,
    "ponderlm": Method.PONDERLM,
    "ponderlm1": Method.PONDERLM,
    "loop": Method.LOOP,
    "pause": Method.PAUSE,
}
WEIGHT_PREFIX = "weights/"

# The switches of PonderLM-3's form in a case, as settings, and how their values are read.
FORM_SWITCHES: Mapping[str, tuple[str, Callable[[Any], Any]]] = {
    "router": ("router", RouterKind),
    "mask_in_training": ("mask_in_training", TrainingMask),
    "attention_scale_extra": ("attention_scale_extra", lambda value: _exactly(int, value)),
    "pre_pass": ("pre_pass", lambda value: _exactly(bool, value)),
    "router_damping": ("router_damping", lambda value: _exactly(float, value)),
    "last_n_hard": ("undamped_sweeps", lambda value: _exactly(int, value)),
    "mixture_from": ("readout_from", ReadoutFrom),
}


@dataclass(frozen=True)
class GoldenCase:
    """One golden case.

    Attributes:
        folder: that holds its files.
        facts: content of its JSON file.
    """

    folder: Path
    facts: Mapping[str, Any]

    @property
    def name(self) -> str:
        """File name without suffix."""
        return str(self.facts["name"])

    @property
    def kind(self) -> str:
        """``forward`` or ``decode``."""
        return str(self.facts["kind"])

    @property
    def method(self) -> Method:
        """The method in our naming."""
        return METHOD_NAMES[self.facts["method"]]

    @property
    def form(self) -> RouterForm:
        """The form of PonderLM-3's router; this project's where the case names none.

        Raises:
            ValueError: the case has a switch or a value that is unknown.
        """
        switches = dict(self.facts.get("form", {}))
        penalty = Penalty(switches.pop("penalty", self.flags.get("penalty", Penalty.EXPECTED_STEPS)))
        if penalty != self.flags.get("penalty", penalty):
            raise ValueError(f"form and flags must agree, but have the penalties {penalty} and others")
        unknown = sorted(switches.keys() - FORM_SWITCHES.keys())
        if unknown:
            raise ValueError(
                f"switches must be {', '.join(FORM_SWITCHES)} and penalty, but are {unknown} too"
            )
        if "form" in self.facts and self.method is not Method.PONDERLM3:
            raise ValueError(f"only PonderLM-3 has forms, and not {self.method}")
        settings = (
            (name, read(switches[switch]))
            for switch, (name, read) in FORM_SWITCHES.items()
            if switch in switches
        )
        return RouterForm(**dict(settings))

    @property
    def flags(self) -> Mapping[str, Any]:
        """The method's settings."""
        return self.facts["flags"]  # type: ignore[no-any-return]

    @property
    def backbone(self) -> Mapping[str, Any]:
        """The Hugging Face configuration of the backbone."""
        return self.facts["config"]  # type: ignore[no-any-return]

    @cached_property
    def tensors(self) -> Mapping[str, Tensor]:
        """Inputs, outputs and gradients."""
        return load_file(self.folder / f"{self.name}.safetensors")

    def weights(self) -> dict[str, Tensor]:
        """Return all parameters by Hugging Face name, in float32."""
        files = [self.facts[key] for key in ("weights_file", "extra_weights_file") if key in self.facts]
        return {
            name.removeprefix(WEIGHT_PREFIX): tensor
            for file in files
            for name, tensor in load_file(self.folder / file).items()
        }

    def tolerance(self, name: str, *, double: bool) -> float:
        """Return the maximum absolute error of a recorded tensor.

        Raises:
            KeyError: the case records no tolerance for it.
        """
        if double:
            return float(self.facts["tolerance_float64_atol"] or 1e-9)
        for pattern, tolerance in self.facts["tolerance_float32_atol"].items():
            if fnmatch(name, pattern):
                return float(tolerance)
        raise KeyError(name)


def read_cases(folder: Path) -> list[GoldenCase]:
    """Read every case of a folder, in the order of names.

    Raises:
        ValueError: the folder is missing, or a file in it is not a golden case.
    """
    if not folder.is_dir():
        raise ValueError(
            f"the golden vectors must be in a folder, but {folder} is not a folder; pass the folder itself"
        )
    cases = []
    for path in sorted(folder.glob("*.json")):
        facts = json.loads(path.read_text(encoding="utf-8"))
        missing = {"name", "kind", "method", "arch", "config", "flags"} - facts.keys()
        if missing or facts["method"] not in METHOD_NAMES:
            raise ValueError(
                f"{path} must be a golden case of a known method, but misses {sorted(missing) or 'nothing'} "
                f"and has the method {facts.get('method')!r}"
            )
        case = GoldenCase(folder=folder, facts=facts)
        try:
            case.form  # noqa: B018
        except ValueError as error:
            raise ValueError(f"{path} must have a form that is known, but: {error}") from error
        cases.append(case)
    return cases


def _exactly(kind: type, value: Any) -> Any:
    if type(value) is not kind:
        raise ValueError(f"a value must be of type {kind.__name__}, but is {value!r}")
    return value

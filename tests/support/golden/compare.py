"""Comparison of computed tensors with recorded ones, in units of the tolerance of each tensor."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

import torch
from torch import Tensor

from tests.support.golden.case import GoldenCase

DOUBLE_PREFIX = "outputs_f64/"
WHOLE_NUMBERS = frozenset(
    f"outputs/{name}"
    for name in (
        "steps",
        "masks",
        "active_iterations",
        "expanded_input_ids",
        "generated_ids",
        "token_steps",
        "token_active_iterations",
        "token_rows",
        "cache_rows",
        "cache_row_slot",
        "cache_row_token",
        "gate_computed",
        "decode_position_ids",
    )
)
# Recorded, but an input that the caller of the model makes: nothing to compare.
NOT_COMPARED = frozenset({"outputs/position_ids"})


class Status(StrEnum):
    """Outcome of a case."""

    PASSED = "passed"
    FAILED = "failed"
    NOT_APPLICABLE = "not applicable"
    NOT_SUPPORTED = "not supported"


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseResult:
    """Result of a case.

    Attributes:
        name: of the case.
        status: passed, failed, or why it did not run.
        reason: why a case did not run, or failed other than by an error above its tolerance.
        worst: largest ratio of error to tolerance, by quantity (``logits``, ``loss``, ``thoughts``,
            ``hidden``, ``halting``, ``gradients``, ``tokens``, ``rows``); at most 1 passes.
    """

    name: str
    status: Status
    reason: str = ""
    worst: Mapping[str, float] = field(default_factory=dict)


def compare(case: GoldenCase, computed: Mapping[str, Tensor], *, double: bool) -> CaseResult:
    """Compare every recorded output and gradient.

    Args:
        case: the recorded values.
        computed: values under the same names (``outputs/...``, ``grads/...``).
        double: compare the float64 records instead of the float32 ones.
    Returns:
        The result; failed if an error exceeds its tolerance or a recorded tensor was not computed.
    """
    wanted = {name: value for name, value in case.tensors.items() if _is_wanted(name, double)}
    plain_names = {name: name.replace(DOUBLE_PREFIX, "outputs/") for name in wanted}
    absent = sorted(name for name in wanted if plain_names[name] not in computed)
    if absent:
        return CaseResult(name=case.name, status=Status.FAILED, reason=f"not computed: {', '.join(absent)}")
    worst: dict[str, float] = {}
    for name, recorded in wanted.items():
        plain = plain_names[name]
        recorded = rows_read(case, plain, recorded)
        error = _largest_error(computed[plain], zero_padding(plain, recorded, is_real(case)))
        quantity = _quantity(plain)
        worst[quantity] = max(worst.get(quantity, 0.0), error / _tolerance(case, plain, double))
    passed = bool(worst) and all(ratio <= 1.0 for ratio in worst.values())
    return CaseResult(name=case.name, status=Status.PASSED if passed else Status.FAILED, worst=worst)


def is_real(case: GoldenCase) -> Tensor:
    """Return a mask, [B, L], that is False at padding; decode cases have none."""
    if case.kind == "decode":
        return torch.ones(1, 1, dtype=torch.bool)
    tokens = case.tensors["inputs/input_ids"]
    return case.tensors.get("inputs/attention_mask", torch.ones_like(tokens)).bool()


def rows_read(case: GoldenCase, name: str, recorded: Tensor) -> Tensor:
    """Return the rows of a recorded tensor that the model computes: those of slots that are read.

    Args:
        case: of the tensor.
        name: ``outputs/stack_outputs/repeat_P`` of pass P and ``outputs/last_hidden``, [B, L * n, H], have
            the rows of all slots; other tensors are returned as they are.
        recorded: the tensor.
    """
    facts, (kind, _, rest) = case.method.facts, name.removeprefix("outputs/").partition("/")
    if case.kind != "forward" or kind not in ("stack_outputs", "last_hidden"):
        return recorded
    plan = facts.plan(int(case.facts["K"] or 0), int(case.facts["J"] or 0))
    index = int(rest.removeprefix("repeat_")) if rest else plan.num_passes - 1
    read = facts.slots_read(index, plan)
    slots: Tensor = recorded.unflatten(1, (-1, plan.slots[index]))
    return slots[:, :, read.start : read.stop].flatten(1, 2)


def zero_padding(name: str, value: Tensor, real: Tensor) -> Tensor:
    """Set values at padding, which are undefined, to zero.

    Args:
        name: decides the layout: thoughts are [m, B, L, H], masks [K + 1, B, L], everything else per token
            starts with [B, L] or, for all slots, [B, L * n].
        value: recorded or computed tensor.
        real: [B, L] bool.
    """
    if real.all() or value.dim() < 2 or not name.startswith("outputs/"):
        return value
    if name.startswith("outputs/thoughts/"):
        return value * real[None, :, :, None]
    if name == "outputs/masks":
        return value * real
    real = real.repeat_interleave(value.shape[1] // real.shape[1], dim=1)
    return value * real.reshape(*real.shape, *(1 for _ in value.shape[2:]))


def _is_wanted(name: str, double: bool) -> bool:
    if double:
        return name.startswith(DOUBLE_PREFIX)
    return name.startswith(("outputs/", "grads/")) and name not in NOT_COMPARED


def _tolerance(case: GoldenCase, name: str, double: bool) -> float:
    # Steps, masks and tokens are whole numbers: any difference is an error.
    return 0.5 if name in WHOLE_NUMBERS else case.tolerance(name, double=double)


def _largest_error(computed: Tensor, recorded: Tensor) -> float:
    if computed.shape != recorded.shape:
        return float("inf")
    error = float((computed.double() - recorded.double()).abs().max())
    # A maximum with a number might lose a NaN.
    return float("inf") if math.isnan(error) else error


def _quantity(name: str) -> str:
    kind, _, rest = name.partition("/")
    if kind == "grads":
        return "gradients"
    first = rest.split("/")[0]
    if first in ("loss", "total_loss"):
        return "loss"
    if first == "generated_ids":
        return "tokens"
    if first.startswith(("logits", "step_logits", "parallel_logits")):
        return "logits"
    if first in ("token_rows", "cache_rows", "cache_row_token", "cache_row_slot", "decode_position_ids"):
        return "rows"
    return next((kind for kind in ("thoughts", "hidden") if first.endswith(kind)), "halting")

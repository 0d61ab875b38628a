"""Runs that are shorter than their warm-up, such as a first job of 20 iterations.

A recipe states its warm-up in iterations of the whole run. Where a run is shorter than that, these settings
are shortened with it, which the log says; in any other case a setting is what was given.
"""

import logging
from typing import Any

__all__ = ["fit_to_short_run"]

logger = logging.getLogger(__name__)

# The part of a run that each may take, if it does not fit.
_SHARES = {
    ("ponder", "blended_start_iterations"): 8,
    ("ponder", "held_decisions_iterations"): 2,
}
_WARMUP_SHARE = 10


def fit_to_short_run(settings: dict[str, Any]) -> None:
    """Shorten the warm-up, and the start of pondering, in settings of a run that ends before them.

    Args:
        settings: nested, as given; changed in place. What is not valid is left to the checks.
    """
    last = _count(settings, "training", "train_iters")
    if last is None or last < 1:
        return
    changes = {}
    warmup, decay = (_count(settings, "optimizer", f"lr_{name}_iters") for name in ("warmup", "decay"))
    if warmup is not None and warmup >= last and (decay is None or warmup < decay):
        # A warm-up that starts above 0 needs an iteration.
        changes["optimizer", "lr_warmup_iters"] = min(max(last // _WARMUP_SHARE, 1), last - 1)
    for (group, name), share in _SHARES.items():
        value = _count(settings, group, name)
        if value is not None and value > last:
            changes[group, name] = max(last // share, 1)
    for (group, name), value in changes.items():
        logger.warning(
            "%s.%s is lowered to %d: this run of %d iterations would end before %d",
            group,
            name,
            value,
            last,
            settings[group][name],
        )
        settings[group][name] = value


def _count(settings: dict[str, Any], group: str, name: str) -> int | None:
    values = settings.get(group)
    value = values.get(name) if isinstance(values, dict) else None
    return value if isinstance(value, int) and not isinstance(value, bool) else None

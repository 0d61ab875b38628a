"""Train as `megaponder train` does, on two ranks of which one fails in the middle of a pass.

python -m tests.support.failing_training RANK WAY CONFIG OVERRIDES..., where WAY is "dies" or "hangs".
"""

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.commands.shared import set_up_logging
from pipeline.launch import run_ranks
from pipeline.ranks import Ranks

EXIT_CODE = 9
# Of a layer: a step of the recipe in `tests.support.runs` has ten on every rank, two of them in each pass.
LAST_CALL = 15
# Enough for the other rank to say who is missing.
FAILURE_TIMEOUT_SECONDS = 8.0


def main() -> None:
    """Start the ranks; as one of them train until the rank fails."""
    failing, way, config, *overrides = sys.argv[1:]
    ranks = Ranks.from_environment()
    set_up_logging(speaks=ranks.rank == 0)
    if ranks.is_launched:
        sys.exit(_train(Path(config), overrides, fails=way if ranks.rank == int(failing) else None))
    command = ["-m", "tests.support.failing_training", *sys.argv[1:]]
    sys.exit(run_ranks(command, num_ranks=2, failure_timeout_seconds=FAILURE_TIMEOUT_SECONDS))


def _train(config: Path, overrides: Sequence[str], *, fails: str | None) -> int:
    # Not above: the launcher has no use for torch and Megatron, whose imports take seconds.
    from torch import nn

    from pipeline.config.load import load_config
    from pipeline.signals import StopFlag
    from pipeline.trainer import train

    if fails is not None:
        nn.modules.module.register_module_forward_pre_hook(_FailingHook(fails))
    with StopFlag() as stop:
        return train(load_config(config, overrides), stop)


class _FailingHook:
    def __init__(self, way: str) -> None:
        self._way = way
        self._num_calls = 0

    def __call__(self, module: Any, inputs: Any) -> None:
        self._num_calls += type(module).__name__ == "SequentialResidualLayer"
        if self._num_calls < LAST_CALL:
            return
        if self._way == "dies":
            os._exit(EXIT_CODE)
        # Longer than any test waits.
        time.sleep(3600)


if __name__ == "__main__":
    main()

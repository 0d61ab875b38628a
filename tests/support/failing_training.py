"""Train like `megaponder train` on two ranks, of which one fails at a chosen place.

python -m tests.support.failing_training RANK WAY CONFIG OVERRIDES..., where WAY is one of `WAYS`.
"""

import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pipeline.commands.shared import set_up_logging
from pipeline.ranks.environment import Ranks
from pipeline.ranks.launch import run_ranks

EXIT_CODE = 9
# Of a layer: a step of the recipe in `tests.support.runs` has ten calls on every rank, two in each pass.
LAST_CALL = 15
# Enough for the other rank to report who is missing.
FAILURE_TIMEOUT_SECONDS = 8.0


def main() -> None:
    """Start the ranks, or as one of them train until the failure."""
    failing, way, config, *overrides = sys.argv[1:]
    ranks = Ranks.from_environment()
    set_up_logging(speaks=ranks.rank == 0)
    if ranks.is_launched:
        sys.exit(_train(Path(config), overrides, fails=way if ranks.rank == int(failing) else None))
    command = ["-m", "tests.support.failing_training", *sys.argv[1:]]
    sys.exit(run_ranks(command, num_ranks=2, failure_timeout_seconds=FAILURE_TIMEOUT_SECONDS))


def _train(config: Path, overrides: Sequence[str], *, fails: str | None) -> int:
    # The launcher does not need torch and Megatron, whose imports take seconds.
    from torch import nn

    from pipeline.config.load import load_config
    from pipeline.ranks.signals import StopFlag
    from pipeline.run.start import train

    if fails is not None:
        hook = _FailingHook(WAYS[fails], in_training=not fails.endswith("in evaluation"))
        nn.modules.module.register_module_forward_hook(hook)
    with StopFlag() as stop:
        return train(load_config(config, overrides), stop)


def _dies(_layer: Any, _output: Any) -> None:
    os._exit(EXIT_CODE)


def _hangs(_layer: Any, _output: Any) -> None:
    # Longer than any test waits.
    time.sleep(3600)


def _gives_nan_gradients(_layer: Any, output: Any) -> None:
    output[0].register_hook(lambda gradient: gradient * float("nan"))


def _stops_the_run(_layer: Any, _output: Any) -> None:
    os.kill(os.getppid(), signal.SIGTERM)


WAYS: dict[str, Callable[[Any, Any], None]] = {
    "dies": _dies,
    "hangs": _hangs,
    "nan gradients": _gives_nan_gradients,
    "stop signal in evaluation": _stops_the_run,
}


class _FailingHook:
    """A hook that counts the calls of layers, in training or in evaluation, and acts at one of them."""

    def __init__(self, act: Callable[[Any, Any], None], *, in_training: bool) -> None:
        self._act = act
        self._in_training = in_training
        self._num_calls = 0

    def __call__(self, module: Any, inputs: Any, output: Any) -> None:
        if type(module).__name__ != "SequentialResidualLayer" or module.training != self._in_training:
            return
        self._num_calls += 1
        if self._num_calls == LAST_CALL:
            self._act(module, output)


if __name__ == "__main__":
    main()

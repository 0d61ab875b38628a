"""Train as `megaponder train` does, on two ranks of which one fails in the middle of a pass.

python -m tests.support.failing_training RANK WAY CONFIG OVERRIDES..., where WAY is "dies" or "hangs".
"""

import os
import sys
import time
from pathlib import Path
from typing import Any

from torch import nn

from megatron_ext.layers import SequentialResidualLayer
from pipeline.commands.shared import set_up_logging
from pipeline.config.load import load_config
from pipeline.launch import run_ranks
from pipeline.ranks import Ranks
from pipeline.trainer import train

EXIT_CODE = 9
# Of a layer: a step of the recipe in `tests.support.runs` has ten on every rank, two of them in each pass.
LAST_CALL = 15


def main() -> None:
    """Start the ranks; as one of them train until the rank fails."""
    failing, way, config, *overrides = sys.argv[1:]
    ranks = Ranks.from_environment()
    set_up_logging(speaks=ranks.rank == 0)
    if not ranks.is_launched:
        sys.exit(run_ranks(["-m", "tests.support.failing_training", *sys.argv[1:]], num_ranks=2))
    if ranks.rank == int(failing):
        nn.modules.module.register_module_forward_pre_hook(_FailingHook(way))
    sys.exit(train(load_config(Path(config), overrides)))


class _FailingHook:
    def __init__(self, way: str) -> None:
        self._way = way
        self._num_calls = 0

    def __call__(self, module: nn.Module, inputs: Any) -> None:
        self._num_calls += isinstance(module, SequentialResidualLayer)
        if self._num_calls < LAST_CALL:
            return
        if self._way == "dies":
            os._exit(EXIT_CODE)
        # Longer than any test waits.
        time.sleep(3600)


if __name__ == "__main__":
    main()

"""Train several tiny runs one after the other in one process, whose start is most of their cost.

python -m tests.support.several_trainings RECIPE OVERRIDES RECIPE OVERRIDES ...; each OVERRIDES a JSON list.
"""

import json
import sys
from pathlib import Path

from megatron_ext.parallel.groups import destroy_groups
from pipeline.config.load import load_config
from pipeline.ranks.signals import StopFlag
from pipeline.run.start import train


def main() -> None:
    """Train each and stop at the first that does not reach its end."""
    for recipe, overrides in zip(sys.argv[1::2], sys.argv[2::2], strict=True):
        with StopFlag() as stop:
            code = train(load_config(Path(recipe), json.loads(overrides)), stop)
        destroy_groups()
        if code:
            sys.exit(code)


if __name__ == "__main__":
    main()

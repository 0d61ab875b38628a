"""The process of one check: `python -m scripts.gpu_check.child NAME FOLDER tiny|full`."""

import sys
import time
import traceback
from pathlib import Path

from pipeline.commands.shared import set_up_logging
from pipeline.shared.console import say
from scripts.gpu_check.checks import BY_NAME
from scripts.gpu_check.outcome import OUTCOME_NAME, Outcome, Status


def do_check(name: str, folder: Path, *, is_tiny: bool) -> Outcome:
    """Run one check in this process.

    Args:
        name: of the check.
        folder: for its files, and for the outcome as soon as there is one.
        is_tiny: take sizes for a CPU also on a GPU.
    """
    from megatron_ext.device import device_name, has_cuda
    from scripts.gpu_check.place import Place

    started = time.monotonic()
    is_tiny = is_tiny or not has_cuda()
    place = Place(is_tiny=is_tiny, folder=folder)
    found = BY_NAME[name].load()(place)
    outcome = Outcome(
        name=name,
        status=Status.FAILED if found.wrong else Status.PASSED,
        summary=found.summary,
        device=device_name(),
        is_tiny=is_tiny,
        seconds=time.monotonic() - started,
        figures=found.figures,
        findings=found.wrong,
    )
    outcome.save(folder / OUTCOME_NAME)
    return outcome


def main() -> int:
    """Run the check that the command line names; return the exit code."""
    name, folder, size = sys.argv[1:4]
    set_up_logging()
    try:
        outcome = do_check(name, Path(folder), is_tiny=size == "tiny")
    except Exception as error:
        say(traceback.format_exc(), err=True)
        text = f"{type(error).__name__}: {error}"[:500]
        Outcome(name=name, status=Status.CRASHED, summary=text).save(Path(folder) / OUTCOME_NAME)
        return 1
    return 0 if outcome.status is Status.PASSED else 1


if __name__ == "__main__":
    sys.exit(main())

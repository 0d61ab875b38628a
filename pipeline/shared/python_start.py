"""How Python is started for a process of ours, so that it runs the same from every folder.

`python -m` puts the working directory first on the path, where users have a `pipeline.py` or a `torch.py` of
their own. `-P` leaves it out, and so does the variable, for what the process starts in turn.
"""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

__all__ = ["SAFE_PATH", "forget_working_directory", "python_module", "python_variables", "source_folder"]

SAFE_PATH = {"PYTHONSAFEPATH": "1"}


def python_module(name: str) -> tuple[str, ...]:
    """Return what follows the interpreter to run a module of ours."""
    return ("-P", "-m", name)


def python_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables with which a Python that is started here finds our packages.

    Args:
        environment: of this process. Relative parts of its PYTHONPATH mean another folder in every working
            directory, and an empty part, as in `:/opt/tools`, means the working directory itself: they are
            left out.
    """
    given, here = environment.get("PYTHONPATH", ""), Path.cwd()
    parts = [part for part in given.split(os.pathsep) if Path(part).is_absolute()]
    kept = [part for part in parts if not _is_same(Path(part), here)]
    source = source_folder()
    if source is not None:
        kept = list(dict.fromkeys([str(source), *kept]))
    return SAFE_PATH | ({"PYTHONPATH": os.pathsep.join(kept)} if kept or given else {})


def source_folder() -> Path | None:
    """Return the folder of our packages if the path of this process names it.

    None where Python finds them by itself, because they are installed.
    """
    folder = Path(__file__).resolve().parents[2]
    named = [part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part]
    if any(_is_same(Path(part), folder) for part in named):
        return folder
    is_on_path = any(_is_same(Path(part), folder) for part in sys.path)
    return folder if is_on_path and folder.name not in ("site-packages", "dist-packages") else None


def forget_working_directory() -> None:
    """Import nothing more from the working directory, unless our packages are there."""
    here, own = Path.cwd(), Path(__file__).resolve().parents[2]
    sys.path[:] = [part for part in sys.path if not _is_same(Path(part), here) or _is_same(Path(part), own)]


def _is_same(first: Path, second: Path) -> bool:
    try:
        return first.samefile(second)
    except OSError:
        return False

"""Find tasks by their names and load their data."""

from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypedDict

from lm_eval.tasks import TaskManager

from pipeline.evaluation.tasks import TaskSettings
from pipeline.shared.errors import DataError


class LoadedTasks(TypedDict):
    """Tasks and groups by name, as the harness evaluates them."""

    tasks: dict[str, Any]
    groups: dict[str, Any]


def load_tasks(settings: TaskSettings) -> LoadedTasks:
    """Load tasks with their data.

    Raises:
        DataError: a name is unknown, or the data of a task cannot be loaded.
    """
    manager = _manager(settings)
    loaded = LoadedTasks(tasks={}, groups={})
    for name in settings.names:
        found = _load(manager, name)
        loaded["tasks"] |= found["tasks"]
        loaded["groups"] |= found["groups"]
    return loaded


def _manager(settings: TaskSettings) -> TaskManager:
    """Index as few tasks as needed: reading the files of all tasks of the harness takes seconds."""
    if settings.include_path is not None and not settings.include_path.is_dir():
        raise DataError(f"--include-path must be a folder of task files, but is {settings.include_path}")
    include = None if settings.include_path is None else str(settings.include_path)
    own = TaskManager(include_path=include, include_defaults=False)
    if not _unknown(own, settings):
        return own
    everything = TaskManager(include_path=include)
    unknown = _unknown(everything, settings)
    if unknown:
        raise _unknown_task(unknown[0], everything)
    return everything


def _unknown(manager: TaskManager, settings: TaskSettings) -> list[str]:
    known = set(manager.all_tasks)
    return [name for name in settings.names if name not in known and not Path(name).is_file()]


def _unknown_task(name: str, manager: TaskManager) -> DataError:
    near = get_close_matches(name, manager.all_tasks, n=3)
    cure = f"did you mean {' or '.join(near)}?" if near else "`lm-eval ls tasks` lists them"
    return DataError(
        f"--tasks must name tasks of lm-evaluation-harness, of --include-path, or task files, but {name!r} "
        f"is not one; {cure}"
    )


def _load(manager: TaskManager, name: str) -> LoadedTasks:
    try:
        loaded: LoadedTasks = manager.load([name])
    # The class of the error depends on the libraries below; the user can act on all of them.
    except Exception as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise DataError(
            f"the data of task {name!r} must be cached or downloadable, but could not be loaded: "
            f"{reason[0]}; on a machine without access to the hub, load them where there is access and set "
            "HF_HOME to a copy of that cache, with HF_HUB_OFFLINE=1"
        ) from error
    return loaded

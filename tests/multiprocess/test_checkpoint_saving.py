"""Saves in the foreground and in the background, saves that fail, and resuming after damage.

Two ranks do everything once, and the tests check what they report.
"""

import gc
import os
import resource
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from megatron_ext.parallel.groups import destroy_groups
from pipeline.checkpoint.checksums import find_damage
from pipeline.checkpoint.comparison import compare_checkpoints
from pipeline.checkpoint.folder import TRACKER_NAME, checkpoint_folder
from pipeline.checkpoint.offline import OfflineReader
from pipeline.checkpoint.resuming import check_intact, find_intact_checkpoint
from pipeline.checkpoint.saver import CheckpointSaver, save_checkpoint
from pipeline.checkpoint.state import TrainState
from pipeline.checkpoint.tracker import latest_iteration
from pipeline.checkpoint.writing import Destination
from pipeline.shared.errors import CheckpointError
from tests.support.ranks import SharedRanks
from tests.support.tiny_gpt import TinyGpt
from tests.unit.pipeline.checkpoint.saved import folders, save

pytestmark = pytest.mark.multiprocess

STATE = TrainState(iteration=3, consumed_samples=24)
LATER = TrainState(iteration=5, consumed_samples=40)


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a rank reports, by case."""

    losses: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    errors: dict[str, str | None] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)


class Gate:
    """A path that can be used only after the gate is opened: a copy of the file waits until then."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.is_open = threading.Event()

    def __fspath__(self) -> str:
        self.is_open.wait(60)
        return os.fspath(self.path)


def _saver(run: TinyGpt, directory: Path, **settings: Any) -> CheckpointSaver:
    config_file = settings.pop("config_file", directory.parent / "run_config.yaml")
    return CheckpointSaver(
        destination=Destination(directory=directory, config_file=config_file),
        module=run.module,
        optimizer=run.optimizer,
        scheduler=run.scheduler,
        groups=run.groups,
        timeout_seconds=60,
        **settings,
    )


def _error_of(action: Any) -> str | None:
    """Return the message of the CheckpointError that an action raises, None if it raises none."""
    try:
        action()
    except CheckpointError as error:
        return str(error)
    return None


def _save_in_background(folder: Path, found: Found) -> None:
    """Save step 3 while steps 4 and 5 are computed, then save step 5."""
    run = TinyGpt(tensor=2)
    gate = Gate(folder / "run_config.yaml")
    saver = _saver(run, folder / "background", in_background=True, config_file=gate)
    run.train(3)
    saver.save(STATE)
    losses = []
    for _ in range(2):
        losses += run.train(1)
        saver.poll()
    found.facts["while it is written"] = latest_iteration(folder / "background")
    gate.is_open.set()
    saver.save(LATER)
    found.facts["when the next is begun"] = latest_iteration(folder / "background") in (3, 5)
    saver.finish()
    found.facts["at the end"] = latest_iteration(folder / "background")
    found.losses["background"] = losses
    destroy_groups()


def _save_at_once(folder: Path, found: Found) -> None:
    run = TinyGpt(tensor=2)
    saver = _saver(run, folder / "at_once")
    run.train(3)
    saver.save(STATE)
    saver.poll()
    found.losses["at once"] = run.train(2)
    saver.save(LATER)
    saver.finish()
    destroy_groups()


def _leave_during_a_save(folder: Path, found: Found) -> None:
    """Leave on one rank at once and on the other later."""
    run = TinyGpt(tensor=2)
    saver = _saver(run, folder / "left", in_background=True)
    saver.save(STATE)
    time.sleep(0.5 * run.groups.rank)
    saver.leave()
    found.facts["after leaving"] = latest_iteration(folder / "left")
    saver.finish()
    destroy_groups()


def _fail_in_background(folder: Path, found: Found) -> None:
    run = TinyGpt(tensor=2)
    directory = folder / "failing"
    saver = _saver(run, directory, in_background=True)
    saver.save(STATE)
    saver.finish()
    saver = _saver(run, directory, in_background=True, config_file=folder / "nowhere.yaml")
    saver.save(LATER)
    num_steps = 0

    def step() -> None:
        nonlocal num_steps
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            num_steps += 1
            # The ranks differ in speed.
            time.sleep(0.02 * (1 + run.groups.rank))
            saver.poll()

    found.errors["in the background"] = _error_of(step)
    found.facts["steps until the error"] = num_steps
    found.errors["afterwards"] = _error_of(saver.finish)
    found.facts["after a failure"] = latest_iteration(directory)
    destroy_groups()


@contextmanager
def _files_of_at_most(num_bytes: int) -> Iterator[None]:
    """Let writes of larger files fail, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _num_buffers() -> int:
    return sum(isinstance(item, memoryview) for item in gc.get_objects())


def _fail_on_one_rank(folder: Path, found: Found) -> None:
    run = TinyGpt(tensor=2)
    directory, config_file = folder / "full", folder / "run_config.yaml"
    run.train(1)

    def save_at(state: TrainState) -> None:
        save_checkpoint(
            directory,
            state,
            module=run.module,
            optimizer=run.optimizer,
            scheduler=run.scheduler,
            groups=run.groups,
            config_file=config_file,
        )

    save_at(STATE)
    for rank in (0, 1):
        with _files_of_at_most(5000 if run.groups.rank == rank else 10**9), _without_garbage_collection():
            num_buffers = _num_buffers()
            found.errors[f"rank {rank} cannot write"] = _error_of(lambda: save_at(LATER))
            found.facts[f"buffers left, rank {rank} cannot write"] = _num_buffers() - num_buffers
    found.facts["folders after a full disk"] = folders(directory)
    found.facts["damage after a full disk"] = find_damage(checkpoint_folder(directory, 3))
    # Before the other rank's next save removes anything.
    run.train(1)
    save_at(LATER)
    found.facts["folders when there is room again"] = folders(directory)
    destroy_groups()


def _on_two_ranks(folder: Path) -> Found:
    found = Found()
    _save_at_once(folder, found)
    _save_in_background(folder, found)
    _leave_during_a_save(folder, found)
    _fail_in_background(folder, found)
    _fail_on_one_rank(folder, found)
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saving")
    (folder / "run_config.yaml").write_text("name: tiny\n")
    return folder


@pytest.fixture(scope="module")
def two_ranks(ranks: SharedRanks, folder: Path) -> list[Found]:
    return ranks.run(_on_two_ranks, 2, folder)


def test_training_continues_while_a_checkpoint_is_written(two_ranks: list[Found]) -> None:
    for found in two_ranks:
        assert found.facts["while it is written"] is None
        assert found.facts["when the next is begun"]
        assert found.facts["at the end"] == 5


def test_training_is_the_same_with_saves_in_the_background(two_ranks: list[Found]) -> None:
    for found in two_ranks:
        assert found.losses["background"] == found.losses["at once"]


@pytest.mark.parametrize("iteration", [3, 5])
def test_a_save_in_the_background_equals_one_in_the_foreground(
    two_ranks: list[Found], folder: Path, iteration: int
) -> None:
    at_once, background = (checkpoint_folder(folder / name, iteration) for name in ("at_once", "background"))
    compared = list(compare_checkpoints(at_once, background))
    assert len(compared) > 10
    assert all(item.is_equal for item in compared), [item for item in compared if not item.is_equal]
    readers = OfflineReader(at_once), OfflineReader(background)
    assert readers[0].objects == readers[1].objects != []
    for name in readers[0].objects:
        assert readers[0].read_bytes(name) == readers[1].read_bytes(name)
    assert (at_once / "train_state.json").read_text() == (background / "train_state.json").read_text()
    assert find_damage(background) == find_damage(at_once) == []


def test_checkpoints_of_different_steps_differ(two_ranks: list[Found], folder: Path) -> None:
    earlier, later = (checkpoint_folder(folder / "background", iteration) for iteration in (3, 5))
    assert not all(item.is_equal for item in compare_checkpoints(earlier, later))


def test_an_error_in_the_background_reaches_all_ranks_in_the_same_step(two_ranks: list[Found]) -> None:
    first, second = two_ranks
    for found in two_ranks:
        assert "nowhere.yaml" in (found.errors["in the background"] or "")
        assert found.errors["afterwards"] is None
        assert found.facts["after a failure"] == 3
    assert first.facts["steps until the error"] == second.facts["steps until the error"]


def test_leaving_a_failed_run_waits_for_the_save(two_ranks: list[Found]) -> None:
    assert [found.facts["after leaving"] for found in two_ranks] == [3, 3]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_full_disk_on_one_rank_is_an_error_on_all_and_damages_nothing(
    two_ranks: list[Found], rank: int
) -> None:
    for found in two_ranks:
        assert f" rank {rank}: " in (found.errors[f"rank {rank} cannot write"] or "")
        assert found.facts["damage after a full disk"] == []


@pytest.mark.parametrize("rank", [0, 1])
def test_an_error_in_writing_does_not_keep_what_was_written(two_ranks: list[Found], rank: int) -> None:
    assert [found.facts[f"buffers left, rank {rank} cannot write"] for found in two_ranks] == [0, 0]


def test_the_next_save_removes_the_files_that_a_full_disk_left(two_ranks: list[Found]) -> None:
    for found in two_ranks:
        assert found.facts["folders after a full disk"] == ["iter_0000003", "iter_0000005.partial"]
        assert found.facts["folders when there is room again"] == ["iter_0000003", "iter_0000005"]


def _truncate(directory: Path) -> None:
    os.truncate(directory / "iter_0000300" / "__0_0.distcp", 3)


def _flip(directory: Path) -> None:
    path = directory / "iter_0000300" / "__0_0.distcp"
    path.write_bytes(b"T" + path.read_bytes()[1:])


def _remove_tensors(directory: Path) -> None:
    (directory / "iter_0000300" / "__0_0.distcp").unlink()


def _remove_state(directory: Path) -> None:
    (directory / "iter_0000300" / "train_state.json").unlink()


def _remove_folder(directory: Path) -> None:
    shutil.rmtree(directory / "iter_0000300")


def _interrupt_replacement(directory: Path) -> None:
    folder = directory / "iter_0000300"
    shutil.copytree(folder, folder.with_suffix(".partial"))
    folder.rename(folder.with_suffix(".replaced.partial"))


def _truncate_all(directory: Path) -> None:
    for path in directory.glob("iter_*/__0_0.distcp"):
        os.truncate(path, 3)


# How checkpoints of iterations 100, 200 and 300 are damaged, and the one that is then resumed from.
DAMAGES: dict[str, tuple[Callable[[Path], object], str | None]] = {
    "nothing": (lambda directory: None, "iter_0000300"),
    "truncated": (_truncate, "iter_0000200"),
    "flipped": (_flip, "iter_0000200"),
    "without a file": (_remove_tensors, "iter_0000200"),
    "without its state": (_remove_state, "iter_0000200"),
    "removed": (_remove_folder, "iter_0000200"),
    "empty tracker": (lambda directory: (directory / TRACKER_NAME).write_text(""), "iter_0000300"),
    "no tracker": (lambda directory: (directory / TRACKER_NAME).unlink(), "iter_0000300"),
    "tracker of nothing": (lambda directory: (directory / TRACKER_NAME).write_text("250"), "iter_0000200"),
    "replacement interrupted": (_interrupt_replacement, "iter_0000300"),
    "all truncated": (_truncate_all, None),
}


def _find_on_two_ranks(directories: dict[str, Path]) -> Found:
    found = Found()
    for name, directory in directories.items():
        try:
            whole = find_intact_checkpoint(directory, reads=True)
            found.facts[name] = "start from scratch" if whole is None else whole.name
        except CheckpointError:
            found.facts[name] = None
    flipped = directories["flipped"]
    found.facts["by size"] = str(find_intact_checkpoint(flipped, reads=False))
    found.errors["tool"] = _error_of(lambda: check_intact(flipped / "iter_0000300", reads=True))
    found.errors["tool, intact"] = _error_of(lambda: check_intact(flipped / "iter_0000200", reads=True))
    return found


@pytest.fixture(scope="module")
def after_damage(ranks: SharedRanks, tmp_path_factory: pytest.TempPathFactory) -> list[Found]:
    directories = {"new run": tmp_path_factory.mktemp("new")}
    for name, (damage, _) in DAMAGES.items():
        directory = directories[name] = tmp_path_factory.mktemp("damaged")
        for iteration in (100, 200, 300):
            save(directory, iteration)
        damage(directory)
    return ranks.run(_find_on_two_ranks, 2, directories)


@pytest.mark.parametrize("name", DAMAGES)
def test_a_run_resumes_from_the_newest_intact_checkpoint_or_fails(
    after_damage: list[Found], name: str
) -> None:
    assert [found.facts[name] for found in after_damage] == [DAMAGES[name][1]] * 2


def test_a_run_that_has_saved_nothing_starts_from_scratch(after_damage: list[Found]) -> None:
    assert [found.facts["new run"] for found in after_damage] == ["start from scratch"] * 2


def test_without_verification_sizes_alone_are_compared(after_damage: list[Found]) -> None:
    assert all(found.facts["by size"].endswith("iter_0000300") for found in after_damage)


def test_tools_refuse_a_damaged_checkpoint_and_name_the_file(after_damage: list[Found]) -> None:
    for found in after_damage:
        for part in ("__0_0.distcp", "--iteration"):
            assert part in (found.errors["tool"] or "")
        assert found.errors["tool, intact"] is None

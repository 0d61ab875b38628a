"""Faults that strike whole trainings, when they strike, and what they cost."""

import os
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random

from pipeline.checkpoint.tracker import TRACKER_NAME, latest_iteration
from tests.support.commands import COMMAND, Finished, Running, forked, megaponder, started, wait_until
from tests.support.runs import has_trained, written_events

# Iterations after the start of a command within which a fault strikes.
LATEST_ITERATION = 6
SAVE_INTERVAL = 3
LONGEST_START_SECONDS = 6.0

Moment = Callable[[Running, Path, Random], None]
Strike = Callable[[Running, Random], None]
Damage = Callable[[Path, Random], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """A fault that strikes a run.

    Attributes:
        name: for the report.
        moment: waits until it is time to strike.
        strike: acts on the processes.
        exit_codes: that the command may return.
        damage: done to the checkpoints afterwards.
        overrides: settings of the start that is struck.
    """

    name: str
    moment: Moment
    strike: Strike
    exit_codes: tuple[int, ...]
    damage: Damage | None = None
    overrides: tuple[str, ...] = ()

    @property
    def is_of_the_start(self) -> bool:
        """Whether it may strike while modules are imported, so that the processes must be new ones."""
        return self.moment is soon_after_the_start


@dataclass(frozen=True, slots=True, kw_only=True)
class Injected:
    """A fault that has struck.

    Attributes:
        name: of the fault.
        reached: last iteration that was logged before.
        exit_code: of the command.
        time: of the strike, seconds since the epoch.
    """

    name: str
    reached: int
    exit_code: int
    time: float

    def __str__(self) -> str:
        return f"{self.name}: after iteration {self.reached}, exit code {self.exit_code}"


def settings(num_iterations: int) -> tuple[str, ...]:
    """Return overrides for a run with many checkpoints and evaluations."""
    return (
        *(f"train-iters={num_iterations}", "lr_decay_iters=240", f"checkpoint.interval={SAVE_INTERVAL}"),
        *("checkpoint.keep_last=3", "evaluation.interval=10", "metrics.tensorboard=false"),
        *("parallel.timeout_seconds=120", "parallel.watchdog_seconds=60"),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Campaign:
    """A run that is resumed after every fault.

    Attributes:
        recipe: its settings.
        folder: of the run.
        num_iterations: length of the run.
        injected: faults that have struck, in order.
    """

    recipe: Path
    folder: Path
    num_iterations: int
    injected: list[Injected] = field(default_factory=list)

    @property
    def checkpoints(self) -> Path:
        """Folder of its checkpoints."""
        return self.folder / "checkpoints"

    def suffer(self, fault: Fault, random: Random) -> Finished:
        """Start or resume the run, let the fault strike and wait for the end of the command."""
        arguments = self.arguments(*fault.overrides)
        with started([*COMMAND, *arguments]) if fault.is_of_the_start else forked(*arguments) as command:
            fault.moment(command, self.folder, random)
            assert command.process.poll() is None, command.stderr.read_text()
            struck = time.time()
            fault.strike(command, random)
            finished = command.finish()
        assert finished.exit_code in fault.exit_codes, f"{fault.name}\n{finished.stderr}"
        self.injected.append(
            Injected(name=fault.name, reached=self.reached, exit_code=finished.exit_code, time=struck)
        )
        if fault.damage is not None and latest_iteration(self.checkpoints) is not None:
            fault.damage(self.checkpoints, random)
        return finished

    def resume(self, *overrides: str) -> Finished:
        """Start or resume the run and wait for the end of the command."""
        return megaponder(*self.arguments(*overrides))

    @property
    def reached(self) -> int:
        """Last iteration that was logged, 0 if none was."""
        return max((row["iteration"] for row in written_events(self.folder)), default=0)

    def arguments(self, *overrides: str) -> list[str]:
        """Return the arguments of `megaponder` that start or resume the run."""
        all_overrides = (f"output_dir={self.folder}", *settings(self.num_iterations), *overrides)
        return ["train", "--config", str(self.recipe), *all_overrides]


def soon_after_the_start(_command: Running, _folder: Path, random: Random) -> None:
    """Wait for any point of the start, the imports included."""
    time.sleep(random.uniform(0.0, LONGEST_START_SECONDS))


def after_some_iterations(command: Running, folder: Path, random: Random) -> None:
    """Wait for any point of a step, an evaluation or a save."""
    before = max((row["iteration"] for row in written_events(folder)), default=0)
    wanted = before + random.randint(1, LATEST_ITERATION)
    wait_until(lambda: has_trained(folder, wanted) or command.process.poll() is not None)
    time.sleep(random.uniform(0.0, 0.2))


def after_two_saves(command: Running, folder: Path, _random: Random) -> None:
    """Wait until this start has left two checkpoints, so that one remains if the other is damaged."""
    before = max((row["iteration"] for row in written_events(folder)), default=0)
    wanted = before + 2 * SAVE_INTERVAL + 1
    wait_until(lambda: has_trained(folder, wanted) or command.process.poll() is not None)


def in_a_save(command: Running, folder: Path, _random: Random) -> None:
    """Wait until a checkpoint is being written; files that an earlier fault has left do not count."""
    before = _files_being_written(folder)
    wait_until(lambda: _files_being_written(folder) - before or command.process.poll() is not None)


def _files_being_written(folder: Path) -> set[tuple[Path, int]]:
    found = set()
    for path in (folder / "checkpoints").glob("*.partial/*"):
        with suppress(FileNotFoundError):
            found.add((path, path.stat().st_mtime_ns))
    return found


def signalled(number: signal.Signals) -> Strike:
    """Return a strike that signals the command, which forwards the signal to its ranks."""
    return lambda command, _random: command.process.send_signal(number)


def kill_a_rank(command: Running, random: Random) -> None:
    """Kill one of two ranks."""
    wait_until(lambda: len(command.ranks()) == 2)
    random.choice(command.ranks()).kill()


def suspend_a_rank(command: Running, random: Random) -> None:
    """Suspend one of two ranks for good."""
    random.choice(command.ranks()).suspend()


def truncate_a_file(checkpoints: Path, random: Random) -> None:
    """Truncate a file of the newest checkpoint."""
    path = _some_file(checkpoints, random)
    os.truncate(path, path.stat().st_size // 2)


def flip_a_byte(checkpoints: Path, random: Random) -> None:
    """Change one byte in a file of the newest checkpoint."""
    path = _some_file(checkpoints, random)
    content = bytearray(path.read_bytes())
    content[random.randrange(len(content))] ^= 0x40
    path.write_bytes(content)


def empty_the_tracker(checkpoints: Path, _random: Random) -> None:
    """Truncate the tracker to nothing."""
    (checkpoints / TRACKER_NAME).write_text("")


def point_the_tracker_to_nothing(checkpoints: Path, _random: Random) -> None:
    """Write an iteration that was never saved into the tracker."""
    (checkpoints / TRACKER_NAME).write_text("999999\n")


def _some_file(checkpoints: Path, random: Random) -> Path:
    newest = checkpoints / f"iter_{latest_iteration(checkpoints):07d}"
    return random.choice(sorted(path for path in newest.iterdir() if path.stat().st_size > 1))


def _stopped(
    number: signal.Signals, place: str, moment: Moment, *overrides: str, may_die: bool = False
) -> Fault:
    # Until its handlers are installed the command itself dies of the signal; nothing is lost.
    codes = (75, -number) if may_die else (75,)
    name = f"{number.name} {place}"
    return Fault(name=name, moment=moment, strike=signalled(number), exit_codes=codes, overrides=overrides)


def _rank_killed(place: str, moment: Moment, *overrides: str) -> Fault:
    name, codes = f"a rank killed {place}", (128 + signal.SIGKILL,)
    return Fault(name=name, moment=moment, strike=kill_a_rank, exit_codes=codes, overrides=overrides)


def _launcher_killed(place: str, moment: Moment, *overrides: str) -> Fault:
    name, strike = f"the launcher killed {place}", signalled(signal.SIGKILL)
    return Fault(name=name, moment=moment, strike=strike, exit_codes=(-signal.SIGKILL,), overrides=overrides)


def _damaged(what: str, damage: Damage) -> Fault:
    killed = _rank_killed("and then damage", after_two_saves)
    return replace(killed, name=f"killed, {what}", damage=damage)


IN_BACKGROUND = "checkpoint.async_save=true"
CTRL_C = _stopped(signal.SIGINT, "in training", after_some_iterations)
FAULTS: dict[str, Fault] = {
    fault.name: fault
    for fault in (
        _stopped(signal.SIGTERM, "in the start", soon_after_the_start, may_die=True),
        _stopped(signal.SIGTERM, "in training", after_some_iterations),
        _stopped(signal.SIGUSR1, "in training", after_some_iterations),
        _stopped(signal.SIGTERM, "in a save", in_a_save),
        _stopped(signal.SIGTERM, "in a save in the background", in_a_save, IN_BACKGROUND),
        _rank_killed("in the start", soon_after_the_start),
        _rank_killed("in training", after_some_iterations),
        _rank_killed("in a save", in_a_save),
        _rank_killed("in a save in the background", in_a_save, IN_BACKGROUND),
        _launcher_killed("in training", after_some_iterations),
        _launcher_killed("in a save", in_a_save),
        _launcher_killed("in a save in the background", in_a_save, IN_BACKGROUND),
        _damaged("newest checkpoint truncated", truncate_a_file),
        _damaged("a byte of the newest checkpoint flipped", flip_a_byte),
        _damaged("tracker empty", empty_the_tracker),
        _damaged("tracker points to nothing", point_the_tracker_to_nothing),
        Fault(
            name="a rank suspended",
            moment=after_some_iterations,
            strike=suspend_a_rank,
            exit_codes=(75,),
            overrides=("parallel.watchdog_seconds=12",),
        ),
    )
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """The cost of the faults of a campaign.

    Attributes:
        num_faults: that struck.
        repeated_iterations: logged more than once.
        seconds_lost: by fault, from the strike to the first new iteration.
        training_seconds: of the steps that count.
        wall_seconds: from the first to the last line of the log.
    """

    num_faults: int
    repeated_iterations: int
    seconds_lost: tuple[float, ...]
    training_seconds: float
    wall_seconds: float

    def __str__(self) -> str:
        mean = sum(self.seconds_lost) / len(self.seconds_lost)
        return (
            f"{self.num_faults} faults: {self.repeated_iterations} iterations were repeated, {mean:.1f} s "
            f"lost per fault (most {max(self.seconds_lost):.1f} s), {self.training_seconds:.1f} of "
            f"{self.wall_seconds:.1f} s were spent on steps that count "
            f"({100 * self.training_seconds / self.wall_seconds:.0f} %)"
        )


def account_of(campaign: Campaign) -> Account:
    """Read the cost of the faults from the metrics of the run."""
    rows = written_events(campaign.folder)
    first_time: dict[int, float] = {}
    seconds: dict[int, float] = {}
    for row in rows:
        first_time.setdefault(row["iteration"], row["time"])
        seconds[row["iteration"]] = row["iteration-time"]
    lost = tuple(
        first_time[fault.reached + 1] - fault.time
        for fault in campaign.injected
        if fault.reached + 1 in first_time
    )
    return Account(
        num_faults=len(campaign.injected),
        repeated_iterations=len(rows) - len(first_time),
        seconds_lost=lost,
        training_seconds=sum(seconds.values()),
        wall_seconds=rows[-1]["time"] - rows[0]["time"],
    )


def steps_of(folder: Path) -> dict[int, tuple[float, float, str]]:
    """Return loss, gradient norm and data hash by iteration, and check that repeated iterations equal."""
    found: dict[int, tuple[float, float, str]] = {}
    for row in written_events(folder):
        step = (row["lm loss"], row["grad-norm"], row["data-hash"])
        assert found.setdefault(row["iteration"], step) == step, (
            f"iteration {row['iteration']} was repeated differently"
        )
    return found


def shuffled_faults(num_faults: int, random: Random) -> Sequence[Fault]:
    """Return faults in random order, every kind equally often."""
    chosen: list[Fault] = []
    while len(chosen) < num_faults:
        chosen += random.sample(list(FAULTS.values()), len(FAULTS))
    return chosen[:num_faults]

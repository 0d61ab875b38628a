"""Run a ladder: one training after another, or several at once, each resumable."""

import json
import logging
import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from pathlib import Path
from threading import Event, Lock
from typing import Any

from pipeline.metrics import names
from pipeline.metrics.jsonl import METRICS_FILE, VALIDATION, read_events
from pipeline.shared.errors import UserError
from pipeline.shared.exit_codes import ExitCode
from pipeline.shared.files import write_atomically
from scripts.commands import stop
from scripts.ladder.plan import Ladder, Part, Run, run_of

logger = logging.getLogger(__name__)

RESULT_FILE = "ladder.json"
LOG_FILE = "train.log"
_POLL_SECONDS = 0.5


class LadderError(UserError):
    """A training of the ladder failed."""


class OutOfTimeError(UserError):
    """The time of this call is over; the same command resumes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Runner:
    """Runs the trainings of a ladder.

    Attributes:
        ladder: what to run.
        recipe: configuration of every run.
        folder: holds one folder per run.
        data: prepared text.
        deadline: of `time.monotonic`; no training starts after it, one that runs is stopped and saves.
        num_processes: trainings at once.
        checkpoint: folder of checkpoints that all rows continue from, instead of a base of each seed.
        settings: of all runs, unless a row sets them; by their dotted names.
    """

    ladder: Ladder
    recipe: Path
    folder: Path
    data: Path
    deadline: float
    num_processes: int = 1
    checkpoint: Path | None = None
    settings: Mapping[str, str] = field(default_factory=dict)
    # Rows that share a learning rate must not tune it at the same time.
    _tuning: dict[str, Lock] = field(default_factory=lambda: defaultdict(Lock), init=False, repr=False)
    _interrupted: Event = field(default_factory=Event, init=False, repr=False)

    def run_all(self, parts: Sequence[str]) -> None:
        """Run the bases, then the rows of the parts that were asked for.

        Raises:
            LadderError: with every training that failed; the others have run.
            OutOfTimeError: trainings remain for another call.
        """
        bases = self._bases() if "continued" in parts else None
        tasks: list[Callable[[], object]] = []
        for part_name in parts:
            part = self.ladder.part(part_name)
            starts = bases if part_name == "continued" else None
            tasks += [partial(self._run_row, part_name, part, row, starts) for row in part.rows]
        self._run_tasks(tasks)

    def _bases(self) -> dict[int, Path]:
        """Train the base of every seed, those of single rows included; return their checkpoints by seed."""
        rows = self.ladder.part("continued").rows.values()
        of_rows = chain.from_iterable(row.seeds or () for row in rows)
        seeds = tuple(dict.fromkeys((self.ladder.tuning_seed, *self.ladder.seeds, *of_rows)))
        if self.checkpoint is not None:
            return dict.fromkeys(seeds, self.checkpoint)
        part = self.ladder.part("base")
        (row,) = part.rows
        learning_rate = self._tuned("base", part, row, None)
        runs = [run_of("base", part, row, learning_rate=learning_rate, seed=seed) for seed in seeds]
        self._run_tasks([partial(self.result_of, run) for run in runs])
        return {seed: self.folder / run.folder / "checkpoints" for seed, run in zip(seeds, runs, strict=True)}

    def _run_row(self, part_name: str, part: Part, row_name: str, starts: dict[int, Path] | None) -> None:
        learning_rate = self._tuned(part_name, part, row_name, starts)
        for seed in part.rows[row_name].seeds or self.ladder.seeds:
            run = run_of(part_name, part, row_name, learning_rate=learning_rate, seed=seed)
            self.result_of(self._started(run, seed, starts))

    def _tuned(self, part_name: str, part: Part, row_name: str, starts: dict[int, Path] | None) -> float:
        """Return the candidate with the smallest held-out loss on the tuning seed."""
        row = part.rows[row_name]
        if row.learning_rate_of is not None:
            return self._tuned(part_name, part, row.learning_rate_of, starts)
        candidates = row.learning_rates or part.learning_rates
        if len(candidates) == 1:
            return candidates[0]
        with self._tuning[f"{part_name}/{row_name}"]:
            return self._best_rate(part_name, part, row_name, candidates, starts)

    def _best_rate(
        self,
        part_name: str,
        part: Part,
        row_name: str,
        candidates: Sequence[float],
        starts: dict[int, Path] | None,
    ) -> float:
        seed = self.ladder.tuning_seed
        losses = {}
        for rate in candidates:
            run = run_of(part_name, part, row_name, learning_rate=rate, seed=seed)
            losses[rate] = self.result_of(self._started(run, seed, starts))[names.LM_LOSS_VALIDATION]
        best = min(losses, key=lambda rate: losses[rate])
        logger.info("%s/%s: learning rate %g of %s", part_name, row_name, best, losses)
        return best

    def _started(self, run: Run, seed: int, starts: dict[int, Path] | None) -> Run:
        if starts is None:
            return run
        settings = {
            "init_from.path": str(starts[seed]),
            "init_from.method": self.ladder.base_method,
            **run.settings,
        }
        return replace(run, settings=settings)

    def result_of(self, run: Run) -> dict[str, Any]:
        """Train a run unless that is done; return its last evaluation on held-out text.

        A run that has trained with the same settings in another part or row is linked to, not repeated.

        Raises:
            LadderError: the training failed, or the folder holds a run with other settings.
            OutOfTimeError: there was no time left to start or to end it.
        """
        run = replace(run, settings={**self.settings, **run.settings})
        folder = self.folder / run.folder
        done = folder / RESULT_FILE
        if not folder.exists():
            self._link_equal(run)
        if done.is_file():
            record = json.loads(done.read_text(encoding="utf-8"))
            _check_settings(folder, record["settings"], run)
            return dict(record["evaluation"])
        command = [
            *(sys.executable, "-P", "-m", "pipeline.cli", "train", "--config", str(self.recipe)),
            *(f"output_dir={folder}", f"data.path={self.data}", *run.overrides()),
        ]
        seconds = self._train(command, folder)
        evaluation = [event for event in read_events(folder / METRICS_FILE) if event["event"] == VALIDATION][
            -1
        ]
        record = {"settings": dict(run.settings), "seconds": seconds, "evaluation": evaluation}
        write_atomically(done, json.dumps(record, indent=1) + "\n")
        return dict(evaluation)

    def _link_equal(self, run: Run) -> None:
        """Make the folder of a run a link to a run that has ended with the same settings, if there is one."""
        for done in sorted(self.folder.glob(f"*/*/*/*/{RESULT_FILE}")):
            if json.loads(done.read_text(encoding="utf-8"))["settings"] == run.settings:
                folder = self.folder / run.folder
                folder.parent.mkdir(parents=True, exist_ok=True)
                folder.symlink_to(os.path.relpath(done.parent.resolve(), folder.parent.resolve()))
                logger.info("%s: trained as %s", folder, done.parent)
                return

    def _train(self, command: list[str], folder: Path) -> float:
        """Run one training to its end; return how long this start of it took, in seconds."""
        start = time.monotonic()
        if start >= self.deadline or self._interrupted.is_set():
            raise OutOfTimeError(f"no time left for {folder}")
        folder.mkdir(parents=True, exist_ok=True)
        logger.info("%s: training", folder)
        with (folder / LOG_FILE).open("ab") as log:
            process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
            while process.poll() is None:
                if time.monotonic() >= self.deadline or self._interrupted.is_set():
                    stop(process)
                self._interrupted.wait(_POLL_SECONDS)
        if process.returncode == ExitCode.REQUEUE:
            raise OutOfTimeError(f"{folder} was stopped and will resume")
        if process.returncode:
            raise LadderError(f"{folder} failed with exit code {process.returncode}; see {folder / LOG_FILE}")
        return time.monotonic() - start

    def _run_tasks(self, tasks: Sequence[Callable[[], object]]) -> None:
        """Run tasks at once or in turn; one that fails does not keep the others from running."""
        problems: list[UserError] = []
        with ThreadPoolExecutor(self.num_processes) as pool:
            try:
                for future in [pool.submit(task) for task in tasks]:
                    try:
                        future.result()
                    except (LadderError, OutOfTimeError) as error:
                        problems.append(error)
            except BaseException:
                # Ctrl-C: trainings save and end, and no other one starts.
                self._interrupted.set()
                pool.shutdown(cancel_futures=True)
                raise
        failures = [str(error) for error in problems if isinstance(error, LadderError)]
        if failures:
            raise LadderError("; ".join(failures))
        if problems:
            raise OutOfTimeError(f"{len(problems)} rows remain; run the same command again to resume")


def _check_settings(folder: Path, recorded: dict[str, Any], run: Run) -> None:
    """Raise LadderError where a run has ended with other settings than those of the ladder.

    The path of the base is not compared: folders may be moved.
    """
    keys = sorted((recorded.keys() | run.settings.keys()) - {"init_from.path"})
    other = [key for key in keys if recorded.get(key) != run.settings.get(key)]
    if other:
        raise LadderError(
            f"{folder} holds a run whose settings must be those of the ladder, but these differ: "
            f"{', '.join(other)}; remove the folder, or name another with `runs` in the ladder's file"
        )

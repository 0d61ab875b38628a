"""Training steps and decoding beside published code: equal results first, then times, in fresh processes.

Both sides load the same weights under Hugging Face names and read the same random tokens. Losses of the first
steps and decoded tokens are compared before anything is timed, and the losses of the timed steps afterwards.
Every timed process is a new one, because processes of one program differ in speed by the memory they get; the
sides take turns, so that a machine that is slower for a while slows all.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from pipeline.shared.errors import UserError
from pipeline.shared.exit_codes import ExitCode
from pipeline.shared.progress import Progress
from tests.bench.reference_cases import (
    ARCHITECTURES,
    CASES,
    PARTS,
    ComparisonSizes,
    Part,
    Precision,
    ReferenceCase,
    task_of,
)
from tests.bench.step import HERE

WORKER = Path(__file__).with_name("reference_worker.py")
OURS = "megaponder"
NUM_CHECK_STEPS = 3
NUM_UNTIMED = 1
# Relative differences of losses that rounding explains: before the first update, and after some. AdamW's
# first updates are about the sign of a gradient, which rounding decides where the gradient is almost zero.
FIRST_LOSS_TOLERANCE: Mapping[Precision, float] = {"fp32": 1e-5, "bf16": 1e-3}
LATER_LOSS_TOLERANCE: Mapping[Precision, float] = {"fp32": 1e-3, "bf16": 1e-2}
# Costs of the start of a process and of a check, in rows per token of training steps at the default sizes,
# for the time left.
START_ROWS = 4
CHECK_UNITS = 2


class DifferentResultsError(UserError):
    """Both sides do not compute the same."""

    exit_code: ClassVar[ExitCode] = ExitCode.CRASH


class SideFailedError(UserError):
    """A process of one side ended without a result."""

    exit_code: ClassVar[ExitCode] = ExitCode.CRASH


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One of the programs that are compared.

    Attributes:
        name: in tables.
        command: of a process; the file with its task follows.
        environment: variables beside those of this process, and their values.
        folder: that it starts in.
    """

    name: str
    command: tuple[str, ...]
    environment: tuple[tuple[str, str], ...]
    folder: Path

    def run(self, task: Mapping[str, Any], *, timeout_seconds: float) -> dict[str, Any]:
        """Run one task in a new process.

        Raises:
            SideFailedError: it failed, or took too long.
        """
        with tempfile.TemporaryDirectory() as scratch:
            file, log = Path(scratch, "task.json"), Path(scratch, "stderr.log")
            file.write_text(json.dumps(task), encoding="utf-8")
            with log.open("wb") as errors:
                try:
                    done = subprocess.run(
                        [*self.command, str(file)],
                        stdin=subprocess.DEVNULL,
                        stdout=subprocess.PIPE,
                        stderr=errors,
                        env=os.environ | dict(self.environment),
                        cwd=self.folder,
                        timeout=timeout_seconds,
                        check=True,
                    )
                except (OSError, subprocess.SubprocessError) as error:
                    tail = log.read_text(encoding="utf-8", errors="replace")[-2000:]
                    raise SideFailedError(
                        f"{self.name} must do the task {task['action']!r}, but failed ({error}):\n{tail}"
                    ) from error
        result: dict[str, Any] = json.loads(done.stdout)
        return result


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What is compared, and how.

    Attributes:
        checkout: of the published code; None where only vanilla models are compared.
        python: interpreter of the environment that runs it.
        cases, precisions, parts: what to compare; decoding is compared in fp32.
        sizes: of models and batches.
        rounds: processes of each side.
        steps: timed steps, or decoded batches, of a process.
        threads: of each process.
        with_installed: vanilla also against the transformers of this environment.
        huge_pages: torch allocates memory in huge pages, on all sides.
        timeout_seconds: limit on one process.
    """

    checkout: Path | None
    python: Path
    cases: Sequence[ReferenceCase]
    precisions: Sequence[Precision]
    parts: Sequence[Part]
    sizes: ComparisonSizes
    rounds: int
    steps: int
    threads: int
    with_installed: bool = True
    huge_pages: bool = False
    timeout_seconds: float = 3600.0

    def sides(self, case: ReferenceCase) -> list[Side]:
        """Return this program, and those it is compared with."""
        threads = str(self.threads)
        common: tuple[tuple[str, str], ...] = (("OMP_NUM_THREADS", threads), ("MKL_NUM_THREADS", threads))
        if self.huge_pages:
            common = (*common, ("THP_MEM_ALLOC_ENABLE", "1"))
        own = Side(
            name=OURS,
            command=(sys.executable, "-W", "ignore", "-m", "tests.bench.reference_own_worker"),
            environment=(*common, ("PYTHONPATH", str(HERE))),
            folder=HERE,
        )
        # Elsewhere a relative PYTHONPATH does not lead to this program.
        elsewhere = replace(
            own,
            name="transformers" if case.is_vanilla else "published code",
            command=(str(self.python), "-W", "ignore", str(WORKER)),
            environment=common,
            folder=Path(tempfile.gettempdir()),
        )
        sides = [own, elsewhere]
        if case.is_vanilla and self.with_installed and self.python != Path(sys.executable):
            command = (sys.executable, *elsewhere.command[1:])
            sides.append(replace(elsewhere, name="installed transformers", command=command))
        return sides

    @property
    def batches(self) -> list["Batch"]:
        """Everything that is compared, in order."""
        steps = [
            Batch(part="train", case=case, precision=precision)
            for precision in self.precisions
            for case in self.cases
            if "train" in self.parts and "train" in case.parts
        ]
        texts = [
            Batch(part="decode", case=case, precision="fp32", batch_size=size)
            for case in self.cases
            for size in self.sizes.decode_batch_sizes
            if "decode" in self.parts and "decode" in case.parts
        ]
        return [*steps, *texts]


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """One line of a table: a case in a precision, and how many texts are decoded together."""

    part: Part
    case: ReferenceCase
    precision: Precision
    batch_size: int = 0

    @property
    def name(self) -> str:
        """Text for displays."""
        texts = f", {self.batch_size} texts" if self.part == "decode" else ""
        return f"{self.part} {self.case.name}, {self.precision}{texts}"

    def units(self, comparison: Comparison) -> float:
        """Estimate the cost of a timed process, for the time left."""
        if self.part == "decode":
            return START_ROWS + self.case.training_rows * comparison.steps / 4
        return START_ROWS + self.case.training_rows * (comparison.steps + NUM_UNTIMED)


def compare(comparison: Comparison, *, progress: Progress) -> Iterator[dict[str, Any]]:
    """Compare results, then time; yield the record so far, first without times and again after each batch.

    Raises:
        DifferentResultsError: both sides do not compute the same. Nothing has been timed, unless only the
            losses of timed steps differ.
        SideFailedError: a process failed.
    """
    with tempfile.TemporaryDirectory() as scratch:
        runner = _Runner(comparison, Path(scratch), progress)
        record: dict[str, Any] = {
            "sizes": asdict(comparison.sizes),
            "rounds": comparison.rounds,
            "steps": comparison.steps,
            "untimed_steps": NUM_UNTIMED,
            "threads": comparison.threads,
            "huge_pages": comparison.huge_pages,
            "versions": runner.check(),
            "results": [],
        }
        yield record
        for batch in comparison.batches:
            record["results"].append(runner.measure(batch))
            yield record


def total_units(comparison: Comparison) -> float:
    """Return the units of work that :func:`compare` reports as done."""
    return sum(
        (CHECK_UNITS + comparison.rounds * batch.units(comparison)) * len(comparison.sides(batch.case))
        for batch in comparison.batches
    )


class _Runner:
    """Runs processes of all sides on the same weights and tokens."""

    def __init__(self, comparison: Comparison, scratch: Path, progress: Progress) -> None:
        self._comparison = comparison
        self._scratch = scratch
        self._progress = progress
        self._done = 0.0

    def check(self) -> dict[str, Any]:
        """Compare losses of short rows and decoded tokens of all batches, and return versions by side.

        Each side computes them in one process, this program first: it makes the weights.
        """
        batches: dict[Side, list[Batch]] = {}
        for batch in self._comparison.batches:
            for side in self._comparison.sides(batch.case):
                batches.setdefault(side, []).append(batch)
        results: dict[str, dict[str, dict[str, Any]]] = {}
        versions: dict[str, Any] = {}
        for side, of_side in batches.items():
            self._progress.update(self._done, f"checking {side.name}")
            tasks = self._exports() if side.name == OURS else []
            num_exports = len(tasks)
            tasks += [self._task(batch, self._check_options(batch)) for batch in of_side]
            answer = self._run(side, {"action": "each", "tasks": tasks})
            found = answer["results"][num_exports:]
            results[side.name] = {batch.name: each for batch, each in zip(of_side, found, strict=True)}
            versions[side.name] = answer["versions"]
            for batch in of_side:
                check_results(batch, results[OURS][batch.name], results[side.name][batch.name], side.name)
            self._done += CHECK_UNITS * len(of_side)
        return versions

    def measure(self, batch: Batch) -> dict[str, Any]:
        """Time a batch in turns, and return its part of the record."""
        comparison = self._comparison
        sides = comparison.sides(batch.case)
        rounds: dict[str, list[dict[str, Any]]] = {side.name: [] for side in sides}
        load = [os.getloadavg()[0]]
        for number in range(comparison.rounds):
            for place in range(len(sides)):
                # Each begins in turn.
                side = sides[(number + place) % len(sides)]
                state = f"{batch.name}: {side.name}, round {number + 1} of {comparison.rounds}"
                self._progress.update(self._done, state)
                rounds[side.name].append(self._run(side, self._task(batch, self._timed_options(batch))))
                self._done += batch.units(comparison)
            load.append(os.getloadavg()[0])
            for name, results in rounds.items():
                check_results(batch, rounds[OURS][-1], results[-1], name)
        return {
            "part": batch.part,
            "case": batch.case.name,
            "precision": batch.precision,
            "batch_size": batch.batch_size,
            "load": load,
            "sides": {name: [_counted(result) for result in results] for name, results in rounds.items()},
        }

    def _exports(self) -> list[dict[str, Any]]:
        """Return tasks that write weights of vanilla models, which are those of all methods here."""
        comparison, sizes = self._comparison, self._comparison.sizes
        num_tokens = max(sizes.model.seq_length, sizes.check_tokens) + 1
        return [
            task_of(CASES["vanilla"], "fp32", part, sizes, checkout=None)
            | {
                "action": "export",
                "weights": self._weights(part),
                "tokens_shape": [sizes.model.micro_batch_size, num_tokens],
                "prompts_shape": [max(sizes.decode_batch_sizes), sizes.prompt_tokens],
            }
            for part in PARTS
            if part in comparison.parts
        ]

    def _task(self, batch: Batch, options: Mapping[str, int]) -> dict[str, Any]:
        comparison, sizes = self._comparison, self._comparison.sizes
        task = task_of(batch.case, batch.precision, batch.part, sizes, checkout=comparison.checkout)
        if batch.part == "train":
            task["settings"]["training"]["seq_length"] = options["num_tokens"]
        return task | {
            "action": batch.part,
            "weights": self._weights(batch.part),
            "batch_size": batch.batch_size,
            "new_tokens": sizes.new_tokens,
            **options,
        }

    def _weights(self, part: Part) -> str:
        return str(self._scratch / f"{ARCHITECTURES[part]}.pt")

    def _check_options(self, batch: Batch) -> dict[str, int]:
        if batch.part == "decode":
            return {"num_steps": 1}
        sizes = self._comparison.sizes
        num_tokens = min(sizes.check_tokens, sizes.model.seq_length)
        return {"num_steps": NUM_CHECK_STEPS, "num_tokens": num_tokens}

    def _timed_options(self, batch: Batch) -> dict[str, int]:
        num_steps = NUM_UNTIMED + self._comparison.steps
        if batch.part == "decode":
            return {"num_steps": num_steps}
        return {"num_steps": num_steps, "num_tokens": self._comparison.sizes.model.seq_length}

    def _run(self, side: Side, task: Mapping[str, Any]) -> dict[str, Any]:
        num_tasks = len(task.get("tasks", [task]))
        return side.run(
            dict(task) | {"threads": self._comparison.threads},
            timeout_seconds=num_tasks * self._comparison.timeout_seconds,
        )


def _counted(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is kept of a timed process: without its first steps, and without tokens."""
    timed = ("seconds", "cpu_seconds", "prompt_seconds", "token_seconds")
    kept = {name: values[NUM_UNTIMED:] for name, values in result.items() if name in timed}
    return kept | {name: result[name] for name in ("losses", "peak_bytes", "versions") if name in result}


def check_results(batch: Batch, ours: Mapping[str, Any], theirs: Mapping[str, Any], other: str) -> None:
    """Compare what two sides computed.

    Raises:
        DifferentResultsError: it differs by more than rounding explains.
    """
    if batch.part == "decode":
        check_tokens(batch, ours["tokens"], theirs["tokens"], other)
    else:
        check_losses(batch, ours["losses"], theirs["losses"], other)


def check_losses(batch: Batch, ours: Sequence[float], theirs: Sequence[float], other: str) -> None:
    """Compare the losses of the same steps of two sides.

    Raises:
        DifferentResultsError: they differ by more than rounding explains.
    """
    for number, (own, their) in enumerate(zip(ours, theirs, strict=True)):
        tolerances = FIRST_LOSS_TOLERANCE if number == 0 else LATER_LOSS_TOLERANCE
        largest = tolerances[batch.precision] * abs(their)
        # Also where one is not a number.
        if not abs(own - their) <= largest:
            raise DifferentResultsError(
                f"{batch.name}: the loss of step {number + 1} must be that of {other}, {their:.6f}, within "
                f"{largest:.1e}, but is {own:.6f}; compare the settings of both sides before timing them"
            )


def check_tokens(
    batch: Batch, ours: Sequence[Sequence[int]], theirs: Sequence[Sequence[int]], other: str
) -> None:
    """Compare the tokens that two sides decoded.

    Raises:
        DifferentResultsError: a token differs.
    """
    for text, (own, their) in enumerate(zip(ours, theirs, strict=True)):
        if list(own) != list(their):
            place = next(
                (i for i, (a, b) in enumerate(zip(own, their, strict=False)) if a != b),
                min(len(own), len(their)),
            )
            raise DifferentResultsError(
                f"{batch.name}: the tokens must be those of {other}, but differ in text {text} from new "
                f"token {place} on; compare the settings of both sides before timing them"
            )

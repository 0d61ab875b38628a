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
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from pipeline.shared.errors import UserError
from pipeline.shared.exit_codes import ExitCode
from pipeline.shared.progress import Progress
from tests.bench.reference_cases import (
    ARCHITECTURES,
    ComparisonSizes,
    Part,
    Precision,
    ReferenceCase,
    model_files,
    task_of,
)
from tests.bench.step import HERE

WORKER = Path(__file__).with_name("reference_worker.py")
OURS = "megaponder"
NUM_CHECK_STEPS = 3
NUM_UNTIMED = 1
# Relative differences of losses that rounding explains: before the first update, and after some. AdamW's first
# updates are about the sign of a gradient, which rounding decides where the gradient is almost zero.
FIRST_LOSS_TOLERANCE: Mapping[Precision, float] = {"fp32": 1e-5, "bf16": 5e-3}
LATER_LOSS_TOLERANCE: Mapping[Precision, float] = {"fp32": 2e-3, "bf16": 5e-2}
# Start of a process, in rows per token of training steps at the default sizes, for the time left.
START_ROWS = 4


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
        environment: variables beside those of this process.
        folder: that it starts in.
    """

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
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
                        env=os.environ | self.environment,
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
        common = {"OMP_NUM_THREADS": str(self.threads), "MKL_NUM_THREADS": str(self.threads)}
        if self.huge_pages:
            common["THP_MEM_ALLOC_ENABLE"] = "1"
        own = Side(
            name=OURS,
            command=(sys.executable, "-W", "ignore", "-m", "tests.bench.reference_own_worker"),
            environment=common | {"PYTHONPATH": str(HERE)},
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
    """Compare, and yield the record of everything so far after each batch, the first time before any.

    Raises:
        DifferentResultsError: both sides do not compute the same; nothing of that batch has been timed, unless
            only the losses of timed steps differ.
        SideFailedError: a process failed.
    """
    with tempfile.TemporaryDirectory() as scratch:
        runner = _Runner(comparison, Path(scratch), progress)
        record = runner.begin()
        yield record
        for batch in comparison.batches:
            runner.check(batch)
            record["results"].append(runner.measure(batch))
            yield record


def total_units(comparison: Comparison) -> float:
    """Return the units of work that :func:`compare` reports as done."""
    return sum(
        (START_ROWS + (comparison.rounds * batch.units(comparison))) * len(comparison.sides(batch.case))
        for batch in comparison.batches
    )


class _Runner:
    """Runs processes of both sides, and keeps their weights."""

    def __init__(self, comparison: Comparison, scratch: Path, progress: Progress) -> None:
        self._comparison = comparison
        self._scratch = scratch
        self._progress = progress
        self._done = 0.0

    def begin(self) -> dict[str, Any]:
        """Check that the other side runs, write weights, and return the record's head."""
        comparison = self._comparison
        versions = self._probe()
        for part in comparison.parts:
            self._export(part)
        return {
            "format": 1,
            "sizes": asdict(comparison.sizes),
            "rounds": comparison.rounds,
            "steps": comparison.steps,
            "untimed_steps": NUM_UNTIMED,
            "threads": comparison.threads,
            "huge_pages": comparison.huge_pages,
            "versions": versions,
            "results": [],
        }

    def check(self, batch: Batch) -> None:
        """Compare losses of short rows, or decoded tokens."""
        results = self._on_all_sides(batch, self._check_options(batch), "compared", units=START_ROWS)
        ours, *others = results.items()
        for name, result in others:
            if batch.part == "decode":
                check_tokens(batch, ours[1]["tokens"], result["tokens"], name)
            else:
                check_losses(batch, ours[1]["losses"], result["losses"], name)

    def measure(self, batch: Batch) -> dict[str, Any]:
        """Time a batch in turns, and return its part of the record."""
        comparison = self._comparison
        names = [side.name for side in comparison.sides(batch.case)]
        rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
        load = [os.getloadavg()[0]]
        for number in range(comparison.rounds):
            results = self._on_all_sides(
                batch,
                self._timed_options(batch),
                f"round {number + 1} of {comparison.rounds}",
                units=batch.units(comparison),
                first=number,
            )
            load.append(os.getloadavg()[0])
            for name, result in results.items():
                if batch.part == "train":
                    check_losses(batch, results[OURS]["losses"], result["losses"], name)
                rounds[name].append(_counted(result))
        return {
            "part": batch.part,
            "case": batch.case.name,
            "precision": batch.precision,
            "batch_size": batch.batch_size,
            "load": load,
            "sides": rounds,
        }

    def _probe(self) -> dict[str, Any]:
        comparison = self._comparison
        found: dict[str, Any] = {}
        for case in comparison.cases:
            for side in comparison.sides(case)[1:]:
                if side.name not in found:
                    checkout = comparison.checkout if side.name == "published code" else None
                    files = model_files(comparison.cases, comparison.parts, checkout) if checkout else []
                    task = {"action": "probe", "threads": 1, "model_files": [str(file) for file in files]}
                    found[side.name] = side.run(task, timeout_seconds=comparison.timeout_seconds)["versions"]
        return found

    def _export(self, part: Part) -> None:
        """Write the weights of vanilla models, which are those of all methods here."""
        sizes = self._comparison.sizes
        vanilla = replace(self._comparison.cases[0], ponder={"method": "vanilla"}, model_files={}, fields={})
        tokens = [sizes.model.micro_batch_size, max(sizes.model.seq_length, sizes.check_tokens) + 1]
        task = task_of(vanilla, "fp32", part, sizes, checkout=None) | {
            "action": "export",
            "threads": 1,
            "weights": self._weights(part),
            "tokens_shape": tokens,
            "prompts_shape": [max(sizes.decode_batch_sizes), sizes.prompt_tokens],
        }
        own = self._comparison.sides(vanilla)[0]
        own.run(task, timeout_seconds=self._comparison.timeout_seconds)

    def _weights(self, part: Part) -> str:
        return str(self._scratch / f"{ARCHITECTURES[part]}.pt")

    def _check_options(self, batch: Batch) -> dict[str, Any]:
        if batch.part == "decode":
            return {"num_steps": 1}
        sizes = self._comparison.sizes
        return {
            "num_steps": NUM_CHECK_STEPS,
            "num_tokens": min(sizes.check_tokens, sizes.model.seq_length),
        }

    def _timed_options(self, batch: Batch) -> dict[str, Any]:
        options = {"num_steps": NUM_UNTIMED + self._comparison.steps}
        if batch.part == "train":
            options["num_tokens"] = self._comparison.sizes.model.seq_length
        return options

    def _on_all_sides(
        self, batch: Batch, options: Mapping[str, Any], state: str, *, units: float, first: int = 0
    ) -> dict[str, dict[str, Any]]:
        """Run one process of every side, one after another; each begins in turn. Results are in order."""
        comparison, sizes = self._comparison, self._comparison.sizes
        task = task_of(batch.case, batch.precision, batch.part, sizes, checkout=comparison.checkout)
        if "num_tokens" in options:
            task["settings"]["training"]["seq_length"] = options["num_tokens"]
        task |= {
            "action": batch.part,
            "threads": comparison.threads,
            "weights": self._weights(batch.part),
            "batch_size": batch.batch_size,
            "new_tokens": sizes.new_tokens,
            **options,
        }
        sides = comparison.sides(batch.case)
        results: dict[str, dict[str, Any]] = {}
        for place in range(len(sides)):
            side = sides[(first + place) % len(sides)]
            self._progress.update(self._done, f"{batch.name}: {side.name}, {state}")
            results[side.name] = side.run(task, timeout_seconds=comparison.timeout_seconds)
            self._done += units
        self._progress.update(self._done, f"{batch.name}: {state}")
        return {side.name: results[side.name] for side in sides}


def _counted(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is kept of a timed process: without its first steps, and without tokens."""
    timed = ("seconds", "cpu_seconds", "prompt_seconds", "token_seconds")
    kept = {name: values[NUM_UNTIMED:] for name, values in result.items() if name in timed}
    return kept | {name: result[name] for name in ("losses", "peak_bytes", "versions") if name in result}


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
                f"{batch.name}: the tokens must be those of {other}, but differ in text {text} from new token "
                f"{place} on; compare the settings of both sides before timing them"
            )


def commit_of(folder: Path) -> str | None:
    """Return the commit that a checkout is at, marked where files differ from it; None without git."""
    try:
        described = subprocess.run(
            ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return described.stdout.strip()


def today() -> str:
    """Return the date, for the record."""
    return time.strftime("%Y-%m-%d")

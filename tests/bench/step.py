"""Time of a training step of several checkouts and of transformers, step by step in turns."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

WORKER = Path(__file__).with_name("step_worker.py")
HERE = Path(__file__).parents[2]
THEIRS = "transformers"
# Settings of the method, by the name of the case.
CASES: dict[str, dict[str, Any]] = {
    "vanilla": {"method": "vanilla"},
    "ponderlm2 K1 J3": {"method": "ponderlm2", "num_latent_thoughts": 1, "num_jacobi_iterations": 3},
    "ponderlm2 K3 J3": {"method": "ponderlm2", "num_latent_thoughts": 3, "num_jacobi_iterations": 3},
    "ponderlm3 K1 J3": {"method": "ponderlm3", "num_latent_thoughts": 1, "num_jacobi_iterations": 3},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSizes:
    """Sizes of the model and of a step, which is one micro-batch."""

    hidden_size: int = 512
    num_layers: int = 6
    vocab_size: int = 4096
    seq_length: int = 512
    micro_batch_size: int = 2
    architecture: str = "gpt_neox"

    def settings(self, case: str, precision: str) -> dict[str, Any]:
        """Return the settings of a run of a case."""
        return {
            "name": "bench_step",
            "model": {
                "architecture": self.architecture,
                "num_layers": self.num_layers,
                "hidden_size": self.hidden_size,
                "ffn_hidden_size": 4 * self.hidden_size,
                "num_attention_heads": max(self.hidden_size // 64, 1),
                "vocab_size": self.vocab_size,
            },
            "ponder": CASES[case],
            "training": {
                "seq_length": self.seq_length,
                "micro_batch_size": self.micro_batch_size,
                "global_batch_size": self.micro_batch_size,
                "train_iters": 1000,
                "precision": precision,
            },
            "optimizer": {"lr": 1e-3, "weight_decay": 0.1},
            "data": {"path": "not-read"},
        }


@dataclass(slots=True, kw_only=True)
class StepTimes:
    """What one program took for the steps of one case.

    Attributes:
        program: which, see :func:`time_steps`.
        seconds, cpu_seconds, losses: of each step, the first ones not counted in the figures.
        peak_bytes: largest resident size of its process.
        num_untimed: steps at the start that are not counted.
    """

    program: str
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    peak_bytes: int = 0
    num_untimed: int = 1

    def add(self, figures: Mapping[str, Any]) -> None:
        """Add a step."""
        self.seconds.append(figures["seconds"])
        self.cpu_seconds.append(figures["cpu_seconds"])
        self.losses.append(figures["loss"])
        self.peak_bytes = figures["peak_bytes"]

    @property
    def timed(self) -> list[float]:
        """Seconds of the steps that count."""
        return self.seconds[self.num_untimed :]

    @property
    def median_seconds(self) -> float:
        """Median of the steps that count."""
        return median(self.timed)


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseTimes:
    """All programs on one case.

    Attributes:
        case: a name from :data:`CASES`.
        precision: of the weights.
        programs: this checkout, then the others.
        load: load average of one minute, at the start and at the end.
    """

    case: str
    precision: str
    programs: list[StepTimes]
    load: tuple[float, float]

    def ratio(self, times: StepTimes) -> float:
        """Return the speed of this checkout relative to another program: the median ratio of its rounds.

        The two steps of a round ran one after the other, so that a machine that is slower for a while slows
        both.
        """
        return median(other / own for own, other in zip(self.programs[0].timed, times.timed, strict=True))


def time_steps(
    settings: Mapping[str, Any],
    *,
    checkouts: Mapping[str, Path],
    with_transformers: bool,
    rounds: int,
) -> list[StepTimes]:
    """Time the training steps of several programs in turns, each in a process of its own with one thread.

    Args:
        settings: of the run; see :meth:`StepSizes.settings`.
        checkouts: folders with versions of this program, by name.
        with_transformers: also time a model of transformers.
        rounds: timed steps of each.

    Raises:
        RuntimeError: a process ended.
    """
    programs = {name: ("megaponder", folder) for name, folder in checkouts.items()}
    if with_transformers:
        programs[THEIRS] = ("transformers", HERE)
    times = {name: StepTimes(program=name) for name in programs}
    with ExitStack() as stack:
        workers = {
            name: stack.enter_context(_worker(kind, folder, settings))
            for name, (kind, folder) in programs.items()
        }
        for turn in range(rounds + 1):
            # Each goes first in turn.
            order = list(workers.items())
            for name, worker in order if turn % 2 == 0 else reversed(order):
                times[name].add(_step(worker, name))
    return list(times.values())


@contextmanager
def _worker(kind: str, checkout: Path, settings: Mapping[str, Any]) -> Iterator["subprocess.Popen[str]"]:
    environment = os.environ | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    # -P: the folder of the file has modules with names of the standard library.
    command = [sys.executable, "-P", "-W", "ignore", str(WORKER), kind, json.dumps(settings)]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=checkout
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def _step(worker: "subprocess.Popen[str]", name: str) -> Mapping[str, Any]:
    assert worker.stdin is not None, "it is a pipe"
    assert worker.stdout is not None, "it is a pipe"
    worker.stdin.write("\n")
    worker.stdin.flush()
    line = worker.stdout.readline()
    if not line:
        raise RuntimeError(f"the process of {name} ended with exit code {worker.wait()}")
    figures: Mapping[str, Any] = json.loads(line)
    return figures


def time_cases(
    cases: Sequence[str],
    precisions: Sequence[str],
    sizes: StepSizes,
    *,
    checkouts: Mapping[str, Path],
    with_transformers: bool,
    rounds: int,
) -> Iterator[CaseTimes]:
    """Yield the times of every case in every precision; transformers has only the vanilla one."""
    for precision in precisions:
        for case in cases:
            before = os.getloadavg()[0]
            programs = time_steps(
                sizes.settings(case, precision),
                checkouts=checkouts,
                with_transformers=with_transformers and case == "vanilla",
                rounds=rounds,
            )
            load = (before, os.getloadavg()[0])
            yield CaseTimes(case=case, precision=precision, programs=programs, load=load)

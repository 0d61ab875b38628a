"""Training steps of the 410M recipes on random tokens: time, utilisation, memory beside the plan."""

import json
import math
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from megatron_ext.device import device_name
from megatron_ext.model.micro_batch import TokenBatch
from megatron_ext.parallel.groups import ParallelGroups
from pipeline.config.schema import RunConfig
from pipeline.cost.account import flops_account
from pipeline.cost.memory import rank_memories
from pipeline.cost.peaks import GIB, dense_peak
from pipeline.cost.rank_sizes import rank_sizes
from scripts.gpu_check.one_rank import (
    Trainer,
    host_waits,
    kernels_of,
    memory_bytes,
    one_rank,
    random_batches,
    recipe,
    start_counting_memory,
    trainer,
    vocab_size,
)
from scripts.gpu_check.place import Findings, Place, seconds_of

# How far the measured peak of tensors may be from the planned one.
MEMORY_TOLERANCE = 0.03
# Of the loss of the first step, relative; the two kernels round differently.
KERNEL_TOLERANCE = 1e-3
PONDERLM3 = "llama_410m_ponderlm3"
# Without sweeps of random number, so that all steps are alike.
FIXED_SWEEPS = "ponder.random_jacobi_iterations=null"
REHEARSAL_SECONDS = 100
METHODS = {
    "llama_410m_vanilla": (4, 2),
    "llama_410m_ponderlm2": (1, 2),
    "llama_410m_adaponderlm": (1, 1),
}
"""Sequences of a micro-batch, and micro-batches, by recipe."""


def step(place: Place) -> Findings:
    """Measure a step of PonderLM-3, with what it waits for and which kernels it runs."""
    config = _config(place, PONDERLM3, 1, 2, FIXED_SWEEPS)
    rehearsal = _start_rehearsal(place, config)
    found = Findings()
    with one_rank() as groups, trainer(config, groups) as run:
        batches = random_batches(config)
        figures = _measure(run, batches, repeats=place.choose(5, 1))
        figures["waits"] = host_waits(lambda: run.step(batches))
        figures["kernels"] = kernels_of(lambda: run.step(batches))
    figures["rehearsed_peak_gib"] = _end_rehearsal(place, rehearsal)
    found.figures.update(figures)
    _judge(found, PONDERLM3, figures)
    found.summary = _summary(figures)
    return found


def documents(place: Place) -> Findings:
    """Measure the same step with eight documents in each row, kept apart, and with one."""
    config = _config(place, PONDERLM3, 1, 2, FIXED_SWEEPS, "data.reset_attention=true")
    found = Findings()
    with one_rank() as groups, trainer(config, groups) as run:
        for number in (1, 8):
            batches = random_batches(config, documents=number)
            found.figures[f"{number} documents"] = _measure(run, batches, repeats=place.choose(3, 1))
    one, eight = (found.figures[f"{number} documents"]["seconds"] for number in (1, 8))
    found.figures["price"] = eight / one
    found.summary = f"8 documents a row cost {eight / one:.2f} times the time of one"
    return found


def methods(place: Place) -> Findings:
    """Measure a step of other methods of the same size."""
    found = Findings()
    with one_rank() as groups:
        for name, (micro_batch, number) in METHODS.items():
            config = _config(place, name, micro_batch, number, FIXED_SWEEPS)
            figures = _measured_run(config, groups, repeats=place.choose(3, 1))
            found.figures[name] = figures
            _judge(found, name, figures)
    found.summary = "; ".join(f"{name}: {_summary(found.figures[name])}" for name in METHODS)
    return found


def fused(place: Place) -> Findings:
    """Measure a step with training.fused and without: time, memory, and the same loss."""
    found = Findings()
    with one_rank() as groups:
        for kind in ("auto", "never"):
            config = _config(place, PONDERLM3, 1, 1, FIXED_SWEEPS, f"training.fused={kind}")
            found.figures[kind] = _measured_run(config, groups, repeats=place.choose(3, 1))
            _judge(found, f"fused {kind}", found.figures[kind])
    auto, never = (found.figures[kind]["losses"][0] for kind in ("auto", "never"))
    gap = abs(auto - never) / never
    found.expect(gap < KERNEL_TOLERANCE, f"the loss of the first step differs by {gap:.2g}: {auto}, {never}")
    found.summary = "; ".join(f"{kind}: {_summary(found.figures[kind])}" for kind in ("auto", "never"))
    return found


def cudnn(place: Place) -> Findings:
    """Measure a step with each of the two kernels that training.attention can ask for."""
    kinds = place.choose(("flash", "cudnn"), ("flash",))
    found = Findings()
    with one_rank() as groups:
        for kind in kinds:
            config = _config(place, PONDERLM3, 1, 1, FIXED_SWEEPS, f"training.attention={kind}")
            found.figures[kind] = _measured_run(config, groups, repeats=place.choose(3, 1))
    first = [found.figures[kind]["losses"][0] for kind in kinds]
    gap = abs(first[-1] - first[0]) / first[0]
    found.expect(gap < KERNEL_TOLERANCE, f"the loss of the first step differs by {gap:.2g}: {first}")
    found.summary = "; ".join(f"{kind} {1e3 * found.figures[kind]['seconds']:,.0f} ms" for kind in kinds)
    return found


def _config(place: Place, name: str, micro_batch: int, num_micro_batches: int, *overrides: str) -> RunConfig:
    return recipe(
        place,
        name,
        f"training.micro_batch_size={micro_batch}",
        f"training.global_batch_size={micro_batch * num_micro_batches}",
        *overrides,
    )


def _measured_run(config: RunConfig, groups: ParallelGroups, *, repeats: int) -> dict[str, Any]:
    with trainer(config, groups) as run:
        return _measure(run, random_batches(config), repeats=repeats)


def _measure(run: Trainer, batches: Sequence[TokenBatch], *, repeats: int) -> dict[str, Any]:
    """Train some steps; return time, utilisation and memory."""
    config = run.config
    losses: list[float] = []
    started = time.perf_counter()
    losses.append(run.step(batches))
    first = time.perf_counter() - started
    # The state of the optimizer was made in the first step.
    start_counting_memory()
    seconds = seconds_of(lambda: losses.append(run.step(batches)), repeats=repeats, warm_ups=1)
    tokens = config.training.global_batch_size * config.training.seq_length
    account = flops_account(config, vocab_size(config))
    flops = account.training_per_token(config.ponder.num_jacobi_iterations) * tokens
    peak = dense_peak(device_name())
    memory = {name: None if size is None else size / GIB for name, size in memory_bytes().items()}
    has_documents = bool((batches[0].document_ids != 0).any())
    return {
        "first_seconds": first,
        "seconds": seconds,
        "tokens_per_second": tokens / seconds,
        "model_tflops": flops / 1e12,
        "mfu": None if peak is None else flops / seconds / peak.at(config.training.precision),
        "losses": losses,
        "memory_gib": memory,
        "planned_peak_gib": _planned_bytes(config, has_documents=has_documents) / GIB,
    }


def _planned_bytes(config: RunConfig, *, has_documents: bool) -> float:
    sizes = rank_sizes(config, vocab_size(config))
    (rank,) = rank_memories(replace(sizes, separates_documents=has_documents))
    return rank.peak


def _judge(found: Findings, name: str, figures: dict[str, Any]) -> None:
    found.expect(all(map(math.isfinite, figures["losses"])), f"{name}: a loss is not finite")
    peak, planned = figures["memory_gib"]["peak"], figures["planned_peak_gib"]
    if peak is not None:
        error = peak / planned - 1
        found.expect(abs(error) <= MEMORY_TOLERANCE, f"{name}: {peak:.2f} GiB, planned {planned:.2f}")


def _summary(figures: dict[str, Any]) -> str:
    parts = [f"{1e3 * figures['seconds']:,.0f} ms", f"{figures['tokens_per_second']:,.0f} tokens/s"]
    if figures["mfu"] is not None:
        parts.append(f"MFU {100 * figures['mfu']:.1f} %")
    if figures["memory_gib"]["peak"] is not None:
        parts.append(f"{figures['memory_gib']['peak']:.2f} GiB, planned {figures['planned_peak_gib']:.2f}")
    if figures.get("rehearsed_peak_gib") is not None:
        parts.append(f"rehearsed {figures['rehearsed_peak_gib']:.2f}")
    return ", ".join(parts)


def _start_rehearsal(place: Place, config: RunConfig) -> subprocess.Popen[bytes] | None:
    """Rehearse the same step on the CPU meanwhile; not in tiny, where it would take longer than all else."""
    if place.is_tiny:
        return None
    training = config.training
    command = [
        *(sys.executable, "-P", "-m", "pipeline.cli", "rehearse", "--config", PONDERLM3, "--json"),
        str(_rehearsal_file(place)),
        *("parallel.data=1", FIXED_SWEEPS, f"training.micro_batch_size={training.micro_batch_size}"),
        f"training.global_batch_size={training.global_batch_size}",
    ]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL)


def _end_rehearsal(place: Place, rehearsal: subprocess.Popen[bytes] | None) -> float | None:
    if rehearsal is None:
        return None
    try:
        rehearsal.wait(REHEARSAL_SECONDS)
    except subprocess.TimeoutExpired:
        rehearsal.kill()
        rehearsal.wait()
    file = _rehearsal_file(place)
    if not file.exists():
        return None
    peak: float = json.loads(file.read_text(encoding="ascii"))["ranks"][0]["peak_bytes"]
    return peak / GIB


def _rehearsal_file(place: Place) -> Path:
    return place.folder / "rehearsal.json"

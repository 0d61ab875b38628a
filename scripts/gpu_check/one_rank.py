"""One rank in this process, which builds runs one after another."""

import gc
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from megatron_ext.device import device, has_cuda, synchronize
from megatron_ext.host import prepare_host
from megatron_ext.model.micro_batch import TokenBatch
from megatron_ext.parallel.groups import ParallelGroups, destroy_groups, initialize_groups
from pipeline.config.load import load_config
from pipeline.config.schema import RunConfig
from pipeline.metrics.statistics import StatisticsAccumulator
from pipeline.ranks.distributed import start_process_group, stop_process_group
from pipeline.ranks.environment import Ranks
from pipeline.step.build import TrainingParts, build_training
from pipeline.step.settings import StepSettings
from pipeline.step.train import train_step
from scripts.gpu_check.place import Place

RECIPES = Path(__file__).parents[2] / "pipeline" / "recipes"
TIMEOUT_SECONDS = 600
# What makes a recipe so small that a CPU trains it in a moment.
_TINY = (
    *("model.num_layers=2", "model.hidden_size=32", "model.ffn_hidden_size=64", "model.vocab_size=128"),
    *("model.num_attention_heads=4", "model.make_vocab_size_divisible_by=8", "training.seq_length=32"),
)


@contextmanager
def one_rank() -> Iterator[ParallelGroups]:
    """Be the only rank of a job."""
    prepare_host()
    start_process_group(Ranks.from_environment({}), timeout_seconds=TIMEOUT_SECONDS)
    try:
        yield initialize_groups(seed=1234)
    finally:
        destroy_groups()
        stop_process_group()


def recipe(place: Place, name: str, *overrides: str) -> RunConfig:
    """Load a recipe for one rank.

    Args:
        place: tiny ones keep the method only.
        name: of the recipe.
        overrides: of its settings.
    """
    one = ("parallel.data=1", "parallel.tensor=1", "parallel.pipeline=1")
    return load_config(RECIPES / f"{name}.yaml", [*one, *overrides, *place.choose((), _TINY)])


def vocab_size(config: RunConfig) -> int:
    """Return the vocabulary of a recipe, which names it."""
    assert config.model.vocab_size is not None, "these recipes name their vocabulary"
    return config.model.vocab_size


def random_batches(config: RunConfig, *, documents: int = 1) -> list[TokenBatch]:
    """Draw the micro-batches of a step, whose rows hold several documents of one length."""
    shape = (config.training.micro_batch_size, config.training.seq_length)
    generator = torch.Generator().manual_seed(config.seed)
    numbers = (torch.arange(shape[1]) * documents // shape[1]).expand(shape)
    batches = []
    for _ in range(config.num_micro_batches):
        tokens = torch.randint(vocab_size(config), (shape[0], shape[1] + 1), generator=generator)
        batches.append(
            TokenBatch(
                tokens=tokens[:, :-1],
                labels=tokens[:, 1:],
                position_ids=torch.arange(shape[1]).expand(shape),
                document_ids=numbers,
            )
        )
    return batches


class Trainer:
    """Model and optimizer of a run, which trains on given micro-batches.

    Args:
        config: the run.
        groups: of one rank.
    """

    def __init__(self, config: RunConfig, groups: ParallelGroups) -> None:
        self.config = config
        self._groups = groups
        self._parts: TrainingParts = build_training(config, vocab_size(config), groups)
        self._statistics = StatisticsAccumulator(self._parts.module.statistics_layout(), device=device())

    def step(self, batches: Sequence[TokenBatch]) -> float:
        """Train one step; return its loss."""
        ponder = self.config.ponder
        settings = StepSettings(
            num_jacobi_iterations=ponder.num_jacobi_iterations, penalty_weight=ponder.penalty_weight
        )
        return train_step(
            self._parts, batches, settings, groups=self._groups, statistics=self._statistics
        ).loss


@contextmanager
def trainer(config: RunConfig, groups: ParallelGroups) -> Iterator[Trainer]:
    """Build a run, and give its memory back afterwards."""
    made = Trainer(config, groups)
    try:
        yield made
    finally:
        vars(made).clear()
        release_memory()


def release_memory() -> None:
    """Give back what nothing refers to."""
    gc.collect()
    if has_cuda():
        torch.cuda.empty_cache()


def start_counting_memory() -> None:
    """Count the peak from here on."""
    if has_cuda():
        synchronize()
        torch.cuda.reset_peak_memory_stats()


def memory_bytes() -> dict[str, int | None]:
    """Return the peaks of tensors and of what the allocator holds, and what tensors take now."""
    if not has_cuda():
        return {"peak": None, "reserved": None, "now": None}
    return {
        "peak": torch.cuda.max_memory_allocated(),
        "reserved": torch.cuda.max_memory_reserved(),
        "now": torch.cuda.memory_allocated(),
    }


def host_waits(action: Any) -> dict[str, int]:
    """Run an action and return where the host waited for the device, as file:line -> times."""
    if not has_cuda():
        action()
        return {}
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            action()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return dict(Counter(f"{Path(each.filename).name}:{each.lineno}" for each in caught))


def kernels_of(action: Any, *, most: int = 20) -> dict[str, Any]:
    """Run an action and return how many kernels ran, their milliseconds, and those that took most of them."""
    if not has_cuda():
        action()
        return {}
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        action()
        synchronize()
    times: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    for event in profiler.events():
        if event.device_type.name == "CUDA":
            times[event.name[:100]] += event.self_device_time_total / 1e3
            calls[event.name[:100]] += 1
    top = [{"kernel": name, "calls": calls[name], "ms": ms} for name, ms in times.most_common(most)]
    return {"number": sum(calls.values()), "ms": sum(times.values()), "top": top}

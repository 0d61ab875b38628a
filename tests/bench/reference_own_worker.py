"""One process of this program's side of `python -m tests.bench compare-reference`.

It reads a task and prints what it measured, as :mod:`tests.bench.reference_worker` does.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from megatron_ext.decoding import BatchDecoder
from megatron_ext.device import device
from megatron_ext.host import prepare_host
from megatron_ext.model.micro_batch import TokenBatch
from megatron_ext.parallel.groups import ParallelGroups, destroy_groups, initialize_groups
from megatron_ext.ponder.decode.sweeps import Sweeps
from megatron_ext.weights import load_weights, whole_tensors
from pipeline.config.load import build_config
from pipeline.config.schema import RunConfig
from pipeline.metrics.statistics import StatisticsAccumulator
from pipeline.ranks.distributed import start_process_group, stop_process_group
from pipeline.ranks.environment import Ranks
from pipeline.step.build import build_module, build_training
from pipeline.step.settings import StepSettings
from pipeline.step.train import train_step
from tests.bench.reference_worker import Action, answer, measure_steps, measure_texts


def export(task: dict[str, Any]) -> dict[str, Any]:
    """Write random weights under Hugging Face names, and random tokens, for all processes of both sides."""
    config = build_config(task["settings"])
    vocab_size = _vocab_size(config)
    generator = torch.Generator().manual_seed(config.seed)
    with _one_rank(config) as groups:
        module = build_module(config, vocab_size, groups)
        weights = whole_tensors(module, lambda parameter: parameter)
        drawn = {
            name: torch.randint(vocab_size, task[f"{name}_shape"], generator=generator)
            for name in ("tokens", "prompts")
        }
        contents = {"weights": {name: tensor.clone() for name, tensor in weights.items()}, **drawn}
        torch.save(contents, task["weights"])
    return {}


def train(task: dict[str, Any]) -> dict[str, Any]:
    """Train on one batch."""
    config = build_config(task["settings"])
    stored = torch.load(task["weights"], weights_only=True)
    with _one_rank(config) as groups:
        parts = build_training(config, _vocab_size(config), groups)
        load_weights(parts.module, stored["weights"])
        # Master weights, where there are some, are another copy.
        parts.optimizer.reload_model_params()
        batches = [_batch(stored["tokens"][:, : task["num_tokens"] + 1])]
        statistics = StatisticsAccumulator(parts.module.statistics_layout(), device=device())
        settings = StepSettings(
            num_jacobi_iterations=config.ponder.num_jacobi_iterations,
            penalty_weight=config.ponder.penalty_weight,
        )

        def step() -> float:
            return train_step(parts, batches, settings, groups=groups, statistics=statistics).loss

        return measure_steps(step, task["num_steps"])


def decode(task: dict[str, Any]) -> dict[str, Any]:
    """Continue prompts greedily, read with as many sweeps as the settings say."""
    config = build_config(task["settings"])
    stored = torch.load(task["weights"], weights_only=True)
    prompts = stored["prompts"][: task["batch_size"]].tolist()
    sequences = range(len(prompts))
    with _one_rank(config) as groups:
        module = build_module(config, _vocab_size(config), groups).eval()
        load_weights(module, stored["weights"])

        def continue_prompts() -> tuple[list[list[int]], list[float]]:
            decoder = BatchDecoder(
                module, num_sequences=len(prompts), max_tokens=len(prompts[0]) + task["new_tokens"]
            )
            sweeps = Sweeps(number=config.ponder.num_jacobi_iterations)
            read = decoder.read_prompts(sequences, prompts, sweeps=sweeps)
            columns = [torch.stack([prompt.logits for prompt in read]).argmax(dim=-1).tolist()]
            times = [time.perf_counter()]
            for _ in range(task["new_tokens"]):
                columns.append(decoder.consume(sequences, columns[-1]).logits.argmax(dim=-1).tolist())
                times.append(time.perf_counter())
            return [list(text) for text in zip(*columns, strict=True)], times

        return measure_texts(continue_prompts, task["num_steps"])


def _vocab_size(config: RunConfig) -> int:
    assert config.model.vocab_size is not None, "sizes state the vocabulary"
    return config.model.vocab_size


def _batch(tokens: torch.Tensor) -> TokenBatch:
    """Make rows of one document each, [B, S + 1], a micro-batch."""
    shape = (tokens.shape[0], tokens.shape[1] - 1)
    return TokenBatch(
        tokens=tokens[:, :-1],
        labels=tokens[:, 1:],
        position_ids=torch.arange(shape[1]).expand(shape),
        document_ids=torch.zeros(shape, dtype=torch.int64),
    )


@contextmanager
def _one_rank(config: RunConfig) -> Iterator[ParallelGroups]:
    prepare_host()
    start_process_group(Ranks.from_environment({}), timeout_seconds=config.parallel.timeout_seconds)
    try:
        yield initialize_groups(seed=config.seed)
    finally:
        destroy_groups()
        stop_process_group()


ACTIONS: dict[str, Action] = {"export": export, "train": train, "decode": decode}

if __name__ == "__main__":
    answer(ACTIONS)

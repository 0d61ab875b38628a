"""One process of `python -m tests.bench step`: trains on random tokens, one step for each line that it reads.

It runs as a file, with the checkout under test first in PYTHONPATH, so that one version of this file measures
several versions of the program. It therefore uses only what has long been there.
"""

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from pipeline.config.load import build_config
from pipeline.config.schema import RunConfig
from tests.bench.random_batches import DEFAULT_VOCAB_SIZE, random_batches

# One step of training, and its loss.
Step = Callable[[], float]


def main() -> None:
    """Build what argument 1 names with the settings of argument 2 (JSON), then run a step for each line."""
    # Libraries may print; what the parent reads has a file descriptor of its own.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    torch.set_num_threads(1)
    config = build_config(json.loads(sys.argv[2]))
    step = {"megaponder": _megaponder_step, "transformers": _transformers_step}[sys.argv[1]](config)
    for _ in sys.stdin:
        started, used = time.perf_counter(), time.process_time()
        loss = step()
        figures = {
            "seconds": time.perf_counter() - started,
            "cpu_seconds": time.process_time() - used,
            "loss": loss,
            "peak_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        }
        print(json.dumps(figures), file=answers, flush=True)


def _megaponder_step(config: RunConfig) -> Step:
    from megatron_ext.device import device
    from megatron_ext.host import prepare_host
    from megatron_ext.parallel.groups import initialize_groups
    from pipeline.metrics.statistics import StatisticsAccumulator
    from pipeline.ranks.distributed import start_process_group
    from pipeline.ranks.environment import Ranks
    from pipeline.step.build import build_training
    from pipeline.step.settings import StepSettings
    from pipeline.step.train import train_step

    prepare_host()
    start_process_group(Ranks.from_environment({}), timeout_seconds=config.parallel.timeout_seconds)
    groups = initialize_groups(seed=config.seed)
    vocab_size = config.model.vocab_size or DEFAULT_VOCAB_SIZE
    parts = build_training(config, vocab_size, groups)
    batches = random_batches(config, vocab_size, config.num_micro_batches)
    statistics = StatisticsAccumulator(parts.module.statistics_layout(), device=device())
    settings = StepSettings(
        num_jacobi_iterations=config.ponder.num_jacobi_iterations, penalty_weight=config.ponder.penalty_weight
    )
    return lambda: train_step(parts, batches, settings, groups=groups, statistics=statistics).loss


def _transformers_step(config: RunConfig) -> Step:
    """Train GPT-NeoX of transformers of the same sizes, with torch's fused AdamW and gradient clipping."""
    import transformers

    model = config.model
    vocab_size = model.vocab_size or DEFAULT_VOCAB_SIZE
    facts = transformers.GPTNeoXConfig(
        vocab_size=config.padded_vocab_size(vocab_size),
        hidden_size=model.hidden_size,
        num_hidden_layers=model.num_layers,
        num_attention_heads=model.num_attention_heads,
        intermediate_size=model.ffn_hidden_size,
        rotary_pct=model.rotary_percent,
        use_parallel_residual=True,
    )
    dtype = torch.bfloat16 if config.training.precision == "bf16" else torch.float32
    network: Any = transformers.GPTNeoXForCausalLM(facts).to(dtype)
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=config.optimizer.lr, weight_decay=config.optimizer.weight_decay
    )
    batches = random_batches(config, vocab_size, config.num_micro_batches)

    def step() -> float:
        total = 0.0
        for batch in batches:
            output = network(input_ids=batch.tokens, use_cache=False)
            logits = output.logits.flatten(0, 1).float()
            loss = torch.nn.functional.cross_entropy(logits, batch.labels.flatten()) / len(batches)
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(network.parameters(), config.optimizer.clip_grad)
        optimizer.step()
        optimizer.zero_grad()
        return total

    return step


if __name__ == "__main__":
    main()

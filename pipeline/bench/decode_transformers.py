"""Vanilla GPT-NeoX decoding by the library transformers, at the sizes of a run."""

import time
from statistics import median
from typing import Any

import torch

from megatron_ext.host import device
from pipeline.bench.decode import DecodeSizes, random_tokens
from pipeline.bench.random_batches import DEFAULT_VOCAB_SIZE
from pipeline.config.schema import RunConfig


def time_transformers(config: RunConfig, sizes: DecodeSizes, *, repeats: int) -> float | None:
    """Time greedy ``generate`` with a cache and random weights.

    Args:
        config: gives the sizes; of the architecture GPT-NeoX.
        sizes: what is decoded.
        repeats: timed rounds, after one that is not; the median counts.
    Returns:
        Seconds for one token of each sequence behind the first, without reading the prompts; None where
        transformers is not installed.
    """
    try:
        import transformers
    except ImportError:
        return None
    model = _gpt_neox(transformers, config)
    prompts = random_tokens(sizes, model.config.vocab_size)[:, : sizes.prompt_tokens].to(device())
    seconds = []
    for turn in range(repeats + 1):
        whole, first = (_seconds(model, prompts, number) for number in (sizes.new_tokens + 1, 1))
        if turn > 0:
            seconds.append((whole - first) / sizes.new_tokens)
    return median(seconds)


def _gpt_neox(transformers: Any, config: RunConfig) -> Any:
    model = config.model
    settings = transformers.GPTNeoXConfig(
        vocab_size=config.padded_vocab_size(model.vocab_size or DEFAULT_VOCAB_SIZE),
        hidden_size=model.hidden_size,
        num_hidden_layers=model.num_layers,
        num_attention_heads=model.num_attention_heads,
        intermediate_size=model.ffn_hidden_size,
        rotary_pct=model.rotary_percent,
        use_parallel_residual=True,
        bos_token_id=None,
        eos_token_id=None,
    )
    dtype = torch.bfloat16 if config.training.precision == "bf16" else torch.float32
    return transformers.GPTNeoXForCausalLM(settings).to(device(), dtype).eval()


@torch.no_grad()
def _seconds(model: Any, prompts: torch.Tensor, num_tokens: int) -> float:
    started = time.perf_counter()
    model.generate(
        prompts,
        attention_mask=torch.ones_like(prompts),
        max_new_tokens=num_tokens,
        min_new_tokens=num_tokens,
        do_sample=False,
        pad_token_id=0,
    )
    return time.perf_counter() - started

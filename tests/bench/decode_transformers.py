"""Vanilla GPT-NeoX decoding by the library transformers, at the sizes of a run."""

import time
from dataclasses import dataclass, field
from typing import Any

import torch

from megatron_ext.device import device
from pipeline.config.schema import RunConfig
from tests.bench.decode import DecodeSizes, random_tokens, wait_for_device
from tests.bench.random_batches import DEFAULT_VOCAB_SIZE

THEIRS = "vanilla by transformers"


@dataclass(slots=True)
class TransformersWay:
    """Greedy ``generate`` of transformers with a cache and random weights, and its times."""

    model: Any
    sizes: DecodeSizes
    name: str = THEIRS
    seconds: list[float] = field(default_factory=list)
    steps: list[float] = field(default_factory=list)

    def run(self, *, is_timed: bool) -> None:
        """Generate, and take the time from the first new token, which ends the reading of prompts."""
        sizes = self.sizes
        tokens = random_tokens(sizes, self.model.config.vocab_size)
        times = _token_times(self.model, tokens[:, : sizes.prompt_tokens].to(device()), sizes.new_tokens + 1)
        if is_timed:
            self.seconds.append((times[-1] - times[0]) / sizes.new_tokens)
            self.steps.append(0.0)


def transformers_ways(config: RunConfig, sizes: DecodeSizes) -> list[TransformersWay]:
    """Build GPT-NeoX of transformers at the sizes of a run.

    Returns:
        Nothing for another architecture, and where transformers is not installed.
    """
    if config.model.architecture != "gpt_neox":
        return []
    try:
        import transformers
    except ImportError:
        return []
    return [TransformersWay(_gpt_neox(transformers, config), sizes)]


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
def _token_times(model: Any, prompts: torch.Tensor, num_tokens: int) -> list[float]:
    """When the logits of each token were there, by the clock."""
    times: list[float] = []

    def note(_: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        wait_for_device()
        times.append(time.perf_counter())
        return logits

    model.generate(
        prompts,
        attention_mask=torch.ones_like(prompts),
        max_new_tokens=num_tokens,
        min_new_tokens=num_tokens,
        do_sample=False,
        pad_token_id=0,
        logits_processor=[note],
    )
    return times

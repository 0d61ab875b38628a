"""Vanilla GPT-NeoX decoding with transformers, at the sizes of a run."""

from dataclasses import dataclass, field
from typing import Any

import torch

from megatron_ext.device import device
from pipeline.config.schema import RunConfig
from tests.bench.decode import DecodeSizes, random_tokens, wait_for_device
from tests.bench.random_batches import DEFAULT_VOCAB_SIZE
from tests.bench.reference_worker import generate_greedily

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
        """Generate, and time from the first new token on, at which the prompts have been read."""
        sizes = self.sizes
        tokens = random_tokens(sizes, self.model.config.vocab_size)
        prompts = tokens[:, : sizes.prompt_tokens].to(device())
        with torch.no_grad():
            _, times = generate_greedily(self.model, prompts, sizes.new_tokens + 1, wait_for_device)
        if is_timed:
            self.seconds.append((times[-1] - times[0]) / sizes.new_tokens)
            self.steps.append(0.0)


def transformers_ways(config: RunConfig, sizes: DecodeSizes) -> list[TransformersWay]:
    """Build GPT-NeoX of transformers at the sizes of a run.

    Returns:
        An empty list for another architecture, or if transformers is not installed.
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

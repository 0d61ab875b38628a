"""Vanilla GPT-NeoX decoding with transformers, at the sizes of a run."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from megatron_ext.device import device
from pipeline.config.schema import RunConfig
from tests.bench.decode import DecodeSizes, Round, clocks, random_tokens
from tests.bench.random_batches import DEFAULT_VOCAB_SIZE
from tests.bench.reference_worker import generate_greedily

THEIRS = "vanilla by transformers"


@dataclass(slots=True)
class TransformersWay:
    """Greedy ``generate`` of transformers with a cache; a :class:`tests.bench.decode.Way`."""

    model: Any
    sizes: DecodeSizes
    name: str = THEIRS
    ponders: bool = False

    def run(self, *, is_timed: bool) -> Round:
        """Generate, and time from the first new token on, at which the prompts have been read."""
        del is_timed
        sizes = self.sizes
        tokens = random_tokens(sizes, self.model.config.vocab_size)
        prompts = tokens[:, : sizes.prompt_tokens].to(device())
        cpu_seconds: list[float] = []

        def note() -> None:
            cpu_seconds.append(clocks()[1])

        started = clocks()
        with torch.no_grad():
            _, times = generate_greedily(self.model, prompts, sizes.new_tokens + 1, note)
        return Round(
            seconds=(times[-1] - times[0]) / sizes.new_tokens,
            cpu_seconds=(cpu_seconds[-1] - cpu_seconds[0]) / sizes.new_tokens,
            reading_seconds=times[0] - started[0],
            reading_cpu_seconds=cpu_seconds[0] - started[1],
            rows_per_call=float(sizes.batch_size),
        )


def transformers_ways(config: RunConfig, sizes: Sequence[DecodeSizes]) -> list[TransformersWay]:
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
    model = _gpt_neox(transformers, config)
    return [TransformersWay(model, of_size) for of_size in sizes]


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

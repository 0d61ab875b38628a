"""Logits of a pondering model in float32: of the forward of training, and of decoding.

Decoding reads a prompt by Jacobi sweeps and then the tokens behind it, one by one. The whole model is in
memory.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from megatron_ext.decoding import BatchDecoder
from megatron_ext.device import device
from megatron_ext.model.micro_batch import TokenBatch
from megatron_ext.model.model import PonderModel
from megatron_ext.parallel.vocabulary import IGNORED_LABEL
from megatron_ext.ponder.decode.sweeps import Sweeps
from pipeline.config.schema import RunConfig
from pipeline.conversion.native import NativeReader
from pipeline.conversion.native_logits import one_rank
from pipeline.conversion.run_settings import one_process
from pipeline.step.build import build_module

PROMPT_TOKENS, DECODED_TOKENS = 16, 6
# Of the sweeps over prompts; both sides may stop one sweep apart.
SETTLED = 1e-6


@torch.no_grad()
def native_pondering_logits(
    checkpoint: Path, config: RunConfig, tokens: Tensor, *, rounded_to: torch.dtype | None = None
) -> Tensor:
    """Run a checkpoint.

    Args:
        checkpoint: ``iter_`` folder, finished or being written.
        config: its run, with `model.vocab_size`; weights that its method does not have are left alone.
        tokens: [B, S].
        rounded_to: round the weights to this type first.
    Returns:
        Logits of the forward, and behind them those of decoding: of the last token of the prompt and of the
        tokens after it. [B, S + 1 + decoded tokens, V], on the host.
    """
    vocab_size = config.model.vocab_size
    assert vocab_size is not None, "a run that is converted says its vocabulary"
    reader = NativeReader(checkpoint)
    with one_rank() as groups:
        module = build_module(_in_float32(config), vocab_size, groups).eval()
        for name, parameter in module.named_parameters():
            values = reader.read(name, rows=parameter.shape[0])
            parameter.copy_(values if rounded_to is None else values.to(rounded_to))
        tokens = tokens.to(device())
        sweeps = config.ponder.num_jacobi_iterations
        forward = _forward_logits(module, tokens, num_sweeps=sweeps)[..., :vocab_size]
        return torch.cat([forward, _decoded_logits(module, tokens)], dim=1).cpu()


def prompt_size(tokens: Tensor) -> int:
    """Columns of tokens, [B, S], that are read as a prompt in decoding."""
    return max(1, tokens.shape[1] - DECODED_TOKENS)


def decoded_columns(tokens: Tensor) -> range:
    """Columns behind them, which are decoded one by one."""
    return range(prompt_size(tokens), tokens.shape[1])


def _in_float32(config: RunConfig) -> RunConfig:
    model = config.model.model_dump(mode="json") | {"make_vocab_size_divisible_by": 1}
    training = config.training.model_dump(mode="json") | {"precision": "fp32"}
    return one_process(config, model=model, training=training)


def _forward_logits(module: PonderModel, tokens: Tensor, *, num_sweeps: int) -> Tensor:
    """[B, S] -> [B, S, V]."""
    seen = _Logits()
    batch = TokenBatch(
        tokens=tokens,
        labels=torch.full_like(tokens, IGNORED_LABEL),
        position_ids=torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens),
        document_ids=torch.zeros_like(tokens),
    )
    module(batch, num_jacobi_iterations=num_sweeps, observe=seen.take)
    assert seen.values is not None, "a forward ends with logits"
    # [S, B, V] -> [B, S, V]
    return seen.values.transpose(0, 1)


@dataclass
class _Logits:
    """Keeps the logits of a forward, before its loss works on them in place."""

    values: Tensor | None = None

    def take(self, name: str, value: Tensor) -> None:
        """Observe an intermediate result."""
        if name == "logits":
            self.values = value.clone()


def _decoded_logits(module: PonderModel, tokens: Tensor) -> Tensor:
    """[B, S] -> [B, 1 + decoded, V]."""
    sequences = range(len(tokens))
    decoder = BatchDecoder(module, num_sequences=len(tokens), max_tokens=tokens.shape[1])
    prompts = tokens[:, : prompt_size(tokens)].tolist()
    read = decoder.read_prompts(sequences, prompts, sweeps=Sweeps(tolerance=SETTLED))
    logits = [torch.stack([prompt.logits for prompt in read])]
    for column in decoded_columns(tokens):
        logits.append(decoder.consume(sequences, tokens[:, column].tolist()).logits)
    return torch.stack(logits, dim=1)

"""Logits of a native checkpoint in float32, on one rank."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed
from torch import Tensor

from megatron_ext.decoding import BatchDecoder
from megatron_ext.device import device
from megatron_ext.host import prepare_host
from megatron_ext.model.micro_batch import TokenBatch
from megatron_ext.model.model import PonderModel
from megatron_ext.parallel.groups import ParallelGroups, destroy_groups, initialize_groups
from megatron_ext.parallel.vocabulary import IGNORED_LABEL
from megatron_ext.ponder.decode.sweeps import Sweeps
from pipeline.config.schema import RunConfig
from pipeline.conversion.native import NativeReader
from pipeline.conversion.prompts import PREFILL_TOLERANCE, decoded_columns, prompt_size
from pipeline.conversion.run_settings import one_process
from pipeline.ranks.distributed import start_process_group, stop_process_group
from pipeline.ranks.environment import Ranks
from pipeline.step.build import build_module

_TIMEOUT_SECONDS = 600
_FIRST_LAYER = "decoder.layers.0."


@torch.no_grad()
def backbone_logits(
    checkpoint: Path, config: RunConfig, tokens: Tensor, *, rounded_to: torch.dtype | None = None
) -> Tensor:
    """Run the layers as a vanilla model does, with one layer in memory at a time.

    The model is built with a single layer, into which the weights of each layer are read in turn.

    Args:
        checkpoint: ``iter_`` folder, complete or being written.
        config: its run, with `model.vocab_size`.
        tokens: [B, S].
        rounded_to: round the weights to this type first.
    Returns:
        [B, S, V], on the host.
    """
    source = _Source(reader=NativeReader(checkpoint), rounded_to=rounded_to)
    vanilla = _in_float32(config, num_layers=1, ponder={"method": "vanilla"})
    with _one_rank() as groups:
        module = build_module(vanilla, _vocab_size(config), groups, draws=False).eval()
        _fill(module, source, layer=None)
        tokens = tokens.to(device())
        position_ids = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
        rows = module.embed(tokens)
        for layer in range(config.model.num_layers):
            _fill(module, source, layer=layer)
            rows = module.run_layers(rows, position_ids)
        logits: Tensor = module.logits(module.final_norm(rows))
        # [S, B, V] -> [B, S, V]
        return logits[..., : _vocab_size(config)].transpose(0, 1).cpu()


@torch.no_grad()
def pondering_logits(
    checkpoint: Path, config: RunConfig, tokens: Tensor, *, rounded_to: torch.dtype | None = None
) -> Tensor:
    """Run the training forward and cached decoding, with the complete model in memory.

    Args:
        checkpoint: ``iter_`` folder, complete or being written.
        config: its run, with `model.vocab_size`; weights that its method does not have are ignored.
        tokens: [B, S].
        rounded_to: round the weights to this type first.
    Returns:
        Logits of the forward, followed by those of decoding: of the last token of the prompt and of the
        tokens after it. [B, S + 1 + decoded tokens, V], on the host.
    """
    source = _Source(reader=NativeReader(checkpoint), rounded_to=rounded_to)
    with _one_rank() as groups:
        module = build_module(_in_float32(config), _vocab_size(config), groups, draws=False).eval()
        for name, parameter in module.named_parameters():
            parameter.copy_(source.read(name, parameter.shape[0]))
        tokens = tokens.to(device())
        forward = _forward_logits(module, tokens, num_sweeps=config.ponder.num_jacobi_iterations)
        decoded = _decoded_logits(module, tokens)
        return torch.cat([forward[..., : _vocab_size(config)], decoded], dim=1).cpu()


def _vocab_size(config: RunConfig) -> int:
    vocab_size = config.model.vocab_size
    assert vocab_size is not None, "the configuration of a converted run states its vocabulary"
    return vocab_size


def _in_float32(
    config: RunConfig, *, num_layers: int | None = None, ponder: dict[str, str] | None = None
) -> RunConfig:
    model = config.model.model_dump(mode="json") | {"make_vocab_size_divisible_by": 1}
    if num_layers is not None:
        model["num_layers"] = num_layers
    training = config.training.model_dump(mode="json") | {"precision": "fp32"}
    sections = {} if ponder is None else {"ponder": ponder}
    return one_process(config, model=model, training=training, **sections)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Source:
    """Weights of a checkpoint, and the type that they are rounded to."""

    reader: NativeReader
    rounded_to: torch.dtype | None

    def read(self, native: str, rows: int) -> Tensor:
        values = self.reader.read(native, rows=rows)
        return values if self.rounded_to is None else values.to(self.rounded_to)


def _fill(module: PonderModel, source: _Source, *, layer: int | None) -> None:
    """Read the weights of one layer into the only one of the module; None is everything but layers."""
    for name, parameter in module.named_parameters():
        is_of_layer = name.startswith(_FIRST_LAYER)
        if is_of_layer != (layer is not None):
            continue
        native = name.replace(_FIRST_LAYER, f"decoder.layers.{layer}.") if is_of_layer else name
        parameter.copy_(source.read(native, parameter.shape[0]))


def _forward_logits(module: PonderModel, tokens: Tensor, *, num_sweeps: int) -> Tensor:
    """[B, S] -> [B, S, V]."""
    observed: list[Tensor] = []

    def observe(name: str, value: Tensor) -> None:
        if name == "logits":
            # The loss works on them in place.
            observed.append(value.clone())

    batch = TokenBatch(
        tokens=tokens,
        labels=torch.full_like(tokens, IGNORED_LABEL),
        position_ids=torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens),
        document_ids=torch.zeros_like(tokens),
    )
    module(batch, num_jacobi_iterations=num_sweeps, observe=observe)
    # [S, B, V] -> [B, S, V]
    return observed[-1].transpose(0, 1)


def _decoded_logits(module: PonderModel, tokens: Tensor) -> Tensor:
    """[B, S] -> [B, 1 + decoded, V]."""
    sequences = range(len(tokens))
    decoder = BatchDecoder(module, num_sequences=len(tokens), max_tokens=tokens.shape[1])
    prompts = tokens[:, : prompt_size(tokens)].tolist()
    prefilled = decoder.read_prompts(sequences, prompts, sweeps=Sweeps(tolerance=PREFILL_TOLERANCE))
    logits = [torch.stack([prompt.logits for prompt in prefilled])]
    for column in decoded_columns(tokens):
        logits.append(decoder.consume(sequences, tokens[:, column].tolist()).logits)
    return torch.stack(logits, dim=1)


@contextmanager
def _one_rank() -> Iterator[ParallelGroups]:
    """Provide the groups of one rank, in the process group of this process or in a temporary one."""
    prepare_host()
    is_alone = not torch.distributed.is_initialized()
    if is_alone:
        start_process_group(Ranks.from_environment({}), timeout_seconds=_TIMEOUT_SECONDS)
    try:
        yield initialize_groups()
    finally:
        destroy_groups()
        if is_alone:
            stop_process_group()

"""Logits of a native checkpoint's backbone, with one layer in memory at a time."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed
from torch import Tensor

from megatron_ext.device import device
from megatron_ext.host import prepare_host
from megatron_ext.model.model import PonderModel
from megatron_ext.parallel.groups import ParallelGroups, destroy_groups, initialize_groups
from pipeline.config.schema import RunConfig
from pipeline.conversion.native import NativeReader
from pipeline.conversion.run_settings import one_process
from pipeline.ranks.distributed import start_process_group, stop_process_group
from pipeline.ranks.environment import Ranks
from pipeline.step.build import build_module

_TIMEOUT_SECONDS = 600
_FIRST_LAYER = "decoder.layers.0."


@torch.no_grad()
def native_logits(
    checkpoint: Path, config: RunConfig, tokens: Tensor, *, rounded_to: torch.dtype | None = None
) -> Tensor:
    """Run the layers as a vanilla model does, in float32.

    The model is built with a single layer, which gets the weights of one after the other.

    Args:
        checkpoint: ``iter_`` folder, finished or being written.
        config: its run, with `model.vocab_size`.
        tokens: [B, S].
        rounded_to: round the weights to this type first.
    Returns:
        [B, S, V], on the host.
    """
    vocab_size = config.model.vocab_size
    assert vocab_size is not None, "a run that is converted says its vocabulary"
    source = _Source(reader=NativeReader(checkpoint), rounded_to=rounded_to)
    with one_rank() as groups:
        module = build_module(_one_layer(config), vocab_size, groups).eval()
        _fill(module, source, layer=None)
        tokens = tokens.to(device())
        position_ids = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
        rows = module.embed(tokens)
        for layer in range(config.model.num_layers):
            _fill(module, source, layer=layer)
            rows = module.run_layers(rows, position_ids)
        logits: Tensor = module.logits(module.final_norm(rows))
        # [S, B, V] -> [B, S, V]
        return logits[..., :vocab_size].transpose(0, 1).cpu()


def _one_layer(config: RunConfig) -> RunConfig:
    model = config.model.model_dump(mode="json") | {"num_layers": 1, "make_vocab_size_divisible_by": 1}
    training = config.training.model_dump(mode="json") | {"precision": "fp32"}
    return one_process(config, model=model, training=training, ponder={"method": "vanilla"})


@dataclass(frozen=True, slots=True, kw_only=True)
class _Source:
    """Where weights come from, and what they are rounded to."""

    reader: NativeReader
    rounded_to: torch.dtype | None

    def read(self, native: str, rows: int) -> Tensor:
        values = self.reader.read(native, rows=rows)
        return values if self.rounded_to is None else values.to(self.rounded_to)


def _fill(module: PonderModel, source: _Source, *, layer: int | None) -> None:
    """Read the weights of one layer into the only one that is there; None is all that is no layer."""
    for name, parameter in module.named_parameters():
        is_of_layer = name.startswith(_FIRST_LAYER)
        if is_of_layer != (layer is not None):
            continue
        native = name.replace(_FIRST_LAYER, f"decoder.layers.{layer}.") if is_of_layer else name
        parameter.copy_(source.read(native, parameter.shape[0]))


@contextmanager
def one_rank() -> Iterator[ParallelGroups]:
    """Yield the layout of one rank, in this process's group or one that is started for it."""
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

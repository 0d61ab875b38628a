"""A tiny GPT model of Megatron's own with its optimizer, to test checkpoints and layouts with."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal
from unittest.mock import patch

import torch
from megatron.core.distributed import DistributedDataParallelConfig
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

from megatron_ext.host import prepare_host
from megatron_ext.parallel.groups import ParallelGroups, initialize_groups
from megatron_ext.schedule.optimizer import build_optimizer, connect_schedule
from pipeline.config.load import build_config
from pipeline.config.schema import ParallelConfig, RunConfig
from pipeline.step import build
from pipeline.step.build import wrap_model
from pipeline.step.megatron_config import ddp_config, optimizer_config, scheduler_arguments

SEQ_LENGTH = 16
VOCAB_SIZE = 64
NUM_MICRO_BATCHES = 4
MICRO_BATCH_SIZE = 2


class TinyGpt:
    """A model on a layout, trained on one fixed global batch.

    Args:
        tensor: size of the tensor axis; the other ranks are data parallel.
        seed: of the weights, which do not depend on the layout.
        precision: of the weights; gradients and moments are float32.
        use_distributed_optimizer: whether data-parallel ranks share the optimizer's state.
        num_layers: of the decoder.
        has_biases: of linear layers.
        bucket_size: elements after which Megatron begins another bucket of gradients; None: one for all.
    """

    def __init__(
        self,
        *,
        tensor: int = 1,
        seed: int = 1,
        precision: Literal["fp32", "bf16"] = "fp32",
        use_distributed_optimizer: bool = True,
        num_layers: int = 2,
        has_biases: bool = True,
        bucket_size: int | None = None,
    ) -> None:
        prepare_host()
        self.groups: ParallelGroups = initialize_groups(tensor=tensor, seed=1)
        torch.manual_seed(seed)
        self.module = _build_model(tensor, precision, num_layers, has_biases)
        config = _run_config(precision, use_distributed_optimizer)
        with _buckets_of(bucket_size):
            self.ddp = wrap_model(self.module, config.parallel)
        self.optimizer: Any = build_optimizer([self.ddp], optimizer_config(config))
        self.scheduler = OptimizerParamScheduler(self.optimizer, **scheduler_arguments(config))
        connect_schedule(self.ddp, self.optimizer)

    def train(self, num_steps: int) -> list[tuple[float, float]]:
        """Return the loss and the gradient norm of each step."""
        return [self._train_step() for _ in range(num_steps)]

    def _train_step(self) -> tuple[float, float]:
        from megatron.core.pipeline_parallel import get_forward_backward_func

        self.ddp.zero_grad_buffer()
        self.optimizer.zero_grad()
        samples = self._samples()
        outputs = get_forward_backward_func()(
            forward_step_func=_forward_step,
            data_iterator=iter(samples),
            model=self.ddp,
            num_microbatches=len(samples),
            seq_length=SEQ_LENGTH,
            micro_batch_size=MICRO_BATCH_SIZE,
        )
        _, gradient_norm, _ = self.optimizer.step()
        self.scheduler.step(increment=1)
        loss = torch.stack([output["loss"] for output in outputs]).sum()
        torch.distributed.all_reduce(loss, group=self.groups.dp)
        return loss.item() / (NUM_MICRO_BATCHES * MICRO_BATCH_SIZE * SEQ_LENGTH), gradient_norm

    def _samples(self) -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(0)
        shape = (NUM_MICRO_BATCHES, MICRO_BATCH_SIZE, SEQ_LENGTH + 1)
        samples = torch.randint(VOCAB_SIZE, shape, generator=generator)
        return list(samples.chunk(self.groups.dp_size)[self.groups.dp_rank])


@contextmanager
def _buckets_of(size: int | None) -> Iterator[None]:
    """Let Megatron divide gradients into buckets, as where their reduction overlaps with backward."""

    def settings(parallel: ParallelConfig, **more: Any) -> DistributedDataParallelConfig:
        made = ddp_config(parallel, **more)
        return replace(made, overlap_grad_reduce=size is not None, bucket_size=size)

    with patch.object(build, "ddp_config", settings):
        yield


def _run_config(precision: str, use_distributed_optimizer: bool) -> RunConfig:
    """Return a configuration of which optimizer, precision and schedule are those of the tiny model."""
    return build_config(
        {
            "model": {
                "architecture": "gpt_neox",
                "num_layers": 2,
                "hidden_size": 32,
                "ffn_hidden_size": 64,
                "num_attention_heads": 4,
            },
            "ponder": {"method": "vanilla"},
            "parallel": {"use_distributed_optimizer": use_distributed_optimizer},
            "training": {
                "seq_length": SEQ_LENGTH,
                "micro_batch_size": MICRO_BATCH_SIZE,
                "global_batch_size": NUM_MICRO_BATCHES * MICRO_BATCH_SIZE,
                "train_iters": 20,
                "precision": precision,
            },
            "optimizer": {"lr": 1e-2},
            "data": {"path": "unused"},
        }
    )


def _build_model(tensor: int, precision: str, num_layers: int, has_biases: bool) -> Any:
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
    from megatron.core.models.gpt.gpt_model import GPTModel
    from megatron.core.transformer.transformer_config import TransformerConfig

    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    config = TransformerConfig(
        num_layers=num_layers,
        hidden_size=32,
        ffn_hidden_size=64,
        num_attention_heads=4,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        tensor_model_parallel_size=tensor,
        add_bias_linear=has_biases,
        calculate_per_token_loss=True,
        use_cpu_initialization=True,
        params_dtype=dtype,
        bf16=precision == "bf16",
        masked_softmax_fusion=False,
        bias_dropout_fusion=False,
        bias_activation_fusion=False,
        gradient_accumulation_fusion=False,
        apply_rope_fusion=False,
        persist_layer_norm=False,
    )
    model = GPTModel(
        config,
        get_gpt_layer_local_spec(normalization="RMSNorm"),
        vocab_size=VOCAB_SIZE,
        max_sequence_length=SEQ_LENGTH,
        position_embedding_type="rope",
    )
    return model.to(dtype)


def _forward_step(samples: Any, model: Any) -> tuple[torch.Tensor, Any]:
    tokens = next(samples)
    positions = torch.arange(SEQ_LENGTH).expand(MICRO_BATCH_SIZE, SEQ_LENGTH)
    token_losses = model(tokens[:, :-1], positions, None, labels=tokens[:, 1:])
    return token_losses, _sum_loss


def _sum_loss(token_losses: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    loss = token_losses.float().sum()
    # Cloned: the schedule divides the loss in place.
    return loss, torch.tensor(token_losses.numel(), dtype=torch.int), {"loss": loss.detach().clone()}

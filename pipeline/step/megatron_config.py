"""Translate a run's configuration into Megatron's and the model's own; names are translated only here."""

from typing import Any

import torch
from megatron.core.distributed import DistributedDataParallelConfig
from megatron.core.optimizer import OptimizerConfig

from megatron_ext.model.config import (
    Architecture,
    Initialization,
    PonderTransformerConfig,
    architecture_settings,
    host_settings,
    initialization_settings,
    pipeline_settings,
)
from megatron_ext.ponder.config import PonderConfig
from megatron_ext.schedule.muon import MuonSettings
from pipeline.config.optimizer_section import OptimizerConfig as OptimizerSection
from pipeline.config.optimizer_section import OptimizerName
from pipeline.config.schema import ParallelConfig, PonderSection, RunConfig
from pipeline.cost.account import max_sweeps

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


def ponder_config(ponder: PonderSection, vocab_size: int) -> PonderConfig:
    """Return the settings of the method.

    Args:
        ponder: as configured.
        vocab_size: ids of the tokenizer; a pause token without an id of its own takes the row after them.
    """
    pause_token_id = ponder.pause_token_id
    if ponder.method.facts.has_pause_tokens and pause_token_id is None:
        pause_token_id = vocab_size
    return PonderConfig(
        method=ponder.method,
        num_latent_thoughts=ponder.num_latent_thoughts,
        max_jacobi_iterations=max_sweeps(ponder),
        scale_embeds=ponder.scale_embeds,
        mixture=ponder.mixture,
        mixture_top_k=ponder.mixture_top_k,
        softmax_temperature=ponder.softmax_temperature,
        residual=ponder.residual,
        multiply_embedding=ponder.multiply_embedding,
        pause_token_id=pause_token_id,
        step_input_scale=ponder.step_input_scale,
        pruning_threshold=ponder.pruning_threshold,
        penalty=ponder.penalty,
        bottom_k_fraction=ponder.bottom_k_fraction,
        bottom_k_floor=ponder.bottom_k_floor,
        form=ponder.router_form,
        penalty_exponent=ponder.penalty_exponent,
        reading=ponder.reading,
        step_loss_weight=ponder.step_loss_weight,
        entropy_floor=ponder.entropy_floor,
        entropy_floor_weight=ponder.entropy_floor_weight,
    )


def transformer_config(
    config: RunConfig, vocab_size: int, *, prefers_cudnn: bool = False, draws: bool = True
) -> PonderTransformerConfig:
    """Return the configuration of the model on the run's parallel layout.

    Args:
        config: the run.
        vocab_size: ids of the tokenizer that made the data.
        prefers_cudnn: see :class:`PonderTransformerConfig`.
        draws: whether the weights of the backbone are drawn; else they are 0, to be read from a checkpoint.
    """
    model, parallel = config.model, config.parallel
    architecture = Architecture(model.architecture)
    ponder = ponder_config(config.ponder, vocab_size)
    return PonderTransformerConfig(
        architecture=architecture,
        ponder=ponder,
        vocab_size=vocab_size,
        padded_vocab_size=config.padded_vocab_size(vocab_size),
        rotary_percent=model.rotary_percent,
        rotary_base=model.rotary_base,
        tie_embeddings=not model.untie_embeddings_and_output_weights,
        padding_token_id=model.padding_token_id,
        num_layers=model.num_layers,
        hidden_size=model.hidden_size,
        ffn_hidden_size=model.ffn_hidden_size,
        num_attention_heads=model.num_attention_heads,
        num_query_groups=model.num_query_groups,
        kv_channels=model.kv_channels,
        layernorm_epsilon=model.norm_epsilon,
        tensor_model_parallel_size=parallel.tensor,
        context_parallel_size=parallel.context,
        pipeline_model_parallel_size=parallel.pipeline,
        stage_layers=config.stage_layers,
        initialization_seed=config.seed,
        sequence_parallel=parallel.sequence_parallel,
        params_dtype=PRECISIONS[config.training.precision],
        bf16=config.training.precision == "bf16",
        deterministic_mode=config.training.deterministic,
        prefers_cudnn=prefers_cudnn,
        **_recompute_settings(parallel.recompute),
        **pipeline_settings(PRECISIONS[config.training.precision]),
        **architecture_settings(architecture),
        **(_initialization(config, vocab_size, ponder) if draws else _NOT_DRAWN),
        **host_settings(),
    )


# Filling with 0 instead of drawing leaves Megatron's marks on the weights.
_NOT_DRAWN: dict[str, Any] = dict.fromkeys(
    ("init_method", "embedding_init_method", "output_layer_init_method"), torch.nn.init.zeros_
)


def _initialization(config: RunConfig, vocab_size: int, ponder: PonderConfig) -> dict[str, Any]:
    model = config.model
    return initialization_settings(
        Initialization(model.init),
        vocab_size=config.embedding_rows(vocab_size),
        architecture=Architecture(model.architecture),
        std=model.init_std,
        hidden_size=model.hidden_size,
        num_layers=model.num_layers,
        num_slots=ponder.num_slots,
    )


def optimizer_config(config: RunConfig) -> OptimizerConfig:
    """Return AdamW, clipping and precision; Muon has further settings (:func:`muon_settings`)."""
    optimizer = config.optimizer
    return OptimizerConfig(
        optimizer="adam",
        lr=optimizer.lr,
        min_lr=optimizer.min_lr,
        weight_decay=optimizer.weight_decay,
        adam_beta1=optimizer.adam_beta1,
        adam_beta2=optimizer.adam_beta2,
        adam_eps=optimizer.adam_eps,
        clip_grad=optimizer.clip_grad,
        bf16=config.training.precision == "bf16",
        params_dtype=PRECISIONS[config.training.precision],
        use_distributed_optimizer=_shares_buffers(config.parallel, optimizer.name),
    )


def muon_settings(optimizer: OptimizerSection) -> MuonSettings | None:
    """Return what Muon has of its own; None where AdamW updates all weights.

    Its learning rate decays to the same share as that of AdamW.
    """
    if optimizer.name != "muon":
        return None
    rate = optimizer.muon_lr or optimizer.lr
    return MuonSettings(
        lr=rate,
        min_lr=rate * optimizer.min_lr / optimizer.lr,
        momentum=optimizer.muon_momentum,
        num_ns_steps=optimizer.muon_num_ns_steps,
    )


def ddp_config(
    parallel: ParallelConfig, *, optimizer: OptimizerName = "adamw"
) -> DistributedDataParallelConfig:
    """Return how gradients are collected and reduced over data-parallel ranks."""
    return DistributedDataParallelConfig(
        # One float32 buffer (`param.main_grad`), whatever the parameters' precision.
        grad_reduce_in_fp32=True,
        # Megatron takes a bucket for complete after a fixed number of gradient hooks; the configuration
        # refuses overlap where weights report a varying number of them in one backward.
        overlap_grad_reduce=parallel.overlap_grad_reduce,
        # Reduce-scatter, for an optimizer whose state is spread over the data-parallel ranks.
        use_distributed_optimizer=_shares_buffers(parallel, optimizer),
        # Only NCCL has an averaging reduction; scaling before a sum gives the same on both backends.
        average_in_collective=False,
    )


def scheduler_arguments(config: RunConfig) -> dict[str, Any]:
    """Return the arguments of Megatron's ``OptimizerParamScheduler``, beside the optimizer.

    Linear warm-up, then the decay to ``min_lr``. As in Megatron, iteration n is trained with the rate after
    n - 1 finished ones: with warm-up the first is ``lr_warmup_init``. A run that continues trained weights is
    warmed up again and decays again (Ibrahim et al., 2024, arXiv 2403.08763).
    """
    optimizer = config.optimizer
    is_wsd = optimizer.lr_decay_style == "wsd"
    return {
        "init_lr": optimizer.lr_warmup_init,
        "max_lr": optimizer.lr,
        "min_lr": optimizer.min_lr,
        "lr_warmup_steps": optimizer.lr_warmup_iters,
        "lr_decay_steps": config.lr_decay_iters,
        "lr_decay_style": "WSD" if is_wsd else optimizer.lr_decay_style,
        "start_wd": optimizer.weight_decay,
        "end_wd": optimizer.weight_decay,
        "wd_incr_steps": config.lr_decay_iters,
        "wd_incr_style": "constant",
        # A checkpoint restores the count of iterations alone; rates and lengths stay those of the config.
        "use_checkpoint_opt_param_scheduler": False,
        "override_opt_param_scheduler": True,
        "wsd_decay_steps": optimizer.wsd_decay_iters,
        "lr_wsd_decay_style": optimizer.wsd_decay_style if is_wsd else None,
    }


def _shares_buffers(parallel: ParallelConfig, optimizer: OptimizerName) -> bool:
    """Whether each data-parallel rank has an equal share of the gradient buffer and of the state.

    With Muon they share whole weights instead, and each receives all gradients.
    """
    return parallel.use_distributed_optimizer and optimizer == "adamw"


def _recompute_settings(kind: str) -> dict[str, Any]:
    if kind == "none":
        return {}
    if kind == "selective":
        return {"recompute_cheap_work": True}
    if kind == "per_pass":
        return {"recompute_passes": True}
    return {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}

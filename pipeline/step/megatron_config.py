"""From the run's configuration to what the model and Megatron take: names are translated here alone."""

from typing import Any

import torch

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
from megatron_ext.schedule.learning_rate import ScheduleSettings
from megatron_ext.schedule.optimizer import OptimizerSettings
from pipeline.config.schema import PonderSection, RunConfig
from pipeline.cost.account import max_sweeps

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


def ponder_config(ponder: PonderSection, vocab_size: int) -> PonderConfig:
    """The method's settings.

    Args:
        ponder: as configured.
        vocab_size: ids of the tokenizer; a pause token without an id of its own takes the row behind them.
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
        pruning_threshold=ponder.pruning_threshold,
        penalty=ponder.penalty,
        bottom_k_fraction=ponder.bottom_k_fraction,
    )


def transformer_config(config: RunConfig, vocab_size: int) -> PonderTransformerConfig:
    """The model on the run's layout.

    Args:
        config: the run.
        vocab_size: ids of the tokenizer that made the data.
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
        pipeline_model_parallel_size=parallel.pipeline,
        stage_layers=config.stage_layers,
        initialization_seed=config.seed,
        sequence_parallel=parallel.sequence_parallel,
        params_dtype=PRECISIONS[config.training.precision],
        bf16=config.training.precision == "bf16",
        **_recompute_settings(parallel.recompute),
        **pipeline_settings(PRECISIONS[config.training.precision]),
        **architecture_settings(architecture),
        **initialization_settings(
            Initialization(model.init),
            vocab_size=config.embedding_rows(vocab_size),
            architecture=architecture,
            std=model.init_std,
            hidden_size=model.hidden_size,
            num_layers=model.num_layers,
            num_slots=ponder.num_slots,
        ),
        **host_settings(),
    )


def optimizer_settings(config: RunConfig) -> OptimizerSettings:
    """AdamW, clipping and precision."""
    optimizer = config.optimizer
    return OptimizerSettings(
        lr=optimizer.lr,
        min_lr=optimizer.min_lr,
        weight_decay=optimizer.weight_decay,
        adam_beta1=optimizer.adam_beta1,
        adam_beta2=optimizer.adam_beta2,
        adam_eps=optimizer.adam_eps,
        clip_grad=optimizer.clip_grad,
        new_parameters_lr_mult=optimizer.new_parameters_lr_mult,
        precision=config.training.precision,
        use_distributed_optimizer=config.parallel.use_distributed_optimizer,
    )


def schedule_settings(config: RunConfig) -> ScheduleSettings:
    """Learning rate by iteration."""
    optimizer = config.optimizer
    return ScheduleSettings(
        lr=optimizer.lr,
        min_lr=optimizer.min_lr,
        lr_decay_style=optimizer.lr_decay_style,
        lr_warmup_iters=optimizer.lr_warmup_iters,
        lr_warmup_init=optimizer.lr_warmup_init,
        lr_decay_iters=config.lr_decay_iters,
        wsd_decay_iters=optimizer.wsd_decay_iters,
        wsd_decay_style=optimizer.wsd_decay_style,
        weight_decay=optimizer.weight_decay,
    )


def _recompute_settings(kind: str) -> dict[str, Any]:
    if kind == "none":
        return {}
    if kind == "per_pass":
        return {"recompute_passes": True}
    if kind == "selective":
        return {"recompute_granularity": "selective", "recompute_modules": ["core_attn"]}
    return {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}

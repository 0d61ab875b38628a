"""From the settings of a run to its cost account and its start-up summary."""

from collections.abc import Sequence
from typing import Literal

from pipeline.config.schema import ParallelConfig, PonderSection, RunConfig
from pipeline.flops import FlopsAccount, ModelShape
from pipeline.summary import RunSummary

BUILT_METHODS: dict[str, Literal["vanilla", "ponderlm2", "ponderlm3"]] = {
    "vanilla": "vanilla",
    "ponderlm2": "ponderlm2",
    "ponderlm3": "ponderlm3",
}


def model_shape(config: RunConfig, vocab_size: int) -> ModelShape:
    """Return the sizes of the model; ``vocab_size`` is the tokenizer's, without padding."""
    model = config.model
    return ModelShape(
        architecture=model.architecture,
        num_layers=model.num_layers,
        hidden_size=model.hidden_size,
        ffn_hidden_size=model.ffn_hidden_size,
        num_attention_heads=model.num_attention_heads,
        num_query_groups=model.num_query_groups,
        kv_channels=model.kv_channels,
        vocab_size=vocab_size,
        padded_vocab_size=config.padded_vocab_size(vocab_size),
        seq_length=config.training.seq_length,
        tied_embeddings=not model.untie_embeddings_and_output_weights,
    )


def flops_account(config: RunConfig, vocab_size: int) -> FlopsAccount:
    """Return the cost account of the run's model and method."""
    ponder = config.ponder
    return FlopsAccount(
        shape=model_shape(config, vocab_size),
        method=BUILT_METHODS[ponder.method.value],
        num_latent_thoughts=ponder.num_latent_thoughts,
        interpolation=ponder.interpolation,
        mixture_size=ponder.interpolation_topk if ponder.interpolation_use_topk else None,
        recompute=config.parallel.recompute,
    )


def mean_training_sweeps(ponder: PonderSection) -> float:
    """Return the mean number of Jacobi sweeps of a training step."""
    if ponder.random_jacobi_iterations is None:
        return float(ponder.num_jacobi_iterations)
    least, most = ponder.random_jacobi_iterations
    return (least + most) / 2


def max_sweeps(ponder: PonderSection) -> int:
    """Return the largest number of Jacobi sweeps that any forward pass of the run does."""
    drawn = ponder.random_jacobi_iterations or (0, 0)
    return max(ponder.num_jacobi_iterations, drawn[1])


def run_summary(
    config: RunConfig, vocab_size: int, *, parameters_per_rank: Sequence[int], device: str
) -> RunSummary:
    """Gather the start-up summary.

    Args:
        vocab_size: the tokenizer's, without padding.
        parameters_per_rank: parameters held by each tensor-parallel rank, as counted on the built model.
        device: such as ``cpu (2 threads)`` or ``NVIDIA H100``.
    """
    account, ponder = flops_account(config, vocab_size), config.ponder
    sweeps = mean_training_sweeps(ponder)
    training, parameters = account.training_flops(sweeps), account.parameters()
    least = 0 if ponder.method == "ponderlm3" else ponder.num_latent_thoughts
    span = (least, ponder.num_latent_thoughts)
    return RunSummary(
        name=config.name,
        method=ponder.method.value,
        architecture=config.model.architecture,
        num_latent_thoughts=ponder.num_latent_thoughts,
        jacobi_iterations=_render_sweeps(ponder),
        num_passes=account.num_passes(sweeps),
        training_rows_per_token=account.training_rows_per_token(sweeps),
        inference_rows_per_token=(
            account.inference_rows_per_token(span[0]),
            account.inference_rows_per_token(span[1]),
        ),
        effective_depth=account.effective_depth(),
        num_layers=config.model.num_layers,
        unique_parameters=parameters.total,
        non_embedding_parameters=parameters.non_embedding,
        parameters_per_rank=tuple(parameters_per_rank),
        layout=_render_layout(config.parallel),
        num_ranks=config.parallel.world_size,
        device=device,
        precision=config.training.precision,
        recompute=config.parallel.recompute,
        flops_per_token_train=training.model,
        flops_per_token_recompute=training.recompute,
        flops_per_token_infer=(account.inference_per_token(span[0]), account.inference_per_token(span[1])),
        tokens_per_iteration=config.training.global_batch_size * config.training.seq_length,
        total_iterations=config.training.train_iters,
    )


def _render_layout(parallel: ParallelConfig) -> str:
    return f"tensor {parallel.tensor} x pipeline {parallel.pipeline} x data {parallel.data}"


def _render_sweeps(ponder: PonderSection) -> str:
    if ponder.random_jacobi_iterations is None:
        return str(ponder.num_jacobi_iterations)
    least, most = ponder.random_jacobi_iterations
    return f"{least} to {most}, drawn per step ({ponder.num_jacobi_iterations} in evaluation)"

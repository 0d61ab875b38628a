"""The cost account and the start-up summary of a run, from its settings."""

from collections.abc import Sequence

from pipeline.config.ponder_section import PonderSection
from pipeline.config.schema import ParallelConfig, RunConfig
from pipeline.cost.flops import FlopsAccount
from pipeline.cost.shape import ModelShape
from pipeline.run.summary import RunSummary


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
        method=ponder.method,
        num_latent_thoughts=ponder.num_latent_thoughts,
        mixture=ponder.mixture,
        recompute=config.parallel.recompute,
        precision=config.training.precision,
    )


def mean_training_sweeps(config: RunConfig) -> float:
    """Return the mean number of Jacobi sweeps of a training step, over all iterations of the run."""
    ponder, num_iterations = config.ponder, config.training.train_iters
    if ponder.random_jacobi_iterations is not None:
        least, most = ponder.random_jacobi_iterations
        return (least + most) / 2
    if ponder.jacobi_schedule is None:
        return float(ponder.num_jacobi_iterations)
    starts = [min(start, num_iterations) for start, _ in ponder.jacobi_schedule]
    ends = [*starts[1:], num_iterations]
    sweeps = [count for _, count in ponder.jacobi_schedule]
    total = sum((end - start) * count for start, end, count in zip(starts, ends, sweeps, strict=True))
    return total / num_iterations


def max_sweeps(ponder: PonderSection) -> int:
    """Return the largest number of Jacobi sweeps that any forward pass of the run may do."""
    drawn = ponder.random_jacobi_iterations or (0, 0)
    planned = [sweeps for _, sweeps in ponder.jacobi_schedule or ()]
    return max(ponder.num_jacobi_iterations, drawn[1], *planned)


def run_summary(
    config: RunConfig, vocab_size: int, *, parameters_per_rank: Sequence[int], device: str
) -> RunSummary:
    """Gather the start-up summary.

    Args:
        vocab_size: the tokenizer's, without padding.
        parameters_per_rank: parameters held by each model-parallel rank, as counted on the built model.
        device: such as ``cpu (2 threads)`` or ``NVIDIA H100``.
    """
    account, ponder = flops_account(config, vocab_size), config.ponder
    sweeps = mean_training_sweeps(config)
    training, parameters = account.training_flops(sweeps), account.parameters()
    least = 0 if account.halts else ponder.num_latent_thoughts
    span = (least, ponder.num_latent_thoughts)
    return RunSummary(
        name=config.name,
        method=ponder.method.value,
        architecture=config.model.architecture,
        extra_steps=_render_steps(ponder),
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
        layers_per_stage=config.stage_layers,
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


def _render_steps(ponder: PonderSection) -> str:
    if ponder.num_latent_thoughts == 0:
        return "none"
    steps = f"K = {ponder.num_latent_thoughts} {ponder.method.facts.step_name}"
    if not ponder.method.has_sweeps:
        return steps
    return f"{steps}, Jacobi sweeps J = {_render_sweeps(ponder)}"


def _render_sweeps(ponder: PonderSection) -> str:
    evaluated = ponder.num_jacobi_iterations
    if ponder.random_jacobi_iterations is not None:
        least, most = ponder.random_jacobi_iterations
        return f"{least} to {most}, drawn per step ({evaluated} in evaluation)"
    if ponder.jacobi_schedule is not None:
        changes = ", ".join(f"{sweeps} from iteration {start}" for start, sweeps in ponder.jacobi_schedule)
        return f"{changes} ({evaluated} in evaluation)"
    return str(evaluated)

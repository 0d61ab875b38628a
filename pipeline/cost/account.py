"""The cost account of a run, from its settings."""

from pipeline.config.ponder_section import PonderSection
from pipeline.config.schema import RunConfig
from pipeline.cost.flops import FlopsAccount
from pipeline.cost.shape import ModelShape


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
        form=ponder.router_form,
        penalty=ponder.penalty,
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
    """Return the largest J of any forward of the run."""
    drawn = ponder.random_jacobi_iterations or (0, 0)
    planned = [sweeps for _, sweeps in ponder.jacobi_schedule or ()]
    return max(ponder.num_jacobi_iterations, drawn[1], *planned)

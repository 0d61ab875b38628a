"""The cost account of a run, from its settings."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from megatron_ext.ponder.passes import scheduled_number
from pipeline.config.ponder_section import PonderSection
from pipeline.config.schema import RunConfig
from pipeline.cost.flops import FlopsAccount, TrainingFlops, weighted_mean
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


def flops_account(config: RunConfig, vocab_size: int, *, fuses: bool = False) -> FlopsAccount:
    """Return the cost account of the run's model and method.

    Args:
        config: the run.
        vocab_size: the tokenizer's, without padding.
        fuses: whether training consists of fused functions, as on CUDA; what decoding costs is the same.
    """
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
        supervises_steps=ponder.step_loss_weight > 0,
        gradient_passes=None if ponder.gradient_passes == "all" else ponder.gradient_passes,
        share_of_thoughts=1.0 if ponder.skip_pruned_rows else None,
        fuses=fuses,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class StepKind:
    """Training steps of a run that take the same K.

    Attributes:
        share: of all steps, expected where K is drawn.
        num_latent_thoughts: K.
        num_jacobi_iterations: mean J of these steps.
    """

    share: float
    num_latent_thoughts: int
    num_jacobi_iterations: float


def step_kinds(config: RunConfig) -> tuple[StepKind, ...]:
    """Return the kinds of training steps of a run, by rising K; their shares add up to 1."""
    steps: dict[int, float] = {}
    sweeps: dict[int, float] = {}
    for num_steps, num_thoughts, num_sweeps in _stretches(config):
        steps[num_thoughts] = steps.get(num_thoughts, 0.0) + num_steps
        sweeps[num_thoughts] = sweeps.get(num_thoughts, 0.0) + num_steps * num_sweeps
    return tuple(
        StepKind(
            share=steps[num_thoughts] / config.training.train_iters,
            num_latent_thoughts=num_thoughts,
            num_jacobi_iterations=sweeps[num_thoughts] / steps[num_thoughts],
        )
        for num_thoughts in sorted(steps)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class MeanStep:
    """What a training step of a run costs, mean over all its iterations.

    Attributes:
        num_passes: through the layers.
        rows_per_token: over all passes.
        gradient_rows_per_token: over the passes that run backward too.
        flops: operations per token.
    """

    num_passes: float
    rows_per_token: float
    gradient_rows_per_token: float
    flops: TrainingFlops


def mean_step(config: RunConfig, account: FlopsAccount) -> MeanStep:
    """Return the mean cost of a training step, over all K and J of the run.

    Where sweeps may end early, it is what the step costs at most.
    """
    kinds = [
        (kind.share, account.limited_to(kind.num_latent_thoughts), kind.num_jacobi_iterations)
        for kind in step_kinds(config)
    ]
    return MeanStep(
        num_passes=sum(share * own.num_passes(sweeps) for share, own, sweeps in kinds),
        rows_per_token=sum(share * own.training_rows_per_token(sweeps) for share, own, sweeps in kinds),
        gradient_rows_per_token=sum(
            share * own.gradient_rows_per_token(sweeps) for share, own, sweeps in kinds
        ),
        flops=weighted_mean([(share, own.training_flops(sweeps)) for share, own, sweeps in kinds]),
    )


def _stretches(config: RunConfig) -> Iterator[tuple[float, int, float]]:
    """Yield (number of steps, K, mean J) of stretches of the run; a drawn K shares its stretch out evenly."""
    ponder, last = config.ponder, config.training.train_iters
    starts = {start for start, _ in (*(ponder.jacobi_schedule or ()), *(ponder.thoughts_schedule or ()))}
    edges = [0, *sorted(start for start in starts if 0 < start < last), last]
    for begin, end in pairwise(edges):
        low, high = _range_at(ponder.random_jacobi_iterations, ponder.jacobi_schedule, begin) or (
            (ponder.num_jacobi_iterations,) * 2
        )
        least, most = _range_at(ponder.random_latent_thoughts, ponder.thoughts_schedule, begin) or (
            (ponder.num_latent_thoughts,) * 2
        )
        for num_thoughts in range(least, most + 1):
            yield (end - begin) / (most - least + 1), num_thoughts, (low + high) / 2


def _range_at(
    drawn: tuple[int, int] | None, schedule: tuple[tuple[int, int], ...] | None, iteration: int
) -> tuple[int, int] | None:
    """Return the least and the most of a number at an iteration; None where it is not drawn or scheduled."""
    if drawn is not None or schedule is None:
        return drawn
    number = scheduled_number(schedule, iteration)
    return number, number


def max_sweeps(ponder: PonderSection) -> int:
    """Return the largest J of any forward of the run."""
    drawn = ponder.random_jacobi_iterations or (0, 0)
    planned = [sweeps for _, sweeps in ponder.jacobi_schedule or ()]
    return max(ponder.num_jacobi_iterations, drawn[1], *planned)

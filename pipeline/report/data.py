"""The content of a report, as plain values."""

from dataclasses import dataclass

from pipeline.evaluation.results import LossQuartile, TextSample
from pipeline.evaluation.tasks import TaskReport
from pipeline.metrics.records import DecodingSpeed, LossPoint

Points = tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A command line to copy, and what it is for."""

    purpose: str
    line: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportData:
    """The content of a report.

    Curves are (iteration, value) points, losses in nats per token. Fields about halting are empty for a
    method that does not halt, ``residuals`` for one without Jacobi sweeps.

    Attributes:
        facts: (name, value) rows that describe the model and the run.
        training_by_tokens, heldout_by_tokens: the losses as (training tokens, value) points, by which runs of
            different batch sizes can be compared.
        learning_rate_curve, decoupled_rate_curve: the second one is of the router or gates, if it differs.
        grad_norm_curve: before clipping.
        heldout_loss: of the final evaluation; its curve over training is ``heldout_curve``.
        unigram_entropy: of the held-out split.
        steps_count: held-out tokens that took exactly 0..K steps.
        pruned_curves: share of training tokens that skipped step k, for k = 1..K.
        nll_by_steps: mean held-out loss of the tokens with 0..K steps; None where no token took that many.
        residuals: after each sweep, first sweep first.
        steps_allowed: (maximum steps per token, held-out loss) of the last evaluation that measured them.
        flops_per_token_train: model operations of a training step at the evaluation's number of sweeps.
        flops_per_token_infer: operations of a decoder at the held-out split's mean steps.
        flops_saved: share of inference operations saved by halting; None for a method that does not halt.
        training_tokens_per_second: median over the logging intervals.
        speeds: of decoding held-out tokens, by batch size; empty where nothing was timed.
        worth: loss and cost with all steps, with those above the threshold, and with none; empty where not
            measured.
        tasks: scores on public tasks; None where none were run.
        samples: generated texts.
    """

    name: str
    method: str
    facts: tuple[tuple[str, str], ...]
    training_curve: Points
    heldout_curve: Points
    heldout_loss: float
    heldout_tokens: int
    unigram_entropy: float
    num_latent_thoughts: int
    pruning_threshold: float | None
    steps_count: tuple[int, ...]
    mean_steps_curve: Points
    pruned_curves: tuple[Points, ...]
    nll_by_steps: tuple[float | None, ...]
    loss_quartiles: tuple[LossQuartile, ...]
    residuals: tuple[float, ...]
    steps_allowed: Points
    flops_per_token_train: float
    flops_per_token_infer: float
    flops_saved: float | None
    training_tokens_per_second: float | None
    samples: tuple[TextSample, ...]
    commands: tuple[Command, ...]
    config_yaml: str
    checkpoint: str
    speeds: tuple[DecodingSpeed, ...] = ()
    worth: tuple[LossPoint, ...] = ()
    training_by_tokens: Points = ()
    heldout_by_tokens: Points = ()
    learning_rate_curve: Points = ()
    decoupled_rate_curve: Points = ()
    grad_norm_curve: Points = ()
    tasks: TaskReport | None = None

    @property
    def halts(self) -> bool:
        """Whether tokens take different numbers of steps by decision of the model."""
        return sum(self.steps_count) > 0

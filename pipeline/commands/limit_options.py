"""The options that limit the steps of a trained model, shared by `generate`, `eval` and `compare`."""

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from megatron_ext.ponder.step_limits import StepLimits

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    from pipeline.evaluation.budget import Budget
    from pipeline.evaluation.opened import OpenedCheckpoint
    from pipeline.evaluation.stored_budgets import MetBudget

BUDGET_HELP = (
    "the threshold that meets it on held-out text is found, stored beside the checkpoint (budgets.json), and "
    "reported with what it really spends"
)

MaxSteps = Annotated[
    int | None,
    typer.Option(
        min=0,
        metavar="K",
        help="Tokens take at most K steps. More than in training is possible for loop, pause, ponderlm and "
        "ponderlm2, which then repeat what they do in every step.",
        show_default=False,
    ),
]
Threshold = Annotated[
    float | None,
    typer.Option(
        min=0.0,
        metavar="TAU",
        help="Tokens halt below this tail mass or gate value; default: the run's.",
        show_default=False,
    ),
]
BudgetOption = Annotated[
    str | None,
    typer.Option(
        "--budget",
        metavar="X",
        help=f"Mean steps per token (1.5), or a share of the operations of all steps (60%): {BUDGET_HELP}.",
        show_default=False,
    ),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitOptions:
    """The options as they were given.

    Attributes:
        max_steps, threshold: of the command line.
        budget: read.
    """

    max_steps: int | None
    threshold: float | None
    budget: "Budget | None"

    @classmethod
    def read(cls, *, max_steps: int | None, threshold: float | None, budget: str | None) -> "LimitOptions":
        """Read the options.

        Raises:
            typer.BadParameter: the budget is none, or a threshold is given too.
        """
        if budget is not None and threshold is not None:
            raise typer.BadParameter("gives the threshold; remove one of the two", param_hint="--budget")
        parsed = None if budget is None else parse_budget(budget)
        return cls(max_steps=max_steps, threshold=threshold, budget=parsed)

    @property
    def are_given(self) -> bool:
        """Whether anything is limited."""
        return (self.max_steps, self.threshold, self.budget) != (None, None, None)

    def limits(
        self, opened: "OpenedCheckpoint", *, num_samples: int
    ) -> "tuple[StepLimits, MetBudget | None]":
        """Return the limits for a model, and how its budget was met; all ranks call it together.

        Args:
            opened: the model.
            num_samples: held-out rows that the threshold of a budget is searched on, to a global batch.
        Raises:
            typer.BadParameter: the model cannot run under these limits.
        """
        own = opened.module.ponder.config
        # A budget is met by a threshold, so it asks of the method what a threshold does.
        threshold = 0.0 if self.budget is not None else self.threshold
        of_threshold = "--threshold" if self.budget is None else "--budget"
        for part, option in (
            (StepLimits(num_steps=self.max_steps), "--max-steps"),
            (StepLimits(threshold=threshold), of_threshold),
        ):
            problem = part.problem(own)
            if problem is not None:
                raise typer.BadParameter(problem, param_hint=option)
        limits = StepLimits(num_steps=self.max_steps, threshold=self.threshold)
        if self.max_steps is not None and self.max_steps > own.num_latent_thoughts:
            logger.warning(
                "%d steps per token instead of the %d of training: the further ones do what every step does, "
                "which the model was not trained for",
                self.max_steps,
                own.num_latent_thoughts,
            )
        if self.budget is None:
            return limits, None
        from pipeline.evaluation.stored_budgets import met_budget
        from pipeline.evaluation.under_limits import HeldoutText

        num_batches = -(-num_samples // opened.config.training.global_batch_size)
        met = met_budget(HeldoutText(opened, num_batches), self.budget, limits)
        return met.limits, met


def parse_budget(text: str) -> "Budget":
    """Read a budget.

    Raises:
        typer.BadParameter: it is none.
    """
    from pipeline.evaluation.budget import Budget

    try:
        return Budget.parse(text)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--budget") from error


def spent_line(met: "MetBudget") -> str:
    """Describe how a budget was met."""
    return (
        f"budget {met.budget}: threshold {met.threshold:.6g} spends {met.mean_steps:.3f} steps per token, "
        f"{met.flops_share:.1%} of the operations of all steps, on held-out text"
    )

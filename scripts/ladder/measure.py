"""The commands that measure the runs of a ladder under limits on their steps, all at the same ones."""

import json
from pathlib import Path

from pipeline.evaluation.compare.curve import CURVE_FILE, load_curve
from pipeline.evaluation.results import LIMITED_EVALUATION_FILE, load_evaluation
from scripts.ladder.run import RESULT_FILE

# Shares of the inference FLOPs of all steps.
BUDGETS = ("70%", "80%", "90%")
# The one at which the steps of easy and of hard tokens are compared.
STEPS_BUDGET = "80%"
# As in the schema, for runs that do not set one.
DEFAULT_THRESHOLD = 1e-4


def compare_words(run: Path) -> list[str] | None:
    """Return the command that measures the loss within budgets; None where tokens take no steps."""
    settings = json.loads((run / RESULT_FILE).read_text(encoding="utf-8"))["settings"]
    if not settings.get("ponder.num_latent_thoughts", 0):
        return None
    # Without a threshold `compare` evaluates at eight of them.
    threshold = f"{settings.get('ponder.pruning_threshold', DEFAULT_THRESHOLD):g}"
    budgets = [word for budget in BUDGETS for word in ("--budget", budget)]
    output = ("--output", str(run / "compare.png"))
    return ["compare", str(run), "--threshold", threshold, *budgets, "--no-timing", *output]


def steps_words(run: Path) -> list[str] | None:
    """Return the command that measures the steps of easy and hard tokens at one budget.

    None where tokens cannot halt, or where that has been measured.
    """
    curve = run / CURVE_FILE
    points = load_curve(curve).points if curve.is_file() else ()
    found = [point.pruning_threshold for point in points if point.budget == STEPS_BUDGET]
    if not found or found[0] is None:
        return None
    file = run / LIMITED_EVALUATION_FILE
    if file.is_file() and load_evaluation(file).pruning_threshold == found[0]:
        return None
    return ["eval", str(run), "--threshold", str(found[0]), "--no-timing"]

"""The tasks that the papers on pondering report, by the names they have in lm-evaluation-harness."""

from collections.abc import Sequence

PAPERS_7 = "papers-7"
PAPERS_9 = "papers-9"

# Those with listed results of AdaPonderLM; which seven PonderLM-3 averages over is not verified.
_SEVEN = ("lambada_openai", "arc_easy", "arc_challenge", "winogrande", "piqa", "hellaswag", "race")
_NINE = (
    "lambada_openai",
    "lambada_standard",
    "arc_easy",
    "arc_challenge",
    "winogrande",
    "piqa",
    "hellaswag",
    "sciq",
    "race",
)
TASK_GROUPS = {PAPERS_7: _SEVEN, PAPERS_9: _NINE}


def expand_task_names(names: Sequence[str]) -> tuple[str, ...]:
    """Put the tasks of a group in its place; each task comes once, where it is named first."""
    return tuple(dict.fromkeys(task for name in names for task in TASK_GROUPS.get(name, (name,))))

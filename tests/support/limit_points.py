"""The loss of a tiny model at every number of steps and some thresholds, on any layout."""

from megatron_ext.parallel.groups import ParallelGroups, destroy_groups, initialize_groups
from pipeline.cost.account import flops_account
from pipeline.evaluation.points import LimitSettings, points_under_limits
from pipeline.metrics.records import LossPoint
from pipeline.step.evaluate import evaluate
from tests.support.layout_steps import built_model, own_batches
from tests.support.layouts import LARGEST_J, MODELS, VOCAB_SIZE, Layout

TAUS = (1e-6, 0.2, 0.9)


def limit_points(model: str, layout: Layout) -> tuple[LossPoint, ...]:
    """Evaluate under limits one of the models of the layouts' matrix; all ranks of the layout call it."""
    groups = initialize_groups(tensor=layout.tensor, pipeline=layout.pipeline)
    try:
        return limit_points_on(groups, model, layout)
    finally:
        destroy_groups()


def limit_points_on(groups: ParallelGroups, model: str, layout: Layout) -> tuple[LossPoint, ...]:
    """Evaluate a model under limits on an initialized layout."""
    config = MODELS[model].config(layout)
    module, _ = built_model(config, groups)
    batches = [own_batches(groups)]
    unlimited = evaluate(module, batches, num_jacobi_iterations=LARGEST_J, groups=groups)
    assert unlimited is not None
    taus = TAUS if config.ponder.method.halts else ()
    points = points_under_limits(
        module,
        batches,
        LimitSettings(over_steps=True, taus=taus, num_jacobi_iterations=LARGEST_J),
        groups=groups,
        flops=flops_account(config, VOCAB_SIZE),
        unlimited=unlimited,
    )
    assert points is not None
    return points

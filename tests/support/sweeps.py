"""Threshold sweeps of a tiny model on any layout."""

from megatron_ext.parallel.groups import ParallelGroups, destroy_groups, initialize_groups
from pipeline.cost.account import flops_account
from pipeline.evaluation.points import SweepSettings, sweep
from pipeline.metrics.records import SweepPoint
from pipeline.step.evaluate import evaluate
from tests.support.layout_steps import built_model, own_batches
from tests.support.layouts import LARGEST_J, MODELS, VOCAB_SIZE, Layout

TAUS = (1e-6, 0.2, 0.9)


def swept(model: str, layout: Layout) -> tuple[SweepPoint, ...]:
    """Sweep a model of the matrix of layouts; all ranks of the layout must call it."""
    groups = initialize_groups(tensor=layout.tensor, pipeline=layout.pipeline)
    try:
        return swept_on(groups, model, layout)
    finally:
        destroy_groups()


def swept_on(groups: ParallelGroups, model: str, layout: Layout) -> tuple[SweepPoint, ...]:
    """Sweep a model on an initialized layout."""
    config = MODELS[model].config(layout)
    module, _ = built_model(config, groups)
    batches = [own_batches(groups)]
    whole = evaluate(module, batches, num_jacobi_iterations=LARGEST_J, groups=groups)
    assert whole is not None
    taus = TAUS if config.ponder.method.halts else ()
    points = sweep(
        module,
        batches,
        SweepSettings(over_steps=True, taus=taus, num_jacobi_iterations=LARGEST_J),
        groups=groups,
        flops=flops_account(config, VOCAB_SIZE),
        whole=whole,
    )
    assert points is not None
    return points

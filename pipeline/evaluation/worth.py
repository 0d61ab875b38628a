"""What the steps of a model that halts are worth: loss and cost with all of them, with fewer, with none."""

from dataclasses import replace

from megatron_ext.ponder.step_limits import StepLimits
from pipeline.evaluation.timing import decoding_speeds
from pipeline.evaluation.under_limits import HeldoutText
from pipeline.metrics.records import LossPoint


def worth_of_steps(text: HeldoutText, *, timing: bool) -> tuple[LossPoint, ...]:
    """Evaluate with all steps, with those above the threshold, and with none; all ranks call it together.

    Args:
        text: a checkpoint and its held-out text.
        timing: also measure the time of decoding.
    Returns:
        Three points in this order; none for a method that does not halt.
    """
    ponder = text.opened.config.ponder
    if not ponder.method.halts or ponder.num_latent_thoughts == 0:
        return ()
    ways = (
        StepLimits(threshold=0.0),
        StepLimits(threshold=ponder.pruning_threshold),
        StepLimits(num_steps=0),
    )
    points = tuple(text.point(text.evaluate(limits)) for limits in ways)
    if not timing:
        return points
    speeds = decoding_speeds(text.opened, ways)
    return tuple(replace(point, speeds=of_point) for point, of_point in zip(points, speeds, strict=True))

"""A made-up run for the tests of the report."""

import math
from dataclasses import replace

from pipeline.evaluation.results import EvaluationResult, LossQuartile, SampleToken, TextSample
from pipeline.evaluation.tasks import TaskReport, TaskScore
from pipeline.metrics.records import DecodingSpeed, LossPoint
from pipeline.report.data import Command, ReportData

SOURCE = (
    "def parse(text: str) -> list[str]:\n"
    '    """Split <text> & strip."""\n'
    '    return [part.strip() for part in text.split(",")]\n'
)


def made_up_sample() -> TextSample:
    pieces = [SOURCE[start : start + 4] for start in range(0, len(SOURCE), 4)]
    tokens = tuple(
        SampleToken(
            piece=piece,
            steps=(index * index + 1) % 4,
            nll=None if index == 0 else 0.1 + (index % 7) / 2,
            is_prompt=index < 9,
        )
        for index, piece in enumerate(pieces)
    )
    return TextSample(
        checkpoint="runs/demo/checkpoints/iter_0000400",
        num_latent_thoughts=3,
        pruning_threshold=1e-4,
        tokens_per_second=120.0,
        tokens=tokens,
    )


def made_up_report() -> ReportData:
    iterations = [float(at) for at in range(10, 401, 10)]
    quartiles = [(0.0, 0.4, 0.1, 0.9), (0.4, 1.9, 1.1, 1.4), (1.9, 4.2, 3.0, 2.1), (4.2, 14.0, 6.6, 2.6)]
    return ReportData(
        name="demo",
        method="ponderlm3",
        facts=(("parameters", "1,234,567 unique"), ("layout", "tensor 2 x data 1 on 2 ranks")),
        training_curve=tuple((at, 3.1 + 4.4 * math.exp(-at / 90) + 0.08 * math.sin(at)) for at in iterations),
        heldout_curve=tuple((at, 3.2 + 4.4 * math.exp(-at / 90)) for at in iterations[9::10]),
        heldout_loss=3.2517,
        heldout_tokens=40_960,
        unigram_entropy=5.9031,
        num_latent_thoughts=3,
        pruning_threshold=1e-4,
        steps_count=(4_000, 9_000, 16_000, 11_960),
        mean_steps_curve=tuple((at, 1.9 + 1.1 * math.exp(-at / 120)) for at in iterations),
        pruned_curves=tuple(
            tuple((at, share * (1 - math.exp(-at / 120))) for at in iterations) for share in (0.1, 0.33, 0.72)
        ),
        nll_by_steps=(0.62, 1.8, 3.4, 5.2),
        loss_quartiles=tuple(
            LossQuartile(lowest_nll=low, highest_nll=high, mean_nll=mean, mean_steps=steps, num_tokens=10_240)
            for low, high, mean, steps in quartiles
        ),
        residuals=(0.21, 0.084),
        steps_allowed=((0.0, 3.61), (1.0, 3.4), (2.0, 3.3), (3.0, 3.2517)),
        flops_per_token_train=71_300_000.0,
        flops_per_token_infer=6_900_000.0,
        flops_saved=0.2731,
        training_tokens_per_second=5_321.4,
        samples=(made_up_sample(),),
        commands=(
            Command(purpose="Watch every curve", line="tensorboard --logdir runs/demo/tensorboard"),
            Command(
                purpose="Generate text", line="megaponder generate runs/demo/checkpoints --prompt 'import os'"
            ),
        ),
        config_yaml="name: demo\nmodel:\n  num_layers: 4\n",
        checkpoint="runs/demo/checkpoints/iter_0000400",
        worth=made_up_worth(),
        speeds=(_speed(1, 0.9), _speed(8, None)),
        training_by_tokens=tuple((1000 * at, 3.1 + 4.4 * math.exp(-at / 90)) for at in iterations),
        heldout_by_tokens=tuple((1000 * at, 3.2 + 4.4 * math.exp(-at / 90)) for at in iterations[9::10]),
        learning_rate_curve=tuple((at, 1e-3 * min(at / 100, 1)) for at in iterations),
        grad_norm_curve=tuple((at, 4 * math.exp(-at / 100)) for at in iterations),
        tasks=made_up_tasks(),
    )


def few_figures() -> ReportData:
    """Return the same with only those figures that every run has: drawing takes time."""
    return replace(
        made_up_report(),
        mean_steps_curve=(),
        pruned_curves=(),
        nll_by_steps=(),
        loss_quartiles=(),
        residuals=(),
        steps_allowed=(),
        steps_count=(),
        learning_rate_curve=(),
        grad_norm_curve=(),
    )


def made_up_worth() -> tuple[LossPoint, ...]:
    """All three steps, those above the threshold, and none."""
    points = (
        (None, 0.0, 3.25, 3.0, 9e6, 4.0),
        (None, 1e-4, 3.26, 1.8, 6.9e6, 3.0),
        (0, None, 3.61, 0.0, 3e6, 1.6),
    )
    return tuple(
        LossPoint(
            step_limit=limit,
            pruning_threshold=tau,
            loss=loss,
            mean_steps=steps,
            flops_per_token=flops,
            speeds=(_speed(1, None, milliseconds=milliseconds),),
        )
        for limit, tau, loss, steps, flops, milliseconds in points
    )


def made_up_tasks() -> TaskReport:
    return TaskReport(
        checkpoint="runs/demo/checkpoints/iter_0000400",
        iteration=400,
        method="ponderlm3",
        num_latent_thoughts=3,
        pruning_threshold=1e-4,
        limit=None,
        tasks=(
            TaskScore(
                task="piqa",
                version="1.0",
                num_fewshot=0,
                num_samples=100,
                metrics={"acc,none": 0.5625, "acc_norm,none": 0.5875},
                standard_errors={"acc,none": 0.0125},
                mean_steps=1.625,
                num_tokens=4_000,
                flops_per_token=6e6,
                flops=2.4e10,
            ),
        ),
        groups={},
    )


def made_up_evaluation() -> EvaluationResult:
    report = made_up_report()
    return EvaluationResult(
        checkpoint=report.checkpoint,
        iteration=400,
        split="heldout",
        method="ponderlm3",
        num_latent_thoughts=3,
        num_jacobi_iterations=2,
        pruning_threshold=1e-4,
        num_tokens=report.heldout_tokens,
        loss=report.heldout_loss,
        unigram_entropy=report.unigram_entropy,
        steps_count=(100, 100, 100, 100),
        nll_by_steps=(1.0, 2.0, None, 4.0),
        loss_quartiles=report.loss_quartiles,
        residuals=report.residuals,
        tokens_per_second=2_000.0,
        speeds=(_speed(1, 0.9), _speed(8, None)),
        worth=made_up_worth(),
    )


def _speed(batch_size: int, gain_reached: float | None, *, milliseconds: float = 2.5) -> DecodingSpeed:
    return DecodingSpeed(
        batch_size=batch_size,
        milliseconds_per_token=milliseconds,
        tokens_per_second=400.0 * batch_size,
        mean_steps=1.5,
        flops_per_token=1e6,
        gain_reached=gain_reached,
    )

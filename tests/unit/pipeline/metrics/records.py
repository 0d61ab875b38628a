"""Records for the tests of the sinks."""

import dataclasses
import math
from typing import Any

from pipeline.cost.shape import ModelShape
from pipeline.metrics.records import LossPoint, TrainingRecord, ValidationRecord

# A model of a few numbers, for costs that can be checked by hand.
SHAPE = ModelShape(
    architecture="llama",
    num_layers=2,
    hidden_size=8,
    ffn_hidden_size=16,
    num_attention_heads=2,
    num_query_groups=2,
    kv_channels=4,
    vocab_size=30,
    padded_vocab_size=32,
    seq_length=16,
)


def training_record(**changes: Any) -> TrainingRecord:
    record = TrainingRecord(
        iteration=20,
        total_iterations=400,
        consumed_samples=320,
        elapsed_seconds=0.5125,
        tokens_per_second=1998.04878,
        learning_rate=1e-3,
        global_batch_size=16,
        world_size=2,
        loss=5.25,
        tflops_per_device=0.14,
        grad_norm=1.2345,
        scalars={"ponder/mean-steps": 1.75, "ponder/halt-fraction/step_0": 0.25},
        steps_count=[2.0, 1.0, 0.0, 5.0],
    )
    return dataclasses.replace(record, **changes)


def validation_record(**changes: Any) -> ValidationRecord:
    record = ValidationRecord(
        iteration=20,
        consumed_samples=320,
        loss=4.0,
        scalars={"ponder/mean-steps": 1.5},
        steps_count=[1.0, 1.0, 1.0, 1.0],
        sweep=[
            LossPoint(step_limit=0, loss=5.0, mean_steps=0.0, flops_per_token=10.0),
            LossPoint(step_limit=1, loss=math.nan, mean_steps=1.0, flops_per_token=20.0),
            LossPoint(pruning_threshold=1e-4, loss=4.5, mean_steps=1.25, flops_per_token=30.0),
        ],
    )
    return dataclasses.replace(record, **changes)

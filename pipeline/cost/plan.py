"""The run plan: memory of the fullest rank, operations, speed and duration."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.config.schema import RunConfig
from pipeline.cost import muon
from pipeline.cost.account import mean_step
from pipeline.cost.flops import TrainingFlops
from pipeline.cost.memory import RankMemory, rank_memories
from pipeline.cost.peaks import Device
from pipeline.cost.rank_sizes import rank_sizes
from pipeline.cost.roofline import StepTime, step_time
from pipeline.cost.traffic import RankTraffic, rank_traffic

SECONDS_PER_DAY = 86_400


@dataclass(frozen=True, slots=True, kw_only=True)
class Assumptions:
    """What a run plan assumes.

    Attributes:
        device: of every rank.
        reserve_bytes: memory of a device that tensors cannot have: the CUDA context, communication
            libraries, workspaces of kernels, and what the allocator loses to fragments.
        mfu: model FLOPs utilisation: operations of the model, recomputation not counted, over the device's
            dense peak; None: that of the roofline.
        mean_steps: extra steps that a token takes at inference, where tokens halt; None: unknown.
    """

    device: Device
    reserve_bytes: float
    mfu: float | None = None
    mean_steps: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """A better setting for a device, although the run would work.

    Attributes:
        reason: for people.
        override: for the command line.
    """

    reason: str
    override: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPlan:
    """What a run needs and how long it takes.

    Attributes:
        name: of the run.
        layout: its parallel layout.
        num_ranks: one device each.
        micro_batch_size, num_micro_batches: of a rank.
        recompute: what backward computes again.
        num_passes: mean passes of a training forward.
        rows_per_token, gradient_rows_per_token: over all passes, and over those that run backward too.
        assumptions: see there.
        stages: a rank of each pipeline stage.
        traffic: what a rank receives in an iteration.
        training_flops: per token.
        update_flops: of Muon's Newton-Schulz iterations in a step, on the device with most; 0 with AdamW.
        inference_flops: per token at the fewest and the most steps, and at the assumed mean.
        tokens: of the whole run.
        mfu: assumed, or by the roofline; None where neither is known.
        step_time: by the roofline; None where the utilisation is assumed, or the device's speed unknown.
        tokens_per_second: over all ranks; None where no peak is known.
    """

    name: str
    layout: str
    num_ranks: int
    micro_batch_size: int
    num_micro_batches: int
    recompute: str
    num_passes: float
    rows_per_token: float
    gradient_rows_per_token: float
    assumptions: Assumptions
    stages: tuple[RankMemory, ...]
    traffic: RankTraffic
    training_flops: TrainingFlops
    update_flops: float
    inference_flops: tuple[float, float]
    expected_inference_flops: float | None
    tokens: int
    mfu: float | None
    step_time: StepTime | None
    tokens_per_second: float | None

    @property
    def fullest(self) -> RankMemory:
        """A rank of the stage that needs most memory."""
        return max(self.stages, key=lambda stage: stage.peak)

    @property
    def needed_bytes(self) -> float:
        """Bytes that the fullest rank needs, reserve included."""
        return self.fullest.peak + self.assumptions.reserve_bytes

    @property
    def fits(self) -> bool:
        """Whether every rank has enough memory."""
        return self.needed_bytes <= self.assumptions.device.memory_bytes

    @property
    def hfu(self) -> float | None:
        """Hardware FLOPs utilisation at that MFU: recomputation included."""
        if self.mfu is None:
            return None
        return self.mfu * self.training_flops.hardware / self.training_flops.model

    @property
    def days(self) -> float | None:
        """Duration of the run, where its speed is known."""
        speed = self.tokens_per_second
        return None if speed is None else self.tokens / speed / SECONDS_PER_DAY


def plan_run(config: RunConfig, vocab_size: int, assumptions: Assumptions) -> RunPlan:
    """Plan a run.

    Args:
        config: the run.
        vocab_size: the tokenizer's, without padding.
        assumptions: device, utilisation and reserve.
    """
    time = None if assumptions.mfu is not None else step_time(config, vocab_size, assumptions.device)
    sizes = rank_sizes(config, vocab_size, has_fused_norms=not assumptions.device.is_cpu)
    account, parallel = sizes.account, config.parallel
    step = mean_step(config, account)
    training = step.flops
    update_flops = muon.update_flops(sizes) if sizes.num_ns_steps else 0.0
    least = 0 if account.halts else account.num_latent_thoughts
    mean_steps = assumptions.mean_steps
    return RunPlan(
        name=config.name,
        layout=parallel.sizes + (", sequence parallel" if parallel.sequence_parallel else ""),
        num_ranks=parallel.world_size,
        micro_batch_size=config.training.micro_batch_size,
        num_micro_batches=config.num_micro_batches,
        recompute=parallel.recompute,
        num_passes=step.num_passes,
        rows_per_token=step.rows_per_token,
        gradient_rows_per_token=step.gradient_rows_per_token,
        assumptions=assumptions,
        stages=rank_memories(sizes),
        traffic=rank_traffic(sizes),
        training_flops=training,
        update_flops=update_flops,
        inference_flops=(
            account.inference_per_token(least),
            account.inference_per_token(account.num_latent_thoughts),
        ),
        expected_inference_flops=None if mean_steps is None else account.inference_per_token(mean_steps),
        tokens=config.training.train_iters * _tokens_per_step(config),
        mfu=_utilisation(config, assumptions, training.model, time),
        step_time=time,
        tokens_per_second=_tokens_per_second(config, assumptions, training.model, update_flops, time),
    )


def _utilisation(
    config: RunConfig, assumptions: Assumptions, model_flops: float, time: StepTime | None
) -> float | None:
    """Return the assumed utilisation, or that of the roofline."""
    peak = assumptions.device.peak
    if time is None or peak is None:
        return assumptions.mfu
    per_device = _tokens_per_step(config) / config.parallel.world_size
    return per_device * model_flops / time.total / peak.at(config.training.precision)


def _tokens_per_second(
    config: RunConfig,
    assumptions: Assumptions,
    model_flops: float,
    update_flops: float,
    time: StepTime | None,
) -> float | None:
    """Return the speed by the roofline, or at the assumed utilisation, of the update as of the model."""
    peak, mfu = assumptions.device.peak, assumptions.mfu
    tokens = _tokens_per_step(config)
    if time is not None:
        return tokens / time.total
    if peak is None or mfu is None:
        return None
    speed = mfu * peak.at(config.training.precision) * config.parallel.world_size / model_flops
    # Muon computes in bf16.
    return tokens / (tokens / speed + update_flops / (mfu * peak.bfloat16_flops))


def _tokens_per_step(config: RunConfig) -> int:
    return config.training.global_batch_size * config.training.seq_length


def layout_advice(config: RunConfig, device: Device) -> list[Advice]:
    """Return which changes of a parallel layout are advised on a device.

    Sequence parallelism on CPUs: with two gloo ranks a step took 1.48 times that of tensor parallelism alone
    (docs/plan.md), because every layer gathers and scatters rows instead of adding up partial sums.
    """
    if not device.is_cpu or not config.parallel.sequence_parallel:
        return []
    return [
        Advice(
            reason="on CPUs sequence parallelism takes more time than tensor parallelism alone, and spares "
            "memory for activations only",
            override="parallel.sequence_parallel=false",
        )
    ]


def plan_values(plan: RunPlan) -> Mapping[str, Any]:
    """Return a run plan as plain values for JSON: bytes as whole numbers, one entry per pipeline stage."""
    return {
        "name": plan.name,
        "layout": plan.layout,
        "ranks": plan.num_ranks,
        "micro_batch_size": plan.micro_batch_size,
        "num_micro_batches": plan.num_micro_batches,
        "recompute": plan.recompute,
        "passes": plan.num_passes,
        "rows_per_token": plan.rows_per_token,
        "gradient_rows_per_token": plan.gradient_rows_per_token,
        "device": plan.assumptions.device.name,
        "device_bytes": plan.assumptions.device.memory_bytes,
        "reserve_bytes": round(plan.assumptions.reserve_bytes),
        "needed_bytes": round(plan.needed_bytes),
        "fits": plan.fits,
        "received_bytes_per_iteration": {
            axis: round(getattr(plan.traffic, axis)) for axis in ("tensor", "context", "pipeline", "data")
        },
        "stages": [stage_values(stage) for stage in plan.stages],
        "training_flops_per_token": plan.training_flops.model,
        "recomputed_flops_per_token": plan.training_flops.recompute,
        "update_flops": plan.update_flops,
        "inference_flops_per_token": list(plan.inference_flops),
        "expected_inference_flops_per_token": plan.expected_inference_flops,
        "mfu": plan.mfu,
        "hfu": plan.hfu,
        "mfu_is_assumed": plan.step_time is None,
        "step_seconds": None if plan.step_time is None else dict(plan.step_time.parts),
        "tokens": plan.tokens,
        "tokens_per_second": plan.tokens_per_second,
        "days": plan.days,
    }


def stage_values(memory: RankMemory) -> Mapping[str, Any]:
    """Return the memory of a rank as plain values."""
    state, fullest = memory.state, memory.fullest
    return {
        "stage": memory.stage,
        "weights_bytes": round(state.weights),
        "gradients_bytes": round(state.gradients),
        "main_weights_bytes": round(state.main_weights),
        "moments_bytes": round(state.moments),
        "fullest_moment": fullest.name,
        "activations_bytes_by_pass": [round(value) for value in fullest.by_pass],
        "logits_and_mixtures_bytes": round(fullest.vocabulary),
        "layer_under_way_bytes": round(fullest.working),
        "gradient_sums_bytes": round(fullest.gradient_sums),
        "communication_bytes": round(fullest.communication),
        "peak_bytes": round(memory.peak),
    }

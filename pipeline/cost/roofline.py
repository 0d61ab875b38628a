"""How long a training step takes, from what a device can do: a roofline with the rates that kernels reach.

Each part of the work takes its operations over the rate of its kernels, or its bytes over the bandwidth; parts
of one pass add up, because kernels run one after another. Launching kernels is work of the host: where it takes
longer than what it launches, the device waits. Communication is taken not to overlap with anything.

Rates are shares of the data sheet. Those of kernels and of the host were measured on one H200 (docs/results.md,
"One NVIDIA H200") and are taken to be the same on other devices; those of communication were not measured.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace

from pipeline.config.schema import RunConfig
from pipeline.cost import muon
from pipeline.cost.account import step_kinds
from pipeline.cost.activations import mixture_rows
from pipeline.cost.parameters import rank_parameters
from pipeline.cost.peaks import Bandwidth, DensePeak, Device
from pipeline.cost.rank_sizes import FLOAT32, RankSizes, rank_sizes
from pipeline.cost.traffic import context_bytes, pipeline_bytes, rank_traffic, tensor_bytes
from pipeline.cost.work import MEASURED, Phase, ProgramWork, weighs_keys

# Products of a 410M step: 165 TFLOP in 216 ms, of 989 TFLOP/s. A product of size 8,192 reaches 0.81.
PRODUCTS_SHARE = 0.77
# Kernels of layers that only read and write, mostly strided and short: 590 GB of a 410M step in 380 ms.
LAYER_MEMORY_SHARE = 0.33
# Copies of large tensors: 4.24 of 4.8 TB/s. Logits, mixtures, gradients of weights, and the update are such.
LARGE_MEMORY_SHARE = 0.88
# Bytes of a collective of some MiB over what a link carries; not measured.
LINK_SHARE = 0.8
# Of the host, to launch a kernel; steps of 4,823 and 36,703 kernels took 37 and 38 us for each.
HOST_SECONDS_PER_LAUNCH = 36e-6
# Ranks on one machine, whose links are fast.
DEVICES_PER_MACHINE = 8
# Channels of a head as the kernel takes them -> TFLOP/s forward and backward on the H200: 16 heads, 8,192 rows,
# causal, bf16; five products in backward for two in forward.
_ATTENTION_TFLOPS: Mapping[str, Mapping[int, tuple[float, float]]] = {
    "flash": {64: (242, 230), 72: (193, 159), 80: (212, 178), 88: (229, 192), 128: (284, 266), 136: (176, 166)},
    "cudnn": {64: (394, 381), 72: (324, 273), 80: (361, 323), 88: (384, 329), 128: (569, 505), 136: (427, 246)},
}
_H200_TFLOPS = 989.4
# On other chips: the lower end of what FlashAttention-2 reaches on an A100 (Dao, 2023: 50 to 73 % of the peak).
_OTHER_ATTENTION_SHARE = 0.5
_ATTENTION_BACKWARD = 2.5


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTime:
    """Seconds of a training step on the slowest rank, by what they are spent on.

    Attributes:
        products: matrix products of the layers.
        attention: its kernels.
        elementwise: all else that layers do, and sums of weight gradients.
        vocabulary: head, loss and mixtures.
        decider: router or gates.
        launches: the device waits for the host.
        exchange: tensor, context and pipeline axes.
        bubble: stages wait for each other.
        update: the optimizer, and gradients and weights on the data axis.
    """

    products: float = 0.0
    attention: float = 0.0
    elementwise: float = 0.0
    vocabulary: float = 0.0
    decider: float = 0.0
    launches: float = 0.0
    exchange: float = 0.0
    bubble: float = 0.0
    update: float = 0.0

    @property
    def total(self) -> float:
        """Seconds of the step."""
        return sum(self.parts.values())

    @property
    def parts(self) -> dict[str, float]:
        """Seconds by name."""
        return {each.name: getattr(self, each.name) for each in fields(self)}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """Where a step runs: the device, and the kernel that computes attention."""

    peak: DensePeak
    bandwidth: Bandwidth
    is_hopper: bool
    kernel: str


@dataclass(slots=True, kw_only=True)
class _Device:
    """What a device has done of a micro-batch, and when; the host runs ahead of it.

    Attributes:
        seconds: by part of :class:`StepTime`.
        now, host: when the device and the host are done with all so far.
    """

    seconds: dict[str, float]
    now: float = 0.0
    host: float = 0.0

    def run(self, launch_seconds: float, **parts: float) -> None:
        """Do some work: what it takes on the device by part, and to launch it."""
        self.host += launch_seconds
        ready = self.now + sum(parts.values())
        end = max(ready, self.host)
        for name, seconds in (parts | {"launches": end - ready}).items():
            self.seconds[name] += seconds
        self.now = end


def step_time(
    config: RunConfig,
    vocab_size: int,
    device: Device,
    *,
    program: ProgramWork = MEASURED,
) -> StepTime | None:
    """Estimate a training step, mean over all K and J of the run.

    Args:
        config: the run.
        vocab_size: the tokenizer's, without padding.
        device: of every rank.
        program: what it does beside products and attention.
    Returns:
        None for a device whose speed is unknown.
    """
    if device.peak is None or device.bandwidth is None:
        return None
    kernel = "cudnn" if config.training.attention == "cudnn" else "flash"
    place = _Place(peak=device.peak, bandwidth=device.bandwidth, is_hopper=device.is_hopper, kernel=kernel)
    sizes = rank_sizes(config, vocab_size)
    total: dict[str, float] = {}
    for share, kind in _kinds(config, sizes):
        for name, seconds in _step(kind, place, program).parts.items():
            total[name] = total.get(name, 0.0) + share * seconds
    return StepTime(**total)


def _kinds(config: RunConfig, sizes: RankSizes) -> Iterator[tuple[float, RankSizes]]:
    """Yield the kinds of steps of a run with their shares; a mean J is shared out over whole ones."""
    for kind in step_kinds(config):
        account = sizes.account.limited_to(kind.num_latent_thoughts)
        low = int(kind.num_jacobi_iterations)
        part = kind.num_jacobi_iterations - low
        for sweeps, share in ((low, 1 - part), (low + 1, part)):
            if share > 0:
                yield kind.share * share, replace(sizes, account=account, plan=account.plan(sweeps))


def _step(sizes: RankSizes, place: _Place, program: ProgramWork) -> StepTime:
    stages = range(sizes.num_stages)
    done = max((_micro_batch(sizes, stage, place, program) for stage in stages), key=lambda each: each.now)
    seconds = {name: sizes.num_micro_batches * each for name, each in done.seconds.items()}
    num_schedules = 1 if sizes.plan.first_with_gradient == 0 else 2
    seconds["bubble"] = (sizes.num_stages - 1) * done.now * num_schedules / sizes.num_passes
    seconds["update"] = max(_update(sizes, stage, place, program) for stage in stages)
    return StepTime(**seconds)


def _micro_batch(sizes: RankSizes, stage: int, place: _Place, program: ProgramWork) -> _Device:
    """One micro-batch through all passes of a stage: forward, readout, backward."""
    device = _Device(seconds={each.name: 0.0 for each in fields(StepTime)})
    is_last = stage == sizes.num_stages - 1
    passes = range(sizes.num_passes)
    for index in passes:
        _run_layers(device, sizes, index, stage, "forward", place, program)
        if is_last:
            _run_end(device, sizes, index, "forward", place, program)
    for index in reversed(passes):
        if sizes.plan.has_gradient(index):
            if is_last:
                _run_end(device, sizes, index, "backward", place, program)
            if sizes.recomputes_layers:
                _run_layers(device, sizes, index, stage, "forward", place, program)
            _run_layers(device, sizes, index, stage, "backward", place, program)
    num_layers = sizes.stage_layers[stage]
    device.run(
        0.0,
        elementwise=_weight_gradients(sizes, stage, place),
        exchange=sum(_exchange(sizes, index, num_layers, place) for index in passes),
    )
    return device


def _run_layers(
    device: _Device,
    sizes: RankSizes,
    index: int,
    stage: int,
    phase: Phase,
    place: _Place,
    program: ProgramWork,
) -> None:
    """One pass through the layers of a stage, forward or backward."""
    account, plan, num_layers = sizes.account, sizes.plan, sizes.stage_layers[stage]
    share = sizes.tokens / sizes.tensor * num_layers / sizes.shape.num_layers
    runs = 2 if phase == "backward" else 1
    moved = num_layers * program.layer_bytes(sizes, index, phase)
    pairs = account.attention_flops(index, plan) + account.column_flops(index, plan)
    device.run(
        num_layers * program.layer_launches(sizes, index, phase) * HOST_SECONDS_PER_LAUNCH,
        products=runs * share * account.product_flops(index, plan) / _products_rate(sizes, place),
        attention=share * pairs * _attention_seconds_per_flop(sizes, index, phase, place),
        elementwise=moved / (LAYER_MEMORY_SHARE * place.bandwidth.memory),
    )


def _products_rate(sizes: RankSizes, place: _Place) -> float:
    return PRODUCTS_SHARE * place.peak.at("fp32" if sizes.value_bytes == FLOAT32 else "bf16")


def _attention_seconds_per_flop(sizes: RankSizes, index: int, phase: Phase, place: _Place) -> float:
    """Seconds per operation of forward; the kernels make five products in backward for two in forward."""
    more = _ATTENTION_BACKWARD if phase == "backward" else 1.0
    if sizes.value_bytes == FLOAT32:
        return more / (_OTHER_ATTENTION_SHARE * place.peak.float32_flops)
    if not place.is_hopper:
        return more / (_OTHER_ATTENTION_SHARE * place.peak.bfloat16_flops)
    tflops = _measured_tflops(place.kernel, _head_size(sizes, index))[phase == "backward"]
    return more / (tflops / _H200_TFLOPS * place.peak.bfloat16_flops)


def _head_size(sizes: RankSizes, index: int) -> int:
    """Channels that the kernel gets."""
    if sizes.facts.sees_earlier_steps and index > 0:
        return sizes.shape.weighted_head_size("fp32")
    return sizes.weighted_head_size if weighs_keys(sizes, index) else sizes.shape.kv_channels


def _measured_tflops(kernel: str, size: int) -> tuple[float, float]:
    """Between measured sizes, the next larger one, as kernels pad; smaller ones leave channels unused."""
    measured = _ATTENTION_TFLOPS[kernel]
    nearest = min((each for each in measured if each >= size), default=max(measured))
    forward, backward = measured[nearest]
    used = min(size / nearest, 1.0)
    return used * forward, used * backward


def _exchange(sizes: RankSizes, index: int, num_layers: int, place: _Place) -> float:
    """Seconds in which layers receive from other ranks, in one pass of one micro-batch."""
    own, of_machine = place.bandwidth, DEVICES_PER_MACHINE
    among = sizes.tensor * sizes.context
    seconds = 0.0
    if sizes.tensor > 1:
        seconds += num_layers * tensor_bytes(sizes, index) / own.link
    if sizes.context > 1:
        seconds += num_layers * context_bytes(sizes, index) / (own.link if among <= of_machine else own.network)
    if sizes.num_stages > 1:
        num_ranks = sizes.tensor * sizes.data * sizes.num_stages
        bandwidth = own.link if num_ranks <= of_machine else own.network
        seconds += pipeline_bytes(sizes, index) / bandwidth
    return seconds / LINK_SHARE


def _run_end(
    device: _Device, sizes: RankSizes, index: int, phase: Phase, place: _Place, program: ProgramWork
) -> None:
    """What the last stage does after the layers of a pass: mixtures, router or gates, head and loss."""
    account, plan = sizes.account, sizes.plan
    runs = 2 if phase == "backward" else 1
    rows = plan.rows_handed(index) * sizes.tokens
    flops = runs * rows * account.flops_of_mixture / sizes.tensor
    moved = program.mixture(phase) * mixture_rows(sizes, index)
    if plan.is_final(index):
        num_readings = 1 + (plan.slots[-1] if sizes.supervises_steps else 0)
        flops += runs * num_readings * sizes.tokens * account.flops_of_head / sizes.tensor
        moved += num_readings * program.loss(phase) * sizes.vocabulary_elements
    elif phase == "forward" and sizes.facts.predicts_each_step:
        flops += sizes.tokens * account.flops_of_head / sizes.tensor
        moved += program.loss(phase) * sizes.vocabulary_elements
    decided = account.flops_of_decider if account.decides_after(index, plan) else 0.0
    device.run(
        program.pass_launches * HOST_SECONDS_PER_LAUNCH,
        vocabulary=flops / _products_rate(sizes, place) + moved / (LARGE_MEMORY_SHARE * place.bandwidth.memory),
        # In float32, whatever the precision of the run.
        decider=runs * sizes.own_tokens * decided / (PRODUCTS_SHARE * place.peak.float32_flops),
    )


def _weight_gradients(sizes: RankSizes, stage: int, place: _Place) -> float:
    """Seconds in which gradients of weights are added up: of all passes, and to the float32 buffer.

    Within one graph autograd adds up those of passes in the weights' own type. Between graphs each is added to
    the buffer.
    """
    number = sizes.num_passes - sizes.plan.first_with_gradient
    is_cut = sizes.recomputes_layers or sizes.num_stages > 1
    to_buffer, to_sum = sizes.value_bytes + 2 * FLOAT32, 3 * sizes.value_bytes
    per_weight = number * to_buffer if is_cut else (number - 1) * to_sum + to_buffer
    weights = rank_parameters(sizes, stage).layers
    return weights * per_weight / (LARGE_MEMORY_SHARE * place.bandwidth.memory)


def _update(sizes: RankSizes, stage: int, place: _Place, program: ProgramWork) -> float:
    """Seconds of the update, and of gradients and weights on the data axis."""
    parameters = rank_parameters(sizes, stage).total
    owned = parameters / (sizes.data if sizes.shares_optimizer else 1)
    moved = program.parameter_bytes * parameters + program.owned_bytes * owned
    launches = program.update_launches * len(muon.rank_weights(sizes, stage))
    seconds = max(
        moved / (LARGE_MEMORY_SHARE * place.bandwidth.memory), launches * HOST_SECONDS_PER_LAUNCH
    )
    if sizes.num_ns_steps:
        seconds += muon.update_flops(sizes) / (PRODUCTS_SHARE * place.peak.bfloat16_flops)
    bandwidth = place.bandwidth
    is_near = sizes.tensor * sizes.data <= DEVICES_PER_MACHINE
    received = rank_traffic(sizes).data
    return seconds + received / (LINK_SHARE * (bandwidth.link if is_near else bandwidth.network))

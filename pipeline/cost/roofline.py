"""How long a training step takes, from what a device can do: a roofline with the rates that kernels reach.

Each part of the work takes its operations over the rate of its kernels, or its bytes over the bandwidth; the
parts of a pass add up, because kernels run one after another. Launching kernels is work of the host: where it
takes longer than what it launches, the device waits. Communication is taken not to overlap with anything.

Rates are shares of the data sheet. Those of kernels and of the host were measured on one H200
(docs/results.md, "One NVIDIA H200") and are taken to be the same on other devices; those of communication
were not measured.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace

from megatron_ext.ponder.parts import parts
from pipeline.config.schema import RunConfig
from pipeline.cost import muon
from pipeline.cost.account import step_kinds
from pipeline.cost.activations import mixture_rows
from pipeline.cost.flops import BACKWARD_PER_FORWARD, Phase
from pipeline.cost.parameters import rank_parameters
from pipeline.cost.peaks import Bandwidth, DensePeak, Device
from pipeline.cost.rank_sizes import FLOAT32, RankSizes, rank_sizes
from pipeline.cost.traffic import context_bytes, pipeline_bytes, rank_traffic, tensor_bytes
from pipeline.cost.work import ProgramWork, program_of, weighs_keys

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
# Channels of a head as the kernel takes them -> TFLOP/s forward and backward on the H200: 16 heads, 8,192
# rows, causal, bf16; five products in backward for two in forward.
_ATTENTION_TFLOPS: Mapping[str, Mapping[int, tuple[float, float]]] = {
    "flash": {
        64: (242, 230),
        72: (193, 159),
        80: (212, 178),
        88: (229, 192),
        128: (284, 266),
        136: (176, 166),
    },
    "cudnn": {
        64: (394, 381),
        72: (324, 273),
        80: (361, 323),
        88: (384, 329),
        128: (569, 505),
        136: (427, 246),
    },
}
_H200_TFLOPS = 989.4
# On other chips: the lower end of what FlashAttention-2 reaches on an A100 (Dao, 2023: 50 to 73 %).
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
    """Where a step runs: the device, the kernel that computes attention, and whether it is in float32."""

    peak: DensePeak
    bandwidth: Bandwidth
    is_hopper: bool
    kernel: str
    is_float32: bool

    def products(self, flops: float) -> float:
        """Return the seconds of matrix products."""
        return flops / (
            PRODUCTS_SHARE * (self.peak.float32_flops if self.is_float32 else self.peak.bfloat16_flops)
        )

    def products_in_float32(self, flops: float) -> float:
        """Return the seconds of products that are in float32, whatever the precision of the run."""
        return flops / (PRODUCTS_SHARE * self.peak.float32_flops)

    def attention(self, flops: float, head_size: int, phase: Phase) -> float:
        """Return the seconds of attention, by the operations of forward and the channels of the kernel."""
        if phase == "backward":
            flops *= _ATTENTION_BACKWARD
        if self.is_float32:
            return flops / (_OTHER_ATTENTION_SHARE * self.peak.float32_flops)
        share = _OTHER_ATTENTION_SHARE
        if self.is_hopper:
            share = _measured_tflops(self.kernel, head_size)[phase == "backward"] / _H200_TFLOPS
        return flops / (share * self.peak.bfloat16_flops)

    def within_layers(self, num_bytes: float) -> float:
        """Return the seconds in which kernels of layers read and write."""
        return num_bytes / (LAYER_MEMORY_SHARE * self.bandwidth.memory)

    def large(self, num_bytes: float) -> float:
        """Return the seconds in which kernels on large tensors read and write."""
        return num_bytes / (LARGE_MEMORY_SHARE * self.bandwidth.memory)

    def received(self, num_bytes: float, among: int) -> float:
        """Return the seconds in which a rank receives from so many neighbouring ranks."""
        is_near = among <= DEVICES_PER_MACHINE
        return num_bytes / (LINK_SHARE * (self.bandwidth.link if is_near else self.bandwidth.network))


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
    program: ProgramWork | None = None,
) -> StepTime | None:
    """Estimate a training step, mean over all K and J of the run.

    Args:
        config: the run.
        vocab_size: the tokenizer's, without padding.
        device: of every rank.
        program: what it does beside products and attention; None: what the run's settings ask for.
    Returns:
        None for a device whose speed is unknown.
    """
    if device.peak is None or device.bandwidth is None:
        return None
    kernel = "cudnn" if config.training.attention == "cudnn" else "flash"
    place = _Place(
        peak=device.peak,
        bandwidth=device.bandwidth,
        is_hopper=device.is_hopper,
        kernel=kernel,
        is_float32=config.training.precision == "fp32",
    )
    sizes = rank_sizes(config, vocab_size)
    program = program or program_of(sizes)
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
            if sizes.recomputes_cheap_work:
                _run_layers(device, sizes, index, stage, "again", place, program)
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
    """One phase of a pass through the layers of a stage."""
    account, plan, num_layers = sizes.account, sizes.plan, sizes.stage_layers[stage]
    share = sizes.tokens / sizes.tensor * num_layers / sizes.shape.num_layers
    pairs = account.attention_flops(index, plan) + account.column_flops(index, plan)
    if phase == "again":
        pairs = 0.0
    device.run(
        num_layers * program.layer_launches(sizes, index, phase) * HOST_SECONDS_PER_LAUNCH,
        products=place.products(_runs(phase) * share * account.product_flops(index, plan)),
        attention=place.attention(share * pairs, _head_size(sizes, index), phase),
        elementwise=place.within_layers(num_layers * program.layer_bytes(sizes, index, phase)),
    )


def _runs(phase: Phase) -> int:
    """Products of a phase for one of forward."""
    return {"forward": 1, "backward": BACKWARD_PER_FORWARD, "again": 0}[phase]


def _head_size(sizes: RankSizes, index: int) -> int:
    """Channels that the kernel of attention gets."""
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
    """Seconds in which layers receive from other ranks, in one pass of one micro-batch, both directions."""
    among = sizes.tensor * sizes.context
    seconds = 0.0
    if sizes.tensor > 1:
        seconds += place.received(num_layers * tensor_bytes(sizes, index), sizes.tensor)
    if sizes.context > 1:
        seconds += place.received(num_layers * context_bytes(sizes, index), among)
    if sizes.num_stages > 1:
        num_ranks = sizes.tensor * sizes.data * sizes.num_stages
        seconds += place.received(pipeline_bytes(sizes, index), num_ranks)
    return seconds


def _run_end(
    device: _Device, sizes: RankSizes, index: int, phase: Phase, place: _Place, program: ProgramWork
) -> None:
    """What the last stage does after the layers of a pass: mixtures, router or gates, head and loss."""
    account, plan, runs = sizes.account, sizes.plan, _runs(phase)
    num_mixtures = plan.rows_handed(index) * sizes.tokens / sizes.tensor
    flops = num_mixtures * runs * account.flops_of_mixture
    flops += num_mixtures * account.logits_made_again(phase) * account.flops_of_head
    moved = program.mixture(phase) * mixture_rows(sizes, index)
    num_parts = _mixture_parts(sizes, index)
    if phase == "backward":
        # Every part is added to the float32 gradients of head and embedding.
        moved += num_parts * 2 * 2 * FLOAT32 * sizes.shape.vocabulary_weights / sizes.tensor
    num_predictions = _predictions(sizes, index, phase)
    flops += runs * num_predictions * sizes.tokens / sizes.tensor * account.flops_of_head
    moved += program.loss(phase) * num_predictions * sizes.vocabulary_elements
    decided = account.flops_of_decider if account.decides_after(index, plan) else 0.0
    device.run(
        (program.pass_launches + num_parts * program.mixture_launches(phase)) * HOST_SECONDS_PER_LAUNCH,
        vocabulary=place.products(flops) + place.large(moved),
        decider=place.products_in_float32(runs * sizes.own_tokens * decided),
    )


def _mixture_parts(sizes: RankSizes, index: int) -> int:
    """In how many parts the rows that a pass hands on are mixed; 0 where they are mixed at once."""
    if not (sizes.mixes and sizes.fuses):
        return 0
    num_rows = sizes.tokens * sizes.plan.rows_handed(index)
    return sum(1 for _ in parts(num_rows, sizes.shape.padded_vocab_size // sizes.tensor))


def _predictions(sizes: RankSizes, index: int, phase: Phase) -> int:
    """How often the head is read after a pass, for a token."""
    if sizes.plan.is_final(index):
        return 1 + (sizes.plan.slots[-1] if sizes.supervises_steps else 0)
    return 1 if phase == "forward" and sizes.facts.predicts_each_step else 0


def _weight_gradients(sizes: RankSizes, stage: int, place: _Place) -> float:
    """Seconds in which gradients of weights are added up: of all passes, and to the float32 buffer.

    Within one graph autograd adds up those of passes in the weights' own type. Between graphs each is added
    to the buffer, as it is where products add to it themselves, which need no gradient beside it.
    """
    number = sizes.num_passes - sizes.plan.first_with_gradient
    is_cut = sizes.recomputes_layers or sizes.num_stages > 1
    to_buffer = 2 * FLOAT32 + (0 if sizes.accumulates else sizes.value_bytes)
    to_sum = 3 * sizes.value_bytes
    each_is_added = is_cut or sizes.accumulates
    per_weight = number * to_buffer if each_is_added else (number - 1) * to_sum + to_buffer
    parameters = rank_parameters(sizes, stage)
    # Embedding and head are used once, unless passes mix embeddings; parts of mixtures are counted with them.
    of_vocabulary = per_weight if sizes.mixes and not sizes.accumulates else to_buffer
    return place.large(parameters.layers * per_weight + parameters.vocabulary * of_vocabulary)


def _update(sizes: RankSizes, stage: int, place: _Place, program: ProgramWork) -> float:
    """Seconds of the update, and of gradients and weights on the data axis."""
    parameters = rank_parameters(sizes, stage).total
    owned = parameters / (sizes.data if sizes.shares_optimizer else 1)
    launches = program.update_launches * len(muon.rank_weights(sizes, stage))
    seconds = max(
        place.large(program.parameter_bytes * parameters + program.owned_bytes * owned),
        launches * HOST_SECONDS_PER_LAUNCH,
    )
    if sizes.num_ns_steps:
        seconds += muon.update_flops(sizes) / (PRODUCTS_SHARE * place.peak.bfloat16_flops)
    return seconds + place.received(rank_traffic(sizes).data, sizes.tensor * sizes.data)

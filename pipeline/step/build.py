"""Build the parts of a training from its configuration: data, model, optimizer, schedule."""

from dataclasses import dataclass

from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
from megatron.core.transformer.module import MegatronModule

from megatron_ext.device import device
from megatron_ext.model.model import PonderModel
from megatron_ext.parallel.groups import ParallelGroups
from megatron_ext.protocols import MegatronOptimizer, ParameterScheduler, WrappedModel
from megatron_ext.schedule.freezing import BackboneFreeze
from megatron_ext.schedule.lone_rank import skip_collectives_of_one_rank
from megatron_ext.schedule.optimizer import build_optimizer, connect_schedule
from pipeline.config.errors import ConfigError, ConfigProblem
from pipeline.config.optimizer_section import OptimizerName
from pipeline.config.schema import ParallelConfig, RunConfig
from pipeline.data.batches import BatchLayout, HeldoutBatches, PackingOptions, TrainingBatches
from pipeline.data.blend import BlendOrder
from pipeline.data.dataset import SampleSource
from pipeline.data.opening import Reading, open_heldout, open_training, training_order
from pipeline.data.order import SampleOrder
from pipeline.data.prefetch import PrefetchedBatches
from pipeline.step.fusing import can_fuse
from pipeline.step.megatron_config import (
    ddp_config,
    muon_settings,
    optimizer_config,
    scheduler_arguments,
    transformer_config,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingParts:
    """What a training loop steps.

    Attributes:
        module: the model itself.
        ddp: the model in Megatron's data-parallel wrapper.
        optimizer: Megatron's optimizer.
        scheduler: learning rate by iteration.
        freeze: freezes the backbone.
    """

    module: PonderModel
    ddp: WrappedModel
    optimizer: MegatronOptimizer
    scheduler: ParameterScheduler
    freeze: BackboneFreeze


def open_training_split(config: RunConfig) -> SampleSource:
    """Open the training split and check that its vocabulary fits the model's.

    Raises:
        ConfigError: the model has fewer ids than the tokenizer.
        DataError: the data cannot be read.
    """
    return _fitting(config, open_training(config.data, _reading(config)))


def open_heldout_split(config: RunConfig) -> SampleSource:
    """Open the held-out split and check that its vocabulary fits the model's.

    Raises:
        ConfigError: the model has fewer ids than the tokenizer.
        DataError: the data cannot be read.
    """
    return _fitting(config, open_heldout(config.data, _reading(config)))


def _reading(config: RunConfig) -> Reading:
    return Reading(seq_length=config.training.seq_length, vocab_size=config.model.vocab_size)


def _fitting(config: RunConfig, source: SampleSource) -> SampleSource:
    given, needed = config.model.vocab_size, source.vocabulary.size
    if given is not None and given < needed:
        raise ConfigError(
            [
                ConfigProblem(
                    path="model.vocab_size",
                    rule=f"must be at least {needed}, the ids of the tokenizer in data.path",
                    value=str(given),
                    cure=f"set it to {needed} or leave it out",
                )
            ]
        )
    return source


def vocab_size_of(config: RunConfig, source: SampleSource) -> int:
    """Return the vocabulary size of the model: the configured one, else the tokenizer's."""
    return config.model.vocab_size or source.vocabulary.size


def build_module(
    config: RunConfig,
    vocab_size: int,
    groups: ParallelGroups,
    *,
    is_trained: bool = False,
    draws: bool = True,
) -> PonderModel:
    """Build the model from the run's seed; every layout starts from the same weights.

    Args:
        config, vocab_size, groups: the run.
        is_trained: whether its rows have one length in all steps, so that training.attention and
            training.fused count.
        draws: whether the weights of the backbone are drawn; else they are 0, to be read from a checkpoint.
    """
    prefers_cudnn = is_trained and config.training.attention == "cudnn"
    settings = transformer_config(config, vocab_size, prefers_cudnn=prefers_cudnn, draws=draws)
    settings.fuses = is_trained and can_fuse(config, settings, groups)
    # Reductions that overlap with backward wait for a gradient of each weight.
    settings.gradient_accumulation_fusion = settings.fuses and not config.parallel.overlap_grad_reduce
    # Initialized on the host, so that the weights do not depend on the device.
    module = PonderModel(settings, groups.pg_collection)
    module.to(device())
    return module


def wrap_model(
    module: MegatronModule, parallel: ParallelConfig, *, optimizer: OptimizerName = "adamw"
) -> WrappedModel:
    """Wrap a model, on its device and in its precision, into Megatron's data parallelism."""
    skip_collectives_of_one_rank()
    wrapped: WrappedModel = DistributedDataParallel(
        config=module.config, ddp_config=ddp_config(parallel, optimizer=optimizer), module=module
    )
    return wrapped


def build_training(
    config: RunConfig, vocab_size: int, groups: ParallelGroups, *, draws: bool = True
) -> TrainingParts:
    """Build the model and what trains it; see :func:`build_module`."""
    module = build_module(config, vocab_size, groups, is_trained=True, draws=draws)
    ddp = wrap_model(module, config.parallel, optimizer=config.optimizer.name)
    optimizer = build_optimizer(
        [ddp],
        optimizer_config(config),
        new_parameters_lr_mult=config.optimizer.new_parameters_lr_mult,
        muon=muon_settings(config.optimizer),
    )
    connect_schedule(ddp, optimizer)
    scheduler = OptimizerParamScheduler(optimizer, **scheduler_arguments(config))
    return TrainingParts(
        module=module,
        ddp=ddp,
        optimizer=optimizer,
        scheduler=scheduler,
        freeze=BackboneFreeze(module, optimizer),
    )


def training_batches(config: RunConfig, dataset: SampleSource, groups: ParallelGroups) -> TrainingBatches:
    """Return this rank's share of every global batch.

    Raises:
        ConfigError: a blend has fewer samples than the run takes.
    """
    order = training_order(config.data, dataset, seed=config.seed)
    needed = config.training.train_iters * config.training.global_batch_size
    if isinstance(order, BlendOrder) and order.capacity is not None and order.capacity < needed:
        raise ConfigError(
            [
                ConfigProblem(
                    path="data.sources",
                    rule=f"must give the {needed} samples of the run",
                    value=f"{order.capacity} samples within max_epochs",
                    cure="raise max_epochs, or leave it out for one source",
                )
            ]
        )
    return TrainingBatches(dataset, order, layout=_layout(config, groups), packing=_packing(config))


def prefetched_batches(config: RunConfig, dataset: SampleSource, groups: ParallelGroups) -> PrefetchedBatches:
    """Return the batches of :func:`training_batches`, read ahead in the background.

    Raises:
        ConfigError: a blend has fewer samples than the run takes.
    """
    return PrefetchedBatches(
        training_batches(config, dataset, groups),
        stop=config.training.train_iters * config.training.global_batch_size,
        num_batches=config.data.prefetch_batches,
        timeout_seconds=config.parallel.timeout_seconds,
    )


def heldout_batches(
    config: RunConfig, dataset: SampleSource, groups: ParallelGroups, *, max_global_batches: int
) -> HeldoutBatches:
    """Return the batches of an evaluation: always the same samples, spread over the held-out split."""
    order = SampleOrder(num_samples=len(dataset), seed=config.seed, shuffled=True)
    return HeldoutBatches(
        dataset,
        order,
        layout=_layout(config, groups),
        packing=_packing(config),
        max_global_batches=max_global_batches,
    )


def _layout(config: RunConfig, groups: ParallelGroups) -> BatchLayout:
    return BatchLayout(
        global_batch_size=config.training.global_batch_size,
        micro_batch_size=config.training.micro_batch_size,
        dp_rank=groups.dp_rank,
        dp_size=groups.dp_size,
    )


def _packing(config: RunConfig) -> PackingOptions:
    return PackingOptions(
        reset_positions=config.data.reset_positions,
        reset_attention=config.data.reset_attention,
        mask_document_boundaries=config.data.mask_document_boundaries,
    )

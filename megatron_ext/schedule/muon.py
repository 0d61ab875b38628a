"""Muon on the matrices of the layers and AdamW on all other weights, in one of Megatron's optimizers."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import LocalNonpersistentObject
from megatron.core.optimizer import OptimizerConfig, _get_param_groups
from megatron.core.optimizer.layer_wise_optimizer import LayerWiseDistributedOptimizer
from megatron.core.optimizer.optimizer import ChainedOptimizer, FP32Optimizer
from megatron.core.optimizer.optimizer_config import ParamKey
from megatron.core.process_groups_config import ProcessGroupCollection
from torch import Tensor
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors
from torch.optim import Optimizer

from megatron_ext.adamw import AdamW
from megatron_ext.muon import MatrixParts, Muon
from megatron_ext.protocols import MegatronOptimizer, WrappedModel
from megatron_ext.sharing import balanced_shares

__all__ = ["MuonSettings", "build_muon_and_adamw"]

# The mark of Muon's parameter groups.
MATRICES = "is_matrix"
# The modules of a layer that have matrices, and the dimension in which tensor-parallel ranks share these.
_SPLIT_DIMS = {"linear_qkv": 0, "linear_proj": 1, "linear_fc1": 0, "linear_fc2": 1}


@dataclass(frozen=True, slots=True, kw_only=True)
class MuonSettings:
    """What Muon has of its own; everything else is that of AdamW.

    Attributes:
        lr, min_lr: learning rate at the beginning and at the end of the decay.
        momentum: decay of the mean of gradients.
        num_ns_steps: Newton-Schulz iterations.
    """

    lr: float
    min_lr: float
    momentum: float
    num_ns_steps: int


class MatrixSharingOptimizer(LayerWiseDistributedOptimizer):  # type: ignore[misc]  # Megatron is untyped
    """Megatron's layer-wise optimizer: data-parallel ranks share state and work by whole weights.

    A matrix must be orthogonalized as a whole, so that Megatron's distributed optimizer, whose shares of the
    gradient buffer end inside of weights, cannot hold it. Here every weight belongs to one of the ranks,
    which sends the updated weight to the others. Unlike Megatron's class, this one sends by broadcasts,
    because gloo gathers only shares of equal size, takes a step in two halves, and saves in fp32 too. It
    balances the state that ranks hold.
    """

    def shard_params(self, optimizers: Sequence[Any], full_param_layouts: object = None) -> None:
        """Leave each optimizer the weights of this data-parallel rank.

        Args:
            optimizers: of all weights.
            full_param_layouts: what Megatron 0.18 gives for buffers that ranks share; there are none here.
        """
        self.dp_cp_params_list = self.expt_dp_params_list = None
        group = self.pg_collection.dp_cp
        if group.size() == 1:
            return
        param_groups = [param_group for optimizer in optimizers for param_group in optimizer.param_groups]
        weights = [weight for param_group in param_groups for weight in param_group["params"]]
        shares = balanced_shares([_state_size(weight) for weight in weights], group.size())
        self.dp_cp_params_list = [[weights[number] for number in share] for share in shares]
        own = {id(weight) for weight in self.dp_cp_params_list[group.rank()]}
        for param_group in param_groups:
            param_group["params"] = [weight for weight in param_group["params"] if id(weight) in own]

    @torch.no_grad()
    def step_with_ready_grads(self) -> bool:
        """Update this rank's weights with the prepared gradients and exchange all."""
        is_updated: bool = super().step_with_ready_grads()
        self.allgather_params()
        return is_updated

    def step(self) -> tuple[bool, float | None, int | None]:
        """Prepare, clip and update; return whether it updated, the gradient norm, and None."""
        result: tuple[bool, float | None, int | None] = ChainedOptimizer.step(self)
        return result

    @torch.no_grad()
    def allgather_params(self) -> None:
        """Give every data-parallel rank the weights of each."""
        if self.dp_cp_params_list is None:
            return
        group = self.pg_collection.dp_cp
        for owner, weights in enumerate(self.dp_cp_params_list):
            if not weights:
                continue
            assert len({weight.dtype for weight in weights}) == 1, "all weights have one precision"
            sent = _flatten_dense_tensors([weight.detach() for weight in weights])
            source = torch.distributed.get_global_rank(group, owner)
            torch.distributed.broadcast(sent, source, group=group)
            if owner != group.rank():
                received = _unflatten_dense_tensors(sent, weights)
                for weight, values in zip(weights, received, strict=True):
                    weight.copy_(values)

    def sharded_state_dict(
        self, model_sharded_state_dict: dict[str, Any], is_loading: bool = False, **kwargs: Any
    ) -> dict[int, Any]:
        """Return this rank's state as Megatron's sharded tensors: those of its own weights alone."""
        state: dict[int, Any] = ChainedOptimizer.sharded_state_dict(
            self, model_sharded_state_dict, is_loading, **kwargs
        )
        for tensor in nested_values(state):
            if hasattr(tensor, "replica_id"):
                # (pipeline, tensor, data): no other data-parallel rank holds it.
                tensor.replica_id = (*tensor.replica_id[:2], 0)
        for part in state.values():
            _keep_empty_containers_local(part)
        return state


def build_muon_and_adamw(
    model_chunks: Sequence[WrappedModel],
    config: OptimizerConfig,
    settings: MuonSettings,
    overrides: dict[Any, Any],
) -> MegatronOptimizer:
    """Build the optimizer over wrapped model chunks.

    Muon updates the matrices of the layers: query, key and value of attention (three matrices of one weight,
    as in Megatron), its projection, and those of the MLP, of which a gated one has two in its first weight.
    AdamW updates embeddings, head, biases, norms, and all weights of the method.

    Args:
        model_chunks: this rank's stage, without a distributed optimizer.
        config: Megatron's settings of AdamW, clipping and precision.
        settings: of Muon.
        overrides: of Megatron's parameter groups.
    """
    groups = ProcessGroupCollection.use_mpu_process_groups()
    matrices = list(_mark_matrices(model_chunks))
    own_rate = {MATRICES: True, "max_lr": settings.lr, "min_lr": settings.min_lr}
    overrides = {**overrides, ParamKey(attr="matrix_parts"): own_rate}
    param_groups = _get_param_groups(list(model_chunks), config, overrides)
    muon = Muon(
        [group for group in param_groups if group.get(MATRICES)],
        lr=settings.lr,
        momentum=settings.momentum,
        weight_decay=config.weight_decay,
        num_ns_steps=settings.num_ns_steps,
        tp_group=groups.tp,
    )
    adamw = AdamW(
        [group for group in param_groups if not group.get(MATRICES)],
        lr=config.lr,
        betas=(config.adam_beta1, config.adam_beta2),
        eps=config.adam_eps,
        weight_decay=config.weight_decay,
    )
    return _chained([muon, adamw], config, groups, matrices)


def _state_size(weight: Tensor) -> int:
    """Return the values of a weight's state: one moment or two, and main weights in bf16."""
    num_moments = 1 if hasattr(weight, "matrix_parts") else 2
    return weight.numel() * (num_moments + (weight.dtype == torch.bfloat16))


def _chained(
    optimizers: list[Muon | AdamW],
    config: OptimizerConfig,
    groups: ProcessGroupCollection,
    matrices: list[Any],
) -> MegatronOptimizer:
    wrapped: list[Any] = list(optimizers)
    if not config.bf16:
        wrapped = [FP32Optimizer(each, config, _initialize_state) for each in optimizers]
    # In bf16 the class wraps each into an optimizer with main weights, of this rank's share alone.
    chained = MatrixSharingOptimizer(wrapped, config, groups, [_initialize_state] * len(optimizers))
    for part in chained.chained_optimizers:
        part.tp_group = groups.tp
    for weight in matrices:
        if hasattr(weight, "main_param"):
            weight.main_param.matrix_parts = weight.matrix_parts
    optimizer: MegatronOptimizer = chained
    return optimizer


def _mark_matrices(model_chunks: Sequence[Any]) -> Iterator[Any]:
    """Set ``matrix_parts`` on the weights that Muon updates, and yield them."""
    for chunk in model_chunks:
        for name, weight in chunk.named_parameters():
            *path, module, kind = name.split(".")
            if "layers" in path and module in _SPLIT_DIMS and kind == "weight":
                rows = _rows(module, weight, chunk.config)
                weight.matrix_parts = MatrixParts(rows=rows, split_dim=_SPLIT_DIMS[module])
                yield weight


def _rows(module: str, weight: Tensor, config: Any) -> tuple[int, ...]:
    if module == "linear_qkv":
        # Blocks are groups of heads: their queries, their key, their value.
        queries = config.num_attention_heads // config.num_query_groups
        return queries * config.kv_channels, config.kv_channels, config.kv_channels
    if module == "linear_fc1" and config.gated_linear_unit:
        return (weight.shape[0] // 2,) * 2
    return (weight.shape[0],)


def _initialize_state(optimizer: Optimizer, _config: OptimizerConfig | None = None) -> None:
    """Create the state of weights that were not updated yet: a checkpoint has that of all."""
    assert isinstance(optimizer, Muon | AdamW), "both have a function for it"
    for group in optimizer.param_groups:
        for weight in group["params"]:
            optimizer.state_of(weight)


def _keep_empty_containers_local(state: dict[str, Any]) -> None:
    """Exclude empty containers from a checkpoint: which ranks have them depends on the layout."""
    main_weights = state.get("fp32_from_fp16_params")
    if main_weights is not None:
        # By number: an empty list among others would move those after it.
        state["fp32_from_fp16_params"] = {
            number: weights or LocalNonpersistentObject(weights)
            for number, weights in enumerate(main_weights)
        }
    inner = state.get("optimizer", state)
    if not inner["state"]:
        inner["state"] = LocalNonpersistentObject(inner["state"])

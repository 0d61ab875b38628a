"""What this project uses of Megatron's objects, as types; Megatron itself is untyped."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from torch import Tensor, nn

__all__ = [
    "GradientBuffer",
    "MegatronOptimizer",
    "OptimizerPart",
    "ParameterGroups",
    "ParameterScheduler",
    "ShardedModule",
    "WrappedModel",
]


class ShardedModule(Protocol):
    """A model, or one of its pipeline stages, whose weights a checkpoint takes and gives back."""

    def sharded_state_dict(self, *, metadata: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return this rank's weights as Megatron's sharded tensors."""
        ...

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> object:
        """Take the weights of this rank."""
        ...


class GradientBuffer(Protocol):
    """One contiguous run of gradients of many parameters, reduced over data-parallel ranks together."""

    grad_data: Tensor
    """[elements], float32 whatever the parameters' precision."""


class WrappedModel(Protocol):
    """``DistributedDataParallel`` around this rank's stage: collects gradients and reduces them."""

    module: nn.Module
    config: Any
    """The model's ``TransformerConfig``; carries the functions that Megatron's schedules call."""
    ddp_config: Any
    buffers: Sequence[GradientBuffer]
    own_gradient_sum: Tensor
    """Set by :func:`megatron_ext.schedule.gradients.finalize_gradients`, not by Megatron."""

    def zero_grad_buffer(self) -> None:
        """Clear the gradients of the last step."""
        ...

    def no_sync(self) -> AbstractContextManager[None]:
        """Collect gradients without reducing them."""
        ...


class ParameterGroups(Protocol):
    """An optimizer, of which only the settings of its groups are read or changed."""

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Settings and parameters of each group; the same groups on every rank, some of them empty."""
        ...


class OptimizerPart(Protocol):
    """One of the optimizers that Megatron chains: all with the same kind of parameters."""

    config: Any
    """Megatron's ``OptimizerConfig``."""
    is_stub_optimizer: bool
    """Whether this rank has no parameters of this kind."""
    optimizer: Any
    """The torch optimizer inside."""
    init_state_fn: Any
    """Fills in the state of parameters that were never updated, or None."""

    def get_parameters(self) -> list[nn.Parameter]:
        """Return the parameters that this rank updates."""
        ...


class MegatronOptimizer(ParameterGroups, Protocol):
    """Megatron's ``ChainedOptimizer``."""

    chained_optimizers: Sequence[OptimizerPart]

    def zero_grad(self) -> None:
        """Clear the gradients that the update reads."""
        ...

    def prepare_grads(self) -> bool:
        """Copy the reduced gradients to where the update reads them; True where loss scaling overflowed."""
        ...

    def get_grad_norm(self) -> Any:
        """Return the norm of all prepared gradients, a float or a tensor, the same on all ranks."""
        ...

    def step_with_ready_grads(self) -> bool:
        """Update the weights with the prepared gradients."""
        ...

    def step(self) -> tuple[bool, float | None, int | None]:
        """Prepare, clip and update; return whether it updated, the gradient norm, and None."""
        ...

    def scale_loss(self, loss: Tensor) -> Tensor:
        """Multiply a loss by the loss scale; 1 in fp32 and bf16."""
        ...

    def reload_model_params(self) -> None:
        """Copy the model's weights into the optimizer's master weights."""
        ...

    def sharded_state_dict(
        self, model_sharded_state_dict: dict[str, Any], *, is_loading: bool, metadata: dict[str, Any]
    ) -> dict[str, Any]:
        """Return this rank's state as Megatron's sharded tensors, keyed by those of the model."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the state of this rank."""
        ...


class ParameterScheduler(Protocol):
    """``OptimizerParamScheduler``: sets learning rate and weight decay of an optimizer by iteration."""

    def step(self, increment: int) -> None:
        """Count finished iterations and set the rates of the next one."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return the count and the settings."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the count; rates and lengths stay as configured."""
        ...

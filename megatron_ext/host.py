"""Let Megatron-Core run on the device of this machine: CUDA, or the CPU where there is none.

Where CUDA is absent, :func:`prepare_host` gives the few names through which Megatron reaches CUDA their CPU
meaning:

* ``torch.cuda`` functions that could only raise without CUDA work on the CPU;
* ``Tensor.cuda()`` returns the tensor itself;
* the Megatron modules that write ``device="cuda"`` get a ``torch`` whose factories read it as the CPU (a
  global ``TorchFunctionMode`` would do the same, but slow down every operation of a run);
* inside ``megatron.core.optimizer``, which checks precisions by name, ``Tensor.type()`` returns the names of
  CUDA tensors.

What stands in for CUDA (:func:`megatron_ext.device.standing_in`) takes the place of the CPU in all of this.

On every device, where apex and Transformer Engine are missing, Megatron's optimizer is our AdamW, and its
norm of all gradients is summed in float64; where apex is missing, its product that adds to the sum of a
weight's gradients is torch's. On CUDA, cuDNN's attention runs only where it is asked for.
"""

import functools
import importlib
import importlib.util
import logging
import sys
import types
import warnings
from collections.abc import Callable
from typing import Any

import torch

from megatron_ext.adamw import AdamW, exact_norm
from megatron_ext.device import device, has_cuda
from megatron_ext.model.kernels import leave_out_cudnn
from megatron_ext.parallel.weight_gradients import megatron_add_product

__all__ = ["prepare_host"]

logger = logging.getLogger(__name__)

# Megatron modules that name the device literally and are reachable from a training run.
_MODULES_NAMING_CUDA = (
    "megatron.core.dist_checkpointing.exchange_utils",
    "megatron.core.dist_checkpointing.strategies.state_dict_saver",
    "megatron.core.distributed.param_and_grad_buffer",
    "megatron.core.optimizer.clip_grads",
    "megatron.core.optimizer.grad_scaler",
    "megatron.core.optimizer.optimizer",
    "megatron.core.pipeline_parallel.schedules",
    "megatron.core.tensor_parallel.data",
    "megatron.core.transformer.utils",
    "megatron.core.utils",
)
_FACTORIES = ("empty", "empty_like", "ones", "tensor", "zeros")
# Warnings at import and at the first step about things that this project replaces or pins.
_EXPECTED_WARNINGS = (
    "Transformer Engine and Apex are not installed",
    "Apex is not installed",
    "full scope is deprecated",
    "The .grad attribute of a Tensor that is not a leaf Tensor",
    r"`torch\.distributed\.\w+` is deprecated",
    "When using async grad allreduce it is recommended to set the environment variable",
)
_RNG_MODULE = "megatron.core.tensor_parallel.random"


@functools.cache
def prepare_host() -> None:
    """Make Megatron-Core usable on this machine.

    Call it before the first Megatron module is built; further calls do nothing.
    """
    for message in _EXPECTED_WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    if not has_cuda():
        # First, because fusers decorate at import: torch.compile needs a compiler that a CPU host may lack.
        importlib.import_module("megatron.core.jit").disable_jit_fuser()
        _replace_cuda_calls()
        _name_cpu_tensors_as_cuda_for_the_optimizer()
        for name in _MODULES_NAMING_CUDA:
            vars(importlib.import_module(name))["torch"] = _torch_with_cuda_read_as_cpu()
        _use_the_cpu_generator()
    else:
        leave_out_cudnn()
    _fill_gradient_slot()
    if not _is_installed("apex") and not _is_installed("transformer_engine"):
        logger.info("neither apex nor Transformer Engine is installed: AdamW runs on torch's fused kernel")
        _fill_optimizer_slot()


def _is_installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def _replace_cuda_calls() -> None:
    replacements: dict[str, Callable[..., Any]] = {
        "current_device": device,
        "set_device": _do_nothing,
        "synchronize": _do_nothing,
        "manual_seed": torch.manual_seed,
        "get_rng_state": _get_rng_state,
        "set_rng_state": _set_rng_state,
    }
    for name, replacement in replacements.items():
        setattr(torch.cuda, name, _function_of_its_own(replacement))
    torch.cuda.random.get_rng_state = _function_of_its_own(_get_rng_state)
    torch.cuda.random.set_rng_state = _function_of_its_own(_set_rng_state)
    torch.Tensor.cuda = _stay  # type: ignore[method-assign, assignment]  # the CPU meaning of .cuda()


def _function_of_its_own(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the same as another object: torch.compile refuses one function under two names."""

    def call(*arguments: Any, **keywords: Any) -> Any:
        return function(*arguments, **keywords)

    return call


def _do_nothing(*_arguments: object) -> None:
    return None


def _get_rng_state(*_arguments: object, **_keywords: object) -> torch.Tensor:
    return torch.get_rng_state()


def _set_rng_state(new_state: torch.Tensor, *_arguments: object, **_keywords: object) -> None:
    torch.set_rng_state(new_state)


def _stay(tensor: torch.Tensor, *_arguments: object, **_keywords: object) -> torch.Tensor:
    return tensor.to(device())


def _name_cpu_tensors_as_cuda_for_the_optimizer() -> None:
    plain_type = torch.Tensor.type

    @functools.wraps(plain_type)
    def type_seen_by_megatron(tensor: torch.Tensor, *arguments: Any, **keywords: Any) -> Any:
        result = plain_type(tensor, *arguments, **keywords)
        caller = sys._getframe(1).f_globals.get("__name__", "")
        if isinstance(result, str) and caller.startswith("megatron.core.optimizer"):
            return result.replace("torch.meta.", "torch.").replace("torch.", "torch.cuda.", 1)
        return result

    torch.Tensor.type = type_seen_by_megatron  # type: ignore[method-assign, assignment]  # same signature


@functools.cache
def _torch_with_cuda_read_as_cpu() -> types.ModuleType:
    stand_in = types.ModuleType("torch", "torch whose factories read the device 'cuda' as the CPU")
    stand_in.__dict__.update({name: value for name, value in vars(torch).items() if name != "__name__"})
    for name in _FACTORIES:
        setattr(stand_in, name, _with_cuda_read_as_cpu(getattr(torch, name)))
    return stand_in


def _with_cuda_read_as_cpu(factory: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    @functools.wraps(factory)
    def make(*arguments: Any, **keywords: Any) -> torch.Tensor:
        if keywords.get("device") == "cuda":
            keywords["device"] = device()
        return factory(*arguments, **keywords)

    return make


def _use_the_cpu_generator() -> None:
    module = importlib.import_module(_RNG_MODULE)
    vars(module)["_get_cuda_rng_state"] = _get_rng_state
    vars(module)["_set_cuda_rng_state"] = _set_rng_state
    # The tracker warns when the CPU generator changes inside its context; here that is the one it tracks.
    logging.getLogger(_RNG_MODULE).addFilter(
        lambda record: "CPU RNG state changed" not in record.getMessage()
    )


def _fill_optimizer_slot() -> None:
    vars(importlib.import_module("megatron.core.optimizer.clip_grads"))["l2_norm_impl"] = exact_norm
    optimizer_module: Any = importlib.import_module("megatron.core.optimizer")
    distributed_module: Any = importlib.import_module("megatron.core.optimizer.distrib_optimizer")
    optimizer_module.Adam = AdamW
    optimizer_module.USING_PYTORCH_OPTIMIZER = False
    distributed_module.Adam = AdamW
    # As with apex, the step is one number of the parameter group, not a tensor of each parameter.
    distributed_module.HAVE_APEX_OR_TE = True
    distributed_module.USING_APEX_OPTIMIZER = True


def _fill_gradient_slot() -> None:
    """Give Megatron the product of apex's ``fused_weight_gradient_mlp_cuda``, if that is not installed."""
    layers: Any = importlib.import_module("megatron.core.tensor_parallel.layers")
    if not layers._grad_accum_fusion_available:
        layers.fused_weight_gradient_mlp_cuda = types.SimpleNamespace(
            wgrad_gemm_accum_fp32=megatron_add_product, wgrad_gemm_accum_fp16=megatron_add_product
        )
        layers._grad_accum_fusion_available = True

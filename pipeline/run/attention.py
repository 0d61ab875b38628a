"""Which kernel computes the attention of a run, and whether it computes it right on this device."""

import logging

import torch
import torch.distributed

from megatron_ext.device import device, has_cuda
from megatron_ext.model.kernels import AttentionSizes, KernelCheck, check_kernel
from megatron_ext.parallel.groups import ParallelGroups
from pipeline.config.errors import ConfigError, ConfigProblem
from pipeline.config.schema import RunConfig
from pipeline.cost.rank_sizes import rank_sizes
from pipeline.step.megatron_config import PRECISIONS

__all__ = ["attention_cases", "check_attention", "problem_of"]

logger = logging.getLogger(__name__)

# The comparison makes matrices of rows times rows in float64.
_MOST_ROWS = 1024


def check_attention(config: RunConfig, vocab_size: int, groups: ParallelGroups) -> None:
    """Compute attention as the run will, compare it with float64, and log which kernel runs.

    On CPUs there is nothing to choose and nothing is computed. Every rank calls it.

    Raises:
        ConfigError: on every rank, if training.attention asks for a kernel that does not run or, on one of
            them, gives wrong numbers.
    """
    if not has_cuda():
        if config.training.attention == "cudnn":
            raise ConfigError([_without_cuda()])
        return
    problems: list[ConfigProblem] = []
    for sizes in attention_cases(config, vocab_size):
        check = _checked(sizes, prefers_cudnn=config.training.attention == "cudnn")
        logger.info("attention: %s", _described(sizes, check))
        found = problem_of(config, sizes, check)
        problems += [] if found is None else [found]
    _agree(problems, groups)


def attention_cases(config: RunConfig, vocab_size: int) -> list[AttentionSizes]:
    """Return the sizes in which a rank of the run attends, with weights of keys and without, as it does."""
    sizes = rank_sizes(config, vocab_size)
    weighs = {sizes.has_weighted_keys(index) for index in range(sizes.num_passes)}
    return [
        AttentionSizes(
            num_heads=config.model.num_attention_heads // config.parallel.tensor,
            num_groups=config.model.num_query_groups // config.parallel.tensor,
            head_size=config.model.kv_channels,
            num_rows=min(config.training.seq_length, _MOST_ROWS),
            dtype=PRECISIONS[config.training.precision],
            weighs_keys=weighs_keys,
        )
        for weighs_keys in sorted(weighs)
    ]


def problem_of(config: RunConfig, sizes: AttentionSizes, check: KernelCheck) -> ConfigProblem | None:
    """Return what is wrong with the kernel of a run; None where it can be used."""
    wanted = config.training.attention
    if wanted != "auto" and check.kernel != wanted:
        return ConfigProblem(
            path="training.attention",
            rule=f"must be a kernel that this device has for {config.training.precision} and heads of "
            f"{sizes.width} channels",
            value=f"{wanted}, but torch takes {check.kernel}",
            cure="set it to auto",
        )
    if not check.is_right:
        other = "auto" if check.kernel == "cudnn" else "cudnn"
        return ConfigProblem(
            path="training.attention",
            rule="must be a kernel that agrees with float64 on this device",
            value=_described(sizes, check),
            cure=f"set it to {other}, use another release of torch, or have the device checked",
        )
    return None


def _checked(sizes: AttentionSizes, *, prefers_cudnn: bool) -> KernelCheck:
    try:
        return check_kernel(sizes, device(), prefers_cudnn=prefers_cudnn)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        # A kernel that refuses what it has been chosen for.
        logger.warning("the self-test of attention failed: %s", error)
        return KernelCheck(kernel="none", errors={"output": float("inf")})


def _described(sizes: AttentionSizes, check: KernelCheck) -> str:
    name = max(check.errors, key=lambda key: check.errors[key])
    cudnn = f", cuDNN {torch.backends.cudnn.version()}" if check.kernel == "cudnn" else ""
    return (
        f"{check.kernel} (torch {torch.__version__}{cudnn}) for {sizes.num_heads} heads of {sizes.width} "
        f"channels; at most {check.worst:.2f} times the rounding error of plain products (of {name})"
    )


def _without_cuda() -> ConfigProblem:
    return ConfigProblem(
        path="training.attention",
        rule="must be auto or flash without a CUDA device: cuDNN runs on CUDA only",
        value="cudnn",
        cure="remove it",
    )


def _agree(problems: list[ConfigProblem], groups: ParallelGroups) -> None:
    """Raise the problems of any rank on all of them, which would wait for it otherwise."""
    found: list[list[ConfigProblem]] = [[] for _ in range(groups.world_size)]
    torch.distributed.all_gather_object(found, problems)
    everywhere = list(dict.fromkeys(problem for of_rank in found for problem in of_rank))
    if everywhere:
        raise ConfigError(everywhere)

"""Run a command on the ranks of its configuration."""

from collections.abc import Callable, Sequence

from pipeline.commands.shared import set_up_logging
from pipeline.config.errors import ConfigError, ConfigProblem
from pipeline.config.schema import RunConfig
from pipeline.shared.python_start import python_module


def run_on_layout(
    config: RunConfig,
    arguments: Sequence[str],
    *,
    run_here: Callable[[], int],
    max_restarts: int = 0,
    stop_timeout_seconds: Callable[[], float] | None = None,
) -> int:
    """Run a command on `config.parallel.world_size` ranks.

    A process that a launcher (torchrun, srun, or this function) started is one of the ranks and does its
    work. Any other process starts the ranks on this machine, unless there is only one.

    Args:
        config: its layout determines the number of ranks.
        arguments: the command line of `megaponder` that the ranks run, without its first word.
        run_here: does the work of this rank; returns the exit code.
        max_restarts: how often to restart the ranks, if this function starts them, after a failure.
        stop_timeout_seconds: asked at a stop signal how long those ranks may take to save and leave.
    Returns:
        The exit code of the command.
    Raises:
        ConfigError: a launcher started another number of ranks than the layout needs.
    """
    from pipeline.ranks.environment import Ranks
    from pipeline.ranks.gpu_variables import STACKS_FOLDER, set_gpu_variables
    from pipeline.ranks.launch import run_ranks

    set_gpu_variables(
        dump_folder=config.output_dir / STACKS_FOLDER,
        tensor=config.parallel.tensor,
        is_deterministic=config.training.deterministic,
    )
    ranks = Ranks.from_environment()
    set_up_logging(speaks=ranks.rank == 0)
    needed = config.parallel.world_size
    if not ranks.is_launched and (needed > 1 or max_restarts > 0):
        command = [*python_module("pipeline.cli"), *arguments]
        if stop_timeout_seconds is None:
            return run_ranks(command, num_ranks=needed, max_restarts=max_restarts)
        return run_ranks(
            command,
            num_ranks=needed,
            max_restarts=max_restarts,
            stop_timeout_seconds=stop_timeout_seconds,
        )
    if ranks.world_size != needed:
        raise ConfigError([_wrong_number_of_ranks(config, ranks.world_size)])
    return run_here()


def _wrong_number_of_ranks(config: RunConfig, found: int) -> ConfigProblem:
    model_parallel = config.parallel.model_ranks
    needed = config.parallel.world_size
    fits = found % model_parallel == 0
    return ConfigProblem(
        path="parallel",
        rule=f"tensor x context x pipeline x data ({needed}) must equal the number of ranks started",
        value=str(found),
        cure=(f"set parallel.data={found // model_parallel}" if fits else f"start {needed} ranks")
        + ", or unset RANK and WORLD_SIZE if no launcher has started this command",
    )

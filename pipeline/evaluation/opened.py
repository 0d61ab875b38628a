"""Open a checkpoint for evaluation and generation, on the ranks of this job."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from data_prep.tokenizers.tokenizer import Tokenizer
from megatron_ext.host import prepare_host
from megatron_ext.model.model import PonderModel
from megatron_ext.parallel.groups import ParallelGroups, destroy_groups, initialize_groups
from pipeline.checkpoint.folder import CONFIG_NAME
from pipeline.checkpoint.loading import load_weights
from pipeline.checkpoint.offline import OfflineReader
from pipeline.checkpoint.resuming import check_intact
from pipeline.checkpoint.state import TrainState
from pipeline.checkpoint.tracker import resolve_checkpoint
from pipeline.config.errors import ConfigError, ConfigProblem
from pipeline.config.load import load_config
from pipeline.config.schema import RunConfig
from pipeline.cost.account import flops_account
from pipeline.data.dataset import SampleSource
from pipeline.data.prompts import load_tokenizer
from pipeline.ranks.distributed import start_process_group, stop_process_group
from pipeline.ranks.environment import Ranks
from pipeline.shared.errors import CheckpointError
from pipeline.step.build import build_module, open_heldout_split, vocab_size_of


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedCheckpoint:
    """A trained model, with its run and data.

    Attributes:
        folder: the checkpoint's own folder.
        config: the run, with the layout it was opened on.
        state: progress of the run.
        module: the model, in evaluation mode.
        heldout: held-out split of the run's data.
        groups: the layout.
    """

    folder: Path
    config: RunConfig
    state: TrainState
    module: PonderModel
    heldout: SampleSource
    groups: ParallelGroups

    @property
    def tokenizer(self) -> Tokenizer:
        """Load the tokenizer of the run's data.

        Raises:
            ConfigError: the run's data have none.
        """
        return load_tokenizer(self.config.data.manifest_folder)


@contextmanager
def opened_checkpoint(
    path: Path,
    *,
    iteration: int | None = None,
    overrides: Sequence[str] = (),
    tensor_parallel: int | None = None,
) -> Iterator[OpenedCheckpoint]:
    """Load a model onto all ranks of this job, whatever layout it was trained on.

    Args:
        path: a run's checkpoint folder, or one ``iter_`` folder.
        iteration: which one; None takes the newest.
        overrides: settings of the run to change, such as ``ponder.num_jacobi_iterations=4``.
        tensor_parallel: ranks that one model is split over, of which there are as many replicas as ranks
            allow; None splits it over all.
    Raises:
        CheckpointError, ConfigError, DataError: checkpoint, configuration or data are unusable.
    """
    folder = resolve_checkpoint(path, iteration=iteration)
    ranks = Ranks.from_environment()
    tensor = ranks.world_size if tensor_parallel is None else tensor_parallel
    if ranks.world_size % tensor != 0:
        raise ConfigError([_uneven(tensor, ranks.world_size)])
    layout = (
        f"parallel.tensor={tensor}",
        "parallel.pipeline=1",
        "parallel.layers_per_stage=null",
        f"parallel.data={ranks.world_size // tensor}",
        "parallel.sequence_parallel=false",
    )
    config = load_config(folder / CONFIG_NAME, (*layout, *overrides))
    prepare_host()
    start_process_group(ranks, timeout_seconds=config.parallel.timeout_seconds)
    try:
        groups = initialize_groups(tensor=tensor, seed=config.seed)
        yield load_checkpoint(folder, config, groups)
    finally:
        destroy_groups()
        stop_process_group()


def load_checkpoint(folder: Path, config: RunConfig, groups: ParallelGroups) -> OpenedCheckpoint:
    """Load a model onto an initialized layout; all of its ranks call this together.

    Args:
        folder: the checkpoint's own folder.
        config: the run, with this layout.
        groups: the layout.
    Raises:
        CheckpointError, ConfigError, DataError: checkpoint, configuration or data are unusable.
    """
    check_intact(folder, reads=config.checkpoint.verify)
    heldout = open_heldout_split(config)
    vocab_size = vocab_size_of(config, heldout)
    _check_size(folder, config, vocab_size)
    module = build_module(config, vocab_size, groups)
    state = load_weights(folder, module=module)
    module.eval()
    return OpenedCheckpoint(
        folder=folder, config=config, state=state, module=module, heldout=heldout, groups=groups
    )


def _check_size(folder: Path, config: RunConfig, vocab_size: int) -> None:
    """Refuse a configuration of a larger model than is stored, before memory is taken for it."""
    needed = flops_account(config, vocab_size).parameters().total
    stored = OfflineReader(folder).num_weights
    if needed > stored:
        raise CheckpointError(
            f"{folder / CONFIG_NAME} must describe the model that is stored beside it, but describes one of "
            f"{needed:,} parameters for a vocabulary of {vocab_size:,}, and {stored:,} are stored; use "
            "another checkpoint, or the data that it was trained on"
        )


def _uneven(tensor: int, num_ranks: int) -> ConfigProblem:
    return ConfigProblem(
        path="--tensor-parallel",
        rule=f"must divide the number of ranks ({num_ranks})",
        value=str(tensor),
        cure=f"start {tensor} ranks or a multiple of them",
    )

"""Open a checkpoint for evaluation and generation, on the ranks of this job."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from data_prep.manifest import MANIFEST_NAME
from data_prep.tokenizers.reading import read_tokenizer
from data_prep.tokenizers.tokenizer import Tokenizer
from megatron_ext.host import prepare_host
from megatron_ext.model.model import PonderModel
from megatron_ext.parallel.groups import ParallelGroups, destroy_groups, initialize_groups
from pipeline.checkpoint.folder import CONFIG_NAME
from pipeline.checkpoint.identity import manifest_tokenizer, refuse_other_tokenizer, stored_tokenizer
from pipeline.checkpoint.loading import load_weights
from pipeline.checkpoint.offline import OfflineReader
from pipeline.checkpoint.resuming import check_intact
from pipeline.checkpoint.state import TrainState
from pipeline.checkpoint.stored_config import StoredRun, stored_checkpoint
from pipeline.checkpoint.tracker import resolve_checkpoint
from pipeline.config.errors import ConfigError, ConfigProblem
from pipeline.config.schema import RunConfig
from pipeline.conversion.certificate import CERTIFICATE_NAME
from pipeline.conversion.tokenizer_files import TOKENIZER_FOLDER, main_file
from pipeline.cost.account import flops_account
from pipeline.data.dataset import SampleSource
from pipeline.data.prompts import load_tokenizer
from pipeline.ranks.distributed import start_process_group, stop_process_group
from pipeline.ranks.environment import Ranks
from pipeline.shared.errors import CheckpointError, DataError
from pipeline.step.build import build_module, open_heldout_split

logger = logging.getLogger(__name__)

# Of a micro-batch: more would fill the memory of a machine.
_MOST_TOKENS_AT_ONCE = 2**27


# No slots: what is read when it is needed is kept in the instance.
@dataclass(frozen=True, kw_only=True)
class OpenedCheckpoint:
    """A trained model, with its run and data.

    Attributes:
        folder: the checkpoint's own folder.
        stored: the run.
        state: progress of the run.
        module: the model, in evaluation mode.
        groups: the layout.
    """

    folder: Path
    stored: StoredRun
    state: TrainState
    module: PonderModel
    groups: ParallelGroups

    @property
    def config(self) -> RunConfig:
        """The run, with the layout it was opened on; results about the checkpoint go to its output_dir."""
        return self.stored.config

    @cached_property
    def heldout(self) -> SampleSource:
        """The held-out split of the run's data, opened when it is needed.

        Raises:
            CheckpointError: it was made with another tokenizer.
            ConfigError, DataError: it cannot be read.
        """
        return _open_heldout(self.folder, self.stored)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer in the checkpoint, or for older ones that of the run's data.

        Raises:
            CheckpointError: the one in the checkpoint is not that of the training.
            ConfigError, DataError: there is none.
        """
        stored = stored_tokenizer(self.folder, self.stored.identity)
        return stored or _tokenizer_elsewhere(self.folder, self.stored)

    @cached_property
    def bos_id(self) -> int | None:
        """The token that every document of the training began with; None where there was none."""
        identity = self.stored.identity
        if identity is not None and identity.tokenizer is not None:
            return identity.tokenizer.bos_id
        folder = self.config.data.manifest_folder
        return manifest_tokenizer(folder).bos_id if (folder / MANIFEST_NAME).exists() else None

    def prompt_ids(self, text: str) -> list[int]:
        """Return the tokens of a text as training read a document: after the token that begins one, if any.

        Raises:
            DataError: the text has no token.
        """
        ids: list[int] = self.tokenizer.encode(text).tolist()
        if not ids:
            raise DataError(f"a prompt must have at least one token, but {text[:40]!r} has none")
        return ids if self.bos_id is None else [self.bos_id, *ids]


@contextmanager
def opened_checkpoint(
    path: Path,
    *,
    iteration: int | None = None,
    overrides: Sequence[str] = (),
    tensor_parallel: int | None = None,
    context_parallel: int = 1,
    data: Path | None = None,
) -> Iterator[OpenedCheckpoint]:
    """Load a model onto all ranks of this job, whatever layout it was trained on.

    Args:
        path: a run's checkpoint folder, or one ``iter_`` folder.
        iteration: which one; None takes the newest.
        overrides: settings of the run to change, such as ``ponder.num_jacobi_iterations=4``.
        tensor_parallel: ranks that one model is split over, of which there are as many replicas as ranks
            allow; None splits it over all.
        context_parallel: ranks that share the tokens of a sequence; the model then reads whole sequences
            only, and decodes none.
        data: folder of data to use in place of the run's own.
    Raises:
        CheckpointError, ConfigError, DataError: checkpoint, configuration or data are unusable.
    """
    folder = resolve_checkpoint(path, iteration=iteration).absolute()
    ranks = Ranks.from_environment()
    tensor = ranks.world_size // context_parallel if tensor_parallel is None else tensor_parallel
    model_ranks = max(tensor, 1) * context_parallel
    if ranks.world_size % model_ranks != 0:
        raise ConfigError([_uneven(model_ranks, ranks.world_size, has_context=context_parallel > 1)])
    layout = (
        f"parallel.tensor={tensor}",
        f"parallel.context={context_parallel}",
        "parallel.pipeline=1",
        "parallel.layers_per_stage=null",
        f"parallel.data={ranks.world_size // model_ranks}",
        "parallel.sequence_parallel=false",
    )
    stored = stored_checkpoint(folder, (*layout, *overrides), data=data)
    config = stored.config
    if config.parallel.context != context_parallel:
        raise ConfigError([_shares_sequences(config.parallel.context)])
    prepare_host()
    start_process_group(ranks, timeout_seconds=config.parallel.timeout_seconds)
    try:
        groups = initialize_groups(tensor=tensor, context=context_parallel, seed=config.seed)
        yield load_checkpoint(folder, stored, groups)
    finally:
        destroy_groups()
        stop_process_group()


def _shares_sequences(context: int) -> ConfigProblem:
    return ConfigProblem(
        path="parallel.context",
        rule="must be left out for a finished model: decoding reads one token after another",
        value=str(context),
        cure="for long held-out sequences use `eval --context-parallel`",
    )


def load_checkpoint(folder: Path, stored: StoredRun, groups: ParallelGroups) -> OpenedCheckpoint:
    """Load a model onto an initialized layout; all of its ranks call this together.

    Args:
        folder: the checkpoint's own folder.
        stored: the run, with this layout.
        groups: the layout.
    Raises:
        CheckpointError, ConfigError, DataError: checkpoint, configuration or data are unusable.
    """
    config, identity = stored.config, stored.identity
    check_intact(folder, reads=config.checkpoint.verify)
    if identity is None and groups.rank == 0 and not (folder / CERTIFICATE_NAME).exists():
        logger.warning(
            "%s does not record its tokenizer and data, so that those of the run's data are taken unchecked",
            folder,
        )
    vocab_size = config.model.vocab_size or (identity.vocab_size if identity is not None else None)
    if vocab_size is None:
        vocab_size = _open_heldout(folder, stored).vocabulary.size
    _check_size(folder, config, vocab_size)
    module = build_module(config, vocab_size, groups, draws=False)
    state = load_weights(folder, module=module, groups=groups)
    module.eval()
    return OpenedCheckpoint(folder=folder, stored=stored, state=state, module=module, groups=groups)


def _open_heldout(folder: Path, stored: StoredRun) -> SampleSource:
    stored.check_data_exists()
    heldout, data = open_heldout_split(stored.config), stored.config.data
    trained = None if stored.identity is None else stored.identity.tokenizer
    place = data.heldout_path or data.training_paths[0]
    if trained is not None and (place / MANIFEST_NAME).is_file():
        refuse_other_tokenizer(
            trained,
            manifest_tokenizer(place),
            folder=folder,
            place=str(place),
            cure="name data of the same tokenizer with --data FOLDER",
        )
    return heldout


def _tokenizer_elsewhere(folder: Path, stored: StoredRun) -> Tokenizer:
    data, converted = stored.config.data, folder.parent / TOKENIZER_FOLDER
    name = main_file(converted)
    if name is not None and not any(path.exists() for path in data.training_paths):
        return read_tokenizer(converted / name)
    stored.check_data_exists()
    return load_tokenizer(data.manifest_folder)


def _check_size(folder: Path, config: RunConfig, vocab_size: int) -> None:
    """Refuse a configuration of a larger model than is stored, before memory is taken for it."""
    training = config.training
    if training.micro_batch_size * training.seq_length > _MOST_TOKENS_AT_ONCE:
        raise CheckpointError(
            f"{folder / CONFIG_NAME} must have micro-batches of at most {_MOST_TOKENS_AT_ONCE:,} tokens, but "
            f"has {training.micro_batch_size:,} rows of {training.seq_length:,}; use another checkpoint"
        )
    # The rows that pad the vocabulary depend on the layout, which need not be that of the training.
    unpadded = config.model_copy(
        update={
            "model": config.model.model_copy(update={"make_vocab_size_divisible_by": 1}),
            "parallel": config.parallel.model_copy(update={"tensor": 1}),
        }
    )
    needed = flops_account(unpadded, vocab_size).parameters().total
    stored = OfflineReader(folder).num_weights
    if needed > stored:
        raise CheckpointError(
            f"{folder / CONFIG_NAME} must describe the model that is stored beside it, but describes one of "
            f"{needed:,} parameters for a vocabulary of {vocab_size:,}, and {stored:,} are stored; use "
            "another checkpoint, or the data that it was trained on"
        )


def _uneven(model_ranks: int, num_ranks: int, *, has_context: bool) -> ConfigProblem:
    return ConfigProblem(
        path="--tensor-parallel x --context-parallel" if has_context else "--tensor-parallel",
        rule=f"must divide the number of ranks ({num_ranks})",
        value=str(model_ranks),
        cure=f"start {model_ranks} ranks or a multiple of them",
    )

"""What a run is, and whether the checkpoint that it resumes from is one of it."""

import logging
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

from data_prep.manifest import MANIFEST_NAME, load_manifest
from pipeline.checkpoint.folder import CONFIG_NAME
from pipeline.checkpoint.identity import (
    AcceptedChange,
    DataPart,
    Difference,
    RunIdentity,
    StoredTokenizer,
    differences,
    manifest_tokenizer,
    read_identity,
    refuse_other_tokenizer,
    settings_identity,
    tokenizer_identity,
)
from pipeline.config.load import load_config
from pipeline.config.schema import RunConfig
from pipeline.data.dataset import SampleSource
from pipeline.data.fingerprint import stream_fingerprint
from pipeline.data.joined_dataset import JoinedDataset, parts_of
from pipeline.data.prompts import load_tokenizer
from pipeline.shared.errors import CheckpointError, DataError

logger = logging.getLogger(__name__)


def run_identity(config: RunConfig, data: SampleSource, *, vocab_size: int) -> RunIdentity:
    """Return what a run is.

    Args:
        config: the run.
        data: its training split.
        vocab_size: of the model, without padding.
    """
    return replace(
        settings_identity(config),
        vocab_size=vocab_size,
        data=_data_parts(config, data),
        tokenizer=tokenizer_of(config),
        working_directory=str(Path.cwd()),
        output_dir=str(config.output_dir.absolute()),
    )


def tokenizer_content(config: RunConfig, identity: RunIdentity) -> bytes | None:
    """Return the content of the file of a run's tokenizer; None if it has none that can be read."""
    folder = tokenizer_folder(config)
    if folder is None or identity.tokenizer is None:
        return None
    try:
        content = (folder / load_manifest(folder).header.tokenizer.file).read_bytes()
    except OSError:
        return None
    return content if sha256(content).hexdigest() == identity.tokenizer.sha256 else None


def tokenizer_of(config: RunConfig) -> StoredTokenizer | None:
    """Return the facts about the tokenizer of a run; None if its data name none."""
    folder = tokenizer_folder(config)
    if folder is None:
        return None
    described = manifest_tokenizer(folder)
    try:
        return tokenizer_identity(load_tokenizer(folder), bos_id=described.bos_id)
    except (DataError, OSError) as error:
        logger.warning("the tokenizer's file will be missing in checkpoints: %s", error)
        return described


def tokenizer_folder(config: RunConfig) -> Path | None:
    """Return the folder of the data whose manifest names the tokenizer of a run; None if none does."""
    data = config.data
    folders = [*data.training_paths, *([data.heldout_path] if data.heldout_path is not None else [])]
    return next((folder for folder in folders if (folder / MANIFEST_NAME).is_file()), None)


def identity_on_resuming(config: RunConfig, own: RunIdentity, folder: Path, *, iteration: int) -> RunIdentity:
    """Check that a resumed run is still the same run, and return its identity from now on.

    Args:
        config: the run.
        own: what its settings and data make it.
        folder: the checkpoint that it resumes from.
        iteration: of the checkpoint.
    Raises:
        CheckpointError: the tokenizer or the vocabulary differs, or another fact that
            ``resume.accept_changes`` does not name.
    """
    stored = read_identity(folder)
    before = stored or settings_identity(load_config(folder / CONFIG_NAME))
    if stored is None:
        logger.warning(
            "%s does not record its tokenizer, vocabulary and data, so that these could not be compared with "
            "those of this run; the next checkpoint records them",
            folder,
        )
    cure = "use the data that it was trained on, or start a new run in another output_dir"
    refuse_other_tokenizer(before.tokenizer, own.tokenizer, folder=folder, place="this run", cure=cure)
    if before.vocab_size is not None and before.vocab_size != own.vocab_size:
        raise CheckpointError(
            f"{folder} was trained with a vocabulary of {before.vocab_size}, but this run has "
            f"{own.vocab_size}; {cure}"
        )
    found = differences(before, own)
    accepted = config.resume.accept_changes
    refused = [one for one in found if one.name not in accepted]
    if refused:
        raise CheckpointError(_refusal(folder, refused, accepted=accepted))
    for one in found:
        logger.warning(
            "%s changes at iteration %d, as resume.accept_changes allows: from %s to %s",
            one.name,
            iteration,
            one.before,
            one.after,
        )
    changes = [
        AcceptedChange(iteration=iteration, name=one.name, before=one.before, after=one.after)
        for one in found
    ]
    return replace(own, changes=(*before.changes, *changes))


def check_parameter_groups(config: RunConfig, folder: Path) -> None:
    """Check that a run resumes with the optimizer and its parameter groups, by which its state is stored.

    Args:
        config: the run.
        folder: the checkpoint.
    Raises:
        CheckpointError: the optimizers differ, or only one has a group for the router or the gates.
    """
    stored = load_config(folder / CONFIG_NAME).optimizer
    if config.optimizer.name != stored.name:
        raise CheckpointError(
            f"optimizer.name must stay the same when a run resumes, but is {config.optimizer.name} here and "
            f"{stored.name} in {folder / CONFIG_NAME}; to change it, start a new run from these weights with "
            "init_from.path"
        )
    here, there = config.optimizer.new_parameters_lr_mult, stored.new_parameters_lr_mult
    if (here is None) != (there is None):
        raise CheckpointError(
            "optimizer.new_parameters_lr_mult must stay set, or stay unset, when a run resumes, but is "
            f"{here} here and {there} in {folder / CONFIG_NAME}; its value may change: 1.0 is the learning "
            "rate of the backbone"
        )


def _refusal(folder: Path, refused: list[Difference], *, accepted: tuple[str, ...]) -> str:
    listed = "\n".join(f"  - {one.name}: {one.before} there, {one.after} here" for one in refused)
    names = ", ".join([*accepted, *(one.name for one in refused)])
    return (
        f"a run must resume as it was trained, but differs from {folder}:\n{listed}\n"
        "set them as they were, start a new run in another output_dir, or set "
        f"resume.accept_changes: [{names}]"
    )


def _data_parts(config: RunConfig, data: SampleSource) -> tuple[DataPart, ...]:
    if config.data.sources is None:
        return (DataPart(num_tokens=len(data.stream), fingerprint=stream_fingerprint(data.stream)),)
    assert isinstance(data, JoinedDataset), "a blend has parts"
    return tuple(
        DataPart(
            num_tokens=len(part.stream),
            fingerprint=stream_fingerprint(part.stream),
            weight=source.weight,
            max_epochs=source.max_epochs,
        )
        for source, part in zip(config.data.sources, parts_of(data), strict=True)
    )

"""Conversion of a native checkpoint to a Hugging Face folder, one tensor at a time."""

import glob
import json
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from data_prep.tokenizers.tokenizer import TOKENIZER_NAME
from megatron_ext.model.config import PonderTransformerConfig
from pipeline.checkpoint.checksums import describe_damage, digest_file, find_damage, read_checksums
from pipeline.checkpoint.content import OPTIMIZER_PREFIXES
from pipeline.checkpoint.folder import CONFIG_NAME
from pipeline.checkpoint.identity import StoredTokenizer
from pipeline.checkpoint.state import TrainState, read_train_state
from pipeline.checkpoint.stored_config import StoredRun, stored_checkpoint
from pipeline.config.schema import RunConfig
from pipeline.conversion.certificate import Certificate, write_certificate
from pipeline.conversion.comparison import TOLERANCE, compare_logits
from pipeline.conversion.hf_config import CONFIG_JSON, render_hf_config
from pipeline.conversion.hf_ponder_config import render_ponder_config
from pipeline.conversion.hf_weights import HuggingFaceWeights
from pipeline.conversion.hf_weights_writing import write_tensors
from pipeline.conversion.inspection import entries_up_to
from pipeline.conversion.model_card import (
    CARD_NAME,
    CardFacts,
    find_evaluation,
    find_tasks,
    render_model_card,
)
from pipeline.conversion.model_code import write_code
from pipeline.conversion.native import NativeReader, place_of
from pipeline.conversion.run_settings import converted_model, one_process
from pipeline.conversion.target_folder import check_is_free
from pipeline.conversion.tokenizer_files import (
    GENERATION_NAME,
    TOKENIZER_FOLDER,
    add_tokenizer_json,
    begin_as_trained,
    copy_files,
    find_tokenizer,
    main_file,
    note_token_ids,
    read_token_ids,
    refuse_other_tokens,
)
from pipeline.shared.errors import ConversionError
from pipeline.step.build import open_heldout_split, vocab_size_of

SHARD_BYTES = 5 * 10**9
_PARTIAL = ".partial"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportOptions:
    """Options of an export.

    Attributes:
        dtype: of the weights; None keeps the stored type.
        tokenizer: folder with its files; None is the one next to the checkpoint, or else that of the run's
            data.
        needs_tokenizer: whether a missing tokenizer is an error.
        shard_bytes: maximum size of a file, unless one tensor is larger.
        tolerance: see :class:`pipeline.conversion.comparison.LogitComparison`.
        allow_mismatch: whether a difference above the tolerance is accepted.
        evaluation: file of an evaluation for the card; None is the run's, if any.
        license: of the weights, for the card, as the Hugging Face hub names it.
        base_model: name on the hub of what the training started from, for the card.
    """

    dtype: torch.dtype | None = None
    tokenizer: Path | None = None
    needs_tokenizer: bool = True
    shard_bytes: int = SHARD_BYTES
    tolerance: float = TOLERANCE
    allow_mismatch: bool = False
    evaluation: Path | None = None
    license: str | None = None
    base_model: str | None = None


def to_hf(checkpoint: Path, folder: Path, options: ExportOptions) -> Certificate:
    """Write a folder that transformers loads.

    Args:
        checkpoint: an ``iter_`` folder, saved on any parallel layout.
        folder: empty or absent.
        options: see :class:`ExportOptions`.
    Raises:
        ConversionError: the checkpoint is damaged, or its tensors are not those of its model, or the result
            computes different logits. Nothing is left in the folder then.
    """
    source = _open(checkpoint)
    evaluation = find_evaluation(
        checkpoint, options.evaluation, source.state.iteration, results=source.config.output_dir
    )
    tokenizer = _tokenizer_folder(checkpoint, source.config, options.tokenizer)
    files = find_tokenizer(tokenizer) if options.needs_tokenizer else []
    if files and source.tokenizer is not None:
        refuse_other_tokens(checkpoint, source.tokenizer, tokenizer)
    with _all_or_nothing(folder) as partial:
        dtype = options.dtype or _stored_dtype(source.reader)
        account = write_tensors(
            partial, source.reader, source.model, dtype=dtype, shard_bytes=options.shard_bytes
        )
        token_ids = _token_ids(tokenizer, source.tokenizer)
        _write_settings(partial, source, dtype=dtype, token_ids=token_ids)
        copy_files(files, partial)
        most = source.config.model.max_position_embeddings
        if files and source.tokenizer is not None:
            begin_as_trained(partial, source.tokenizer, max_tokens=most)
        elif main_file(partial) == TOKENIZER_NAME:
            # Nothing is known of a token before documents.
            add_tokenizer_json(partial, max_tokens=most)
        if source.config.ponder.method.facts.ponders:
            write_code(partial)
            note_token_ids(partial, token_ids)
        facts = CardFacts(
            config=source.config,
            state=source.state,
            evaluation=evaluation,
            num_parameters=account.num_values,
            dtype=str(dtype).removeprefix("torch."),
            tokenizer_file=main_file(partial),
            tasks=find_tasks(source.config.output_dir, source.state.iteration),
            license=options.license,
            base_model=options.base_model,
        )
        (partial / CARD_NAME).write_text(render_model_card(facts), encoding="utf-8")
        logits = compare_logits(
            HuggingFaceWeights(partial),
            checkpoint,
            source.config,
            tolerance=options.tolerance,
            allow_mismatch=options.allow_mismatch,
            rounded_to=dtype if account.num_rounded else None,
        )
        certificate = Certificate(
            direction="to-hf",
            source=str(checkpoint.resolve()),
            source_files=read_checksums(checkpoint),
            source_settings=source.config.model_dump(mode="json"),
            ignored_settings=(),
            method=source.config.ponder.method,
            tensors=account,
            logits=logits,
            written_files={path.name: digest_file(path, flushes=True) for path in sorted(partial.iterdir())},
        )
        write_certificate(partial, certificate)
    return certificate


@dataclass(frozen=True, slots=True, kw_only=True)
class _Source:
    """A checkpoint that can be exported.

    Attributes:
        config: its run on one rank, with the vocabulary size.
        model: the model in it.
        reader: of its tensors.
        state: progress of the run.
        tokenizer: that the run was trained with, if the checkpoint tells.
    """

    config: RunConfig
    model: PonderTransformerConfig
    reader: NativeReader
    state: TrainState
    tokenizer: StoredTokenizer | None


def _open(checkpoint: Path) -> _Source:
    """Open a checkpoint and check that it can be exported."""
    damage = find_damage(checkpoint)
    if damage:
        raise ConversionError(
            f"{checkpoint} must be intact, but {describe_damage(damage)}; use another checkpoint"
        )
    stored = stored_checkpoint(checkpoint)
    config = _with_vocabulary(stored)
    assert config.model.vocab_size is not None, "just filled in"
    model = converted_model(config, config.model.vocab_size)
    reader = NativeReader(checkpoint)
    _check_tensors(reader, model)
    state = read_train_state(checkpoint)
    trained = None if stored.identity is None else stored.identity.tokenizer
    return _Source(config=config, model=model, reader=reader, state=state, tokenizer=trained)


def _tokenizer_folder(checkpoint: Path, config: RunConfig, given: Path | None) -> Path:
    sibling = checkpoint.parent / TOKENIZER_FOLDER
    if given is not None or sibling.is_dir():
        return given or sibling
    if main_file(checkpoint) or config.data.format != "webdataset":
        return checkpoint
    return config.data.manifest_folder if main_file(config.data.manifest_folder) else sibling


def _token_ids(folder: Path, trained: StoredTokenizer | None) -> dict[str, Any]:
    """Return ids such as the end of texts: those in the tokenizer's folder, else those of the training."""
    if trained is None:
        return read_token_ids(folder)
    ids = {"bos_token_id": trained.bos_id, "eos_token_id": trained.eod_id}
    return ids | (read_token_ids(folder) if (folder / GENERATION_NAME).is_file() else {})


def _write_settings(
    partial: Path, source: _Source, *, dtype: torch.dtype, token_ids: Mapping[str, Any]
) -> None:
    name, vocab_size = str(dtype).removeprefix("torch."), source.model.vocab_size
    if source.config.ponder.method.facts.ponders:
        settings = render_ponder_config(source.config, vocab_size=vocab_size, dtype=name, token_ids=token_ids)
    else:
        settings = render_hf_config(
            source.config.model, vocab_size=vocab_size, dtype=name, token_ids=token_ids
        )
    (partial / CONFIG_JSON).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def _with_vocabulary(stored: StoredRun) -> RunConfig:
    """Return the run on one rank, with the vocabulary of its tokenizer if it states none."""
    config, identity = stored.config, stored.identity
    if config.model.vocab_size is not None:
        return one_process(config)
    vocab_size = None if identity is None else identity.vocab_size
    if vocab_size is None:
        stored.check_data_exists()
        vocab_size = vocab_size_of(config, open_heldout_split(config))
    return one_process(config, model=config.model.model_dump(mode="json") | {"vocab_size": vocab_size})


def _check_tensors(reader: NativeReader, model: PonderTransformerConfig) -> None:
    """Check that the checkpoint has the tensors of the model and no others."""
    stored = sum(max(entry.size[:1], default=1) for entry in reader.reader.tensors.values())
    table = entries_up_to(model, stored, origin=str(reader.folder))
    wanted = {place_of(entry.native).key for entry in table}
    found = {name for name in reader.reader.tensors if not name.startswith(OPTIMIZER_PREFIXES)}
    stacks = {name: entry.size for name, entry in reader.reader.tensors.items() if name in wanted}
    other_depth = {
        name for name, size in stacks.items() if name.startswith("decoder.") and size[0] != model.num_layers
    }
    if wanted != found or other_depth:
        raise ConversionError(
            f"{reader.folder} must hold exactly the tensors of the model in {CONFIG_NAME}, but misses "
            f"{sorted(wanted - found) or 'none'}, has unexpected {sorted(found - wanted) or 'none'}, "
            f"and another number of layers in {sorted(other_depth) or 'none'}; use another checkpoint"
        )


def _stored_dtype(reader: NativeReader) -> torch.dtype:
    """Return the type that represents all weights exactly."""
    found = [
        entry.properties.dtype
        for name, entry in reader.reader.tensors.items()
        if not name.startswith(OPTIMIZER_PREFIXES)
    ]
    widest = found[0]
    for dtype in found[1:]:
        widest = torch.promote_types(widest, dtype)
    return widest


@contextmanager
def _all_or_nothing(folder: Path) -> Iterator[Path]:
    """Provide a temporary folder next to the requested one; it is renamed on success and removed on error."""
    check_is_free(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Of a conversion that was killed. Whoever converts to this folder holds its lock.
    for leftover in folder.parent.glob(f"{glob.escape(folder.name)}.*{_PARTIAL}"):
        shutil.rmtree(leftover)
    partial = folder.with_name(f"{folder.name}.{secrets.token_hex(6)}{_PARTIAL}")
    # Unlike those of tempfile, with the mode that the umask gives, as the files in it.
    partial.mkdir()
    try:
        yield partial
        if folder.exists():
            folder.rmdir()
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise

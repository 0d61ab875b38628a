"""Conversion of a Hugging Face folder to a native checkpoint, one tensor at a time."""

import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from megatron_ext.initialization import seeded_initialization
from megatron_ext.methods.registry import build_method
from megatron_ext.model.config import PonderTransformerConfig
from megatron_ext.ponder.config import Method
from megatron_ext.weights import Entry
from pipeline.checkpoint.checksums import FileDigest, digest_file
from pipeline.checkpoint.folder import publish, start_partial_checkpoint
from pipeline.conversion.certificate import Certificate, TensorAccount, write_certificate
from pipeline.conversion.comparison import TOLERANCE, compare_logits, is_pondering
from pipeline.conversion.hf_config import CONFIG_JSON, read_source
from pipeline.conversion.hf_weights import HuggingFaceWeights
from pipeline.conversion.inspection import Findings, check_tied_copies, inspect, is_computed
from pipeline.conversion.native import NativeWriter, write_small_files
from pipeline.conversion.run_settings import converted_model, one_process, run_settings
from pipeline.conversion.target_folder import check_is_free, is_left_by_import
from pipeline.conversion.tokenizer_files import TOKENIZER_FOLDER, copy_files, find_tokenizer, note_token_ids
from pipeline.shared.errors import ConversionError


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportOptions:
    """Options of an import.

    Attributes:
        method: of the checkpoint; None is the source's own.
        overrides: ``group.key=value`` for the checkpoint's run_config.yaml.
        ignored: keys of config.json to ignore.
        needs_tokenizer: whether a folder without a tokenizer is an error.
        tolerance: see :class:`pipeline.conversion.comparison.LogitComparison`.
        allow_mismatch: whether a difference above the tolerance is accepted.
    """

    method: Method | None = None
    overrides: Sequence[str] = ()
    ignored: Sequence[str] = ()
    needs_tokenizer: bool = True
    tolerance: float = TOLERANCE
    allow_mismatch: bool = False


def from_hf(source_folder: Path, directory: Path, options: ImportOptions) -> tuple[Path, Certificate]:
    """Write a checkpoint of weights that eval, generate and init_from load on any parallel layout.

    Args:
        source_folder: config.json, weights, tokenizer.
        directory: an empty or absent folder for the checkpoint, its tracker and the tokenizer files.
        options: see :class:`ImportOptions`.
    Returns:
        The ``iter_`` folder and its certificate.
    Raises:
        ConversionError: the source is damaged or unsupported, or the result computes different logits.
            Nothing is left in the directory then.
        ConfigError: the overrides are invalid.
    """
    source = read_source(source_folder, ignored=options.ignored)
    files = find_tokenizer(source_folder) if options.needs_tokenizer else []
    weights = HuggingFaceWeights(source_folder)
    config = run_settings(
        source, method=options.method, overrides=options.overrides, precision=_precision(weights)
    )
    assert config.model.vocab_size is not None, "a config.json states its vocabulary"
    model = converted_model(config, config.model.vocab_size)
    findings = inspect(weights, model)
    check_tied_copies(weights, findings.tied_copies)
    digests = _digests(weights, files)
    with _all_or_nothing(directory) as partial:
        account = _write_tensors(partial, weights, model, findings, seed=config.seed)
        write_small_files(partial, config)
        logits = compare_logits(
            weights,
            partial,
            # The imported weights must ponder as before, whatever method the checkpoint is for.
            one_process(config, ponder=dict(source.ponder)) if is_pondering(source_folder) else config,
            tolerance=options.tolerance,
            allow_mismatch=options.allow_mismatch,
        )
        certificate = Certificate(
            direction="from-hf",
            source=str(source_folder.resolve()),
            source_files=digests,
            source_settings=source.values,
            ignored_settings=tuple(options.ignored),
            method=config.ponder.method,
            tensors=account,
            logits=logits,
            written_files={},
        )
        write_certificate(partial, certificate)
        copy_files(files, directory / TOKENIZER_FOLDER)
        note_token_ids(directory / TOKENIZER_FOLDER, source.token_ids)
        return publish(partial), certificate


@contextmanager
def _all_or_nothing(directory: Path) -> Iterator[Path]:
    """Provide the folder of a partial checkpoint; an error leaves the directory as it was."""
    existed = directory.exists()
    if is_left_by_import(directory):
        shutil.rmtree(directory)
        directory.mkdir()
    check_is_free(directory)
    try:
        yield start_partial_checkpoint(directory, 0)
    except BaseException:
        shutil.rmtree(directory, ignore_errors=True)
        if existed:
            directory.mkdir()
        raise


def _write_tensors(
    partial: Path,
    weights: HuggingFaceWeights,
    model: PonderTransformerConfig,
    findings: Findings,
    *,
    seed: int,
) -> TensorAccount:
    stored = [weights.tensors[name] for entry in findings.present for name in entry.sources]
    dtypes = Counter(str(tensor.dtype).removeprefix("torch.") for tensor in stored)
    num_bytes = sum(tensor.shape.numel() * (tensor.dtype or torch.float32).itemsize for tensor in stored)
    padding: dict[str, int] = {}
    with NativeWriter(partial, num_layers=model.num_layers, total_bytes=num_bytes) as writer:
        for entry in findings.present:
            values = entry.join(*(_finite(weights, name) for name in entry.sources))
            if entry.vocabulary_rows is not None:
                padding[entry.native] = model.padded_vocab_size - values.shape[0]
                values = functional.pad(values, (0, 0, 0, padding[entry.native]))
            writer.write(entry.native, values)
        for name, values in _initialized(model, findings.absent, seed=seed):
            writer.write(name, values)
    decider = model.ponder.decider
    return TensorAccount(
        made_of={entry.native: entry.sources for entry in findings.present},
        num_read=len(stored),
        num_values=sum(tensor.shape.numel() for tensor in stored),
        dtypes=dict(dtypes),
        new={entry.native: decider.start for entry in findings.absent} if decider else {},
        padding_rows=padding,
        tied_copies=findings.tied_copies,
        computed=findings.computed,
    )


def _finite(weights: HuggingFaceWeights, name: str) -> Tensor:
    values = weights.read(name)
    if not torch.isfinite(values).all():
        raise ConversionError(
            f"{name} must be finite, but has {int((~torch.isfinite(values)).sum())} non-finite values; "
            "use another copy of the model"
        )
    return values


def _initialized(
    model: PonderTransformerConfig, absent: Sequence[Entry], *, seed: int
) -> Iterator[tuple[str, Tensor]]:
    """Yield the method's own weights as a run with this seed initializes them (definitions 2.7)."""
    if not absent:
        return
    with seeded_initialization(seed, "method"):
        method = build_method(model.ponder, model.hidden_size, decides=True).to(model.params_dtype)
    values = dict(method.named_parameters(prefix="ponder"))
    for entry in absent:
        yield entry.native, values[entry.native].detach()


def _precision(weights: HuggingFaceWeights) -> str:
    """Return the precision that represents every weight exactly."""
    dtypes = {tensor.dtype for name, tensor in weights.tensors.items() if not is_computed(name)}
    return "bf16" if dtypes == {torch.bfloat16} else "fp32"


def _digests(weights: HuggingFaceWeights, files: Sequence[Path]) -> dict[str, FileDigest]:
    names = [CONFIG_JSON, *weights.files, *(file.name for file in files)]
    if weights.index_name is not None:
        names.append(weights.index_name)
    return {name: digest_file(weights.folder / name) for name in names}

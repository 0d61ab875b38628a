"""What a checkpoint belongs to: ``identity.json``, and the tokenizer's file beside it.

A run that resumes with another tokenizer, order or row length would train without an error and mean something
else, so these facts are stored with the weights and compared. Nothing here imports torch.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from json import dumps
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, TypeAdapter, with_config

from data_prep.manifest import load_manifest
from data_prep.tokenizers.reading import read_tokenizer
from data_prep.tokenizers.tokenizer import TOKENIZER_NAMES, Tokenizer
from pipeline.checkpoint.origin import Origin
from pipeline.config.schema import RunConfig
from pipeline.shared.errors import CheckpointError, DataError
from pipeline.shared.files import write_atomically
from pipeline.shared.foreign_files import read_json_object

IDENTITY_NAME = "identity.json"
_IGNORING = ConfigDict(extra="ignore")
# It prunes evaluations and decoding; no training step depends on it.
_FREE_PONDER_SETTINGS = ("pruning_threshold",)


@with_config(_IGNORING)
@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTokenizer:
    """The tokenizer of a run.

    Attributes:
        kind: sentencepiece or huggingface.
        file: its name in the checkpoint.
        sha256: of the file.
        vocab_size: ids are below it.
        eod_id: ends every document of the training.
        eod_token: its name, which a ``tokenizer.json`` needs; None for sentencepiece.
        bos_id: begins every document of the training; None where there is none.
    """

    kind: Literal["sentencepiece", "huggingface"]
    file: str
    sha256: str
    vocab_size: int
    eod_id: int
    eod_token: str | None
    bos_id: int | None

    @property
    def meaning(self) -> tuple[str, int, int]:
        """What determines the meaning of every id."""
        return self.sha256, self.vocab_size, self.eod_id

    def __str__(self) -> str:
        begins = "" if self.bos_id is None else f", documents begin with {self.bos_id}"
        return (
            f"{self.kind} {self.sha256[:12]}, {self.vocab_size:,} ids, end of documents {self.eod_id}{begins}"
        )


@with_config(_IGNORING)
@dataclass(frozen=True, slots=True, kw_only=True)
class DataPart:
    """The training tokens of one source.

    Attributes:
        num_tokens: of the split.
        fingerprint: see :func:`pipeline.data.fingerprint.stream_fingerprint`.
        weight, max_epochs: in a blend.
    """

    num_tokens: int
    fingerprint: str
    weight: float = 1.0
    max_epochs: float | None = None

    def __str__(self) -> str:
        blend = "" if self.weight == 1.0 and self.max_epochs is None else f", weight {self.weight:g}"
        epochs = "" if self.max_epochs is None else f", at most {self.max_epochs:g} epochs"
        return f"{self.num_tokens:,} tokens {self.fingerprint[:12]}{blend}{epochs}"


@with_config(_IGNORING)
@dataclass(frozen=True, slots=True, kw_only=True)
class AcceptedChange:
    """A fact that was changed on resuming, by ``resume.accept_changes``."""

    iteration: int
    name: str
    before: str
    after: str


@with_config(_IGNORING)
@dataclass(frozen=True, slots=True, kw_only=True)
class RunIdentity:
    """The facts about a run that must not change between saving and resuming.

    Attributes:
        method: of pondering.
        ponder: its settings.
        seed: of weights, order and draws.
        row_length: tokens of a row.
        batch_size: rows of an iteration.
        order: of the rows.
        vocab_size: true ids of the model, without padding; None in checkpoints that do not tell.
        data: training tokens by source; None in checkpoints that do not tell.
        tokenizer: None where the data name none, and in checkpoints that do not tell.
        working_directory: where the run was started, to which its relative paths refer.
        output_dir: of the run, when it was started, in full.
        origin: the program that writes; None in checkpoints that do not tell.
        saved_at: when a checkpoint was written, as UTC in ISO 8601; None in the folder of a run.
        changes: accepted so far, oldest first.
    """

    format: Literal["megaponder.identity/1"] = "megaponder.identity/1"
    method: str
    ponder: Mapping[str, Any]
    seed: int
    row_length: int
    batch_size: int
    order: str
    vocab_size: int | None = None
    data: tuple[DataPart, ...] | None = None
    tokenizer: StoredTokenizer | None = None
    working_directory: str | None = None
    output_dir: str | None = None
    origin: Origin | None = None
    saved_at: str | None = None
    changes: tuple[AcceptedChange, ...] = field(default=())


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A fact that is not what it was, by its name in ``resume.accept_changes``."""

    name: str
    before: str
    after: str


def settings_identity(config: RunConfig) -> RunIdentity:
    """Return what the settings of a run alone tell."""
    ponder = config.ponder.model_dump(mode="json", exclude={"method", *_FREE_PONDER_SETTINGS})
    return RunIdentity(
        method=config.ponder.method.value,
        ponder=ponder,
        seed=config.seed,
        row_length=config.training.seq_length,
        batch_size=config.training.global_batch_size,
        order=config.data.order,
        vocab_size=config.model.vocab_size,
    )


def manifest_tokenizer(folder: Path) -> StoredTokenizer:
    """Return the facts about the tokenizer of prepared data.

    Raises:
        DataError: the folder has no manifest.
    """
    entry = load_manifest(folder).header.tokenizer
    return StoredTokenizer(
        kind=entry.kind,
        file=TOKENIZER_NAMES[entry.kind],
        sha256=entry.sha256,
        vocab_size=entry.vocab_size,
        eod_id=entry.eod_id,
        eod_token=None,
        bos_id=entry.bos_id,
    )


def tokenizer_identity(tokenizer: Tokenizer, *, bos_id: int | None) -> StoredTokenizer:
    """Return the facts about a tokenizer whose documents begin with ``bos_id``."""
    is_named = tokenizer.kind == "huggingface"
    return StoredTokenizer(
        kind=tokenizer.kind,
        file=TOKENIZER_NAMES[tokenizer.kind],
        sha256=tokenizer.sha256,
        vocab_size=tokenizer.vocab_size,
        eod_id=tokenizer.eod_id,
        eod_token=tokenizer.token_name(tokenizer.eod_id) if is_named else None,
        bos_id=bos_id,
    )


def read_identity(folder: Path) -> RunIdentity | None:
    """Read what a checkpoint belongs to; None for one that was saved without.

    Raises:
        CheckpointError: the file is damaged.
    """
    path = folder / IDENTITY_NAME
    if not path.exists():
        return None
    try:
        found = TypeAdapter(RunIdentity).validate_python(read_json_object(path))
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(
            f"{path} must tell what the checkpoint belongs to, but cannot be read ({reason}); use another one"
        ) from error
    if found.tokenizer is not None and found.tokenizer.file not in TOKENIZER_NAMES.values():
        raise CheckpointError(f"{path} must name a tokenizer's file, but names {found.tokenizer.file[:80]!r}")
    return found


def write_identity(folder: Path, identity: RunIdentity, tokenizer: bytes | None) -> None:
    """Write what a checkpoint belongs to into it.

    Args:
        folder: of the checkpoint, or of a run.
        identity: the facts.
        tokenizer: content of the tokenizer's file; None leaves it out.
    """
    if tokenizer is not None:
        assert identity.tokenizer is not None, "a file of a tokenizer without facts about it"
        write_atomically(folder / identity.tokenizer.file, tokenizer)
    write_atomically(folder / IDENTITY_NAME, dumps(asdict(identity), indent=2) + "\n")


def stored_tokenizer(folder: Path, identity: RunIdentity | None) -> Tokenizer | None:
    """Return the tokenizer in a checkpoint; None if it holds none.

    Raises:
        CheckpointError: the file is not the tokenizer that the run was trained with.
    """
    if identity is None or identity.tokenizer is None:
        return None
    facts = identity.tokenizer
    path = folder / facts.file
    if not path.exists():
        return None
    try:
        tokenizer = read_tokenizer(path, eod_token=facts.eod_token)
    except (DataError, OSError) as error:
        raise CheckpointError(f"{path} must be the tokenizer of the run, but is not: {error}") from error
    found = tokenizer_identity(tokenizer, bos_id=facts.bos_id)
    if found != facts:
        raise CheckpointError(f"{path} must be the tokenizer {facts}, but is {found}; use another checkpoint")
    return tokenizer


def differences(before: RunIdentity, after: RunIdentity) -> list[Difference]:
    """Return the facts that differ, as far as both are known, but for the tokenizer's."""
    changed = sorted(
        name
        for name in before.ponder.keys() & after.ponder.keys()
        if before.ponder[name] != after.ponder[name]
    )
    methods = [
        ", ".join([one.method, *(f"{name} {one.ponder[name]}" for name in changed)])
        for one in (before, after)
    ]
    pairs: dict[str, tuple[Any, Any]] = {
        "method": (methods[0], methods[1]),
        "seed": (before.seed, after.seed),
        "row_length": (before.row_length, after.row_length),
        "batch_size": (before.batch_size, after.batch_size),
        "order": (before.order, after.order),
    }
    if before.data is not None and after.data is not None and before.data != after.data:
        pairs["data"] = ("; ".join(map(str, before.data)), "; ".join(map(str, after.data)))
    return [
        Difference(name=name, before=str(old), after=str(new))
        for name, (old, new) in pairs.items()
        if old != new
    ]


def refuse_other_tokenizer(
    trained: StoredTokenizer | None, other: StoredTokenizer | None, *, folder: Path, place: str, cure: str
) -> None:
    """Check that tokens mean what they meant in the training, as far as both tokenizers are known.

    Args:
        trained: of the checkpoint.
        other: of what it is to be used with.
        folder: of the checkpoint, for the error.
        place: the other's, for the error.
        cure: what to do, for the error.
    Raises:
        CheckpointError: they are not the same.
    """
    if trained is not None and other is not None and trained.meaning != other.meaning:
        raise CheckpointError(
            f"{folder} was trained with the tokenizer {trained}, but {place} has {other}: every token would "
            f"mean something else; {cure}"
        )

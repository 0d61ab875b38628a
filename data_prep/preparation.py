"""From text to a finished folder of token shards, with any executor of the tasks."""

import logging
import re
import shutil
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveFloat

from data_prep.inputs.documents import InputFile, TextFiles, TextFolder, files_fingerprint
from data_prep.inputs.finding import FoundFiles, survey_files
from data_prep.inputs.rejections import (
    DEFAULT_MAX_BAD_FILES,
    DEFAULT_MAX_BAD_RECORDS,
    LOST_NAME,
    REJECTED_NAME,
    SKIPPED_NAME,
    check_omissions,
    write_omissions,
    write_skipped,
)
from data_prep.journal import JOURNAL_NAME, append_entry, load_journal, start_journal
from data_prep.leftovers import remove_temporaries
from data_prep.manifest import (
    MANIFEST_NAME,
    InputEntry,
    LostFile,
    PreparationHeader,
    PrepareSettings,
    RejectedRecord,
    ShardEntry,
    ShardManifest,
    StoredAs,
    TokenizerEntry,
    load_manifest,
    save_manifest,
    token_type_for,
)
from data_prep.plan import PlannedShard, plan_shards
from data_prep.progress import PrepareProgress, WorkTotals
from data_prep.tasks import ShardTask, StoppedTask, TaskReport, tokenize_shard
from data_prep.tokenizers.encoding import Backend, resolve_backend
from data_prep.tokenizers.reading import read_tokenizer, read_tokenizer_file
from data_prep.tokenizers.tokenizer import SPECIAL_TOKENS_NAME, TOKENIZER_NAMES, special_tokens_map
from pipeline.shared.errors import DataError
from pipeline.shared.files import write_atomically
from pipeline.shared.folder_lock import folder_lock

logger = logging.getLogger(__name__)

# Of a preparation, for others who want to write its folder.
LOCK_WORK = "megaponder data prepare"
# Folder of shards that will be merged into pairs; an interrupted run resumes with them.
PARTS_FOLDER = ".parts"
# Files of tokens in both formats.
_TOKEN_FILE = re.compile(r"\.?(train|heldout)(-\d{6,}\.tar|\.bin|\.idx)(\.tmp-[0-9a-f]+)?")
OUR_FILES = re.compile(
    r"(train|heldout)(-\d{6,}\.tar|\.bin|\.idx)|"
    + "|".join(
        re.escape(name)
        for name in (
            MANIFEST_NAME,
            JOURNAL_NAME,
            REJECTED_NAME,
            LOST_NAME,
            SKIPPED_NAME,
            SPECIAL_TOKENS_NAME,
            *TOKENIZER_NAMES.values(),
        )
    )
)
# Runs tasks in any order, yields each report as it arrives, and stops its workers when the generator is
# closed.
Executor = Callable[[Sequence[ShardTask]], Generator[TaskReport | StoppedTask, None, None]]


class PrepareRequest(BaseModel):
    """What to prepare, and how. Source, ``settings`` and tokenizer determine the bytes of the shards."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: TextFolder | TextFiles
    output: Path
    tokenizer: Path
    eod_token: str | None = Field(default=None, description="ends documents; only for a tokenizer.json")
    bos_token: str | None = Field(default=None, description="begins documents; None adds nothing")
    tokenizer_backend: Backend = Field(
        default="auto", description="what computes the tokens; all compute the same"
    )
    settings: PrepareSettings = PrepareSettings()
    stored_as: StoredAs = Field(default="webdataset", description="shards, or a Megatron pair of each split")
    workers: NonNegativeInt = Field(default=2, description="Ray workers; 0 runs in this process, without Ray")
    ray_address: str | None = Field(default=None, description="HOST:PORT of a running Ray; None starts one")
    small_bytes: NonNegativeInt = Field(
        default=8_000_000, description="no Ray is started for so few bytes of files, which take seconds here"
    )
    overwrite: bool = Field(default=False, description="replace shards made from other text or settings")
    max_bad_records: NonNegativeInt = Field(
        default=DEFAULT_MAX_BAD_RECORDS, description="records without text that may be skipped"
    )
    max_bad_files: NonNegativeInt = Field(
        default=DEFAULT_MAX_BAD_FILES, description="files that cannot be read, or not to their end"
    )
    task_timeout_seconds: PositiveFloat = Field(default=3600.0, description="longest wait for a shard")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Work:
    found: FoundFiles
    header: PreparationHeader
    shards: Sequence[PlannedShard]
    finished: dict[str, ShardEntry]

    @property
    def missing(self) -> list[PlannedShard]:
        return [shard for shard in self.shards if shard.name not in self.finished]

    @property
    def rejected(self) -> list[RejectedRecord]:
        return [record for entry in self.finished.values() for record in entry.rejected]

    @property
    def lost(self) -> list[LostFile]:
        return [file for entry in self.finished.values() for file in entry.lost]


def execute_here(tasks: Sequence[ShardTask]) -> Generator[TaskReport | StoppedTask, None, None]:
    """Execute tasks one after the other in this process."""
    return (tokenize_shard(task) for task in tasks)


def prepare_shards(request: PrepareRequest, execute: Executor, progress: PrepareProgress) -> ShardManifest:
    """Create or complete the shards of a request in its output folder; valid shards are kept.

    Raises:
        DataError: the request cannot be met, or the folder holds shards of other text or settings.
    """
    with folder_lock(request.output, LOCK_WORK):
        remove_temporaries(request.output, OUR_FILES)
        work = _survey(request)
        _check(request, work.rejected, work.lost)
        if not work.missing and _finished_header(request.output) == work.header:
            manifest = load_manifest(request.output)
            check_manifest(request, manifest)
            progress.finish(manifest, num_new_shards=0, found=work.found, folder=request.output)
            return manifest
        backend = resolve_backend(request.tokenizer, request.tokenizer_backend, eod_token=request.eod_token)
        _begin(request, work)
        finished = {**work.finished, **_run(request, work, backend, execute, progress)}
        return _complete(request, work, finished, progress)


def _check(request: PrepareRequest, rejected: Sequence[RejectedRecord], lost: Sequence[LostFile]) -> None:
    check_omissions(
        request.output,
        rejected,
        lost,
        max_bad_records=request.max_bad_records,
        max_bad_files=request.max_bad_files,
    )


def check_manifest(request: PrepareRequest, manifest: ShardManifest) -> None:
    """Check that what was prepared is within the limits of the request, and is something.

    Raises:
        DataError: too much was not taken, or there is no token.
    """
    _check(request, manifest.rejected, manifest.lost)
    if any(shard.num_tokens for shard in manifest.shards):
        return
    write_omissions(request.output, manifest.rejected, manifest.lost)
    inputs = manifest.header.inputs
    reasons = [*(record.reason for record in manifest.rejected), *(file.reason for file in manifest.lost)]
    first = f", the first of them because {reasons[0]}" if reasons else ""
    raise DataError(
        f"{inputs.source} must hold text, but its {inputs.num_files} files of {inputs.num_bytes} bytes gave "
        f"no token: {len(manifest.rejected)} records are bad and {len(manifest.lost)} files lost{first}, and "
        f"{sum(shard.num_empty_documents for shard in manifest.shards)} documents are empty; check the input "
        "and --text-field"
    )


def _survey(request: PrepareRequest) -> _Work:
    """Compare the request with the content of the folder; nothing is written."""
    found = survey_files(request.source, output=request.output)
    files = found.files
    header = _header(request, files).model_copy(update={"stored_as": "webdataset"})
    shards = plan_shards(files, request.settings, request.source.reading)
    previous, entries = _previous_state(request)
    if previous is not None and previous != header and not request.overwrite:
        raise DataError(describe_difference(request.output, previous, header))
    same_bytes = previous is not None and previous.model_copy(update={"inputs": header.inputs}) == header
    finished = _still_valid(request.output, shards, entries) if same_bytes else {}
    return _Work(found=found, header=header, shards=shards, finished=finished)


def plan_header(request: PrepareRequest) -> PreparationHeader:
    """Return the header of the manifest: tokenizer, input and settings; no text is read.

    Raises:
        DataError: there is no such text or tokenizer.
    """
    return _header(request, survey_files(request.source, output=request.output).files)


def _header(request: PrepareRequest, files: Sequence[InputFile]) -> PreparationHeader:
    tokenizer = read_tokenizer(request.tokenizer, eod_token=request.eod_token)
    return PreparationHeader(
        stored_as=request.stored_as,
        token_type=token_type_for(tokenizer.vocab_size),
        tokenizer=TokenizerEntry(
            kind=tokenizer.kind,
            file=TOKENIZER_NAMES[tokenizer.kind],
            sha256=tokenizer.sha256,
            vocab_size=tokenizer.vocab_size,
            eod_id=tokenizer.eod_id,
            bos_id=None if request.bos_token is None else tokenizer.special_id(request.bos_token),
        ),
        settings=request.settings,
        reading=request.source.reading,
        inputs=InputEntry(
            source=request.source.description,
            num_files=len(files),
            num_bytes=sum(file.size_bytes for file in files),
            fingerprint=files_fingerprint(files),
        ),
    )


def _previous_state(request: PrepareRequest) -> tuple[PreparationHeader | None, tuple[ShardEntry, ...]]:
    # A journal is newer than a manifest in the same folder: replacing a finished folder starts with a
    # journal.
    try:
        if (journal := load_journal(request.output)) is not None:
            return journal
        if (request.output / MANIFEST_NAME).exists():
            manifest = load_manifest(request.output)
            return manifest.header, manifest.shards
    except DataError:
        if not request.overwrite:
            raise
        logger.warning("the state of %s cannot be read; all shards are made again", request.output)
    return None, ()


def _still_valid(
    output: Path, shards: Sequence[PlannedShard], entries: Iterable[ShardEntry]
) -> dict[str, ShardEntry]:
    """Return the entries whose shard is planned with the same input and exists with its full size."""
    planned = {shard.name: shard.inputs for shard in shards}
    return {
        entry.name: entry
        for entry in entries
        if planned.get(entry.name) == entry.inputs and _size_bytes(output / entry.name) == entry.size_bytes
    }


def _size_bytes(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def describe_difference(output: Path, previous: PreparationHeader, header: PreparationHeader) -> str:
    """Render every field that differs, with both values, for an error."""
    before, now = _flat(previous.model_dump()), _flat(header.model_dump())
    changed = [key for key in now if before.get(key) != now[key]]
    difference = ", ".join(f"{key} was {before.get(key)} and is {now[key]} now" for key in changed)
    return (
        f"{output} must be prepared from the text, tokenizer and settings it was started with, "
        f"but {difference}; choose a new output folder, or --overwrite to replace the shards"
    )


def _flat(values: dict[str, object], prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _finished_header(output: Path) -> PreparationHeader | None:
    if (output / JOURNAL_NAME).exists() or not (output / MANIFEST_NAME).exists():
        return None
    return load_manifest(output).header


def _begin(request: PrepareRequest, work: _Work) -> None:
    """Mark the folder as unfinished, in an order that leaves it readable after a crash at any point."""
    start_journal(request.output, work.header, work.finished.values())
    (request.output / MANIFEST_NAME).unlink(missing_ok=True)
    _copy_tokenizer(request, work.header.tokenizer)
    write_skipped(request.output, work.found.skipped)


def _copy_tokenizer(request: PrepareRequest, entry: TokenizerEntry) -> None:
    """Copy the tokenizer into the folder, with the end-of-document token of a tokenizer.json."""
    if entry.kind == "huggingface":
        tokenizer = read_tokenizer(request.tokenizer, eod_token=request.eod_token)
        names = special_tokens_map(tokenizer.token_name(entry.eod_id))
        write_atomically(request.output / SPECIAL_TOKENS_NAME, names)
    write_atomically(request.output / entry.file, read_tokenizer_file(request.tokenizer))


def _run(
    request: PrepareRequest, work: _Work, backend: Backend, execute: Executor, progress: PrepareProgress
) -> dict[str, ShardEntry]:
    tasks = [_task(request, work.header, shard, backend) for shard in work.missing]
    progress.start(
        WorkTotals(
            num_shards=len(tasks),
            num_skipped_shards=len(work.finished),
            text_bytes=sum(shard.inputs.num_bytes for shard in work.missing),
        )
    )
    entries: dict[str, ShardEntry] = {}
    rejected, lost = work.rejected, work.lost
    try:
        with closing(execute(tasks)) as reports:
            for report in reports:
                omissions = report if isinstance(report, StoppedTask) else report.entry
                rejected += omissions.rejected
                lost += omissions.lost
                if not isinstance(report, StoppedTask):
                    append_entry(request.output, report.entry)
                    entries[report.entry.name] = report.entry
                    progress.advance(report.entry)
                _check(request, rejected, lost)
    finally:
        progress.stop()
    return entries


def _task(
    request: PrepareRequest, header: PreparationHeader, shard: PlannedShard, backend: Backend
) -> ShardTask:
    return ShardTask(
        shard=shard,
        reading=header.reading,
        heldout_fraction=header.settings.heldout_fraction,
        output=request.output.resolve(),
        tokenizer=request.output.resolve() / header.tokenizer.file,
        tokenizer_sha256=header.tokenizer.sha256,
        tokenizer_backend=backend,
        eod_id=header.tokenizer.eod_id,
        bos_id=header.tokenizer.bos_id,
        token_type=header.token_type,
        member_tokens=header.settings.member_tokens,
        max_bad_records=request.max_bad_records,
        max_bad_files=request.max_bad_files,
    )


def _complete(
    request: PrepareRequest, work: _Work, finished: dict[str, ShardEntry], progress: PrepareProgress
) -> ShardManifest:
    """Write the manifest in the planned order, then remove the journal and leftover files."""
    manifest = ShardManifest(header=work.header, shards=tuple(finished[shard.name] for shard in work.shards))
    output = request.output
    check_manifest(request, manifest)
    write_omissions(output, manifest.rejected, manifest.lost)
    save_manifest(manifest, output)
    (output / JOURNAL_NAME).unlink()
    remove_leftovers(output, keep={shard.name for shard in manifest.shards})
    num_new_shards = len(finished) - len(work.finished)
    progress.finish(manifest, num_new_shards=num_new_shards, found=work.found, folder=output)
    return manifest


def remove_leftovers(output: Path, *, keep: set[str]) -> None:
    """Delete files of tokens that a finished folder does not need, such as those of killed workers."""
    shutil.rmtree(output / PARTS_FOLDER, ignore_errors=True)
    for path in output.iterdir():
        if _TOKEN_FILE.fullmatch(path.name) and path.name not in keep:
            logger.info("removing %s, which is not in the manifest", path)
            path.unlink()

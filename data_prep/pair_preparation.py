"""From text to Megatron pairs: shards are made first, and then merged."""

import logging
from pathlib import Path

from data_prep.conversion import finish_folder
from data_prep.journal import JOURNAL_NAME
from data_prep.leftovers import remove_temporaries
from data_prep.manifest import MANIFEST_NAME, ShardManifest, load_manifest
from data_prep.preparation import (
    LOCK_WORK,
    OUR_FILES,
    PARTS_FOLDER,
    Executor,
    PrepareRequest,
    check_manifest,
    describe_difference,
    plan_header,
    prepare_shards,
    remove_leftovers,
)
from data_prep.progress import PrepareProgress
from data_prep.storage.pairs import write_pairs
from pipeline.shared.errors import DataError
from pipeline.shared.folder_lock import folder_lock

logger = logging.getLogger(__name__)


def prepare_pairs(request: PrepareRequest, execute: Executor, progress: PrepareProgress) -> ShardManifest:
    """Create or complete the pairs of a request in its output folder.

    Raises:
        DataError: the request cannot be met, or the folder holds tokens of other text or settings.
    """
    with folder_lock(request.output, LOCK_WORK):
        remove_temporaries(request.output, OUR_FILES)
        parts = request.output / PARTS_FOLDER
        finished = _finished(request)
        if finished is None:
            prepared = prepare_shards(request.model_copy(update={"output": parts}), execute, progress)
            (request.output / MANIFEST_NAME).unlink(missing_ok=True)
            finished = write_pairs(parts, prepared, request.output, num_threads=max(request.workers, 1))
            finish_folder(parts, request.output, finished)
        else:
            progress.finish(finished, num_new_shards=0, folder=request.output)
        remove_leftovers(request.output, keep=_pair_files(finished))
        return finished


def _finished(request: PrepareRequest) -> ShardManifest | None:
    """Return the manifest of the pairs that exist already, if they match the request."""
    if (request.output / JOURNAL_NAME).exists():
        if not request.overwrite:
            raise DataError(
                f"{request.output} must not hold an unfinished preparation of webdataset shards if pairs are "
                "requested, but does; finish it, choose a new output folder, or --overwrite"
            )
        (request.output / JOURNAL_NAME).unlink()
    if not (request.output / MANIFEST_NAME).exists():
        return None
    manifest = load_manifest(request.output)
    header = plan_header(request)
    if manifest.header != header:
        if request.overwrite:
            return None
        raise DataError(describe_difference(request.output, manifest.header, header))
    check_manifest(request, manifest)
    is_complete = all(
        _size_bytes(request.output / f"{pair.name}.bin") == pair.bin_bytes
        and _size_bytes(request.output / f"{pair.name}.idx") == pair.idx_bytes
        for pair in manifest.pairs
    )
    if not is_complete:
        logger.warning("a pair in %s is missing or truncated; all pairs are made again", request.output)
    return manifest if is_complete else None


def _size_bytes(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def _pair_files(manifest: ShardManifest) -> set[str]:
    return {f"{pair.name}{suffix}" for pair in manifest.pairs for suffix in (".bin", ".idx")}

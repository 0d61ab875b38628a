"""Convert shards to Megatron pairs and back, token by token."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from data_prep.inputs.rejections import SKIPPED_NAME, write_omissions
from data_prep.leftovers import being_written, remove_abandoned
from data_prep.manifest import (
    PreparationHeader,
    ShardEntry,
    ShardManifest,
    StoredAs,
    load_manifest,
    save_manifest,
)
from data_prep.output import output_errors
from data_prep.regular_files import check_inside, read_regular_file
from data_prep.storage.pairs import write_pairs
from data_prep.storage.shard_writer import ShardWriter
from data_prep.storage.stored_tokens import StoredTokens, open_stored
from data_prep.tokenizers.reading import LARGEST_TOKENIZER_BYTES
from data_prep.tokenizers.tokenizer import SPECIAL_TOKENS_NAME
from pipeline.shared.errors import DataError
from pipeline.shared.files import folder_written_atomically, write_atomically
from pipeline.shared.folder_lock import output_lock


def convert(source: Path, destination: Path, *, stored_as: StoredAs, num_threads: int = 2) -> ShardManifest:
    """Write the tokens of a prepared folder in the other format.

    Checksums are compared on reading. The destination appears when it is complete; shards that are converted
    and converted back have the same bytes.

    Raises:
        DataError: the source is damaged or in that format already, or the destination is not empty.
    """
    manifest = load_manifest(source)
    if manifest.header.stored_as == stored_as:
        raise DataError(
            f"{source} must be stored in another format than {stored_as} to be converted to it, but is not; "
            "copy the folder, or choose the other format"
        )
    with (
        output_errors(destination),
        output_lock(destination, "megaponder data convert"),
        _new_folder(destination) as output,
    ):
        if stored_as == "megatron":
            converted = write_pairs(source, manifest, output, num_threads=num_threads)
        else:
            converted = _write_shards(source, manifest, output, num_threads=num_threads)
        finish_folder(source, output, converted)
    return converted


def finish_folder(source: Path, output: Path, manifest: ShardManifest) -> None:
    """Add the other files of a prepared folder to converted tokens, the manifest last."""
    for name in (manifest.header.tokenizer.file, SPECIAL_TOKENS_NAME, SKIPPED_NAME):
        if (source / name).is_file():
            check_inside(source, name)
            content = read_regular_file(source / name, largest_bytes=LARGEST_TOKENIZER_BYTES)
            write_atomically(output / name, content)
        else:
            (output / name).unlink(missing_ok=True)
    write_omissions(output, manifest.rejected, manifest.lost)
    save_manifest(manifest, output)


def _write_shards(source: Path, manifest: ShardManifest, output: Path, *, num_threads: int) -> ShardManifest:
    stored = open_stored(source, manifest)
    for name, finding in stored.pair_damage():
        raise DataError(f"{source / name} must match its manifest, but {finding}; prepare the data again")
    header = manifest.header.model_copy(update={"stored_as": "webdataset"})
    with ThreadPoolExecutor(num_threads) as threads:
        shards: Sequence[ShardEntry] = list(
            threads.map(lambda entry: _write_shard(stored, entry, header, output), manifest.shards)
        )
    return ShardManifest(header=header, shards=tuple(shards))


def _write_shard(
    stored: StoredTokens, entry: ShardEntry, header: PreparationHeader, output: Path
) -> ShardEntry:
    stored.check(entry)
    name = f"{entry.name}.tar"
    with ShardWriter(
        output / name,
        token_type=header.token_type,
        eod_id=header.tokenizer.eod_id,
        member_tokens=header.settings.member_tokens,
    ) as writer:
        for document in stored.documents(entry):
            writer.add_document(document[:-1])
        written = writer.finish()
    return entry.model_copy(
        update={
            "name": name,
            "size_bytes": written.size_bytes,
            "sha256": written.sha256,
            "num_members": written.num_members,
        }
    )


@contextmanager
def _new_folder(path: Path) -> Iterator[Path]:
    """Write a folder atomically; a folder with files in it is never replaced."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise DataError(f"{path} must be empty or absent, but is not; choose another folder, or delete it")
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(path)
    with folder_written_atomically(path) as folder, being_written(folder):
        yield folder

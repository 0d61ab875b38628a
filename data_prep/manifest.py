"""The manifest of a folder of token shards, which is written last and read first."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from data_prep.regular_files import check_file_name, check_inside, read_regular_file
from pipeline.shared.errors import DataError
from pipeline.shared.files import write_atomically

MANIFEST_NAME = "manifest.json"
# Every id needs a row of the model's embedding.
LARGEST_VOCABULARY = 1 << 24
# Larger than books and web pages. A worker holds a record in memory, so that a damaged or hostile file, such
# as one line of many gigabytes in a small archive, must not decide how much.
DEFAULT_MAX_RECORD_BYTES = 256 << 20

_LARGEST_MANIFEST_BYTES = 1 << 30

# A manifest may come from somebody else: its numbers fit in 64 bits, and its names are those of files in its
# folder.
Count = Annotated[int, Field(ge=0, lt=1 << 63)]
PositiveCount = Annotated[int, Field(ge=1, lt=1 << 63)]
FileName = Annotated[str, AfterValidator(check_file_name)]

TokenType = Literal["uint16", "int32"]
TokenizerKind = Literal["sentencepiece", "huggingface"]
StoredAs = Literal["webdataset", "megatron"]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TokenizerEntry(_Record):
    """The tokenizer that the shards were made with; its file is in the folder.

    Every document ends with ``eod_id`` and begins with ``bos_id``, if there is one.
    """

    kind: TokenizerKind = "sentencepiece"
    file: FileName
    sha256: str
    vocab_size: Annotated[int, Field(ge=1, le=LARGEST_VOCABULARY)]
    eod_id: Count
    bos_id: Count | None = None


class InputEntry(_Record):
    """The text that the shards were made from.

    ``fingerprint`` covers relative path, size and modification time of every file, in order.
    """

    source: str
    num_files: Count
    num_bytes: Count
    fingerprint: str


class ReadSettings(_Record):
    """How documents are found in the input files, together with their suffixes.

    ``text_field`` is the field of JSON records and the column of parquet files. With ``lines`` each line of a
    plain text file is a document. A larger record than ``max_record_bytes`` is a bad one.
    """

    text_field: str = "text"
    lines: bool = False
    max_record_bytes: PositiveCount = DEFAULT_MAX_RECORD_BYTES


class PrepareSettings(_Record):
    """Settings that determine the shard of each token."""

    heldout_fraction: float = Field(default=0.05, ge=0.0, lt=1.0)
    shard_text_bytes: PositiveCount | None = None
    member_tokens: PositiveCount = 1000 * 2048


class InputRange(_Record):
    """The run of input whose documents are in one shard, in order.

    It extends from ``first_byte`` of the first file to before ``end_byte`` of the last one, or to its end. A
    file of many documents is in the range of a shard of each split; ``num_bytes`` is the share of this split.
    """

    first_file: str
    first_byte: Count = 0
    last_file: str
    end_byte: PositiveCount | None = None
    num_files: PositiveCount
    num_bytes: Count
    fingerprint: str


class RejectedRecord(_Record):
    """A record of the input that is not a document.

    ``line`` counts lines, parquet rows or tar members from 1; it is absent for a file that is one document.
    """

    path: str
    line: PositiveCount | None = None
    reason: str

    @property
    def place(self) -> str:
        """File and line, in the notation of editors."""
        return self.path if self.line is None else f"{self.path}:{self.line}"


class LostFile(_Record):
    """A file of the input that cannot be read, or not from a record on.

    ``line`` is the first record that is lost; it is absent if all are.
    """

    path: str
    line: PositiveCount | None = None
    reason: str


class ShardEntry(_Record):
    """One finished shard.

    In a folder of Megatron pairs the shards of a split follow each other in its ``.bin``: there a shard is a
    run of documents, and its size and checksum are those of its tokens.
    """

    name: FileName
    split: FileName
    size_bytes: Count
    sha256: str
    num_tokens: Count
    num_documents: Count
    num_members: Count
    tokenizer_sha256: str
    inputs: InputRange
    num_empty_documents: Count = 0
    rejected: tuple[RejectedRecord, ...] = ()
    lost: tuple[LostFile, ...] = ()


class PairEntry(_Record):
    """The Megatron pair of one split: ``.bin`` and ``.idx`` of this name."""

    name: FileName
    bin_bytes: Count
    idx_bytes: PositiveCount
    idx_sha256: str


class PreparationHeader(_Record):
    """All that determines the bytes of the shards: two runs with equal headers make equal shards."""

    format: Literal["megaponder-token-shards"] = "megaponder-token-shards"
    version: Literal[1] = 1
    stored_as: StoredAs = "webdataset"
    token_type: TokenType
    tokenizer: TokenizerEntry
    settings: PrepareSettings
    reading: ReadSettings = ReadSettings()
    inputs: InputEntry


class ShardManifest(_Record):
    """The description of a complete folder of shards; a folder without one is unfinished."""

    header: PreparationHeader
    shards: tuple[ShardEntry, ...]
    pairs: tuple[PairEntry, ...] = ()

    @property
    def file_names(self) -> tuple[str, ...]:
        """Names of all files of the folder that hold tokens or the tokenizer."""
        if self.header.stored_as == "webdataset":
            names = [shard.name for shard in self.shards]
        else:
            splits = {*self.splits, *(pair.name for pair in self.pairs)}
            names = [f"{split}{suffix}" for split in sorted(splits) for suffix in (".bin", ".idx")]
        return self.header.tokenizer.file, *names

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits, in the order of their first shard."""
        return tuple(dict.fromkeys(shard.split for shard in self.shards))

    @property
    def rejected(self) -> tuple[RejectedRecord, ...]:
        """All records that were skipped, in the order of the shards."""
        return tuple(record for shard in self.shards for record in shard.rejected)

    @property
    def lost(self) -> tuple[LostFile, ...]:
        """All files that were lost, each once: it is read for every split."""
        return each_once(file for shard in self.shards for file in shard.lost)

    def split_shards(self, split: str) -> tuple[ShardEntry, ...]:
        """Return the shards of one split, in stream order.

        Raises:
            DataError: the split does not exist.
        """
        shards = tuple(shard for shard in self.shards if shard.split == split)
        if not shards:
            raise DataError(
                f"the split must be one of {', '.join(self.splits) or '(none)'}, but is {split!r}; "
                "choose another split, or prepare the data with a held-out fraction that leaves it some files"
            )
        return shards

    def num_tokens(self, split: str) -> int:
        """Return the number of tokens of one split, including end-of-document tokens."""
        return sum(shard.num_tokens for shard in self.split_shards(split))

    def num_documents(self, split: str) -> int:
        """Return the number of documents of one split."""
        return sum(shard.num_documents for shard in self.split_shards(split))


def each_once(lost: Iterable[LostFile]) -> tuple[LostFile, ...]:
    """Return every lost file once, with its first loss, sorted by name."""
    found: dict[str, LostFile] = {}
    for file in sorted(lost, key=lambda file: (file.path, file.line or 0)):
        found.setdefault(file.path, file)
    return tuple(found.values())


def token_type_for(vocab_size: int) -> TokenType:
    """Return the smaller of the two stored types that holds every id; the top of uint16 is unused."""
    return "uint16" if vocab_size <= 65_500 else "int32"


def save_manifest(manifest: ShardManifest, folder: Path) -> None:
    """Write ``manifest.json`` atomically."""
    write_atomically(folder / MANIFEST_NAME, (manifest.model_dump_json(indent=1) + "\n").encode())


def load_manifest(folder: Path) -> ShardManifest:
    """Read the manifest of a prepared folder.

    Raises:
        DataError: the folder has none, or it is invalid.
    """
    path = folder / MANIFEST_NAME
    try:
        content = read_regular_file(path, largest_bytes=_LARGEST_MANIFEST_BYTES)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DataError(
            f"{folder} must hold a finished set of token shards, but has no {MANIFEST_NAME}; "
            f"run `megaponder data prepare --output {folder}` (again, if it was interrupted)"
        ) from error
    except OSError as error:
        raise DataError(
            f"{path} must be readable, but is not ({error.strerror}); change its permissions"
        ) from error
    try:
        manifest = ShardManifest.model_validate_json(content)
    except ValidationError as error:
        raise DataError(
            f"{path} must be a manifest of this version, but is not: {summarize(error)}; "
            "prepare the data again in a new folder, or use the version that wrote it"
        ) from error
    for name in manifest.file_names:
        check_inside(folder, name)
    return manifest


def summarize(error: ValidationError, *, limit: int = 3) -> str:
    """Render the first few problems of a pydantic error in one line."""
    problems: Sequence[str] = [
        f"{'.'.join(map(str, problem['loc'])) or 'content'}: {problem['msg']}" for problem in error.errors()
    ]
    rest = f" and {len(problems) - limit} more" if len(problems) > limit else ""
    return "; ".join(problems[:limit]) + rest

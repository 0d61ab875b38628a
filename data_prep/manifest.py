"""What a folder of token shards contains: the manifest that is written last and read first."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, ValidationError

from data_prep.errors import DataError
from data_prep.files import write_atomically

MANIFEST_NAME = "manifest.json"

TokenType = Literal["uint16", "int32"]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TokenizerEntry(_Record):
    """The tokenizer the shards were made with; its file lies in the folder."""

    kind: Literal["sentencepiece"] = "sentencepiece"
    file: str
    sha256: str
    vocab_size: PositiveInt
    eod_id: NonNegativeInt


class InputEntry(_Record):
    """The text the shards were made from.

    ``fingerprint`` covers relative path, size and modification time of every file, in order.
    """

    source: str
    num_files: NonNegativeInt
    num_bytes: NonNegativeInt
    fingerprint: str


class PrepareSettings(_Record):
    """Settings that decide which token lands in which shard."""

    heldout_fraction: float = Field(default=0.05, ge=0.0, lt=1.0)
    shard_text_bytes: PositiveInt | None = None
    member_tokens: PositiveInt = 1000 * 2048


class InputRange(_Record):
    """The run of input files one shard holds, in order."""

    first_file: str
    last_file: str
    num_files: PositiveInt
    num_bytes: NonNegativeInt
    fingerprint: str


class RejectedFile(_Record):
    """An input file that could not become a document."""

    path: str
    reason: str


class ShardEntry(_Record):
    """One finished shard."""

    name: str
    split: str
    size_bytes: PositiveInt
    sha256: str
    num_tokens: NonNegativeInt
    num_documents: NonNegativeInt
    num_members: NonNegativeInt
    tokenizer_sha256: str
    inputs: InputRange
    num_empty_files: NonNegativeInt = 0
    rejected: tuple[RejectedFile, ...] = ()


class PreparationHeader(_Record):
    """Everything the bytes of the shards depend on; two runs with equal headers make equal shards."""

    format: Literal["megaponder-token-shards"] = "megaponder-token-shards"
    version: Literal[1] = 1
    token_type: TokenType
    tokenizer: TokenizerEntry
    settings: PrepareSettings
    inputs: InputEntry


class ShardManifest(_Record):
    """A complete folder of shards. A folder without one is not finished."""

    header: PreparationHeader
    shards: tuple[ShardEntry, ...]

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits, in the order of their first shard."""
        return tuple(dict.fromkeys(shard.split for shard in self.shards))

    @property
    def rejected(self) -> tuple[RejectedFile, ...]:
        """All input files that were left out, in input order."""
        return tuple(file for shard in self.shards for file in shard.rejected)

    def split_shards(self, split: str) -> tuple[ShardEntry, ...]:
        """Return the shards of one split, in stream order.

        Raises:
            DataError: the split does not exist.
        """
        shards = tuple(shard for shard in self.shards if shard.split == split)
        if not shards:
            raise DataError(
                f"the split must be one of {', '.join(self.splits) or '(none)'}, but is {split!r}; "
                "name another split, or prepare the data with a held-out fraction that leaves it some files"
            )
        return shards

    def num_tokens(self, split: str) -> int:
        """Tokens of one split, end-of-document tokens included."""
        return sum(shard.num_tokens for shard in self.split_shards(split))

    def num_documents(self, split: str) -> int:
        """Documents of one split."""
        return sum(shard.num_documents for shard in self.split_shards(split))


def token_type_for(vocab_size: int) -> TokenType:
    """Smallest of the two stored types that holds every id; the limit leaves the top of uint16 unused."""
    return "uint16" if vocab_size <= 65_500 else "int32"


def save_manifest(manifest: ShardManifest, folder: Path) -> None:
    """Write ``manifest.json``; readers see either the old one or the whole new one."""
    write_atomically(folder / MANIFEST_NAME, (manifest.model_dump_json(indent=1) + "\n").encode())


def load_manifest(folder: Path) -> ShardManifest:
    """Read the manifest of a prepared folder.

    Raises:
        DataError: the folder has none, or it cannot be understood.
    """
    path = folder / MANIFEST_NAME
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DataError(
            f"{folder} must hold a finished set of token shards, but has no {MANIFEST_NAME}; "
            f"run `megaponder data prepare --output {folder}` (again, if it was interrupted)"
        ) from error
    try:
        return ShardManifest.model_validate_json(content)
    except ValidationError as error:
        raise DataError(
            f"{path} must be a manifest of this version, but is not: {summarize(error)}; "
            "prepare the data again into a fresh folder, or use the version that wrote it"
        ) from error


def summarize(error: ValidationError, *, limit: int = 3) -> str:
    """One line that names the first few places of a pydantic error."""
    problems: Sequence[str] = [
        f"{'.'.join(map(str, problem['loc'])) or 'content'}: {problem['msg']}" for problem in error.errors()
    ]
    rest = f" and {len(problems) - limit} more" if len(problems) > limit else ""
    return "; ".join(problems[:limit]) + rest

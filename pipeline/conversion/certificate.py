"""``conversion.json``: what a conversion read and wrote, and how far the two models are apart."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pipeline.checkpoint.checksums import FileDigest
from pipeline.conversion.comparison import LogitComparison
from pipeline.shared.errors import ConversionError
from pipeline.shared.files import write_atomically

CERTIFICATE_NAME = "conversion.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorAccount:
    """Where every tensor went.

    Attributes:
        made_of: tensors written, each with those it is made of.
        num_read: tensors of the source that went into them, each once.
        num_values: numbers in these.
        dtypes: how many of them have each type.
        new: written, though the source has none, and how they start.
        padding_rows: rows of zeros behind each vocabulary, by tensor.
        tied_copies: tensors of the source that repeat the embedding, bit for bit.
        computed: tensors of the source that its settings determine, such as masks; left behind.
        num_rounded: values that the type written does not hold exactly.
    """

    made_of: Mapping[str, Sequence[str]]
    num_read: int
    num_values: int
    dtypes: Mapping[str, int]
    new: Mapping[str, str]
    padding_rows: Mapping[str, int]
    tied_copies: Sequence[str] = ()
    computed: Sequence[str] = ()
    num_rounded: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """One conversion.

    Attributes:
        direction: ``from-hf`` or ``to-hf``.
        source: what was converted.
        source_files: size and SHA-256 of each of its files that was read.
        source_settings: its configuration, as read.
        ignored_settings: keys of it that the user said mean nothing.
        method: the pondering method of the native side.
        tensors: where every tensor went.
        logits: how far the models are apart, or why nobody looked.
        written_files: size and SHA-256 of the files written, where nothing else lists them.
    """

    direction: str
    source: str
    source_files: Mapping[str, FileDigest]
    source_settings: Mapping[str, Any]
    ignored_settings: Sequence[str]
    method: str
    tensors: TensorAccount
    logits: LogitComparison
    written_files: Mapping[str, FileDigest]


def read_certificate(folder: Path) -> dict[str, Any]:
    """Read the certificate of a folder, as plain values.

    Raises:
        ConversionError: there is none, or it cannot be read.
    """
    path = folder / CERTIFICATE_NAME
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConversionError(
            f"{path} must be the certificate of a conversion, but cannot be read ({error}); remove the "
            "folder and convert again"
        ) from error
    return content


def write_certificate(folder: Path, certificate: Certificate) -> None:
    """Write a certificate beside what it certifies."""
    versions = {name: version(name) for name in ("megaponder", "torch", "safetensors")}
    content = {**asdict(certificate), "versions": versions}
    write_atomically(folder / CERTIFICATE_NAME, json.dumps(content, indent=2) + "\n")

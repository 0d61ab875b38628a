"""``conversion.json``: what a conversion read and wrote, and how much the logits of the two models differ."""

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
from pipeline.shared.foreign_files import read_json_object

CERTIFICATE_NAME = "conversion.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorAccount:
    """The destination of every tensor.

    Attributes:
        made_of: the tensors written, each with the source tensors it is made of.
        num_read: number of source tensors read, each counted once.
        num_values: number of values in them.
        dtypes: number of source tensors by type.
        new: tensors written that the source does not have, and how they are initialized.
        padding_rows: rows of zeros after each vocabulary, by tensor.
        tied_copies: source tensors that repeat the embedding, bit for bit.
        computed: source tensors that the settings determine, such as masks; skipped.
        num_rounded: values that the type written does not represent exactly.
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
    """The record of one conversion.

    Attributes:
        direction: ``from-hf`` or ``to-hf``.
        source: what was converted.
        source_files: size and SHA-256 of each source file that was read.
        source_settings: configuration of the source, as read.
        ignored_settings: its keys that the user chose to ignore.
        method: the pondering method of the native side.
        tensors: the destination of every tensor.
        logits: the difference between the models, or why it was not measured.
        written_files: size and SHA-256 of the files written, unless the checkpoint lists them itself.
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
        return read_json_object(path)
    except (OSError, ValueError) as error:
        raise ConversionError(
            f"{path} must be the certificate of a conversion, but cannot be read ({error}); remove the "
            "folder and convert again"
        ) from error


def write_certificate(folder: Path, certificate: Certificate) -> None:
    """Write a certificate to the folder that it certifies."""
    versions = {name: version(name) for name in ("megaponder", "torch", "safetensors")}
    content = {**asdict(certificate), "versions": versions}
    write_atomically(folder / CERTIFICATE_NAME, json.dumps(content, indent=2) + "\n")

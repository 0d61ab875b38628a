"""Check that a machine of a cluster can do the work: same programs, same files."""

import hashlib
import importlib.metadata
import platform
import socket
from dataclasses import dataclass
from pathlib import Path

from data_prep.inputs.urls import is_url

# The packages that tokens depend on, in addition to this one.
_LIBRARIES = ("numpy", "sentencepiece", "tokenizers", "pyarrow", "fsspec", "backports.zstd")


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """The files that every machine must find: one with a text in the output folder, and an input file."""

    file: Path
    content: str
    input_location: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeReport:
    """A machine's name, its installed versions, and the problem with its files, if any."""

    host: str
    programs: dict[str, str]
    finding: str | None


def installed_programs() -> dict[str, str]:
    """Return the version of each package that tokens depend on; for this one, a hash of its code."""
    digest = hashlib.sha256()
    package = Path(__file__).parents[1]
    for path in sorted(package.rglob("*.py")):
        digest.update(path.relative_to(package).as_posix().encode() + b"\0" + path.read_bytes())
    versions = {name: importlib.metadata.version(name) for name in _LIBRARIES}
    return {"python": platform.python_version(), "data_prep": digest.hexdigest()[:12], **versions}


def check_node(probe: Probe) -> NodeReport:
    """Check the machine that this runs on; writes and deletes a file next to the probe."""
    return NodeReport(host=socket.gethostname(), programs=installed_programs(), finding=_finding(probe))


def _finding(probe: Probe) -> str | None:
    try:
        if probe.file.read_text() != probe.content:
            return f"{probe.file} has different content there"
        answer = probe.file.with_name(f"{probe.file.name}-{socket.gethostname()}")
        answer.write_text(probe.content)
        answer.unlink()
    except OSError as error:
        return f"{probe.file} cannot be read and written there: {error}"
    if not is_url(probe.input_location) and not Path(probe.input_location).is_file():
        return f"the input file {probe.input_location} does not exist there"
    return None

"""The text of the ladder: the documentation of Linux and, as a second domain, installed Python sources."""

import gzip
import hashlib
import itertools
import json
import logging
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from pipeline.shared.errors import DataError
from pipeline.shared.files import write_atomically

logger = logging.getLogger(__name__)

PACKAGE = "linux-doc-6.1"
# Where the Debian package puts its pages; an installed package is used as it is.
INSTALLED = Path("/usr/share/doc") / PACKAGE / "Documentation"
_SUFFIXES = (".rst", ".txt")
_DOWNLOAD_SECONDS = 600


class Page(NamedTuple):
    """One document: its name within the package and its text."""

    name: str
    text: str


def find_documentation(given: Path | None, *, download_to: Path) -> Path:
    """Return the folder with the pages: the one that was given, that of the installed package, or a download.

    Raises:
        DataError: the folder does not exist, or the package can neither be found nor downloaded.
    """
    if given is not None and not given.is_dir():
        raise DataError(f"--documentation must be a folder, but {given} is not one")
    if given is not None:
        return given
    return INSTALLED if INSTALLED.is_dir() else download_documentation(download_to)


def download_documentation(into: Path) -> Path:
    """Download the Debian package, unpack its pages into a folder and return that folder.

    Nothing is installed, so no privileges are needed.

    Raises:
        DataError: this is not a Debian system, or its package sources cannot be reached.
    """
    if into.is_dir():
        return into
    apt, dpkg = shutil.which("apt-get"), shutil.which("dpkg-deb")
    if apt is None or dpkg is None:
        raise DataError(
            f"the text is in the Debian package {PACKAGE}, but apt-get and dpkg-deb are not installed here; "
            "unpack the package elsewhere and give its folder with --documentation"
        )
    into.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=into.parent) as scratch:
        _run([apt, "download", PACKAGE], Path(scratch))
        (archive,) = Path(scratch).glob("*.deb")
        # Another version has other pages and holds out others: losses are comparable within one alone.
        logger.info("downloaded %s", archive.name)
        _run([dpkg, "-x", str(archive), "unpacked"], Path(scratch))
        shutil.move(Path(scratch) / "unpacked" / INSTALLED.relative_to("/"), into)
    return into


def _run(command: list[str], folder: Path) -> None:
    """Run a command of the package manager, with its output in the error."""
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=_DOWNLOAD_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise DataError(f"{' '.join(command)} did not end within {_DOWNLOAD_SECONDS} s; try again") from error
    if done.returncode:
        raise DataError(f"{' '.join(command)} failed with {done.returncode}: {done.stderr.strip()}")


def read_pages(folder: Path) -> Iterator[Page]:
    """Yield every distinct page below a folder in the order of names; of equal texts only the first."""
    seen: set[bytes] = set()
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if not name.removesuffix(".gz").endswith(_SUFFIXES) or not path.is_file():
            continue
        content = gzip.decompress(path.read_bytes()) if name.endswith(".gz") else path.read_bytes()
        text = content.decode("utf-8", errors="replace")
        digest = hashlib.sha256(text.encode()).digest()
        if text.strip() and digest not in seen:
            seen.add(digest)
            yield Page(name, text)


def write_pages(folder: Path, output: Path, *, limit: int | None = None) -> int:
    """Write the pages of a folder as JSON lines and return their number.

    Args:
        folder: see :func:`read_pages`.
        output: file to write.
        limit: write the first so many; default: all.
    Raises:
        DataError: the folder has no pages.
    """
    pages = list(itertools.islice(read_pages(folder), limit))
    if not pages:
        raise DataError(f"{folder} has no page that ends in .rst or .txt, compressed with gzip or not")
    output.parent.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps({"name": page.name, "text": page.text}) + "\n" for page in pages)
    write_atomically(output, lines)
    return len(pages)

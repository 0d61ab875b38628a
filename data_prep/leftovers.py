"""What a finished folder needs no more: files of killed workers, and of what was replaced."""

import logging
import re
import shutil
from pathlib import Path

logger = logging.getLogger(__name__)

# Where shards lie that are to be merged into pairs; an interrupted run goes on with them
PARTS_FOLDER = ".parts"
# what either format writes into a folder
_TOKEN_FILE = re.compile(r"\.?(train|heldout)(-\d{6,}\.tar|\.bin|\.idx)(\.tmp-[0-9a-f]+)?")


def remove_leftovers(output: Path, *, keep: set[str]) -> None:
    """Delete all files of tokens but those to keep."""
    shutil.rmtree(output / PARTS_FOLDER, ignore_errors=True)
    for path in output.iterdir():
        if _TOKEN_FILE.fullmatch(path.name) and path.name not in keep:
            logger.info("removing %s: not of the manifest", path)
            path.unlink()

"""A forked rank cannot be told from one that is a new Python."""

import json
import logging
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from pipeline.ranks.process import RankProcesses
from tests.support.forked_ranks import fork_ranks
from tests.support.forks import called_in_a_fork
from tests.unit.support.rank_facts import WAYS

MODULE = "tests.unit.support.rank_facts"
FORKED, NEW = "forked", "new"


def test_a_forked_rank_finds_and_leaves_what_a_new_process_does(tmp_path: Path) -> None:
    found = called_in_a_fork(facts_of_all, tmp_path)

    assert found[FORKED] == found[NEW]
    codes = [found[NEW][way]["code"] for way in WAYS]
    assert codes == [0, 3, 1, 1, 128 + signal.SIGKILL]
    for way in WAYS:
        facts = found[FORKED][way]["facts"]
        assert facts["environment"]["RANK"] == "1"
        assert facts["leads a group"]
        assert facts["files"] == [0, 1, 2]


def facts_of_all(folder: Path) -> dict[str, dict[str, Any]]:
    """Start both kinds of process from one that has handlers, files and loggers of its own."""
    logging.basicConfig(level=logging.INFO)
    signal.signal(signal.SIGTERM, lambda *_: None)
    sys.excepthook = lambda *_: None
    with (folder / "lock").open("w"):
        found = {NEW: {way: facts_of(folder, way) for way in WAYS}}
        fork_ranks(modules=[MODULE])
        return found | {FORKED: {way: facts_of(folder, way) for way in WAYS}}


def facts_of(folder: Path, way: str) -> dict[str, Any]:
    ranks = RankProcesses()
    file, log = folder / "facts.json", folder / "log"
    log.unlink(missing_ok=True)
    command = [sys.executable, "-P", "-m", MODULE, str(file), way]
    ranks.start(command, {"RANK": "1", "PYTHONPATH": os.pathsep.join(sys.path)}, log=log)
    while ranks.codes == (None,):
        time.sleep(0.01)
    (code,) = ranks.codes
    ranks.kill()
    last = log.read_text().splitlines()[-1] if way != "killed" else ""
    return {"code": code, "facts": json.loads(file.read_text()), "last line": last}

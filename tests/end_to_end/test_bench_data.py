"""`python -m tests.bench data` on a small corpus: what it measures, not how fast that is."""

import json
from pathlib import Path

import pytest

from tests.support.commands import started

pytestmark = [pytest.mark.end_to_end, pytest.mark.timeout(300)]


def test_preparation_and_reading_are_measured_on_the_same_text(tmp_path: Path) -> None:
    facts = tmp_path / "bench.json"
    sizes = ["--corpus-mb", "1", "--workers", "1", "--rows", "128", "--repeats", "1"]
    arguments = ["-m", "tests.bench", "data", *sizes, "--minimum-reader-mtokens", "0.1", "--json", str(facts)]
    with started(arguments) as command:
        finished = command.finish()

    assert finished.exit_code == 0, finished.stderr
    found = json.loads(facts.read_text())
    (prepared,) = found["prepared"]
    assert prepared["num_tokens"] == found["plain"]["num_tokens"]
    assert 0 < prepared["working_seconds"] <= prepared["seconds"]
    if found["datatrove"] is not None:
        assert found["datatrove"]["num_tokens"] == found["ours_beside_datatrove"]["num_tokens"]

"""A published model of 135M parameters, cut to two layers, from its package to generation by transformers."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROWS = ("vanilla", "ponderlm3")

pytestmark = [pytest.mark.end_to_end, pytest.mark.timeout(1800)]


def _pages(folder: Path) -> Path:
    """Write the sections of this project's documentation as pages."""
    folder.mkdir()
    for file in (ROOT / "docs").glob("*.md"):
        for number, section in enumerate(file.read_text(encoding="utf-8").split("\n## ")):
            (folder / f"{file.stem}_{number}.txt").write_text(section, encoding="utf-8")
    return folder


def test_a_published_model_is_converted_continued_exported_and_used(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    command = [
        *(sys.executable, "-m", "scripts.continued_demo", "--folder", str(folder), "--layers", "2"),
        *("--rows", str(ROOT / "scripts" / "continued_demo" / "cut.yaml")),
        *("--documentation", str(_pages(tmp_path / "pages"))),
    ]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=1700, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
    if "skipped: " in done.stdout:
        pytest.skip(done.stdout)

    assert (folder / "converted" / "iter_0000000").is_dir()
    for row in ROWS:
        (record,) = (folder / "continued" / row).glob("*/*/ladder.json")
        loss = json.loads(record.read_text())["evaluation"]["lm loss validation"]
        # A uniform guess over the vocabulary costs 10.8 nats.
        assert 0 < loss < 25
        (exported,) = (folder / "exported" / row).glob("*/*")
        assert (exported / "model.safetensors").is_file()
        prefix = f"{exported.relative_to(folder / 'exported')}: The kernel configuration option"
        (line,) = (line for line in done.stdout.splitlines() if line.startswith(prefix))
        assert len(line) > len(prefix)

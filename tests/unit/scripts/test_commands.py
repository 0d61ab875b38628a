"""Scripts that run commands of the package."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.shared.bounded import wait_until

# A stand-in for a training, which saves when it is told to stop.
COMMAND = """
import signal, sys, time
from pathlib import Path

def save(*_):
    Path("saved").touch()
    sys.exit(75)

signal.signal(signal.SIGTERM, save)
Path("started").touch()
time.sleep(60)
"""
SCRIPT = """
import signal, sys
import typer
from scripts.commands import megaponder, run_script

app = typer.Typer()

@app.command()
def main() -> None:
    megaponder("train")

# Where tests run in the background, a shell has told them to ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.executable = sys.argv.pop()
run_script(app)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_script_that_is_stopped_lets_its_command_save(number: signal.Signals, tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!{Path(sys.executable).resolve()}\n{COMMAND}")
    python.chmod(0o755)
    root = Path(__file__).parents[3]
    script = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(python)], cwd=tmp_path, env={"PYTHONPATH": str(root)}
    )
    try:
        assert wait_until((tmp_path / "started").is_file, seconds=60)
        script.send_signal(number)
        code = script.wait(timeout=60)
    finally:
        script.kill()

    assert (tmp_path / "saved").is_file()
    assert code != 0

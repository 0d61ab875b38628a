"""Run `python -m tests.bench`."""

from scripts.commands import run_script
from tests.bench.cli import app

if __name__ == "__main__":
    run_script(app)

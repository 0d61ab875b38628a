"""Run `python -m tests.bench`."""

from pipeline.commands.shared import exit_on_user_error
from tests.bench.cli import app

if __name__ == "__main__":
    with exit_on_user_error():
        app()

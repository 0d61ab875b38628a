"""Run a command with a real SLURM of two nodes: python -m tests.support.with_slurm COMMAND..."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.support.slurm_cluster import slurm_cluster


def main() -> None:
    """Start SLURM, run the command, and exit with its code."""
    with tempfile.TemporaryDirectory(prefix="slurm-") as folder, slurm_cluster(Path(folder)) as slurm:
        code = subprocess.run(sys.argv[1:], env={**os.environ, **slurm.variables}, check=False).returncode
    sys.exit(code)


if __name__ == "__main__":
    main()

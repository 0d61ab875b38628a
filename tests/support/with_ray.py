"""Run a command with a real Ray of two nodes: python -m tests.support.with_ray COMMAND..."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.support.ray_cluster import ray_cluster

SOURCES = str(Path(__file__).parents[2])


def main() -> None:
    """Start Ray, run the command, and exit with its code."""
    short = tempfile.TemporaryDirectory(prefix="mp-", dir="/tmp", ignore_cleanup_errors=True)
    with short as folder, ray_cluster(Path(folder), variables={"PYTHONPATH": SOURCES}) as cluster:
        variables = {**os.environ, "RAY_API_SERVER_ADDRESS": cluster.url}
        code = subprocess.run(sys.argv[1:], env=variables, check=False).returncode
    sys.exit(code)


if __name__ == "__main__":
    main()

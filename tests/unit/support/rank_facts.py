"""Write what a process finds when it starts, and leave in a chosen way: `python -m ... FILE WAY`."""

import json
import logging
import os
import signal
import sys
from pathlib import Path

WAYS = ("returns", "3", "text", "raises", "killed")


def main() -> None:
    """Write the facts of this process to the file."""
    file, way = sys.argv[1:]
    default = (signal.SIG_DFL, signal.SIG_IGN, signal.default_int_handler)
    facts = {
        "arguments": sys.argv[1:],
        "environment": {name: value for name, value in os.environ.items() if name != "LC_CTYPE"},
        "folder": str(Path.cwd()),
        "leads a group": os.getpgid(0) == os.getpid(),
        "handlers": [n for n in signal.valid_signals() if signal.getsignal(n) not in default],
        "files": sorted(int(link.name) for link in [*Path("/proc/self/fd").iterdir()] if link.exists()),
        "loggers": len(logging.root.handlers),
        "stdin": sys.stdin.read(),
        "hook": sys.excepthook is sys.__excepthook__,
    }
    Path(file).write_text(json.dumps(facts))
    print("written")  # noqa: T201
    if way == "raises":
        raise ValueError("a text")
    if way == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if way != "returns":
        sys.exit(int(way) if way.isdigit() else way)


if __name__ == "__main__":
    main()

"""Decoding with another checkout, in a process of its own that takes its turns."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline.config.schema import RunConfig
from tests.bench.decode import MIXED, ROUTERS, TOKEN_BY_TOKEN, UNPRUNED, DecodeSizes, Round

WORKER = Path(__file__).with_name("decode_worker.py")
OTHER = ", other checkout"
ROW_BY_ROW = "    def advance("


@dataclass(slots=True)
class OtherWay:
    """A way to decode of the other checkout; see :class:`tests.bench.decode.Way`."""

    name: str
    sizes: DecodeSizes
    process: "subprocess.Popen[str]"
    its_name: str
    ponders: bool = True

    def run(self, *, is_timed: bool) -> Round:
        """Have the process decode once.

        Raises:
            RuntimeError: the process has ended.
        """
        assert self.process.stdin is not None, "it is a pipe"
        assert self.process.stdout is not None, "it is a pipe"
        asked = {"name": self.its_name, "batch_size": self.sizes.batch_size, "is_timed": is_timed}
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the process of {self.name!r} ended with exit code {self.process.wait()}")
        return Round(**json.loads(line))


@contextmanager
def other_ways(
    checkout: Path, config: RunConfig, sizes: Sequence[DecodeSizes], *, threads: int
) -> Iterator[list[OtherWay]]:
    """Yield what another checkout decodes best: row by row, or token by token where it is older than that.

    Args:
        checkout: a folder with a version of this program.
        config: a PonderLM-3.
        sizes: what is decoded.
        threads: of the process.
    """
    decoder = (checkout / "megatron_ext" / "decoding.py").read_text(encoding="utf-8")
    suffix = "" if ROW_BY_ROW in decoder else TOKEN_BY_TOKEN
    names = [
        UNPRUNED,
        MIXED,
        *(name for name, shares in ROUTERS.items() if len(shares) <= config.ponder.num_latent_thoughts + 1),
    ]
    order = {
        "settings": config.model_dump(mode="json", exclude_unset=True),
        "sizes": [asdict(one) for one in sizes],
        "models": names,
        "threads": threads,
    }
    environment = os.environ | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": str(threads)}
    # -P: the folder of the file has modules with names of the standard library.
    command = [sys.executable, "-P", "-W", "ignore", str(WORKER), json.dumps(order)]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=checkout
    )
    try:
        yield [OtherWay(name + OTHER, one, process, name + suffix) for one in sizes for name in names]
    finally:
        process.kill()
        process.communicate()

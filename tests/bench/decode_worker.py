"""The process of `python -m tests.bench decode --other`: decodes with a checkout, a round for each line.

It runs as a file, with the checkout first in PYTHONPATH, and loads the ways to decode from the file next to
it, so that one version of them measures several versions of the program.
"""

import importlib.util
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from types import ModuleType

import torch

from pipeline.config.load import build_config


def main() -> None:
    """Build what argument 1 (JSON) describes, then run the way that each line names."""
    # Libraries may print; what the parent reads has a file descriptor of its own.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    order = json.loads(sys.argv[1])
    torch.set_num_threads(order["threads"])
    decode = _load(Path(__file__).with_name("decode.py"))
    config = build_config(order["settings"])
    sizes = [decode.DecodeSizes(**one) for one in order["sizes"]]
    with decode.one_rank(config) as groups:
        ways = {
            (way.name, way.sizes.batch_size): way
            for way in decode.native_ways(config, sizes, groups, steps=(), waiting=order["models"])
        }
        for line in sys.stdin:
            asked = json.loads(line)
            way = ways[asked["name"], asked["batch_size"]]
            print(json.dumps(asdict(way.run(is_timed=asked["is_timed"]))), file=answers, flush=True)


def _load(file: Path) -> ModuleType:
    name = "decode_of_this_checkout"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None, "it is a file of Python"
    assert spec.loader is not None, "it is a file of Python"
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up.
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    main()

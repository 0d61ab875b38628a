"""Tokenize JSONL files with datatrove and print the seconds and tokens, for `python -m tests.bench data`.

It is a separate script because the workers of datatrove import the main program.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.tokens import DocumentTokenizer


def main() -> None:
    """Run with folder, tokenizer, output, workers, tasks and end-of-document token from the command line."""
    folder, tokenizer, output, num_workers, num_tasks, eod_token = sys.argv[1:]
    executor = LocalPipelineExecutor(
        pipeline=[
            JsonlReader(folder, glob_pattern="*.jsonl"),
            DocumentTokenizer(
                f"{output}/tokens",
                tokenizer_name_or_path=tokenizer,
                eos_token=eod_token,
                shuffle_documents=False,
            ),
        ],
        tasks=int(num_tasks),
        workers=int(num_workers),
        logging_dir=f"{output}/logs",
    )
    started = time.perf_counter()
    executor.run()
    seconds = time.perf_counter() - started
    num_bytes = sum(path.stat().st_size for path in Path(output, "tokens").glob("*.ds"))
    json.dump([seconds, num_bytes // np.dtype(np.uint16).itemsize], sys.stdout)


if __name__ == "__main__":
    main()

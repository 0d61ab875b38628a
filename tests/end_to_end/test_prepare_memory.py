"""A worker holds the bytes of a long document, but not all of its characters and tokens."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from data_prep.inputs.documents import TextFiles
from data_prep.manifest import PrepareSettings
from data_prep.preparation import PrepareRequest
from tests.support.corpus import WORDS, train_small_tokenizer, write_corpus

pytestmark = [pytest.mark.end_to_end, pytest.mark.timeout(240)]

MEGABYTE = 1_000_000
DOCUMENT_BYTES = 24 * MEGABYTE
# Tokenized in one piece such a document takes more than a gigabyte.
MOST_BYTES = 4 * DOCUMENT_BYTES + 150 * MEGABYTE
PROGRAM = """
import resource, sys
from data_prep.preparation import PrepareRequest
from data_prep.run import prepare

def peak_bytes():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

before = peak_bytes()
manifest = prepare(PrepareRequest.model_validate_json(sys.argv[1]))
print(manifest.num_documents("train"), peak_bytes() - before)
"""


@pytest.mark.parametrize("name", ["one.jsonl", "one.txt"])
def test_a_long_document_takes_little_more_memory_than_its_bytes(tmp_path: Path, name: str) -> None:
    tokenizer = train_small_tokenizer(write_corpus(tmp_path / "text"), tmp_path / "tokenizer.model")
    line = " ".join(WORDS) + " \u6f22\u5b57\n"
    text = line * (DOCUMENT_BYTES // len(line.encode()))
    content = json.dumps({"text": text}, ensure_ascii=False) if name == "one.jsonl" else text
    (tmp_path / name).write_text(content, "utf-8")
    request = PrepareRequest(
        source=TextFiles(inputs=(str(tmp_path / name),)),
        tokenizer=tokenizer,
        output=tmp_path / "tokens",
        settings=PrepareSettings(heldout_fraction=0.0),
        workers=0,
    )
    command = [sys.executable, "-c", PROGRAM, request.model_dump_json()]
    finished = subprocess.run(
        command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True, timeout=200
    )
    num_documents, num_bytes = map(int, finished.stdout.split())
    assert num_documents == 1
    assert num_bytes < MOST_BYTES

"""A small folder of text with everything that real folders contain, and a tokenizer for it."""

import random
from pathlib import Path

from data_prep.inputs.documents import TextFolder
from data_prep.manifest import PrepareSettings, ShardManifest
from data_prep.preparation import PrepareRequest
from data_prep.run import prepare
from data_prep.tokenizers.tokenizer_training import TokenizerTraining, train_tokenizer

WORDS = [
    "def",
    "return",
    "self",
    "value",
    "index",
    "token",
    "shard",
    "order",
    "import",
    "range",
    "while",
    "yield",
    "split",
    "lambda",
    "class",
]
VOCAB_SIZE = 320
# small enough that the corpus fills several shards, and several samples in each
SETTINGS = PrepareSettings(heldout_fraction=0.3, shard_text_bytes=4000, member_tokens=700)
NOT_UTF8 = "folder_1/latin.txt"
EMPTY = "folder_2/empty.txt"


def write_corpus(folder: Path, *, num_documents: int = 24) -> TextFolder:
    """Write documents of 10 to 400 words, one empty file, one that is not UTF-8, and one of another kind."""
    generator = random.Random(7)
    for number in range(num_documents):
        path = folder / f"folder_{number % 3}" / f"document_{number:02d}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        words = generator.choices(WORDS, k=generator.randint(10, 400))
        separators = generator.choices(
            [" ", "  ", "\n    ", "\n", "\t", " \u00e9\u6f22\u2581 "], k=len(words)
        )
        path.write_text("".join(word + space for word, space in zip(words, separators, strict=True)), "utf-8")
    (folder / NOT_UTF8).write_bytes(b"caf\xe9 au lait")
    (folder / EMPTY).write_bytes(b"")
    (folder / "folder_0" / "notes.md").write_text("another kind")
    return TextFolder(root=folder, label="corpus")


def train_small_tokenizer(source: TextFolder, output: Path) -> Path:
    """Train a tokenizer of 320 ids in a fraction of a second."""
    training = TokenizerTraining(source=source, output=output, vocab_size=VOCAB_SIZE, heldout_fraction=0.3)
    return train_tokenizer(training).path


def prepare_here(source: TextFolder, tokenizer: Path, output: Path, **changes: object) -> ShardManifest:
    """Tokenize a source in this process."""
    return prepare(build_request(source, tokenizer, output, **changes))


def build_request(source: TextFolder, tokenizer: Path, output: Path, **changes: object) -> PrepareRequest:
    """Build a request with small shards and no workers, with the named fields changed."""
    # What is small starts the Ray that a test asks for all the same.
    fields = {"source": source, "tokenizer": tokenizer, "output": output, "settings": SETTINGS, "workers": 0}
    fields["small_bytes"] = 0
    return PrepareRequest.model_validate({**fields, **changes})


def read_text(source: TextFolder, path: str) -> str:
    """Return the text of a document."""
    return (source.root / path).read_bytes().decode("utf-8")

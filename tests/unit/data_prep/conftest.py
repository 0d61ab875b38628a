"""A corpus, its tokenizer, and the shards made of it; made once, because tests only read them."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from data_prep.inputs.documents import TextFolder
from data_prep.manifest import ShardManifest
from tests.support.corpus import prepare_here, train_small_tokenizer, write_corpus


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    source: TextFolder
    tokenizer: Path
    folder: Path
    manifest: ShardManifest


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    root = tmp_path_factory.mktemp("corpus")
    source = write_corpus(root / "text")
    tokenizer = train_small_tokenizer(source, root / "tokenizer.model")
    manifest = prepare_here(source, tokenizer, root / "shards")
    return Prepared(source=source, tokenizer=tokenizer, folder=root / "shards", manifest=manifest)

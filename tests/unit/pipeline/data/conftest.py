"""Datasets whose documents the tests know."""

from pathlib import Path

import pytest

from pipeline.data.dataset import TokenDataset, open_dataset
from tests.support.shards import random_documents, write_split

DOCUMENTS = random_documents(47)
SEQ_LENGTH = 16


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_split(tmp_path_factory.mktemp("shards"), DOCUMENTS)


@pytest.fixture(scope="session")
def dataset(folder: Path) -> TokenDataset:
    return open_dataset(folder, "train", seq_length=SEQ_LENGTH)

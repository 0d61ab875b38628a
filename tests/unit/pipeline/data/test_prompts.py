from pathlib import Path

import pytest

from data_prep.plan import HELDOUT, split_of
from pipeline.data.dataset import TokenDataset, open_dataset
from pipeline.data.prompts import load_tokenizer, read_prompts
from pipeline.shared.errors import DataError
from tests.support.corpus import prepare_here, train_small_tokenizer, write_corpus


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("prompts")
    source = write_corpus(root / "text")
    prepare_here(source, train_small_tokenizer(source, root / "tokenizer.model"), root / "shards")
    return root / "shards"


@pytest.fixture(scope="module")
def heldout(folder: Path) -> TokenDataset:
    return open_dataset(folder, "heldout", seq_length=16)


def test_prompts_are_beginnings_of_held_out_documents(folder: Path, heldout: TokenDataset) -> None:
    texts = [
        path.read_text("utf-8")
        for path in (folder.parent / "text").rglob("document_*.txt")
        if split_of(path.relative_to(folder.parent / "text").as_posix(), 0.3) == HELDOUT
    ]
    prompts = read_prompts(
        heldout, load_tokenizer(folder), num_prompts=3, prompt_tokens=20, continuation_tokens=10
    )
    assert len({prompt.text for prompt in prompts}) == 3
    for prompt in prompts:
        assert (len(prompt.token_ids), len(prompt.continuation_ids)) == (20, 10)
        assert heldout.vocabulary.eod_id not in prompt.token_ids + prompt.continuation_ids
        # a cut inside a character that takes several tokens leaves a replacement character on both sides
        beginning = prompt.text.rstrip("\ufffd")
        assert len(beginning) > 10
        assert any(text.startswith(beginning) for text in texts)


def test_prompts_are_the_same_every_time(folder: Path, heldout: TokenDataset) -> None:
    tokenizer = load_tokenizer(folder)
    first, second = (read_prompts(heldout, tokenizer, num_prompts=2, prompt_tokens=8) for _ in range(2))
    assert first == second


def test_prompts_longer_than_every_document_are_refused(folder: Path, heldout: TokenDataset) -> None:
    with pytest.raises(DataError, match="ask for shorter prompts"):
        read_prompts(heldout, load_tokenizer(folder), num_prompts=2, prompt_tokens=100_000)


def test_a_tokenizer_that_did_not_make_the_shards_is_refused(folder: Path) -> None:
    model = (folder / "tokenizer.model").read_bytes()
    try:
        (folder / "tokenizer.model").write_bytes(model + b"\x9a\x01\x00")
        with pytest.raises(DataError, match="must have sha256"):
            load_tokenizer(folder)
    finally:
        (folder / "tokenizer.model").write_bytes(model)

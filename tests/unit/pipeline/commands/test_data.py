"""From text to pairs, back to shards and a look at them, by the commands alone."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from data_prep.manifest import load_manifest
from pipeline import cli
from pipeline.shared.errors import DataError
from pipeline.shared.exit_codes import ExitCode
from tests.support.corpus import train_small_tokenizer, write_corpus


def data(*arguments: str | Path) -> str:
    result = CliRunner().invoke(cli.app, ["data", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == ExitCode.DONE, result.output
    # as one line, however wide the terminal
    return " ".join(result.output.split())


def test_text_becomes_pairs_and_these_become_shards(tmp_path: Path) -> None:
    source = write_corpus(tmp_path / "text")
    tokenizer = train_small_tokenizer(source, tmp_path / "tokenizer.model")
    pairs, shards = tmp_path / "pairs", tmp_path / "shards"
    options = [
        "--tokenizer",
        tokenizer,
        "--workers",
        "0",
        "--format",
        "megatron",
        "--heldout-fraction",
        "0.3",
    ]
    data("prepare", source.root, *options, "--output", pairs)
    assert (pairs / "train.bin").exists()
    assert str(shards) in data("convert", pairs, shards, "--to", "webdataset", "--workers", "1").replace(
        " ", ""
    )
    assert load_manifest(pairs).header.stored_as == "megatron"
    data("inspect", pairs, "--verify")
    assert load_manifest(shards).header.stored_as == "webdataset"
    assert "2 shards" in data("inspect", shards, "--verify")
    with pytest.raises(DataError, match="pairs"):
        data("convert", shards, pairs, "--to", "megatron")

"""Which executor tokenizes."""

from pathlib import Path

import pytest

from data_prep import run
from data_prep.manifest import load_manifest
from tests.support.corpus import build_request
from tests.unit.data_prep.conftest import Prepared


def no_ray(*_: object) -> None:
    raise AssertionError("Ray is started")


@pytest.mark.parametrize("stored_as", ["webdataset", "megatron"])
def test_small_inputs_are_tokenized_in_this_process(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stored_as: str
) -> None:
    monkeypatch.setattr(run, "local_ray", no_ray)
    request = build_request(
        prepared.source, prepared.tokenizer, tmp_path, workers=2, small_bytes=10**6, stored_as=stored_as
    )
    manifest = run.prepare(request)
    assert [manifest.num_tokens(split) for split in manifest.splits] == [
        prepared.manifest.num_tokens(split) for split in prepared.manifest.splits
    ]
    assert load_manifest(tmp_path) == manifest


def test_more_than_that_needs_ray(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "local_ray", no_ray)
    request = build_request(prepared.source, prepared.tokenizer, tmp_path, workers=2, small_bytes=10)
    with pytest.raises(AssertionError, match="Ray"):
        run.prepare(request)

from pathlib import Path

import pytest

from data_prep.manifest import MANIFEST_NAME, load_manifest, save_manifest, token_type_for
from pipeline.shared.errors import DataError
from tests.unit.data_prep.conftest import Prepared


def test_a_saved_manifest_comes_back(prepared: Prepared, tmp_path: Path) -> None:
    save_manifest(prepared.manifest, tmp_path)
    assert load_manifest(tmp_path) == prepared.manifest
    assert [path.name for path in tmp_path.iterdir()] == [MANIFEST_NAME]


def test_totals_are_sums_over_the_shards_of_a_split(prepared: Prepared) -> None:
    manifest = prepared.manifest
    assert manifest.splits == ("train", "heldout")
    assert sum(manifest.num_tokens(split) for split in manifest.splits) == sum(
        s.num_tokens for s in manifest.shards
    )
    assert len(manifest.split_shards("train")) > 3


def test_an_unknown_split_is_refused_with_the_known_ones(prepared: Prepared) -> None:
    with pytest.raises(DataError, match=r"train, heldout.*'test'"):
        prepared.manifest.split_shards("test")


def test_a_folder_without_a_manifest_names_the_command_to_run(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="megaponder data prepare"):
        load_manifest(tmp_path)
    with pytest.raises(DataError, match="megaponder data prepare"):
        load_manifest(tmp_path / "absent")


@pytest.mark.parametrize("content", ["{", '{"header": 1}', '{"shards": []}'])
def test_an_invalid_manifest_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / MANIFEST_NAME).write_text(content)
    with pytest.raises(DataError, match=r"manifest\.json"):
        load_manifest(tmp_path)


def test_ids_are_stored_in_two_bytes_where_they_fit() -> None:
    assert (token_type_for(65_500), token_type_for(65_501)) == ("uint16", "int32")

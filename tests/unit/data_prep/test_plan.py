import pytest

from data_prep.inputs.documents import InputFile
from data_prep.manifest import PrepareSettings, ReadSettings
from data_prep.plan import (
    HELDOUT,
    LARGEST_SHARD_BYTES,
    SMALLEST_SHARD_BYTES,
    TRAIN,
    default_shard_bytes,
    name_fraction,
    plan_shards,
    split_of,
)

READING = ReadSettings()
FILES = [InputFile(path=f"{number:03d}.txt", size_bytes=number, modified_ns=0) for number in range(200)]


def test_every_file_is_in_exactly_one_shard_and_in_order() -> None:
    shards = plan_shards(FILES, PrepareSettings(heldout_fraction=0.2, shard_text_bytes=1000), READING)
    planned = [part.file.path for shard in shards for part in shard.ranges]
    assert sorted(planned) == [file.path for file in FILES]
    for split in ("train", "heldout"):
        paths = [part.file.path for shard in shards if shard.split == split for part in shard.ranges]
        assert paths == sorted(paths)
        assert len(paths) > 0


def test_shards_hold_no_more_text_than_asked_for_unless_one_file_does() -> None:
    files = [*FILES, InputFile(path="999.txt", size_bytes=5000, modified_ns=0)]
    shards = plan_shards(files, PrepareSettings(heldout_fraction=0.0, shard_text_bytes=1000), READING)
    assert all(shard.inputs.num_bytes <= 1000 or len(shard.ranges) == 1 for shard in shards)
    assert len(shards) > 20


def test_the_plan_repeats() -> None:
    assert plan_shards(FILES, PrepareSettings(), READING) == plan_shards(FILES, PrepareSettings(), READING)


def test_shard_names_number_each_split_from_zero() -> None:
    shards = plan_shards(FILES, PrepareSettings(heldout_fraction=0.5, shard_text_bytes=3000), READING)
    for split in ("train", "heldout"):
        names = [shard.name for shard in shards if shard.split == split]
        assert names == [f"{split}-{number:06d}.tar" for number in range(len(names))]


def test_files_of_many_documents_are_in_a_shard_of_each_split_by_their_shares() -> None:
    files = [InputFile(path=f"{number}.jsonl", size_bytes=1000, modified_ns=0) for number in range(10)]
    settings = PrepareSettings(heldout_fraction=0.1, shard_text_bytes=1800)
    shards = plan_shards(files, settings, READING)
    assert [(shard.split, len(shard.ranges), shard.inputs.num_bytes) for shard in shards] == [
        *[("train", 2, 1800)] * 5,
        ("heldout", 10, 1000),
    ]
    nothing_held_out = settings.model_copy(update={"heldout_fraction": 0.0})
    assert {shard.split for shard in plan_shards(files, nothing_held_out, READING)} == {"train"}


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_a_large_file_is_cut_into_ranges_that_cover_it_once_for_each_split(name: str) -> None:
    files = [InputFile(path=name, size_bytes=10_007, modified_ns=0)]
    settings = PrepareSettings(heldout_fraction=0.3, shard_text_bytes=1000)
    shards = plan_shards(files, settings, READING)
    for split, num_shards in (("train", 8), ("heldout", 4)):
        mine = [shard for shard in shards if shard.split == split]
        ranges = [part for shard in mine for part in shard.ranges]
        assert len(mine) == num_shards
        assert [part.start for part in ranges] == [0, *(part.stop for part in ranges[:-1])]
        assert ranges[-1].stop == 10_007
        assert all(shard.inputs.num_bytes <= 1000 for shard in mine)
        assert [shard.inputs.first_byte for shard in mine] == [part.start for part in ranges]
        assert [shard.inputs.end_byte for shard in mine] == [*(part.stop for part in ranges[:-1]), None]
        assert len({shard.inputs.fingerprint for shard in mine}) == num_shards


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.tar", "a.txt.zst", "a.txt"])
def test_what_can_only_be_read_from_its_beginning_stays_whole(name: str) -> None:
    files = [InputFile(path=name, size_bytes=10_007, modified_ns=0)]
    settings = PrepareSettings(heldout_fraction=0.0, shard_text_bytes=1000)
    (shard,) = plan_shards(files, settings, READING)
    assert [(part.start, part.stop) for part in shard.ranges] == [(0, 10_007)]


def test_the_default_shard_size_has_limits() -> None:
    assert default_shard_bytes(1000) == SMALLEST_SHARD_BYTES
    assert default_shard_bytes(64 << 20) == 2 << 20
    assert default_shard_bytes(1 << 50) == LARGEST_SHARD_BYTES


NAMES = [f"folder/document_{number}.txt" for number in range(4000)]


def test_the_split_follows_from_the_name_alone() -> None:
    # fixed values: a change of the rule would move text from one split to the other
    fractions = {"abc.py": 0.7691947, "json/__init__.py": 0.5416964, "os.py": 0.8509487}
    for name, fraction in fractions.items():
        assert abs(name_fraction(name) - fraction) < 1e-6
        assert split_of(name, fraction + 1e-6) == HELDOUT
        assert split_of(name, fraction - 1e-6) == TRAIN


def test_about_the_asked_share_is_held_out() -> None:
    share = sum(split_of(name, 0.05) == HELDOUT for name in NAMES) / len(NAMES)
    assert 0.035 < share < 0.065


def test_a_larger_fraction_only_adds_held_out_documents() -> None:
    small = {name for name in NAMES if split_of(name, 0.05) == HELDOUT}
    large = {name for name in NAMES if split_of(name, 0.2) == HELDOUT}
    assert small < large


def test_no_document_is_held_out_at_fraction_zero() -> None:
    assert {split_of(name, 0.0) for name in NAMES} == {TRAIN}

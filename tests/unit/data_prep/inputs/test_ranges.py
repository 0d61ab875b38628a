"""However a file is cut, its ranges give its records once and in order, as reading it whole does."""

import io
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from data_prep.inputs.documents import InputFile, TextFiles
from data_prep.inputs.finding import find_files
from data_prep.inputs.ranges import cut, full_range, is_cuttable
from data_prep.inputs.records import BadRecord, Document, Loss, read_records
from data_prep.manifest import ReadSettings

LINES = ReadSettings(lines=True)


def json_lines() -> bytes:
    lines = [json.dumps({"text": "word " * (number % 13)}) for number in range(40)]
    lines[3] = lines[17] = ""
    lines[9] = lines[30] = "broken"
    lines[20] = json.dumps({"text": "x" * 700})
    return "\n".join(lines).encode()


def parquet() -> bytes:
    texts = [f"row {number}" * (number % 5) for number in range(60)] + [None]
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), buffer, row_group_size=7)
    return buffer.getvalue()


CONTENTS = {
    "a.jsonl": json_lines(),
    "b.jsonl": json_lines() + b"\r\n",
    "c.txt": b"\n\none\r\ntwo\n\n",
    "d.jsonl": b'{"text": "one line"}',
    "e.parquet": parquet(),
}


@pytest.fixture(params=sorted(CONTENTS))
def file(request: pytest.FixtureRequest, tmp_path: Path) -> InputFile:
    path = tmp_path / request.param
    path.write_bytes(CONTENTS[request.param])
    (file,) = find_files(TextFiles(inputs=(str(path),)))
    return file


@pytest.mark.parametrize("num_ranges", [1, 2, 3, 7, 50])
def test_the_ranges_of_a_file_have_its_records(file: InputFile, num_ranges: int) -> None:
    assert is_cuttable(file, LINES)
    expected = list(read_records(full_range(file), LINES))
    ranges = cut(file, num_ranges)
    assert sum(part.num_bytes for part in ranges) == file.size_bytes
    assert [record for part in ranges for record in read_records(part, LINES)] == expected
    assert len(expected) > 0


def test_every_single_byte_may_be_a_cut(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"one\n\ntwo\r\n\nlast")
    (file,) = find_files(TextFiles(inputs=(str(tmp_path / "a.txt"),)))
    texts = [
        record.text
        for part in cut(file, file.size_bytes)
        for record in read_records(part, LINES)
        if isinstance(record, Document)
    ]
    assert texts == ["one", "", "two", "", "last"]


def test_a_bad_line_has_its_number_in_the_file_also_when_its_range_begins_in_the_middle(
    tmp_path: Path,
) -> None:
    (tmp_path / "a.jsonl").write_bytes(CONTENTS["a.jsonl"])
    (file,) = find_files(TextFiles(inputs=(str(tmp_path / "a.jsonl"),)))
    records = [record for part in cut(file, 9) for record in read_records(part, ReadSettings())]
    assert [record.line for record in records if isinstance(record, BadRecord)] == [10, 31]


def test_damage_of_a_parquet_file_is_named_once(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(CONTENTS["e.parquet"][:-20])
    (file,) = find_files(TextFiles(inputs=(str(path),)))
    found = [record for part in cut(file, 4) for record in read_records(part, ReadSettings())]
    assert [record.line for record in found if isinstance(record, Loss)] == [None]


def test_damage_in_a_row_group_is_named_by_the_range_that_owns_it(tmp_path: Path) -> None:
    content = bytearray(CONTENTS["e.parquet"])
    group = pyarrow.parquet.ParquetFile(io.BytesIO(content)).metadata.row_group(3).column(0)
    content[group.data_page_offset : group.data_page_offset + 8] = b"\xff" * 8
    (tmp_path / "a.parquet").write_bytes(content)
    (file,) = find_files(TextFiles(inputs=(str(tmp_path / "a.parquet"),)))
    found = [record for part in cut(file, 40) for record in read_records(part, ReadSettings())]
    assert [record.line for record in found if isinstance(record, BadRecord)] == [61]
    assert [record.line for record in found if isinstance(record, Loss)] == [22]


def test_compressed_files_tars_and_documents_are_not_cut() -> None:
    for path in ("a.jsonl.gz", "a.jsonl.ZST", "a.tar", "a.tgz", "a.txt"):
        file = InputFile(path=path, size_bytes=10, modified_ns=0)
        assert not is_cuttable(file, ReadSettings())

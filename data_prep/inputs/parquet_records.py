"""The texts in the rows of a parquet file."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import IO, Any

from data_prep.inputs.json_records import checked_text
from data_prep.inputs.opening import DamagedFileError, open_input
from data_prep.inputs.ranges import FileRange
from data_prep.inputs.texts import Parts, check_size, shown, utf8_text
from data_prep.manifest import ReadSettings
from pipeline.shared.errors import DataError

BATCH_BYTES = 4 << 20
LARGEST_BATCH_ROWS = 64
# Types of columns whose bytes are the text itself.
_TEXT_TYPES = ("string", "large_string", "string_view")


def read_rows(part: FileRange, reading: ReadSettings) -> Iterator[tuple[int, partial[Parts]]]:
    """Yield the number of each row of a range, from 1 in the file, and the function that makes its text.

    Raises:
        DamagedFileError: the file cannot be read, or has no such column.
    """
    with open_input(part.file) as stream:
        try:
            table = _open_table(stream, reading.text_field)
        except DamagedFileError:
            if part.start > 0:
                return  # the reader of the first range reports it
            raise
        first_row = 1
        for group in range(table.metadata.num_row_groups):
            details = table.metadata.row_group(group)
            if part.start <= _first_byte(details, part.file.size_bytes) < part.stop:
                yield from _group_rows(table, group, details, reading, first_row)
            first_row += details.num_rows


def _open_table(stream: IO[bytes], field: str) -> Any:
    # Imported here, because Arrow is slow to import and most workers never read parquet files.
    import pyarrow.parquet

    with _damage_named(number=1):
        # Read a column chunk page by page, not all at once.
        table = pyarrow.parquet.ParquetFile(stream, pre_buffer=False, buffer_size=BATCH_BYTES)
        if field not in table.schema_arrow.names:
            raise DamagedFileError(f"no column {field!r}, only {shown(table.schema_arrow.names)}", number=1)
        return table


@contextmanager
def _damage_named(*, number: int) -> Iterator[None]:
    try:
        yield
    except (DataError, DamagedFileError):
        raise
    except Exception as error:  # of any kind: Arrow has many for damaged files
        raise DamagedFileError(" ".join(str(error).split()), number=number) from error


def _first_byte(details: Any, size_bytes: int) -> int:
    """Return where a row group begins by its metadata, always inside the file, so that one range owns it."""
    if details.num_columns == 0:
        return 0
    column = details.column(0)
    return int(min(max(column.dictionary_page_offset or column.data_page_offset, 0), size_bytes - 1))


def _group_rows(
    table: Any, group: int, details: Any, reading: ReadSettings, first_row: int
) -> Iterator[tuple[int, partial[Parts]]]:
    import pyarrow

    # All columns count, so this errs on the side of too few rows at a time.
    row_bytes = details.total_byte_size // max(details.num_rows, 1) + 1
    batch_rows = min(max(BATCH_BYTES // row_bytes, 1), LARGEST_BATCH_ROWS)
    batches = table.iter_batches(
        batch_rows, row_groups=[group], columns=[reading.text_field], use_threads=False
    )
    number = first_row
    while True:
        with _damage_named(number=number):
            batch = next(batches, None)
        if batch is None:
            return
        if batch.nbytes > BATCH_BYTES:
            # Free the memory for unpacking a long row before it is tokenized.
            pyarrow.default_memory_pool().release_unused()
        for value in batch.column(0):
            yield number, partial(_cell_text, value, reading)
            number += 1


def _cell_text(value: Any, reading: ReadSettings) -> Parts:
    if value.is_valid and str(value.type) in _TEXT_TYPES:
        content = memoryview(value.as_buffer())
        check_size(len(content), reading)
        return utf8_text(content)
    return checked_text(value.as_py(), reading.text_field)

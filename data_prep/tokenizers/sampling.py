"""An even sample of the documents of a text source, with a limit on its size and on what is read.

Documents are chosen by the hashes of their names, which mixes folders and files evenly and needs no random
numbers. None takes more than a share of the sample, unless there is not enough other text.
"""

import heapq
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from data_prep.inputs.documents import InputFile
from data_prep.inputs.ranges import FileRange, full_range, is_cuttable
from data_prep.inputs.records import BadRecord, Document, Loss, document_name, holds_many, read_records
from data_prep.manifest import LostFile, ReadSettings, RejectedRecord
from data_prep.plan import TRAIN, name_fraction, split_of

logger = logging.getLogger(__name__)

# A document takes at most this share of the sample.
LARGEST_SHARE = 8
# So many times the size of the sample is read of files with many documents, to choose from.
READ_FACTOR = 16
# A large file is read at places that are this far apart or more.
_PLACE_BYTES = 1 << 12
_MOST_PLACES = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleSettings:
    """What is sampled.

    Attributes:
        reading: where documents are in the files.
        sample_bytes: size of the sample.
        heldout_fraction: share of documents that are never sampled.
    """

    reading: ReadSettings
    sample_bytes: int
    heldout_fraction: float

    @property
    def largest_bytes(self) -> int:
        """The most that a document takes while there is other text."""
        return max(self.sample_bytes // LARGEST_SHARE, 1)

    def is_train(self, file: InputFile, position: int | None) -> bool:
        """Tell whether a document may be sampled."""
        return split_of(document_name(file, position), self.heldout_fraction) == TRAIN


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """Texts in the order in which they are trained on, and what was not taken."""

    texts: tuple[str, ...]
    num_files: int
    num_bytes: int
    rejected: tuple[RejectedRecord, ...]
    lost: tuple[LostFile, ...]


def choose_files(files: Sequence[InputFile], settings: SampleSettings) -> list[InputFile]:
    """Choose the files to read, in the order of their names' hashes, until there is enough to choose from."""
    candidates = [
        file for file in files if holds_many(file, settings.reading) or settings.is_train(file, None)
    ]
    chosen: list[InputFile] = []
    num_bytes = 0
    for file in sorted(candidates, key=lambda file: (name_fraction(file.path), file.path)):
        if num_bytes >= settings.sample_bytes:
            break
        chosen.append(file)
        # Of a file that is one document, its hash has decided already.
        is_one = not holds_many(file, settings.reading)
        num_bytes += (
            min(file.size_bytes, settings.largest_bytes) if is_one else file.size_bytes // READ_FACTOR
        )
    return chosen


def draw_sample(
    files: Sequence[InputFile], settings: SampleSettings, *, on_file: Callable[[], object] = lambda: None
) -> Sample:
    """Read files and choose documents evenly from them.

    Args:
        files: of :func:`choose_files`.
        settings: what is sampled.
        on_file: called when a file has been read.
    """
    pool = _Pool(settings)
    rejected: list[RejectedRecord] = []
    lost: list[LostFile] = []
    for number, file in enumerate(files):
        for record in _records(file, settings, num_files=len(files)):
            match record:
                case Document():
                    pool.add(number, file, record)
                case BadRecord():
                    rejected.append(RejectedRecord(path=file.path, line=record.line, reason=record.reason))
                    logger.info("the tokenizer's sample skips %s: %s", rejected[-1].place, record.reason)
                case Loss():
                    lost.append(LostFile(path=file.path, line=record.line, reason=record.reason))
        on_file()
    texts = pool.texts()
    return Sample(
        texts=tuple(texts),
        num_files=len(pool.file_numbers()),
        num_bytes=sum(len(text.encode()) for text in texts),
        rejected=tuple(rejected),
        lost=tuple(lost),
    )


def _records(
    file: InputFile, settings: SampleSettings, *, num_files: int
) -> Iterator[Document | BadRecord | Loss]:
    """Read the documents of a file, or of places all over it if it is large."""
    most_bytes = max(READ_FACTOR * settings.sample_bytes // num_files, settings.sample_bytes, _PLACE_BYTES)
    wanted = partial(settings.is_train, file)
    if not holds_many(file, settings.reading) or file.size_bytes <= most_bytes:
        yield from read_records(full_range(file), settings.reading, wanted)
        return
    num_places = min(max(most_bytes // _PLACE_BYTES, 1), _MOST_PLACES)
    if not is_cuttable(file, settings.reading):
        # Only the start of a compressed file can be read without all before it.
        num_places = 1
    for number in range(num_places):
        start = file.size_bytes * number // num_places
        part = full_range(file)
        if num_places > 1:
            part = FileRange(file=file, start=start, stop=file.size_bytes * (number + 1) // num_places)
        num_bytes = 0
        for record in read_records(part, settings.reading, wanted):
            yield record
            if isinstance(record, Document):
                num_bytes += sum(len(text) for text in record.parts)
            if num_bytes * num_places >= most_bytes:
                break


class _Pool:
    """The documents with the smallest hashes that together fill the sample."""

    def __init__(self, settings: SampleSettings) -> None:
        self._settings = settings
        # The largest hash first: fraction of the name, negated; number of the file; number of the document.
        self._heap: list[tuple[float, int, int]] = []
        self._texts: dict[int, str] = {}
        self._num_bytes = 0
        self._num_added = 0

    def add(self, file_number: int, file: InputFile, document: Document) -> None:
        """Add a document, and drop those that the sample has no place for any more."""
        text = _beginning(document, self._settings.sample_bytes)
        self._num_added += 1
        self._texts[self._num_added] = text
        fraction = name_fraction(document_name(file, document.position))
        heapq.heappush(self._heap, (-fraction, file_number, self._num_added))
        self._num_bytes += self._counted(text)
        while self._num_bytes - self._counted(self._texts[self._heap[0][2]]) >= self._settings.sample_bytes:
            _, _, dropped = heapq.heappop(self._heap)
            self._num_bytes -= self._counted(self._texts.pop(dropped))

    def file_numbers(self) -> set[int]:
        """Return the numbers of the files that the sample is from."""
        return {file_number for _, file_number, _ in self._heap}

    def texts(self) -> list[str]:
        """Return the sample in the order of the files and their documents.

        If there is not enough text, long documents give more than their share. The last one is cut.
        """
        kept = [self._texts[number] for _, _, number in sorted(self._heap, key=lambda each: each[1:])]
        most = _level([len(text) for text in kept], self._settings.sample_bytes)
        most = max(most, self._settings.largest_bytes)
        result, remaining = [], self._settings.sample_bytes
        for text in kept:
            if remaining <= 0:
                break
            result.append(text[: min(most, remaining)])
            remaining -= len(result[-1].encode())
        return result

    def _counted(self, text: str) -> int:
        # Characters instead of bytes, which would have to be encoded.
        return min(len(text), self._settings.largest_bytes)


def _beginning(document: Document, most_characters: int) -> str:
    text = ""
    for part in document.parts:
        text += part
        if len(text) >= most_characters:
            break
    return text[:most_characters]


def _level(lengths: Sequence[int], total: int) -> int:
    """Return the limit on each length with which they sum up to a total, or the longest one."""
    remaining = total
    for number, length in enumerate(sorted(lengths)):
        num_left = len(lengths) - number
        if length * num_left >= remaining:
            return remaining // num_left
        remaining -= length
    return max(lengths, default=0)

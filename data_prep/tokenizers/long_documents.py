"""Tokenize a long text in parts that have the same tokens as the complete text.

A cut is good if no token reaches across it. The tokenizer itself shows that: the text around a good cut has
the same tokens whether it is tokenized at once or as two texts. Tokens, and the rules by which tokenizers
split text first, depend on a few words at most, so what holds in a neighbourhood of hundreds of characters
holds for the complete text. (Unigram models of sentencepiece are an exception in theory: they sum scores over
the text in single precision, so that rounding decides in a text of megabytes. Parts have smaller rounding
errors.)

The cuts depend only on the text, not on the parts in which it arrives.
"""

import re
from collections.abc import Callable, Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

Encode = Callable[[str], NDArray[np.int32]]

PART_CHARACTERS = 1 << 20
# How far after the end of a part to search for a cut, and how much text on each side must agree.
SEARCH_CHARACTERS = 1 << 14
NEIGHBOURHOOD_CHARACTERS = 512
MAX_TRIES = 100

# Before a single space or line end between words; anywhere only in a text without them.
_BETWEEN_WORDS = re.compile(r"(?<=\S)(?=[ \n]\S)")
_ANYWHERE = re.compile(r"(?<=\S)(?=\S)")


def encode_long(
    encode: Encode, parts: Iterable[str], *, part_characters: int = PART_CHARACTERS
) -> Iterator[NDArray[np.int32]]:
    """Tokenize a text that comes in parts.

    Args:
        encode: tokenizes a string.
        parts: joined, they are the text.
        part_characters: longer texts are cut at the first good place after so many characters.
    Returns:
        Ids which, joined, are those of the complete text.
    """
    text = ""
    begun = part_characters
    for part in parts:
        text += part
        while len(text) > begun + SEARCH_CHARACTERS + NEIGHBOURHOOD_CHARACTERS:
            if (cut := _find_cut(encode, text, begun)) is None:
                begun += SEARCH_CHARACTERS
                continue
            stop, start = cut
            yield encode(text[:stop])
            text, begun = text[start:], part_characters
    if text:
        yield encode(text)


def _find_cut(encode: Encode, text: str, begin: int) -> tuple[int, int] | None:
    """Return the end of one part and the beginning of the next, or None if there is no good cut in reach."""
    for pattern in (_BETWEEN_WORDS, _ANYWHERE):
        places = pattern.finditer(text, begin, begin + SEARCH_CHARACTERS)
        for place, _ in zip(places, range(MAX_TRIES), strict=False):
            cut = place.start()
            # For tokenizers that add a space to the start of every text, remove one.
            for start in (cut, cut + 1) if text[cut] == " " else (cut,):
                if _is_good(encode, text, cut, start):
                    return cut, start
    return None


def _is_good(encode: Encode, text: str, stop: int, start: int) -> bool:
    first = max(stop - NEIGHBOURHOOD_CHARACTERS, 0)
    last = start + NEIGHBOURHOOD_CHARACTERS
    apart = np.concatenate([encode(text[first:stop]), encode(text[start:last])])
    return np.array_equal(encode(text[first:last]), apart)

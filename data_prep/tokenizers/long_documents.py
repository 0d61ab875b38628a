"""Tokenizing a long text in parts that have the tokens of the whole.

A cut is good where no token would reach across it. A tokenizer says so itself: the text around a good cut
has the same tokens whether it is tokenized at once or as two texts. Tokens, and the rules by which tokenizers
split text first, look a few words far at most, so what holds in a neighbourhood of hundreds of characters
holds in the whole. (Unigram models of sentencepiece are the exception on paper: they add up scores over the
whole text in single precision, so that in a text of megabytes rounding decides. Parts round less.)

Where a text is cut depends on the text alone, not on how it arrives.
"""

import re
from collections.abc import Callable, Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

Encode = Callable[[str], NDArray[np.int32]]

PART_CHARACTERS = 1 << 20
# how far a cut is looked for behind the end of a part, and how much text on each side must agree
SEARCH_CHARACTERS = 1 << 14
NEIGHBOURHOOD_CHARACTERS = 512
MAX_TRIES = 100

# before a single space or line end between words; only in a text without such, anywhere
_BETWEEN_WORDS = re.compile(r"(?<=\S)(?=[ \n]\S)")
_ANYWHERE = re.compile(r"(?<=\S)(?=\S)")


def encode_long(
    encode: Encode, parts: Iterable[str], *, part_characters: int = PART_CHARACTERS
) -> Iterator[NDArray[np.int32]]:
    """Tokenize a text that comes in parts.

    Args:
        encode: tokenizes a string.
        parts: joined, they are the text.
        part_characters: what is longer is cut, at the first good place behind that many characters.
    Returns:
        ids which, joined, are those of the whole text.
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
    """Return the end of one part and the beginning of the next, or None where no good cut is in reach."""
    for pattern in (_BETWEEN_WORDS, _ANYWHERE):
        places = pattern.finditer(text, begin, begin + SEARCH_CHARACTERS)
        for place, _ in zip(places, range(MAX_TRIES), strict=False):
            cut = place.start()
            # tokenizers that put a space before every text need one taken away
            for start in (cut, cut + 1) if text[cut] == " " else (cut,):
                if _is_good(encode, text, cut, start):
                    return cut, start
    return None


def _is_good(encode: Encode, text: str, stop: int, start: int) -> bool:
    first = max(stop - NEIGHBOURHOOD_CHARACTERS, 0)
    last = start + NEIGHBOURHOOD_CHARACTERS
    apart = np.concatenate([encode(text[first:stop]), encode(text[start:last])])
    return np.array_equal(encode(text[first:last]), apart)

"""How tokens are computed: by the tokenizer's own library, or by gigatoken, which is several times as fast.

gigatoken reads the same files and computes the same ids. That is checked: with difficult texts before it is
used, and in every task with the first texts and some random ones. Texts that hold the name of a special token
are left to the tokenizer's own library, because gigatoken has other rules for them.
"""

import importlib.util
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from data_prep.tokenizers.long_documents import Encode
from data_prep.tokenizers.reading import read_tokenizer, read_tokenizer_file
from data_prep.tokenizers.tokenizer import Tokenizer
from pipeline.shared.errors import DataError
from pipeline.shared.extras import how_to_install

__all__ = ["Backend", "CheckedEncoder", "load_encoder", "resolve_backend"]

logger = logging.getLogger(__name__)

Backend = Literal["auto", "native", "gigatoken"]

PACKAGE = "gigatoken"
# Of a task: so many texts are encoded by both, and then this share of them.
NUM_FIRST_CHECKED = 4
CHECKED_SHARE = 1 / 256
# gigatoken remembers words, with up to 8 bytes per character of new words; a new encoder remembers none.
CHARACTERS_OF_AN_ENCODER = 1 << 26
_SHOWN_CHARACTERS = 80
_NUM_PIECES_TRIED = 4096
_DIFFICULT_TEXTS = (
    "",
    " ",
    "\n",
    "a",
    " a  b   c    d\t\te\n\n\nf\r\ng ",
    "don't we'll I'M 1234567890 3.14 0x1F snake_case CamelCase http://a.b/c?d=e&f#g",
    "caf\u00e9 cafe\u0301 \ufb01 \u00df \u1e9b\u0323 \u216b \uff21 \u00bd na\u00efve \u0130\u0131",
    "\u6f22\u5b57\u304b\u306a\u30ab\u30ca \ud55c\uad6d\uc5b4",
    "\u0627\u0644\u0639 \u05e2\u05d1 \u0e44\u0e17\u0e22 \u0928\u092e\u0938\u094d\u0924\u0947",
    "\U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea \U00010348",
    "\x00\x01\x1f\x7f\x85\xa0\u2003\u2028\u3000\ufeff\ufffd\U0010ffff",
    "((([[[{{{<<<>>>}}}]]])))---===___...,,,;;;:::'''\"\"\"``~~!!@@##$$%%^^&&**",
    "word" * 64 + " " * 257 + "z" * 300,
)


class CheckedEncoder:
    """Computes tokens with gigatoken, some of them with the tokenizer too."""

    def __init__(self, tokenizer: Tokenizer, load: Callable[[], Encode]) -> None:
        """Take the tokenizer, and what makes an encoder of gigatoken for it."""
        self._tokenizer = tokenizer
        self._load = load
        self._fast = load()
        self._names = tuple(name for name in tokenizer.names_of_no_text() if name)
        self._beginnings = tuple({name[:2] for name in self._names})
        self._num_characters = 0
        self.begin_task("")

    def begin_task(self, name: str) -> None:
        """Begin to check again: the first texts, and random ones that the name of the task determines."""
        self._random = Random(name)
        self._num_to_check = NUM_FIRST_CHECKED

    def encode(self, text: str) -> NDArray[np.int32]:
        """Return the token ids of one text, without the end-of-document id.

        Raises:
            EncodingError: the tokenizer cannot encode the text.
            DataError: gigatoken computes other ids than the tokenizer.
        """
        ids = None if self._holds_a_name(text) else _tried(self._fast, text)
        if ids is None:
            return self._tokenizer.encode(text)
        self._count(len(text))
        if self._num_to_check > 0 or self._random.random() < CHECKED_SHARE:
            self._num_to_check -= 1
            self._check(text, ids)
        return ids

    def differing(self, texts: Sequence[str]) -> str | None:
        """Return the first of some texts for which gigatoken computes other ids, None if there is none."""
        for text in texts:
            ids = None if self._holds_a_name(text) else _tried(self._fast, text)
            if ids is not None and not np.array_equal(ids, self._tokenizer.encode(text)):
                return text
        return None

    def _holds_a_name(self, text: str) -> bool:
        # Tokenizers have up to hundreds of such names, most of which begin alike.
        return any(begin in text for begin in self._beginnings) and any(name in text for name in self._names)

    def _count(self, num_characters: int) -> None:
        self._num_characters += num_characters
        if self._num_characters > CHARACTERS_OF_AN_ENCODER:
            self._num_characters = 0
            self._fast = self._load()

    def _check(self, text: str, ids: NDArray[np.int32]) -> None:
        expected = self._tokenizer.encode(text)
        if np.array_equal(ids, expected):
            return
        both = min(len(ids), len(expected))
        first = int(np.argmin(np.append(ids[:both] == expected[:both], False)))
        begin = max(len(self._tokenizer.decode(expected[:first])) - _SHOWN_CHARACTERS // 2, 0)
        shown = text[begin : begin + _SHOWN_CHARACTERS]
        raise DataError(
            f"{PACKAGE} must compute the tokens of the tokenizer's own library, but at {shown!r} they are "
            f"{ids[first : first + 3].tolist()} instead of {expected[first : first + 3].tolist()}; "
            "prepare with --tokenizer-backend native"
        )


def resolve_backend(path: Path, backend: Backend, *, eod_token: str | None = None) -> Backend:
    """Return the backend that a preparation uses.

    Args:
        path: file of the tokenizer.
        backend: that is wanted.
        eod_token: as for `read_tokenizer`.
    Raises:
        DataError: `gigatoken` is wanted, but is not installed or cannot be used for this tokenizer.
    """
    if backend == "native":
        return backend
    obstacle = _obstacle(path, eod_token)
    if obstacle is None:
        return "gigatoken"
    if backend == "gigatoken":
        raise DataError(f"--tokenizer-backend {PACKAGE} {obstacle}; choose native or auto")
    if _is_installed():
        logger.warning("tokens are computed by the tokenizer's own library, because %s %s", PACKAGE, obstacle)
    return "native"


def load_encoder(path: Path, tokenizer: Tokenizer, backend: Backend) -> CheckedEncoder | None:
    """Return the encoder of a resolved backend, None where the tokenizer encodes by itself.

    Raises:
        DataError: gigatoken, which has been chosen on another machine, is not installed on this one.
    """
    if backend == "native":
        return None
    if not _is_installed():
        raise DataError(f"{PACKAGE} must be installed on all machines, but is not on this one; {_CURE}")
    return _encoder(path, tokenizer)


_CURE = f"{how_to_install('fast')}, or prepare with --tokenizer-backend native"


def _obstacle(path: Path, eod_token: str | None) -> str | None:
    """Return why gigatoken cannot be used, None if it can."""
    if not _is_installed():
        return f"must be installed, but is not ({how_to_install('fast')})"
    tokenizer = read_tokenizer(path, eod_token=eod_token)
    try:
        encoder = _encoder(path, tokenizer)
    except BaseException as error:  # the library panics with a BaseException
        _let_interrupts_pass(error)
        return f"must support the tokenizer, but does not support {path} ({error})"
    different = encoder.differing([*_DIFFICULT_TEXTS, _text_of_pieces(tokenizer)])
    if different is not None:
        return f"must compute the same tokens, but computes others for {different[:_SHOWN_CHARACTERS]!r}"
    return None


def _encoder(path: Path, tokenizer: Tokenizer) -> CheckedEncoder:
    content = read_tokenizer_file(path)

    def load() -> Encode:
        # Imported only if used: it is not among the dependencies.
        import gigatoken

        if tokenizer.kind == "sentencepiece":
            backend = gigatoken.Tokenizer.from_sentencepiece(content).backend
        else:
            backend = gigatoken.Tokenizer.from_json(content).backend
        return lambda text: backend.encode(text).astype(np.int32)

    return CheckedEncoder(tokenizer, load)


def _text_of_pieces(tokenizer: Tokenizer) -> str:
    """Return a text in which pieces of the whole vocabulary follow each other in a mixed order."""
    step = max(tokenizer.vocab_size // _NUM_PIECES_TRIED, 1)
    ids = list(range(0, tokenizer.vocab_size, step))
    Random(0).shuffle(ids)
    names = tuple(tokenizer.names_of_no_text())
    texts = (tokenizer.decode([token]) for token in ids)
    return "".join(text for text in texts if not any(name in text for name in names))


def _tried(encode: Encode, text: str) -> NDArray[np.int32] | None:
    """Return the ids of a text, None if it cannot be encoded, which the tokenizer itself reports better."""
    try:
        return encode(text)
    except BaseException as error:  # the library panics with a BaseException
        _let_interrupts_pass(error)
        return None


def _is_installed() -> bool:
    return importlib.util.find_spec(PACKAGE) is not None


def _let_interrupts_pass(error: BaseException) -> None:
    if isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit):
        raise error

"""Read a tokenizer of either kind from its file."""

from pathlib import Path

from data_prep.inputs.texts import without_mark
from data_prep.regular_files import read_regular_file
from data_prep.tokenizers.tokenizer import Tokenizer, special_eod_token
from pipeline.shared.errors import DataError

# Twenty times the size of the largest that are published.
LARGEST_TOKENIZER_BYTES = 512 << 20


def read_tokenizer_file(path: Path) -> bytes:
    """Return the content of a tokenizer's file, without a byte-order mark.

    Raises:
        DataError: the file does not exist, is none or is too large.
    """
    try:
        if path.is_dir():
            raise FileNotFoundError
        return without_mark(read_regular_file(path, largest_bytes=LARGEST_TOKENIZER_BYTES))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DataError(
            f"the tokenizer {path} must be a file, but is not; make one with `megaponder tokenizer train`"
        ) from error
    except OSError as error:
        raise DataError(
            f"the tokenizer {path} must be readable, but is not ({error.strerror}); change its permissions"
        ) from error


def read_tokenizer(path: Path, *, eod_token: str | None = None) -> Tokenizer:
    """Read a sentencepiece model or a Hugging Face ``tokenizer.json``, whichever the file is.

    Args:
        path: the file.
        eod_token: name of the token that ends documents, for a ``tokenizer.json``. Without it the
            ``eos_token`` of the ``special_tokens_map.json`` or ``tokenizer_config.json`` in the same folder
            is used.
    Raises:
        DataError: the file does not exist or is not a usable tokenizer.
    """
    content = read_tokenizer_file(path)
    # Imported only if used, because each kind needs a library.
    if content.lstrip().startswith(b"{"):
        from data_prep.tokenizers.huggingface_tokenizer import HuggingFaceTokenizer

        return HuggingFaceTokenizer(content, eod_token=eod_token or special_eod_token(path), name=str(path))
    from data_prep.tokenizers.sentencepiece_tokenizer import SentencePieceTokenizer

    if eod_token is not None:
        raise DataError(
            f"--eod-token is for a tokenizer.json, but {path} is a sentencepiece model, which has an "
            "end-of-sequence piece of its own; remove the option"
        )
    return SentencePieceTokenizer(content, name=str(path))

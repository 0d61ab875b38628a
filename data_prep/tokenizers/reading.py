"""Read a tokenizer of either kind from its file."""

from pathlib import Path

from data_prep.tokenizers.tokenizer import Tokenizer, special_eod_token
from pipeline.shared.errors import DataError


def read_tokenizer(path: Path, *, eod_token: str | None = None) -> Tokenizer:
    """Read a sentencepiece model or a Hugging Face ``tokenizer.json``, whichever the file is.

    Args:
        path: the file.
        eod_token: name of the token that ends documents, for a ``tokenizer.json``. Without it the
            ``eos_token`` of the ``special_tokens_map.json`` in the same folder is used.
    Raises:
        DataError: the file does not exist or is not a usable tokenizer.
    """
    try:
        content = path.read_bytes()
    except (FileNotFoundError, IsADirectoryError) as error:
        raise DataError(
            f"the tokenizer {path} must be a file, but is not; make one with `megaponder tokenizer train`"
        ) from error
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

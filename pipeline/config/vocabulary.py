"""Padding of the vocabulary, Megatron's rule."""


def padded_vocab_size(vocab_size: int, *, divisible_by: int, tensor: int) -> int:
    """Round a vocabulary up so that every tensor-parallel rank holds the same, well-shaped part.

    Args:
        vocab_size: tokens of the tokenizer, at least 1.
        divisible_by: rows per rank are a multiple of this.
        tensor: tensor-parallel ranks.

    Returns:
        the smallest multiple of `divisible_by * tensor` that is at least `vocab_size`.
    """
    multiple = divisible_by * tensor
    return -(-vocab_size // multiple) * multiple

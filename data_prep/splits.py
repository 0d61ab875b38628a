"""Which split a document belongs to: a pure function of its name, so adding files moves no other file."""

import hashlib

TRAIN = "train"
HELDOUT = "heldout"
SPLITS = (TRAIN, HELDOUT)


def split_of(name: str, heldout_fraction: float) -> str:
    """Choose the split of a document by the hash of its name.

    Args:
        name: the document's relative path with forward slashes.
        heldout_fraction: expected share of held-out documents, in [0, 1).
    """
    return HELDOUT if name_fraction(name) < heldout_fraction else TRAIN


def name_fraction(name: str) -> float:
    """Map a name to a number in [0, 1), uniform over names."""
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()
    # 53 bits fit a float exactly, so that no name rounds up to 1.0
    return (int.from_bytes(digest[:8], "big") >> 11) / 2**53

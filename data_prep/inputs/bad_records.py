"""How a record says that there is no text in it."""

LONGEST_SHOWN_CHARACTERS = 60


class BadRecordError(Exception):
    """The record at hand holds no text; the message says why."""


def shown(value: object) -> str:
    """A value for a message, cut where it is long."""
    text = repr(value)
    return text if len(text) <= LONGEST_SHOWN_CHARACTERS else f"{text[:LONGEST_SHOWN_CHARACTERS]}..."

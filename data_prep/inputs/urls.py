"""URLs of inputs: what they name, and how they are shown without their secrets."""

import re

MASK = "***"
_USER = re.compile(r"(?<=://)[^/\s@]+@")
_QUERY = re.compile(r"(://[^\s?#'\"<>]*)[?#][^\s'\"<>)]*")


def is_url(place: str) -> bool:
    """Tell whether an input or location is opened through fsspec."""
    return "://" in place


def mask_url(text: str) -> str:
    """Hide user names, passwords and queries, which may be signatures, of all URLs in a text.

    What is hidden may differ in the next run, so names in manifests are made of masked URLs.
    """
    if "://" not in text:
        return text
    return _QUERY.sub(rf"\1?{MASK}", _USER.sub(f"{MASK}@", text))


def plain_name(name: str) -> str:
    """Return a name without the query of a URL, so that it ends in the file's suffix."""
    return re.split(r"[?#]", name, maxsplit=1)[0] if "://" in name else name

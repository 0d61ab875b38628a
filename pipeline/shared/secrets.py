"""Secrets in what is stored or shown: they are masked there, and only jobs get their values.

A variable is a secret by its name; an address may hold a user's password, or be signed.
"""

import re
from collections.abc import Collection

__all__ = ["MASK", "is_masked", "is_secret_name", "mask_text", "mask_variable"]

MASK = "***"
_SECRET_PARTS = re.compile(
    r"SECRET|PASSW|PASSPHRASE|CREDENTIAL|PRIVATE_?KEY|API_?KEY|BEARER|COOKIE|SIGNATURE", re.IGNORECASE
)
_SECRET_WORDS = re.compile(
    r"(.*TOKENS?|.*KEYS?|.*PASS|PWD|AUTH|AUTHORIZATION|PAT|DSN|SAS|SIG)", re.IGNORECASE
)
_CAPITALS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
# The user of an address may be called anything, so the last @ before its path counts.
_CREDENTIALS = re.compile(r"\b([A-Za-z][A-Za-z0-9+.-]*://)([^/\s?#'\"]*)@")
_QUERY = re.compile(r"([?&;])([\w.%-]+)=([^&;\s#'\"]+)")
_ASSIGNMENT = re.compile(r"(?<![^\s;|('\"`])([A-Za-z_]\w*)=('[^']*'|\"[^\"]*\"|[^\s;&|'\"]+)")
_MASKED = re.compile(r"(^|[=:/])\*\*\*($|[@&;#'\"\s])")


def is_secret_name(name: str, further: Collection[str] = ()) -> bool:
    """Return whether a variable or a parameter holds a secret.

    Args:
        name: such as `HF_TOKEN`, `AWS_SECRET_ACCESS_KEY` or `X-Amz-Signature`.
        further: names that do, whatever they look like.
    """
    words = re.split(r"[^A-Za-z0-9]+", _CAPITALS.sub("_", name))
    looks_secret = _SECRET_PARTS.search(name) or any(_SECRET_WORDS.fullmatch(word) for word in words)
    return name in further or bool(looks_secret)


def mask_variable(name: str, value: str, further: Collection[str] = ()) -> str:
    """Return the value of a variable as it may be stored or shown."""
    return MASK if value and is_secret_name(name, further) else mask_text(value)


def mask_text(text: str, further: Collection[str] = ()) -> str:
    """Return a text without the passwords and signatures of addresses and the secrets of assignments in it.

    Args:
        text: an address, or a line of a shell.
        further: see `is_secret_name`.
    """
    text = _CREDENTIALS.sub(_mask_credentials, text)
    text = _QUERY.sub(
        lambda found: found[0] if not is_secret_name(found[2], further) else f"{found[1]}{found[2]}={MASK}",
        text,
    )
    return _ASSIGNMENT.sub(
        lambda found: f"{found[1]}={MASK}" if is_secret_name(found[1], further) else found[0], text
    )


def is_masked(text: str) -> bool:
    """Return whether a text was masked, so that what it stands for is lost."""
    return _MASKED.search(text) is not None


def _mask_credentials(found: re.Match[str]) -> str:
    scheme, user = found[1], found[2]
    name, colon, password = user.partition(":")
    if colon:
        return f"{scheme}{name}:{MASK}@" if password else found[0]
    # A name alone is a token where no names are needed.
    return f"{scheme}{MASK}@" if scheme.lower() in ("http://", "https://") and name else found[0]

"""The one error of data preparation and data reading that is meant for users."""


class DataError(ValueError):
    """Data cannot be used; the message says what must hold, what was found, and the cure."""

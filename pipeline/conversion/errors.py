"""What is wrong with a model that is to be converted."""


class ConversionError(Exception):
    """A folder cannot be converted; the text says what to do."""

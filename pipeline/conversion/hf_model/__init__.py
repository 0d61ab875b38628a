"""The code that an exported pondering model brings along: copied as it is, it imports transformers and torch."""

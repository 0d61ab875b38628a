"""The code that an exported pondering model brings, copied as it is; it needs transformers and torch."""

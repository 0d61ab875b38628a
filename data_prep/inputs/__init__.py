"""Sources of text, and how they are read."""

"""Text to token ids and back, and training what does it."""

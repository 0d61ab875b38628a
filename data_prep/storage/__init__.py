"""How tokens are stored on disk."""

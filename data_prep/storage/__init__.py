"""How tokens lie on disk."""

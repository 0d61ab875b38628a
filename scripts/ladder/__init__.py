"""The ladder: every method trained on the same real text, continued from one base and from scratch."""

"""Runs side by side: held-out loss against what inference costs."""

"""Statistics of a run: sums over the global batch, their names, and where they are written."""

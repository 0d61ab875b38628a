"""Tests: unit (mirrors the sources), multiprocess (gloo ranks), end_to_end (commands), clusters (SLURM, Ray)."""

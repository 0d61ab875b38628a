"""Tests: unit (mirrors the sources), multiprocess (gloo ranks), end_to_end, clusters (SLURM, Ray)."""

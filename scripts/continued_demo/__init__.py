"""Continued pretraining of a real model, SmolLM2-135M, from a package of the Python package index."""

"""A run: configuration, data loading, training loop, checkpoints, metrics, evaluation, commands."""

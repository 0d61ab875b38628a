"""What is wrong with a checkpoint, for users."""


class CheckpointError(RuntimeError):
    """A checkpoint is absent, damaged, of another model, or cannot be written; the text says what to do."""

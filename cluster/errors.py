"""What keeps a job from being submitted, watched or stopped."""


class ClusterError(Exception):
    """A cluster refuses, or cannot be reached; the text says what must hold, what was found, and the cure."""

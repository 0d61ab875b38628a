"""The ordinary causal language model: one pass, no thoughts (definitions 4)."""

from megatron_ext.methods.base import PonderMethod


class Vanilla(PonderMethod):
    """The base itself: tokens in, hidden states out."""

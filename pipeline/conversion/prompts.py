"""The prompts on which two models are compared, and how decoding splits them."""

import torch
from torch import Tensor

NUM_PROMPTS, PROMPT_SEED = 4, 20260101
# Of a prompt that only the forward reads.
FORWARD_TOKENS = 64
# Decoding reads a prompt by Jacobi sweeps and then consumes the tokens after it, one by one.
PROMPT_TOKENS, DECODED_TOKENS = 16, 6
# Tolerance of these sweeps, small because the two sides may stop one sweep apart.
PREFILL_TOLERANCE = 1e-6


def draw_prompts(vocab_size: int, max_positions: int, *, num_tokens: int = FORWARD_TOKENS) -> Tensor:
    """Return fixed token ids, drawn from the whole vocabulary, [B, S]."""
    generator = torch.Generator().manual_seed(PROMPT_SEED)
    return torch.randint(vocab_size, (NUM_PROMPTS, min(num_tokens, max_positions)), generator=generator)


def prompt_size(tokens: Tensor) -> int:
    """Return how many columns of tokens, [B, S], decoding reads as a prompt."""
    return max(1, tokens.shape[1] - DECODED_TOKENS)


def decoded_columns(tokens: Tensor) -> range:
    """Return the columns after the prompt, which are consumed one by one."""
    return range(prompt_size(tokens), tokens.shape[1])

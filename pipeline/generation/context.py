"""Prompts within the context of a model."""

import logging
from collections.abc import Sequence

from pipeline.shared.errors import DataError

logger = logging.getLogger(__name__)


def fit_prompts(
    prompts: Sequence[Sequence[int]],
    *,
    num_tokens: int,
    max_positions: int,
    trained_length: int,
    cuts: bool,
    speaks: bool = True,
) -> list[list[int]]:
    """Return prompts that leave room for the tokens to be added.

    A text beyond ``max_positions`` has positions that the model does not have; beyond ``trained_length`` it
    has those that no training step has shown.

    Args:
        prompts: token ids of each.
        num_tokens: tokens to add to each.
        max_positions: ``model.max_position_embeddings``.
        trained_length: ``training.seq_length``.
        cuts: drop the beginning of a prompt that is too long, with a warning.
        speaks: whether this rank warns.
    Raises:
        DataError: a prompt is too long and is not to be cut, or no prompt would leave room.
    """
    room = max_positions - num_tokens
    too_long = [len(prompt) for prompt in prompts if len(prompt) > room]
    if too_long and (room < 1 or not cuts):
        cure = "cut their beginnings with --cut-prompts, or add fewer with --max-new-tokens"
        raise DataError(
            f"a prompt and the {num_tokens} tokens to add must fit into the {max_positions} positions of the "
            f"model (model.max_position_embeddings), but {len(too_long)} of {len(prompts)} do not, the "
            f"longest with {max(too_long)} tokens; "
            f"{cure if room >= 1 else f'add at most {max_positions - 1} with --max-new-tokens'}"
        )
    if too_long and speaks:
        logger.warning(
            "%d of %d prompts are longer than %d tokens, which leave room for %d more in the %d positions of "
            "the model: their beginnings are CUT",
            len(too_long),
            len(prompts),
            room,
            num_tokens,
            max_positions,
        )
    fitting = [list(prompt[-room:]) if len(prompt) > room else list(prompt) for prompt in prompts]
    beyond = sum(len(prompt) + num_tokens > trained_length for prompt in fitting)
    if beyond and speaks:
        logger.warning(
            "%d of %d texts may grow longer than the %d tokens of training.seq_length that the model was "
            "trained on; it has %d positions",
            beyond,
            len(prompts),
            trained_length,
            max_positions,
        )
    return fitting

"""Random tokens to train on where only the time counts."""

import torch

from megatron_ext.model.micro_batch import TokenBatch
from pipeline.config.schema import RunConfig

# For settings that leave the vocabulary to the tokenizer of the data.
DEFAULT_VOCAB_SIZE = 32_768


def random_batches(config: RunConfig, vocab_size: int, num_micro_batches: int) -> list[TokenBatch]:
    """Draw micro-batches of a run's sizes; every row is one document."""
    training = config.training
    generator = torch.Generator().manual_seed(config.seed)
    shape = (training.micro_batch_size, training.seq_length)
    batches = []
    for _ in range(num_micro_batches):
        tokens = torch.randint(vocab_size, (shape[0], shape[1] + 1), generator=generator)
        batches.append(
            TokenBatch(
                tokens=tokens[:, :-1],
                labels=tokens[:, 1:],
                position_ids=torch.arange(shape[1]).expand(shape),
                document_ids=torch.zeros(shape, dtype=torch.int64),
            )
        )
    return batches

"""Check one method of whatever copy of the sources is imported: `python -m tests.support.method_checks NAME`.

Prints nothing; an assertion fails where a claim does not hold.
"""

import sys

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from megatron_ext.methods.registry import METHODS
from megatron_ext.model.config import Architecture
from megatron_ext.parallel.groups import ParallelGroups, destroy_groups, initialize_groups
from megatron_ext.ponder.config import Method
from pipeline.cost.flops import FlopsAccount
from pipeline.cost.shape import ModelShape
from pipeline.ranks.distributed import start_process_group, stop_process_group
from pipeline.ranks.environment import Ranks
from tests.support.ponder_models import (
    batch_of,
    decode_one_by_one,
    mean_loss,
    random_tokens,
    results_by_token,
    tiny_model,
)

BATCH, LENGTH = 2, 16


def main(name: str) -> None:
    """Run all checks."""
    method = Method(name)
    assert set(METHODS) == set(Method)
    start_process_group(Ranks.from_environment({}), timeout_seconds=60)
    try:
        groups = initialize_groups()
        for architecture in Architecture:
            cached_decoding_equals_the_forward(groups, method, architecture)
            a_step_costs_what_torch_counts(groups, method, architecture)
    finally:
        destroy_groups()
        stop_process_group()


def cached_decoding_equals_the_forward(
    groups: ParallelGroups, method: Method, architecture: Architecture
) -> None:
    model = tiny_model(groups, method, architecture, num_latent_thoughts=3)
    tokens = random_tokens(1, LENGTH)

    decoded, steps, _ = decode_one_by_one(model, tokens[0].tolist())

    # [S, 1, B, V] -> [S, V]
    forward = results_by_token(model, batch_of(tokens))["logits"][:, 0, 0]
    torch.testing.assert_close(decoded, forward[:, : decoded.shape[1]], rtol=0, atol=1e-9)
    assert steps == [3] * LENGTH


def a_step_costs_what_torch_counts(
    groups: ParallelGroups, method: Method, architecture: Architecture
) -> None:
    model = tiny_model(groups, method, architecture, dtype=torch.float32)
    batch = batch_of(random_tokens(BATCH, LENGTH))

    # Attention as two plain products: kernels of the CPU are not counted.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        mean_loss(model(batch, num_jacobi_iterations=2), batch).backward()

    config, ponder = model.config, model.config.ponder
    account = FlopsAccount(
        shape=ModelShape(
            architecture=config.architecture.value,
            num_layers=config.num_layers,
            hidden_size=config.hidden_size,
            ffn_hidden_size=config.ffn_hidden_size,
            num_attention_heads=config.num_attention_heads,
            num_query_groups=config.num_query_groups,
            kv_channels=config.kv_channels,
            vocab_size=config.vocab_size,
            padded_vocab_size=config.padded_vocab_size,
            seq_length=LENGTH,
        ),
        method=method,
        num_latent_thoughts=ponder.num_latent_thoughts,
        mixture=ponder.mixture,
    )
    counted = counter.get_total_flops() / (BATCH * LENGTH)
    assert abs(account.training_flops(2).dense / counted - 1) < 1e-6


if __name__ == "__main__":
    main(sys.argv[1])

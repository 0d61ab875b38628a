"""Steps with fewer passes that have gradients cost less by every measure."""

from pipeline.config.schema import RunConfig
from tests.bench.savings import measure_savings, small_run


def test_time_memory_and_operations_are_measured_in_one_process() -> None:
    run = small_run("ponderlm3")
    sizes = {"num_layers": 2, "hidden_size": 64, "ffn_hidden_size": 128, "num_attention_heads": 4}
    smaller = run.model_dump(exclude_unset=True)
    smaller["model"] |= sizes
    smaller["training"] |= {"seq_length": 32}

    full, two, one = measure_savings(RunConfig(**smaller), [None, 2, 1], repeats=1)

    assert (full.gradient_passes, two.gradient_passes, one.gradient_passes) == (None, 2, 1)
    assert full.flops > two.flops > one.flops
    # Most of it is what eighteen, eight and four rows per token keep.
    assert two.activation_bytes < 0.7 * full.activation_bytes
    assert one.activation_bytes < two.activation_bytes
    assert min(full.seconds, two.seconds, one.seconds) > 0

"""The account against what torch counts while the real model trains and decodes."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from megatron_ext.decoding import BatchDecoder
from megatron_ext.model.config import Architecture
from megatron_ext.model.micro_batch import ForwardSettings, ModelOutput
from megatron_ext.model.model import PonderModel
from megatron_ext.parallel.groups import ParallelGroups, destroy_groups, initialize_groups
from megatron_ext.ponder.attention import extended_size
from megatron_ext.ponder.config import Method, Mixture, Penalty, RouterForm
from megatron_ext.ponder.step_limits import StepLimits
from pipeline.cost.flops import FlopsAccount
from pipeline.cost.shape import ModelShape
from pipeline.ranks.distributed import start_process_group, stop_process_group
from pipeline.ranks.environment import Ranks
from tests.support.ponder_models import (
    AUTHORS,
    RECOMPUTE,
    batch_of,
    each_model,
    halting_tokens,
    mean_loss,
    random_tokens,
    tiny_model,
)

BATCH, LENGTH = 2, 16
# Other than one: a sweep must not be taken for the final pass.
SWEEPS = 2


@pytest.fixture(scope="module")
def groups() -> Iterator[ParallelGroups]:
    """A layout of one rank."""
    start_process_group(Ranks.from_environment({}), timeout_seconds=60)
    try:
        yield initialize_groups()
    finally:
        destroy_groups()
        stop_process_group()


class counting(FlopCounterMode):  # noqa: N801
    """Count matrix products; attention as two of them, because kernels of the CPU are not counted."""

    def __init__(self) -> None:
        super().__init__(display=False)
        self._kernel = sdpa_kernel(SDPBackend.MATH)

    def __enter__(self) -> "counting":
        self._kernel.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> Any:
        super().__exit__(*error)
        return self._kernel.__exit__(*error)


def account_of(model: PonderModel, *, seq_length: int, recompute: Any = "none") -> FlopsAccount:
    config = model.config
    shape = ModelShape(
        architecture=config.architecture.value,
        num_layers=config.num_layers,
        hidden_size=config.hidden_size,
        ffn_hidden_size=config.ffn_hidden_size,
        num_attention_heads=config.num_attention_heads,
        num_query_groups=config.num_query_groups,
        kv_channels=config.kv_channels,
        vocab_size=config.vocab_size,
        padded_vocab_size=config.padded_vocab_size,
        seq_length=seq_length,
    )
    ponder = config.ponder
    return FlopsAccount(
        shape=shape,
        method=ponder.method,
        num_latent_thoughts=ponder.num_latent_thoughts,
        mixture=ponder.mixture,
        form=ponder.form,
        penalty=ponder.penalty,
        recompute=recompute,
    )


def trained_flops(model: PonderModel, **settings: Any) -> float:
    """What torch counts in one forward and backward, per token."""
    batch = batch_of(random_tokens(BATCH, LENGTH))
    with counting() as counter:
        output = model(batch, num_jacobi_iterations=SWEEPS, **settings)
        mean_loss(output, batch, penalty_weight=0.1).backward()
    return counter.get_total_flops() / (BATCH * LENGTH)


@each_model
def test_a_training_step_costs_what_torch_counts(
    groups: ParallelGroups, method: Method, architecture: Architecture
) -> None:
    model = tiny_model(groups, method, architecture, dtype=torch.float32)

    account = account_of(model, seq_length=LENGTH)

    assert account.training_flops(SWEEPS).dense == pytest.approx(trained_flops(model), rel=1e-6)


@pytest.mark.parametrize(
    "ponder", [AUTHORS, {"penalty": Penalty.CE_LOSS}, {"form": RouterForm(pre_pass=True)}]
)
def test_every_form_of_the_router_costs_what_torch_counts(
    groups: ParallelGroups, ponder: dict[str, Any]
) -> None:
    model = tiny_model(groups, Method.PONDERLM3, dtype=torch.float32, ponder=ponder)

    account = account_of(model, seq_length=LENGTH)

    assert account.training_flops(SWEEPS).dense == pytest.approx(trained_flops(model), rel=1e-6)


@pytest.mark.parametrize("kind", RECOMPUTE)
@pytest.mark.parametrize(
    "method", [Method.PAUSE, Method.ADAPONDERLM, Method.PONDERLM3, Method.ADAPTIVE_LATENT_COT]
)
def test_recomputation_costs_what_torch_counts(groups: ParallelGroups, method: Method, kind: str) -> None:
    model = tiny_model(groups, method, dtype=torch.float32, **RECOMPUTE[kind]).train()

    account = account_of(model, seq_length=LENGTH, recompute=kind)

    assert account.training_flops(SWEEPS).recompute > 0
    assert account.training_flops(SWEEPS).dense == pytest.approx(trained_flops(model), rel=1e-6)


def test_selective_recomputation_costs_no_product_that_torch_counts(groups: ParallelGroups) -> None:
    settings: dict[str, Any] = {"dtype": torch.float32}
    plain, again = (
        tiny_model(groups, Method.PONDERLM3, recompute_cheap_work=is_on, **settings).train()
        for is_on in (False, True)
    )

    assert trained_flops(again) == trained_flops(plain)


@pytest.mark.parametrize("num_steps", [0, 1, 2])
@pytest.mark.parametrize("method", [Method.PAUSE, Method.PONDERLM3, Method.ADAPONDERLM])
def test_a_step_with_fewer_thoughts_costs_what_torch_counts(
    groups: ParallelGroups, method: Method, num_steps: int
) -> None:
    model = tiny_model(groups, method, dtype=torch.float32)

    account = account_of(model, seq_length=LENGTH).limited_to(num_steps)

    counted = trained_flops(model, limits=StepLimits(num_steps=num_steps))
    assert account.training_flops(SWEEPS).dense == pytest.approx(counted, rel=1e-6)


@pytest.mark.parametrize("kind", [None, "per_pass", "full"])
@pytest.mark.parametrize("gradient_passes", [1, 2, 4])
@pytest.mark.parametrize("mixture", [Mixture.HIDDEN, Mixture.SOFTMAX])
def test_passes_without_gradients_cost_what_torch_counts(
    groups: ParallelGroups, mixture: Mixture, gradient_passes: int, kind: str | None
) -> None:
    settings = {} if kind is None else RECOMPUTE[kind]
    model = tiny_model(
        groups, Method.PONDERLM3, dtype=torch.float32, ponder={"mixture": mixture}, **settings
    ).train()

    account = replace(
        account_of(model, seq_length=LENGTH, recompute=kind or "none"), gradient_passes=gradient_passes
    )

    counted = trained_flops(model, gradient_passes=gradient_passes)
    assert account.training_flops(SWEEPS).dense == pytest.approx(counted, rel=1e-6)


def test_fused_mixtures_without_gradient_cost_what_torch_counts(groups: ParallelGroups) -> None:
    ponder = {"mixture": Mixture.TOP_K, "mixture_top_k": 5}
    model = tiny_model(groups, Method.PONDERLM3, dtype=torch.float32, ponder=ponder, fuses=True).train()

    account = replace(account_of(model, seq_length=LENGTH), fuses=True, gradient_passes=2)

    counted = trained_flops(model, gradient_passes=2)
    assert account.training_flops(SWEEPS).dense == pytest.approx(counted, rel=1e-6)


def test_leaving_pruned_rows_out_costs_what_torch_counts(groups: ParallelGroups) -> None:
    model = tiny_model(groups, Method.PONDERLM3, dtype=torch.float32, num_latent_thoughts=1)
    batch = batch_of(random_tokens(1, LENGTH))

    with counting() as counter:
        output = model(batch, num_jacobi_iterations=SWEEPS, skips_pruned_rows=True)
        mean_loss(output, batch, penalty_weight=0.1).backward()

    run, total = (float(output.statistics[name]) for name in ("thought_rows_run", "thought_rows"))
    account = replace(account_of(model, seq_length=LENGTH), share_of_thoughts=run / total)
    assert run < 0.9 * total
    # Passes differ in their rows; pairs of these are counted at the mean.
    assert account.training_flops(SWEEPS).dense == pytest.approx(
        counter.get_total_flops() / LENGTH, rel=0.005
    )
    assert (
        replace(account, share_of_thoughts=1.0).training_flops(SWEEPS).model
        > account_of(model, seq_length=LENGTH).training_flops(SWEEPS).model
    )


def test_reading_each_step_alone_costs_what_torch_counts(groups: ParallelGroups) -> None:
    ponder = {"step_loss_weight": 0.5}
    model = tiny_model(groups, Method.PONDERLM3, dtype=torch.float32, ponder=ponder)

    account = replace(account_of(model, seq_length=LENGTH), supervises_steps=True)

    assert account.training_flops(SWEEPS).dense == pytest.approx(trained_flops(model), rel=1e-6)


@pytest.mark.parametrize("fuses", [False, True])
@pytest.mark.parametrize("mixture", [Mixture.SOFTMAX, Mixture.TOP_K])
@pytest.mark.parametrize("method", [Method.PONDERLM2, Method.PONDERLM3])
def test_thoughts_that_are_mixtures_cost_what_torch_counts(
    groups: ParallelGroups, method: Method, mixture: Mixture, fuses: bool
) -> None:
    ponder = {"mixture": mixture, "mixture_top_k": 5}
    model = tiny_model(groups, method, dtype=torch.float32, ponder=ponder, fuses=fuses)

    account = replace(account_of(model, seq_length=LENGTH), fuses=fuses)

    assert (account.training_flops(SWEEPS).recompute > 0) == fuses
    assert account.training_flops(SWEEPS).dense == pytest.approx(trained_flops(model), rel=1e-6)


def phases_of_forward(model: PonderModel) -> list[float]:
    """What torch counts in each pass of a forward without gradients, per token."""
    batch = batch_of(random_tokens(BATCH, LENGTH))
    counted = []
    with torch.no_grad():
        micro_batch = model.begin(batch, ForwardSettings(num_jacobi_iterations=SWEEPS))
        moving = None
        for index in range(micro_batch.context.plan.num_passes):
            with counting() as counter:
                moving = model.run_pass(micro_batch, index, moving)  # type: ignore[arg-type]
            counted.append(counter.get_total_flops() / (BATCH * LENGTH))
    assert isinstance(moving, ModelOutput)
    return counted


@each_model
def test_every_phase_costs_what_torch_counts(
    groups: ParallelGroups, method: Method, architecture: Architecture
) -> None:
    model = tiny_model(groups, method, architecture, num_latent_thoughts=3, dtype=torch.float32)
    account = account_of(model, seq_length=LENGTH)
    passes = phases_of_forward(model)

    flops = account.training_flops(SWEEPS)
    plan = account.plan(SWEEPS)
    num_build_up = sum(plan.phase(index) == "build_up" for index in range(plan.num_passes))
    # What has no gradient is computed once, all else three times.
    once = flops.predictions
    beside = flops.decider + flops.mixture + flops.weight_columns + flops.masked + 3 * once
    assert sum(passes) == pytest.approx((flops.dense - once) / 3 + once, rel=1e-6)
    # Only costs outside the phases could hide an error of one in another.
    for phase, counted in (
        (flops.build_up, passes[:num_build_up]),
        (flops.sweeps, passes[num_build_up:-1]),
        (flops.final + flops.head, passes[-1:]),
    ):
        assert phase / 3 <= sum(counted) * (1 + 1e-6)
        assert sum(counted) <= (phase + beside) / 3 * (1 + 1e-6)


@pytest.mark.parametrize("method", [Method.LOOP, Method.PAUSE, Method.PONDERLM2])
def test_phases_without_anything_beside_them_are_exact(groups: ParallelGroups, method: Method) -> None:
    model = tiny_model(groups, method, num_latent_thoughts=3, dtype=torch.float32)
    account = account_of(model, seq_length=LENGTH)
    passes = phases_of_forward(model)
    flops = account.training_flops(SWEEPS)
    plan = account.plan(SWEEPS)
    # Of both layers; all but loop have queries of one slot in the last layer of the final pass.
    masked = [4 * 2 * 32 * n * (n * LENGTH - 1) / 2 for n in plan.slots]
    slots = plan.slots[-1]
    masked[-1] = 4 * 32 * (slots * (slots * LENGTH - 1) / 2 + slots * (LENGTH - 1) / 2)
    num_build_up = sum(plan.phase(index) == "build_up" for index in range(plan.num_passes))

    assert sum(passes[:num_build_up]) == pytest.approx(flops.build_up / 3 + sum(masked[:num_build_up]))
    assert sum(passes[num_build_up:-1]) == pytest.approx(flops.sweeps / 3 + sum(masked[num_build_up:-1]))
    assert passes[-1] == pytest.approx((flops.final + flops.head) / 3 + masked[-1])


@each_model
def test_decoding_costs_what_torch_counts(
    groups: ParallelGroups, method: Method, architecture: Architecture
) -> None:
    model = tiny_model(groups, method, architecture, num_latent_thoughts=3, dtype=torch.float32)
    # The counter wants to follow backward, of which inference tensors know nothing.
    model.requires_grad_(False)
    tokens = halting_tokens()[0].tolist()
    decoder = BatchDecoder(model, num_sequences=1, max_tokens=len(tokens))

    with counting() as counter:
        steps = [int(decoder.consume([0], [token]).steps) for token in tokens]

    mean_steps = sum(steps) / len(steps)
    shares = [steps.count(step) / len(steps) for step in range(model.config.ponder.num_slots)]
    flops = account_of(model, seq_length=len(tokens)).inference_flops(mean_steps, shares=shares)
    assert len(set(steps)) > 1 or not method.halts
    # Steps that stand early or late in the text have fewer or more keys than the mean.
    assert flops.hardware == pytest.approx(counter.get_total_flops() / len(tokens), rel=0.01)


def test_a_token_late_in_the_text_costs_more() -> None:
    account = FlopsAccount(
        shape=ModelShape(
            architecture="llama",
            num_layers=2,
            hidden_size=8,
            ffn_hidden_size=8,
            num_attention_heads=2,
            num_query_groups=2,
            kv_channels=4,
            vocab_size=8,
            padded_vocab_size=8,
            seq_length=9,
        ),
        method=Method.PONDERLM2,
        num_latent_thoughts=1,
    )
    # Two rows, of which the first sees itself and 2 * 5 earlier ones, the second one more.
    assert account.inference_flops(1, tokens_before=5).attention == 4 * 2 * 8 * (11 + 12)
    over_a_text = [account.inference_flops(1, tokens_before=before).model for before in range(9)]
    assert account.inference_per_token(1) == pytest.approx(sum(over_a_text) / 9)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kv_channels", [7, 8, 64, 70, 128])
def test_weighted_keys_are_as_wide_as_they_are_stored(kv_channels: int, precision: Any) -> None:
    shape = ModelShape(
        architecture="llama",
        num_layers=1,
        hidden_size=8,
        ffn_hidden_size=8,
        num_attention_heads=1,
        num_query_groups=1,
        kv_channels=kv_channels,
        vocab_size=8,
        padded_vocab_size=8,
        seq_length=1,
    )
    account = FlopsAccount(shape=shape, method=Method.PONDERLM3, num_latent_thoughts=0, precision=precision)
    dtype = torch.float32 if precision == "fp32" else torch.bfloat16

    flops = account.inference_flops(0)

    width = extended_size(kv_channels, torch.float32, dtype)
    assert flops.attention + flops.weight_columns == 4 * width

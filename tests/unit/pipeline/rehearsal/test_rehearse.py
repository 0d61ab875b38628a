"""Steps on the meta device, beside the plan and beside what a step on the CPU really holds and does."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_ext.ponder.config import Method
from pipeline.config.load import build_config, load_config
from pipeline.config.schema import RunConfig
from pipeline.cost.muon import update_flops
from pipeline.cost.rank_sizes import rank_sizes
from pipeline.cost.traffic import rank_traffic
from pipeline.rehearsal.ledger import Ledger
from pipeline.rehearsal.rehearse import Rehearsal, distinct_ranks, rehearse_rank
from tests.support.away import NEEDED_WAITS

VOCAB_SIZE = 256
# Of the tokenizer that Pythia's recipes name.
PILE_VOCAB_SIZE = 50277


def run_of(
    method: Method,
    parallel: dict[str, Any] | None = None,
    penalty: dict[str, Any] | None = None,
    optimizer: str = "adamw",
    **training: Any,
) -> RunConfig:
    ponder: dict[str, Any] = {"method": method.value}
    if method is not Method.VANILLA:
        ponder |= {"num_latent_thoughts": 2}
    ponder |= penalty or {}
    return build_config(
        {
            "name": "rehearsed",
            "model": {
                "architecture": "llama",
                "num_layers": 2,
                "hidden_size": 128,
                "ffn_hidden_size": 256,
                "num_attention_heads": 4,
                "num_query_groups": 2,
                "vocab_size": VOCAB_SIZE,
                "max_position_embeddings": 64,
            },
            "ponder": ponder,
            "parallel": parallel or {},
            "training": {
                "seq_length": 64,
                "micro_batch_size": 2,
                "global_batch_size": 8,
                "train_iters": 2,
                "precision": "bf16",
            }
            | training,
            "optimizer": {"name": optimizer, "lr": 1e-3},
            "data": {"path": "not-read"},
        }
    )


@pytest.mark.parametrize("method", list(Method))
def test_a_step_of_every_method_stays_on_its_device_and_waits_for_it_twice(method: Method) -> None:
    found = rehearse_rank(run_of(method), VOCAB_SIZE, 0, documents_per_row=2)

    assert found.mixed == ()
    assert {wait.where.rsplit(":", 1)[0] for wait in found.waits} <= set(NEEDED_WAITS)
    assert sum(wait.calls for wait in found.waits) <= 2


def test_a_bottom_penalty_waits_for_nothing_more() -> None:
    penalty = {"penalty": "bottom_k", "penalty_weight": 0.1}
    found = rehearse_rank(run_of(Method.PONDERLM3, penalty=penalty), VOCAB_SIZE, 0)

    assert sum(wait.calls for wait in found.waits) <= 2


@pytest.mark.parametrize("rank", [0, 9, 15])
def test_any_rank_of_any_layout_can_be_rehearsed(rank: int) -> None:
    layout = {"tensor": 2, "pipeline": 2, "data": 4, "sequence_parallel": True}
    run = run_of(Method.PONDERLM3, layout, global_batch_size=32)
    found = rehearse_rank(run, VOCAB_SIZE, rank)

    assert (found.rank, found.stage) == (rank, rank // 8)
    assert found.mixed == ()
    assert sum(wait.calls for wait in found.waits) <= 2
    groups = {entry.group for entry in found.collectives}
    assert "tp[2]" in groups
    assert any(group.endswith("[4]") for group in groups)
    # Rows of two passes in each direction for each of four micro-batches, at least.
    assert found.messages >= 16
    assert found.sent_bytes > 0 < found.received_bytes


@pytest.mark.parametrize(
    ("method", "parallel"),
    [
        (Method.VANILLA, {"context": 2}),
        (Method.PONDERLM3, {"context": 4, "tensor": 2}),
        (Method.PONDERLM2, {"context": 2, "recompute": "full"}),
        (Method.ADAPTIVE_LATENT_COT, {"context": 2}),
    ],
    ids=str,
)
def test_keys_values_and_their_gradients_are_what_context_parallel_ranks_exchange(
    method: Method, parallel: dict[str, Any]
) -> None:
    run = run_of(method, parallel)
    found = rehearse_rank(run, VOCAB_SIZE, 0, documents_per_row=2)
    size = parallel["context"]
    planned = rank_traffic(rank_sizes(run, VOCAB_SIZE)).context

    sent = [entry for entry in found.collectives if entry.group == f"cp[{size}]"]
    received = sum(entry.num_bytes for entry in sent) * (size - 1) / size
    # Beside them, some numbers per token.
    assert planned <= received <= 1.05 * planned
    assert found.mixed == ()
    assert sum(wait.calls for wait in found.waits) <= 2


@pytest.mark.parametrize("method", [Method.PONDERLM3, Method.ADAPONDERLM])
def test_nothing_of_a_micro_batch_is_held_during_the_next(method: Method) -> None:
    one, two = (
        rehearse_rank(run_of(method, {"recompute": "full"}, global_batch_size=size), VOCAB_SIZE, 0)
        for size in (2, 4)
    )

    # Their random numbers and statistics remain.
    assert two.peak_bytes == pytest.approx(one.peak_bytes, rel=0.001)


def test_more_documents_need_no_more_kernels() -> None:
    run = run_of(Method.ADAPTIVE_LATENT_COT, {"context": 2}, global_batch_size=2)
    few, many = (rehearse_rank(run, VOCAB_SIZE, 0, documents_per_row=number) for number in (2, 8))

    assert many.kernels == few.kernels > 0


def test_stages_send_as_much_as_their_neighbours_receive() -> None:
    run = run_of(Method.PONDERLM3, {"pipeline": 2})
    first, last = (rehearse_rank(run, VOCAB_SIZE, rank) for rank in (0, 1))

    assert first.sent_bytes == last.received_bytes
    assert first.received_bytes == last.sent_bytes


def test_counts_of_micro_batches_grow_with_their_number() -> None:
    short, long = (
        rehearse_rank(run_of(Method.PONDERLM3, global_batch_size=size), VOCAB_SIZE, 0) for size in (4, 16)
    )

    assert (short.num_micro_batches, long.num_micro_batches) == (2, 8)
    assert long.peak_bytes == short.peak_bytes
    assert long.flops == 4 * short.flops
    assert 3.0 < long.kernels / short.kernels < 4.0


def test_the_kernel_of_attention_is_the_one_asked_for() -> None:
    found = rehearse_rank(run_of(Method.VANILLA, attention="cudnn", global_batch_size=2), VOCAB_SIZE, 0)

    assert {call.kernel for call in found.attention} == {"cudnn"}


def test_products_are_counted() -> None:
    # Forward 2 m k n, backward twice that, of the layers and the head; attention comes on top.
    found = rehearse_rank(run_of(Method.VANILLA, global_batch_size=2), VOCAB_SIZE, 0)
    layer = 128 * (128 + 2 * 64) + 128 * 128 + 3 * 128 * 256
    products = 3 * 2 * (2 * 64) * (2 * layer + 128 * VOCAB_SIZE)

    assert products < found.flops < 1.3 * products


def test_the_update_of_muon_is_planned_and_stays_on_its_device() -> None:
    layout = {"tensor": 2, "data": 2}
    plain, run = (run_of(Method.VANILLA, layout, optimizer=name) for name in ("adamw", "muon"))
    # Ranks of one tensor axis do the same.
    found = [rehearse_rank(run, VOCAB_SIZE, rank) for rank in (0, 2)]
    forward = rehearse_rank(plain, VOCAB_SIZE, 0).flops

    updates = [each.flops - forward for each in found]
    assert max(updates) == pytest.approx(update_flops(rank_sizes(run, VOCAB_SIZE)))
    assert sum(updates) == pytest.approx(
        update_flops(rank_sizes(run_of(Method.VANILLA, optimizer="muon"), VOCAB_SIZE))
    )
    assert all(each.mixed == () and sum(wait.calls for wait in each.waits) <= 2 for each in found)
    assert found[0].planned.between_steps == pytest.approx(max(each.state_bytes for each in found), rel=0.03)


def test_the_update_of_muon_is_the_fullest_moment_of_a_step_on_few_tokens() -> None:
    run = run_of(Method.VANILLA, optimizer="muon", seq_length=4, micro_batch_size=1)
    found = rehearse_rank(run, VOCAB_SIZE, 0)

    assert found.planned.fullest.name == "update"
    assert found.plan_error == pytest.approx(0, abs=0.02)


@pytest.mark.parametrize(("parallel", "ranks"), [({}, {0}), ({"pipeline": 2, "data": 3}, {0, 2, 3, 5})])
def test_the_distinct_ranks_are_the_ends_of_each_stage(parallel: dict[str, int], ranks: set[int]) -> None:
    run = run_of(Method.VANILLA, parallel, global_batch_size=12)

    assert set(distinct_ranks(run)) == ranks


def ledger() -> Ledger:
    return Ledger(("/tests/",), {})


def test_a_tensor_of_the_host_beside_one_of_the_device_is_found() -> None:
    with ledger() as found:
        on_device = torch.zeros(3, device="meta")
        torch.where(on_device > 0, on_device, torch.zeros(()))

        assert not found.mixed
        on_device.index_select(0, torch.zeros(2, dtype=torch.int64))

    (((operation, place), calls),) = found.mixed.items()
    assert (operation, calls) == ("aten::index_select", 1)
    assert "test_rehearse.py" in place


@pytest.mark.parametrize(
    "read",
    [
        lambda values: values.sum().item(),
        lambda values: values.tolist(),
        lambda values: values.cpu(),
        lambda values: values[values > 0],
        lambda values: values.nonzero(),
        lambda values: bool((values > 0).all()),
    ],
)
def test_what_a_host_waits_for_is_found(read: Any) -> None:
    with ledger() as found:
        read(torch.zeros(3, device="meta"))

    assert sum(found.waits.values()) == 1


def test_the_peak_is_that_of_live_tensors() -> None:
    with ledger() as found:
        for _ in range(3):
            torch.zeros(1000, device="meta")
        kept = torch.zeros(500, device="meta")

    assert (found.live_bytes, found.peak_bytes) == (2000, 4000)
    del kept
    assert found.live_bytes == 0


@pytest.mark.parametrize(
    ("recipe", "overrides"),
    [
        ("pause_70m", ()),
        ("adaponderlm_70m", ()),
        ("demo", ()),
        # In float32 GPUs have no kernel to join; mixtures in parts, which add to the buffer of gradients.
        ("tiny_adaptive_latent_cot", ()),
        ("tiny_ponderlm2", ()),
        ("tiny_ponderlm", ()),
        # Its final pass leaves gradients for the keys of all passes.
        ("llama_410m_adaptive_latent_cot", ("model.num_layers=12",)),
        # Its penalty asks for logits of each step, in forward only.
        (
            "llama_410m_adaptive_latent_cot",
            ("model.num_layers=4", "parallel.recompute=full", "training.fused=never"),
        ),
        # Such gradients of one micro-batch wait while others run backward.
        ("llama_410m_adaptive_latent_cot", ("model.num_layers=4", "parallel.pipeline=2")),
        ("llama_410m_adaponderlm", ("model.num_layers=4", "parallel.pipeline=2")),
        # Logits of every step, with padding rows and without.
        *(
            ("tiny_ponderlm3", ("ponder.step_loss_weight=0.3", *settings))
            for settings in (
                ("model.vocab_size=50277", "training.fused=never"),
                ("model.vocab_size=50304", "training.precision=bf16", "training.fused=never"),
                ("model.vocab_size=50304", "training.precision=bf16", "training.fused=auto"),
            )
        ),
        # Fewer layers and passes, for time.
        (
            "llama_410m_ponderlm3_authors",
            (
                "model.num_layers=2",
                "ponder.num_jacobi_iterations=2",
                "ponder.random_jacobi_iterations=[2, 2]",
                "training.fused=never",
            ),
        ),
        ("pythia_2.8b_adaponderlm", ("model.num_layers=2", "training.fused=never")),
        *(
            (
                recipe,
                (
                    "model.num_layers=3",
                    "ponder.num_jacobi_iterations=1",
                    "ponder.random_jacobi_iterations=[1, 1]",
                    "parallel.recompute=selective",
                    f"training.fused={fused}",
                ),
            )
            for recipe, fused in (("llama_410m_ponderlm3", "auto"), ("pythia_2.8b_ponderlm3", "never"))
        ),
    ],
)
def test_the_plan_of_a_recipe_agrees_with_its_rehearsal(
    repository: Path, recipe: str, overrides: tuple[str, ...]
) -> None:
    config = load_config(repository / "pipeline" / "recipes" / f"{recipe}.yaml", overrides)
    found = rehearse_rank(config, config.model.vocab_size or PILE_VOCAB_SIZE, 0)

    assert abs(found.plan_error) < 0.01
    assert found.planned.between_steps == pytest.approx(found.state_bytes, rel=0.001)


def test_an_error_of_the_plan_is_relative_to_the_rehearsal() -> None:
    found = rehearse_rank(run_of(Method.VANILLA), VOCAB_SIZE, 0)
    doubled: Rehearsal = replace(found, peak_bytes=2 * round(found.planned.peak))

    assert doubled.plan_error == pytest.approx(-0.5)

"""A run that continues a vanilla one with a blended start, a held router and drawn K, interrupted or not."""

from pathlib import Path

import pytest

from megatron_ext.ponder.passes import draw_latent_thoughts
from tests.support.commands import megaponder
from tests.support.runs import losses, one_rank, written_events

pytestmark = [pytest.mark.end_to_end, pytest.mark.timeout(600)]

VANILLA = (
    "ponder.method=vanilla",
    "ponder.num_latent_thoughts=0",
    "ponder.num_jacobi_iterations=0",
    "ponder.pruning_threshold=null",
    "ponder.penalty_weight=null",
    "ponder.penalty_ramp=null",
    "training.train_iters=4",
)
START = (
    "ponder.scale_embeds=false",
    "ponder.blended_start_iterations=3",
    "ponder.held_decisions_iterations=4",
    "ponder.random_latent_thoughts=[0, 2]",
    "ponder.penalty_ramp=[4, 6]",
    "init_from.method=vanilla",
    "training.train_iters=8",
    "optimizer.lr_warmup_iters=0",
    "evaluation.interval=2",
    "seed=5",
)
ROUTER_START = [1.0, 0.95, 0.9]


@pytest.fixture(scope="module")
def folder(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A vanilla run, and two that continue it: one in a single process, one in two."""
    folder = tmp_path_factory.mktemp("start")
    _train(recipe, folder / "vanilla", *VANILLA)
    start = (*START, f"init_from.path={folder / 'vanilla' / 'checkpoints'}")
    _train(recipe, folder / "whole", *start)
    _train(recipe, folder / "resumed", *start, "training.exit_interval=2")
    _train(recipe, folder / "resumed", *start)
    return folder


def _train(recipe: Path, output: Path, *changes: str) -> None:
    command = megaponder("train", "--config", str(recipe), *one_rank(output, *changes))
    assert command.exit_code == 0, command.stderr


def test_the_first_loss_is_that_of_the_vanilla_run(folder: Path) -> None:
    (vanilla,) = written_events(folder / "vanilla", "validation")
    start = written_events(folder / "whole", "validation")[0]
    assert start["iteration"] == 0
    assert start["lm loss validation"] == pytest.approx(vanilla["lm loss validation"], rel=1e-2)
    alone = [start[f"ponder/step-nll/step_{step}"] for step in range(3)]
    assert alone[0] == pytest.approx(vanilla["lm loss validation"], rel=1e-2)


def test_the_router_stays_where_it_starts_until_it_is_released(folder: Path) -> None:
    measured = {event["iteration"]: event for event in written_events(folder / "whole", "validation")}
    masses = {
        iteration: [event[f"ponder/tail-mass/step_{step}"] for step in range(3)]
        for iteration, event in measured.items()
    }
    for iteration in (0, 2, 4):
        assert masses[iteration] == pytest.approx(ROUTER_START)
    assert masses[8] != pytest.approx(ROUTER_START)
    weights = [event["ponder/penalty-weight"] for event in written_events(folder / "whole")]
    assert weights == [0, 0, 0, 0, 0, 1.5, 3, 3]


def test_k_is_drawn_from_seed_and_iteration_and_costs_what_it_is(folder: Path) -> None:
    events = written_events(folder / "whole")
    drawn = [draw_latent_thoughts(5, iteration, 0, 2) for iteration in range(8)]
    assert [event["ponder/latent-thoughts"] for event in events] == drawn
    assert len(set(drawn)) == 3
    costs = {
        number: event["ponder/flops-per-token-train"] for number, event in zip(drawn, events, strict=True)
    }
    assert costs[0] < costs[1] < costs[2]
    for event, number in zip(events, drawn, strict=True):
        assert event["ponder/steps-histogram"][number + 1 :] == [0.0] * (2 - number)


def test_a_resumed_run_repeats_the_start(folder: Path) -> None:
    assert losses(folder / "resumed") == losses(folder / "whole")

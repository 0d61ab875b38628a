"""Methods on both architectures in both precisions, with settings that no tiny recipe has."""

from pathlib import Path

import pytest

from tests.support.commands import megaponder
from tests.support.runs import losses, one_rank, written_events

pytestmark = [pytest.mark.end_to_end, pytest.mark.timeout(600)]

WITHOUT_HALTING = ("ponder.pruning_threshold=null", "ponder.penalty_weight=null", "ponder.penalty_ramp=null")
VANILLA = (
    "ponder.method=vanilla",
    "ponder.num_latent_thoughts=0",
    "ponder.num_jacobi_iterations=0",
    *WITHOUT_HALTING,
)
PONDERLM2 = ("ponder.method=ponderlm2", *WITHOUT_HALTING)
NEOX = ("model.architecture=gpt_neox", "model.num_query_groups=4")
# PonderLM-3 on Llama in float32 is the trained run of the other tests.
VARIANTS = {
    "vanilla, gpt_neox, fp32": (
        *VANILLA,
        *NEOX,
        "parallel.use_distributed_optimizer=false",
        "profile.steps=[3, 4]",
    ),
    "vanilla, llama, bf16": (
        *VANILLA,
        "bf16=true",
        "model.untie_embeddings_and_output_weights=false",
        "data.order=sequential",
        "optimizer.name=muon",
        "muon-momentum=0.9",
    ),
    "ponderlm2, llama, fp32": (
        *PONDERLM2,
        "random-jacobi-iterations=[1, 3]",
        "parallel.recompute=full",
        "micro-batch-size=4",
        "evaluation.sweep_steps=true",
    ),
    "ponderlm2, gpt_neox, bf16": (
        *PONDERLM2,
        "num-latent-thoughts=1",
        "ponder.mixture=softmax",
        *NEOX,
        "training.precision=bf16",
        "model.init=ponderlm2",
    ),
    "ponderlm3, gpt_neox, bf16": (
        "ponder.penalty=bottom_k",
        *NEOX,
        "training.precision=bf16",
        "optimizer.lr_decay_style=wsd",
        "optimizer.wsd_decay_iters=4",
        "parallel.recompute=full",
        "evaluation.sweep_steps=true",
        "evaluation.sweep_tau=[0.0001, 0.5]",
    ),
}


@pytest.fixture(scope="module")
def folders(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folder of every variant's run."""
    parent = tmp_path_factory.mktemp("variants")
    folders = {name: parent / str(number) for number, name in enumerate(VARIANTS)}
    for name, changes in VARIANTS.items():
        command = megaponder("train", "--config", str(recipe), *one_rank(folders[name], *changes))
        assert command.exit_code == 0, command.stderr
    return folders


@pytest.mark.parametrize("name", VARIANTS)
def test_the_loss_of_every_kind_of_model_falls(folders: dict[str, Path], name: str) -> None:
    curve = list(losses(folders[name]).values())
    assert curve[-1] < curve[0] - 0.5
    (validation,) = written_events(folders[name], "validation")
    assert validation["lm loss validation"] < curve[0] - 0.5


@pytest.mark.parametrize("name", VARIANTS)
def test_the_curves_are_those_of_the_method(folders: dict[str, Path], name: str) -> None:
    event = written_events(folders[name])[-1]
    assert ("ponder/jacobi-residual/sweep_1" in event) is not name.startswith("vanilla")
    assert ("ponder/mean-steps" in event) is name.startswith("ponderlm3")
    assert (folders[name] / "checkpoints" / "latest_checkpointed_iteration.txt").exists()


def test_the_rate_of_muon_is_recorded_where_it_trains(folders: dict[str, Path]) -> None:
    events = {name: written_events(folder)[-1] for name, folder in folders.items()}
    assert [name for name in VARIANTS if "muon-learning-rate" in events[name]] == ["vanilla, llama, bf16"]
    event = events["vanilla, llama, bf16"]
    assert event["muon-learning-rate"] == event["learning-rate"]


def test_a_random_number_of_sweeps_changes_from_step_to_step(folders: dict[str, Path]) -> None:
    events = written_events(folders["ponderlm2, llama, fp32"])
    assert {event["ponder/jacobi-iterations"] for event in events} == {1, 2, 3}


def test_the_last_evaluation_has_the_sweeps_that_the_run_asks_for(folders: dict[str, Path]) -> None:
    (sweeping,) = written_events(folders["ponderlm2, llama, fp32"], "validation")
    assert [(one["kind"], one["value"]) for one in sweeping["ponder/eval-sweep"]] == [
        ("steps", 0),
        ("steps", 1),
        ("steps", 2),
    ]
    assert sweeping["ponder/eval-ppl-vs-steps/step_2"] == pytest.approx(sweeping["lm loss validation ppl"])
    (halting,) = written_events(folders["ponderlm3, gpt_neox, bf16"], "validation")
    assert [one["kind"] for one in halting["ponder/eval-sweep"]] == ["steps"] * 3 + ["tau"] * 2
    (plain,) = written_events(folders["vanilla, gpt_neox, fp32"], "validation")
    assert "ponder/eval-sweep" not in plain


def test_only_the_run_that_is_profiled_leaves_a_trace(folders: dict[str, Path]) -> None:
    folder = folders["vanilla, gpt_neox, fp32"]
    trace, table = sorted((folder / "profile").iterdir())
    assert (trace.name, table.suffix) == ("iterations_3-4_rank_0.pt.trace.json.gz", ".txt")
    assert "aten::mm" in table.read_text()
    assert not any((folders[name] / "profile").exists() for name in VARIANTS if folders[name] != folder)

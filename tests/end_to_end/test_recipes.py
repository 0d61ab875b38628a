"""The tiny recipe of every method, from training to generated text."""

import json
from pathlib import Path

import pytest

from megatron_ext.ponder.config import Method
from tests.support.commands import megaponder
from tests.support.runs import losses, one_rank, written_events

pytestmark = [pytest.mark.end_to_end, pytest.mark.timeout(600)]

RECIPES = Path(__file__).parents[2] / "pipeline" / "recipes"
NUM_ITERATIONS = 16
SHORT = (
    f"training.train_iters={NUM_ITERATIONS}",
    "training.seq_length=32",
    "optimizer.lr_warmup_iters=2",
    "evaluation.interval=null",
    "checkpoint.interval=null",
    "metrics.interval=1",
)


@pytest.fixture(scope="module")
def folders(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[Method, Path]:
    """The folder of every method's run."""
    parent = tmp_path_factory.mktemp("recipes")
    data = f"data.path={recipe.parent / 'data'}"
    folders = {method: parent / method for method in Method}
    for method, folder in folders.items():
        recipe_of_method = RECIPES / f"tiny_{method}.yaml"
        command = megaponder("train", "--config", str(recipe_of_method), *one_rank(folder, data, *SHORT))
        assert command.exit_code == 0, command.stderr
    return folders


@pytest.mark.parametrize("method", Method)
def test_the_loss_of_every_recipe_falls(folders: dict[Method, Path], method: Method) -> None:
    curve = list(losses(folders[method]).values())
    assert len(curve) == NUM_ITERATIONS
    assert curve[-1] < curve[0] - 0.3
    (validation,) = written_events(folders[method], "validation")
    assert validation["lm loss validation"] < curve[0] - 0.3


@pytest.mark.parametrize("method", Method)
def test_every_method_writes_the_curves_that_it_has(folders: dict[Method, Path], method: Method) -> None:
    event = written_events(folders[method])[-1]
    assert ("ponder/jacobi-residual/sweep_1" in event) is method.has_sweeps
    assert ("ponder/mean-steps" in event) is method.halts
    assert ("ponder/gate/iteration_0" in event) is (method is Method.ADAPONDERLM)
    has_router = method is Method.ADAPTIVE_LATENT_COT
    assert ("ponder/continue-probability/step_0" in event) is has_router
    assert ("ponder/router-entropy" in event) is (method is Method.PONDERLM3)


@pytest.mark.parametrize("method", [method for method in Method if method.halts or not method.has_slots])
def test_a_checkpoint_is_evaluated_as_training_did_and_generates(
    folders: dict[Method, Path], method: Method, tmp_path: Path
) -> None:
    checkpoints = str(folders[method] / "checkpoints")
    evaluation = megaponder("eval", checkpoints, "--output", str(tmp_path / "evaluation.json"))
    assert evaluation.exit_code == 0, evaluation.stderr
    sample = megaponder(
        "generate", checkpoints, "--max-new-tokens", "8", "--output", str(tmp_path / "sample.json")
    )
    assert sample.exit_code == 0, sample.stderr

    found = json.loads((tmp_path / "evaluation.json").read_text(encoding="utf-8"))
    (measured,) = written_events(folders[method], "validation")
    assert found["loss"] == pytest.approx(measured["lm loss validation"], rel=1e-5)
    tokens = json.loads((tmp_path / "sample.json").read_text(encoding="utf-8"))["tokens"]
    assert sum(not token["is_prompt"] for token in tokens) == 8
    assert bool(found["steps_count"]) is method.halts


def test_the_form_of_ponderlm3s_authors_trains_decodes_as_it_trained_and_is_exported(
    recipe: Path, tmp_path: Path
) -> None:
    folder, data = tmp_path / "run", f"data.path={recipe.parent / 'data'}"
    settings = RECIPES / "tiny_ponderlm3_authors.yaml"
    command = megaponder("train", "--config", str(settings), *one_rank(folder, data, *SHORT))
    assert command.exit_code == 0, command.stderr

    curve = list(losses(folder).values())
    assert curve[-1] < curve[0] - 0.3
    events = written_events(folder)
    assert {"ponder/accuracy/step_2", "ponder/penalised-share/step_1", "ponder/tail-mass/step_1"} <= set(
        events[-1]
    )
    assert "ponder/pruned-fraction/step_1" in events[-1]
    # The penalty's weight has risen from the first iteration on.
    assert events[0]["ponder/penalty-weight"] < events[-1]["ponder/penalty-weight"]
    # J is drawn from one more than there are thoughts on.
    assert {3.0, 4.0, 5.0} >= {event["ponder/jacobi-iterations"] for event in events}
    checkpoints = str(folder / "checkpoints")
    found = tmp_path / "verification.json"
    verified = megaponder("verify", checkpoints, "--rows", "2", "--tokens", "12", "--output", str(found))
    assert verified.exit_code == 0, verified.stderr
    last = sorted((folder / "checkpoints").glob("iter_*"))[-1]
    exported = megaponder("convert", "to-hf", str(last), "--output", str(tmp_path / "exported"))
    assert exported.exit_code == 0, exported.stderr
    shipped = json.loads((tmp_path / "exported" / "config.json").read_text())
    assert (shipped["router"], shipped["attention_scale_extra"]) == ("linear", 8)

from pathlib import Path

from pipeline.checkpoint.state import TrainState
from pipeline.config.load import load_config
from pipeline.config.schema import RunConfig
from pipeline.run.closing import closing_lines

RECIPE = Path(__file__).parents[4] / "pipeline" / "recipes" / "tiny_ponderlm3.yaml"


def config(tmp_path: Path) -> RunConfig:
    return load_config(RECIPE, [f"output_dir={tmp_path / 'my run'}", "train-iters=400"])


def state(iteration: int) -> TrainState:
    return TrainState(
        iteration=iteration, consumed_samples=0, training_seconds=200.0, best_heldout_loss=4.125
    )


def test_a_finished_run_says_what_was_done_and_where_it_lies(tmp_path: Path) -> None:
    lines = closing_lines(config(tmp_path), state(400), start_iteration=100, saved_iteration=400)
    assert "400" in lines[0]
    assert "300" in lines[0]
    assert "4.1250" in lines[0]
    assert str(tmp_path / "my run" / "checkpoints" / "iter_0000400") in lines[1]
    # What can be pasted into a shell.
    assert any(line.endswith(f"report '{tmp_path / 'my run'}'") for line in lines)


def test_a_run_without_a_checkpoint_names_none(tmp_path: Path) -> None:
    lines = closing_lines(config(tmp_path), state(20), start_iteration=0, saved_iteration=0)
    assert not any("iter_" in line or "generate" in line for line in lines)


def test_a_run_that_had_finished_has_nothing_to_do(tmp_path: Path) -> None:
    first, *_ = closing_lines(config(tmp_path), state(400), start_iteration=400, saved_iteration=400)
    assert "nothing to do" in first

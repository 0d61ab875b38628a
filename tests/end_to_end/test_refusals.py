"""What a run refuses to do, and that it then leaves everything as it was."""

import json
import shutil
import signal
from pathlib import Path

import pytest

from pipeline.checkpoint.tracker import latest_iteration
from tests.support.commands import Finished, forked, megaponder, wait_until
from tests.support.runs import NUM_ITERATIONS, has_trained, one_rank, written_events
from tests.support.tiny_run import TrainedRun

pytestmark = [pytest.mark.end_to_end, pytest.mark.timeout(600)]

# One pass of one layer: steps of milliseconds.
SMALLEST = (
    "ponder.method=vanilla",
    "num-latent-thoughts=0",
    "num-jacobi-iterations=0",
    "ponder.pruning_threshold=null",
    "ponder.penalty_weight=null",
    "ponder.penalty_ramp=null",
    "num-layers=1",
    "micro-batch-size=2",
    "global-batch-size=2",
)


def bytes_of(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def assert_is_for_users(command: Finished) -> None:
    assert "Traceback" not in command.stderr
    assert command.stderr.count("error: ") == 1, command.stderr


def test_all_errors_in_the_settings_are_reported_together_and_nothing_is_written(
    recipe: Path, tmp_path: Path
) -> None:
    mistakes = ("parallel.tensor=3", "lr=0", "model.hiden_size=64", "ponder.penalty=entropy")
    output = tmp_path / "run"
    command = megaponder("train", "--config", str(recipe), f"output_dir={output}", *mistakes)
    assert command.exit_code == 2
    assert_is_for_users(command)
    for part in ("parallel.tensor", "optimizer.lr", "model.hidden_size", "ponder.penalty"):
        assert part in command.stderr
    assert not output.exists()


def test_missing_data_are_reported_before_anything_is_written(recipe: Path, tmp_path: Path) -> None:
    output, data = tmp_path / "run", tmp_path / "nowhere"
    command = megaponder("train", "--config", str(recipe), *one_rank(output), f"data.path={data}")
    assert command.exit_code == 2
    assert_is_for_users(command)
    assert str(data) in command.stderr
    assert not output.exists()


def test_a_checkpoint_of_another_model_is_refused_with_the_names_of_its_tensors(
    trained: TrainedRun, recipe: Path, tmp_path: Path
) -> None:
    before = bytes_of(trained.folder)
    place = one_rank(tmp_path / "run", f"checkpoint.directory={trained.checkpoints}")
    sizes = ("hidden-size=48", "train-iters=99")
    command = megaponder("train", "--config", str(recipe), *place, *sizes)
    assert command.exit_code == 93, command.stderr
    assert_is_for_users(command)
    for part in ("decoder.layers.", "32", "48", str(trained.checkpoints)):
        assert part in command.stderr
    assert not (tmp_path / "run").exists()
    assert bytes_of(trained.folder) == before


def test_a_finished_run_is_left_as_it_is(trained: TrainedRun, recipe: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(trained.folder, folder)
    before = bytes_of(folder / "checkpoints")
    command = megaponder("train", "--config", str(recipe), *one_rank(folder))
    assert command.exit_code == 0, command.stderr
    assert len(written_events(folder)) == NUM_ITERATIONS
    assert bytes_of(folder / "checkpoints") == before


@pytest.fixture(scope="module")
def saved_run(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on one rank that saved and ended on SIGTERM, as sent by schedulers."""
    folder = tmp_path_factory.mktemp("saved") / "run"
    settings = one_rank(folder, *SMALLEST, "train-iters=100000")
    with forked("train", "--config", str(recipe), *settings) as command:
        wait_until(lambda: has_trained(folder, 2) or command.process.poll() is not None)
        command.process.send_signal(signal.SIGTERM)
        finished = command.finish()
    assert finished.exit_code == 75, finished.stderr
    assert (latest_iteration(folder / "checkpoints") or 0) >= 2
    return folder


def test_a_diverged_run_ends_and_leaves_its_last_checkpoint_intact(recipe: Path, saved_run: Path) -> None:
    saved = latest_iteration(saved_run / "checkpoints")
    assert saved is not None
    before = bytes_of(saved_run / "checkpoints")
    # It may save at every iteration, but logs too rarely to see the non-finite loss there.
    changes = ("lr=1e30", "clip-grad=0", "checkpoint.interval=1", "metrics.interval=50", "train-iters=100000")
    settings = one_rank(saved_run, *SMALLEST, *changes)
    command = megaponder("train", "--config", str(recipe), *settings)
    assert command.exit_code == 93, command.stderr
    assert "Traceback" not in command.stderr
    assert json.loads((saved_run / "divergence.json").read_text())["iteration"] > saved
    after = bytes_of(saved_run / "checkpoints" / f"iter_{saved:07d}")
    assert after == {path: content for path, content in before.items() if path in after}
    # The step that ruins the weights has a finite loss; nothing is saved after it.
    assert (latest_iteration(saved_run / "checkpoints") or 0) <= saved + 1

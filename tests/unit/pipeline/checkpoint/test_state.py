from pathlib import Path

import pytest

from pipeline.checkpoint.state import TrainState, read_train_state, with_best_loss, write_train_state
from pipeline.shared.errors import CheckpointError


def test_train_state_comes_back_as_written(tmp_path: Path) -> None:
    state = TrainState(
        iteration=7,
        consumed_samples=56,
        consumed_tokens=896,
        skipped_iterations=1,
        training_seconds=1.5,
        best_heldout_loss=2.5,
        best_heldout_iteration=6,
        samples_by_source={"web": 40, "code": 16},
        averaged_iterations=(5, 7),
    )
    write_train_state(tmp_path, state)
    assert read_train_state(tmp_path) == state


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"iteration": 1}',
        '{"unknown": 1}',
        '{"iteration": "x", "consumed_samples": 0}',
        '{"iteration": -1, "consumed_samples": 0}',
        '{"iteration": 1e400, "consumed_samples": 0}',
        f'{{"iteration": {"9" * 5000}, "consumed_samples": 0}}',
        "[" * 100_000,
    ],
    ids=range(9),
)
def test_a_damaged_state_is_an_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "train_state.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"train_state\.json"):
        read_train_state(tmp_path)


def test_the_lowest_heldout_loss_is_remembered_with_its_iteration() -> None:
    state = with_best_loss(TrainState(iteration=1, consumed_samples=0), 3.0)
    for iteration, loss in ((2, 2.0), (3, 2.5), (4, float("nan"))):
        fields = {"best_heldout_loss": state.best_heldout_loss}
        fields |= {"best_heldout_iteration": state.best_heldout_iteration}
        state = with_best_loss(TrainState(iteration=iteration, consumed_samples=0, **fields), loss)
    assert (state.best_heldout_loss, state.best_heldout_iteration) == (2.0, 2)

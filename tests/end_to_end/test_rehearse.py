"""`megaponder rehearse` as a command: its answers, its files, and what it refuses."""

import json
from pathlib import Path

import pytest

from tests.support.commands import megaponder

pytestmark = [pytest.mark.end_to_end, pytest.mark.timeout(600)]

RECIPE = ("--config", "pipeline/recipes/tiny_ponderlm3.yaml", "--vocab-size", "512")


def test_the_distinct_ranks_of_a_layout_are_rehearsed(tmp_path: Path) -> None:
    file = tmp_path / "rehearsal.json"
    layout = ("parallel.tensor=2", "parallel.pipeline=2", "parallel.sequence_parallel=true")
    layout += ("training.global_batch_size=16",)
    command = megaponder(
        "rehearse", *RECIPE, "--world-size", "8", "--all-distinct", "--json", str(file), *layout
    )

    assert command.exit_code == 0, command.stderr
    ranks = json.loads(file.read_text())["ranks"]
    assert [(found["rank"], found["stage"]) for found in ranks] == [(0, 0), (3, 0), (4, 1), (7, 1)]
    for found in ranks:
        assert found["fits"]
        assert found["mixed"] == []
        assert abs(found["plan_error"]) < 0.05
        assert found["planned"]["peak_bytes"] == pytest.approx(
            found["peak_bytes"] * (1 + found["plan_error"]), rel=1e-6
        )


def test_a_peak_above_the_device_is_exit_code_1() -> None:
    sizes = ("training.seq_length=2048", "training.micro_batch_size=16", "training.global_batch_size=16")
    sizes += ("model.max_position_embeddings=2048",)
    command = megaponder("rehearse", *RECIPE, "--gpu", "rtx4090-24g", "--reserve", "23.9", *sizes)

    assert command.exit_code == 1, command.stderr


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--gpus", "3", "parallel.tensor=2"), "--gpus"),
        (("--rank", "1"), "--rank"),
        (("--rank", "0", "--all-distinct"), "--rank"),
        (("--gpu", "abacus"), "--gpu"),
    ],
)
def test_what_cannot_be_rehearsed_is_one_error(arguments: tuple[str, ...], named: str) -> None:
    command = megaponder("rehearse", *RECIPE, *arguments)

    assert command.exit_code == 2
    assert named in command.stderr
    assert "Traceback" not in command.stderr

from pathlib import Path

import pytest

from pipeline.commands.ranks import run_on_layout
from pipeline.config.errors import ConfigError
from pipeline.config.load import build_config
from tests.unit.pipeline.config.settings import changed_settings


@pytest.fixture
def started_as_rank_0_of_3(monkeypatch: pytest.MonkeyPatch) -> None:
    variables = {"RANK": "0", "WORLD_SIZE": "3", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def started_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("started_by_hand")
def test_one_rank_works_in_the_process_that_was_started() -> None:
    config = build_config(changed_settings())

    assert run_on_layout(config, ["train"], run_here=lambda: 7) == 7


@pytest.mark.usefixtures("started_as_rank_0_of_3")
def test_a_rank_of_a_launcher_does_the_work() -> None:
    config = build_config(changed_settings(parallel__data=3, training__global_batch_size=12))

    assert run_on_layout(config, ["train"], run_here=lambda: 7) == 7


@pytest.mark.usefixtures("started_as_rank_0_of_3")
@pytest.mark.parametrize(("parallel", "cure"), [({"data": 2}, "parallel.data=3"), ({"tensor": 2}, "2 ranks")])
def test_another_number_of_ranks_than_the_layout_needs_is_refused(
    parallel: dict[str, int], cure: str
) -> None:
    config = build_config(changed_settings(parallel=parallel))

    with pytest.raises(ConfigError) as caught:
        run_on_layout(config, ["train"], run_here=lambda: 7)

    (problem,) = caught.value.problems
    assert (problem.path, problem.value) == ("parallel", "3")
    assert cure in problem.cure


@pytest.mark.usefixtures("started_by_hand")
def test_more_ranks_are_started_with_the_same_command_line() -> None:
    config = build_config(changed_settings(parallel__data=2))

    # The ranks know their number from the launcher: a schedule needs none of it and ends each with 0.
    recipe = str(Path(__file__).parents[4] / "pipeline" / "recipes" / "tiny_vanilla.yaml")
    arguments = ["train", "--config", recipe, "parallel.data=2", "--show-schedule"]

    assert run_on_layout(config, arguments, run_here=lambda: 7) == 0


@pytest.mark.usefixtures("started_by_hand")
def test_the_exit_code_of_the_ranks_is_the_commands() -> None:
    config = build_config(changed_settings(parallel__data=2))

    assert run_on_layout(config, ["train", "--config", "nowhere.yaml"], run_here=lambda: 7) == 2

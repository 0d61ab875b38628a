"""Long campaigns: random kills, two writers, changed settings, full disks, set clocks, renamed folders.

`make soak` runs them; SOAK_KILLS and SOAK_SEED set the number of kills and the seed.
"""

import shutil
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from random import Random

import pytest

from pipeline.checkpoint.tracker import latest_iteration
from tests.support.commands import COMMAND, megaponder, started, wait_until
from tests.support.machines import set_clock
from tests.support.runs import NUM_ITERATIONS, has_trained, losses, one_rank
from tests.support.small_disk import make_room, small_disk
from tests.support.soaking import NUM_KILLS, SEED, Work, digests, leftovers, measured
from tests.support.tiny_run import TrainedRun

pytestmark = [pytest.mark.end_to_end, pytest.mark.soak, pytest.mark.timeout(7200)]

Arguments = Callable[[Path], Sequence[str]]
# What a command that was refused or ran out of space may end with.
REFUSED = (2, 93)


def train_arguments(recipe: Path, *further: str) -> Arguments:
    def arguments(folder: Path) -> list[str]:
        settings = one_rank(folder / "run", "checkpoint.interval=2", "metrics.tensorboard=false", *further)
        return ["train", "--config", str(recipe), *settings]

    return arguments


def prepare_arguments(recipe: Path) -> Arguments:
    def arguments(folder: Path) -> list[str]:
        tokenizer = str(recipe.parent / "tokenizer.model")
        source = (
            "data",
            "prepare",
            str(recipe.parent / "text"),
            "--suffix",
            ".txt",
            "--tokenizer",
            tokenizer,
        )
        return [*source, "--output", str(folder / "data"), "--workers", "0", "--heldout-fraction", "0.3"]

    return arguments


def convert_arguments(recipe: Path) -> Arguments:
    return lambda folder: [
        *("data", "convert", str(recipe.parent / "data"), str(folder / "pairs"), "--to", "megatron"),
    ]


def export_arguments(trained: TrainedRun) -> Arguments:
    return lambda folder: [
        *("convert", "to-hf", str(trained.checkpoints), "--output", str(folder / "exported")),
        "--no-tokenizer",
    ]


@pytest.fixture(scope="module")
def works(
    recipe: Path, trained: TrainedRun, tmp_path_factory: pytest.TempPathFactory
) -> list[tuple[Work, object]]:
    """Every command with what it leaves when nothing disturbs it."""
    folder = tmp_path_factory.mktemp("undisturbed")
    return [
        measured("train", train_arguments(recipe), lambda at: losses(at / "run"), folder),
        measured("prepare", prepare_arguments(recipe), lambda at: digests(at / "data", "*.tar"), folder),
        measured(
            "convert", convert_arguments(recipe), lambda at: digests(at / "pairs", "*.bin", "*.idx"), folder
        ),
        measured(
            "export", export_arguments(trained), lambda at: digests(at / "exported", "*.safetensors"), folder
        ),
    ]


def test_commands_that_are_killed_at_random_leave_what_undisturbed_ones_do(
    works: list[tuple[Work, object]], tmp_path: Path
) -> None:
    random = Random(SEED)
    num_kills = 0
    while num_kills < NUM_KILLS:
        work, expected = random.choice(works)
        folder = tmp_path / f"{num_kills}-{work.name}"
        folder.mkdir()
        for _ in range(random.randint(1, 4)):
            seconds = work.kill_somewhere(folder, random)
            num_kills += 1
            show(f"{num_kills}: {work.name} killed after {seconds:.2f} of {work.seconds:.2f} s")
        if not is_done(work, folder, expected):
            finished = work.run(folder)
            assert finished.exit_code == 0, finished.stderr
        assert work.outcome(folder) == expected
        assert not leftovers(folder)
        shutil.rmtree(folder)


def is_done(work: Work, folder: Path, expected: object) -> bool:
    """Return whether a command ended before it was killed, so that its output is in the way of another."""
    try:
        return (
            work.name in ("convert", "export") and work.outcome(folder) == expected and not leftovers(folder)
        )
    except AssertionError:
        return False


def test_of_two_trainings_in_one_folder_one_trains(recipe: Path, tmp_path: Path) -> None:
    arguments = train_arguments(recipe)(tmp_path)
    with started([*COMMAND, *arguments]) as first, started([*COMMAND, *arguments]) as second:
        codes = sorted(command.finish().exit_code for command in (first, second))
    assert codes[0] == 0
    # The second is refused, or finds the run finished.
    assert codes[1] in (0, *REFUSED)
    assert list(losses(tmp_path / "run")) == list(range(1, NUM_ITERATIONS + 1))


CHANGES = (
    *("seed=99", "lr=2e-2", "min-lr=1e-4", "micro-batch-size=4", "global-batch-size=16", "seq-length=16"),
    *("data.order=sequential", "data.reset_attention=false", "ponder.num_jacobi_iterations=1"),
    *("ponder.method=ponderlm2", "num-latent-thoughts=3", "hidden-size=64", "num-layers=3"),
    *("metrics.interval=2", "checkpoint.keep_last=1", "evaluation.iters=1", "parallel.tensor=2"),
    *("training.precision=bf16", "clip-grad=0.5", "weight-decay=0.2", "model.init_std=0.1", "name=other"),
)


@pytest.mark.parametrize("change", CHANGES)
def test_a_restart_with_a_changed_setting_resumes_or_changes_nothing(
    change: str, recipe: Path, tmp_path: Path
) -> None:
    stopped = train_arguments(recipe, "exit-interval=4")(tmp_path)
    assert megaponder(*stopped).exit_code == 0
    checkpoints = tmp_path / "run" / "checkpoints"
    before = digests(checkpoints, "iter_*/*")
    finished = megaponder(*train_arguments(recipe, change)(tmp_path))
    assert "Traceback" not in finished.stderr
    assert finished.exit_code in (0, *REFUSED), finished.stderr
    if finished.exit_code == 0:
        assert latest_iteration(checkpoints) == NUM_ITERATIONS
    else:
        assert digests(checkpoints, "iter_*/*") == before
        again = megaponder(*train_arguments(recipe)(tmp_path))
        assert again.exit_code == 0, again.stderr


@pytest.fixture(params=["4k", "16k", "60k", "200k", "500k"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", size=str(request.param)) as folder:
        yield folder


@pytest.mark.parametrize("number", range(4), ids=["train", "prepare", "convert", "export"])
def test_a_disk_that_is_full_damages_nothing(
    number: int, works: list[tuple[Work, object]], disk: Path
) -> None:
    work, expected = works[number]
    finished = work.run(disk)
    assert "Traceback" not in finished.stderr
    assert finished.exit_code in (0, *REFUSED), finished.stderr
    if finished.exit_code != 0:
        make_room(disk)
        again = work.run(disk)
        assert again.exit_code == 0, again.stderr
    assert work.outcome(disk) == expected
    assert not leftovers(disk)


@pytest.mark.parametrize("years", [-30, -1, 1, 30])
def test_a_clock_that_was_set_changes_nothing(
    years: int, works: list[tuple[Work, object]], recipe: Path, tmp_path: Path
) -> None:
    train, expected = works[0]
    stopped = train_arguments(recipe, "exit-interval=4")(tmp_path)
    assert megaponder(*stopped).exit_code == 0
    finished = megaponder(*train.arguments(tmp_path), before=partial(set_clock, years))
    assert finished.exit_code == 0, finished.stderr
    assert losses(tmp_path / "run") == expected


def test_a_folder_that_is_renamed_under_a_run_resumes_under_its_new_name(
    works: list[tuple[Work, object]], recipe: Path, tmp_path: Path
) -> None:
    _, expected = works[0]
    run = tmp_path / "run"
    with started([*COMMAND, *train_arguments(recipe)(tmp_path)]) as command:
        wait_until(lambda: has_trained(run, 3) or command.process.poll() is not None)
        run.rename(tmp_path / "renamed")
        finished = command.finish()
    # What it writes under the old name is another run; it may not be what it says it is.
    assert finished.exit_code != 1 or "Traceback" not in finished.stderr
    (tmp_path / "moved").mkdir()
    (tmp_path / "renamed").rename(tmp_path / "moved" / "run")
    again = megaponder(*train_arguments(recipe)(tmp_path / "moved"))
    assert again.exit_code == 0, again.stderr
    assert losses(tmp_path / "moved" / "run") == expected


def show(what: object) -> None:
    """Print the progress of a test that takes minutes."""
    print(f"\n{what}", end="", flush=True)  # noqa: T201

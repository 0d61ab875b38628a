"""Running a ladder: which runs start, in which order, and what is left to a later call."""

import json
import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from threading import Timer
from typing import Any

import pytest

from pipeline.metrics import names
from scripts.ladder.plan import Ladder, Part, Row, Run
from scripts.ladder.run import RESULT_FILE, LadderError, OutOfTimeError, Runner

LADDER = Ladder(
    recipe="recipe.yaml",
    tuning_seed=0,
    seeds=(1, 2),
    base_method="vanilla",
    base=Part(iterations=2, learning_rates=(0.1,), rows={"vanilla": Row()}),
    continued=Part(iterations=2, learning_rates=(0.1, 0.3), rows={"ponderlm3": Row()}),
)


def runner(folder: Path, **changes: Any) -> Runner:
    settings: dict[str, Any] = {"deadline": time.monotonic() + 60, **changes}
    return Runner(
        ladder=LADDER, recipe=folder / "recipe.yaml", folder=folder, data=folder / "data", **settings
    )


def test_a_learning_rate_is_chosen_on_the_tuning_seed_and_every_seed_starts_from_its_base(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[Run] = []

    def train(self: Runner, run: Run) -> dict[str, float]:
        runs.append(run)
        return {names.LM_LOSS_VALIDATION: abs(float(str(run.settings["optimizer.lr"])) - 0.3)}

    monkeypatch.setattr(Runner, "result_of", train)
    runner(tmp_path).run_all(["continued"])

    assert [str(run.folder) for run in runs] == [
        "base/vanilla/lr-0.1/seed-0",
        "base/vanilla/lr-0.1/seed-1",
        "base/vanilla/lr-0.1/seed-2",
        "continued/ponderlm3/lr-0.1/seed-0",
        "continued/ponderlm3/lr-0.3/seed-0",
        "continued/ponderlm3/lr-0.3/seed-1",
        "continued/ponderlm3/lr-0.3/seed-2",
    ]
    assert runs[-1].settings["init_from.path"] == str(tmp_path / "base/vanilla/lr-0.1/seed-2/checkpoints")
    assert "init_from.path" not in runs[0].settings


def test_a_seed_that_only_one_row_has_gets_a_base_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[Run] = []

    def train(self: Runner, run: Run) -> dict[str, float]:
        runs.append(run)
        return {names.LM_LOSS_VALIDATION: 1.0}

    monkeypatch.setattr(Runner, "result_of", train)
    part = Part(iterations=2, learning_rates=(0.1,), rows={"ponderlm3": Row(seeds=(1, 7))})
    replace(runner(tmp_path), ladder=LADDER.model_copy(update={"continued": part})).run_all(["continued"])

    starts = {run.settings["seed"]: run.settings.get("init_from.path") for run in runs}
    assert starts[7] == str(tmp_path / "base/vanilla/lr-0.1/seed-7/checkpoints")
    assert None not in (starts[1], starts[7])


def test_rows_that_share_a_rate_tune_it_once_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    active: set[Path] = set()

    def train(self: Runner, run: Run) -> dict[str, float]:
        if (tmp_path / run.folder).exists():
            return {names.LM_LOSS_VALIDATION: float(str(run.settings["optimizer.lr"]))}
        assert run.folder not in active
        active.add(run.folder)
        time.sleep(0.02)
        active.remove(run.folder)
        (tmp_path / run.folder).mkdir(parents=True)
        return {names.LM_LOSS_VALIDATION: float(str(run.settings["optimizer.lr"]))}

    monkeypatch.setattr(Runner, "result_of", train)
    rows = {"ponderlm3": Row(), "variant": Row(learning_rate_of="ponderlm3")}
    part = Part(iterations=2, learning_rates=(0.1, 0.3), rows=rows)
    shared = LADDER.model_copy(update={"scratch": part})
    replace(runner(tmp_path), ladder=shared, num_processes=2).run_all(["scratch"])

    assert sorted(path.name for path in (tmp_path / "scratch" / "variant").iterdir()) == ["lr-0.1"]


def test_what_is_done_does_not_run_again_and_no_run_starts_after_the_deadline(tmp_path: Path) -> None:
    done, open_run = Run(folder=Path("done"), settings={}), Run(folder=Path("open"), settings={})
    finished(tmp_path / "done", {}, loss=1.5)
    late = runner(tmp_path, deadline=time.monotonic() - 1)

    assert late.result_of(done) == {"loss": 1.5}
    with pytest.raises(OutOfTimeError):
        late.result_of(open_run)
    assert not (tmp_path / "open").exists()


@pytest.mark.parametrize("base", ["here/seed-2", "moved/seed-2"])
def test_a_run_with_equal_settings_in_another_row_is_not_repeated(base: str, tmp_path: Path) -> None:
    settings = {"seed": 2, "optimizer.lr": 0.1}
    finished(tmp_path / "base/vanilla/lr-0.1/seed-2", settings, loss=1.5)
    finished(tmp_path / "continued/vanilla/lr-0.1/seed-2", settings | {"init_from.path": base}, loss=1.0)
    late = runner(tmp_path, deadline=time.monotonic() - 1)
    equal = Run(folder=Path("scratch/control/lr-0.1/seed-2"), settings=settings)

    assert late.result_of(equal) == {"loss": 1.5}
    assert (tmp_path / equal.folder).resolve() == tmp_path / "base/vanilla/lr-0.1/seed-2"
    for other in ({"seed": 3, "optimizer.lr": 0.1}, settings | {"model.num_layers": 3}):
        with pytest.raises(OutOfTimeError):
            late.result_of(replace(equal, folder=Path("scratch/control/lr-0.1/other"), settings=other))
    continued = Run(
        folder=Path("continued/vanilla/lr-0.1/seed-2"), settings=settings | {"init_from.path": "here/seed-2"}
    )
    assert late.result_of(continued) == {"loss": 1.0}


def test_a_run_with_other_settings_in_its_folder_is_refused(tmp_path: Path) -> None:
    finished(tmp_path / "done", {"optimizer.lr": 0.1, "seed": 1}, loss=1.5)

    with pytest.raises(LadderError, match=r"optimizer\.lr.*optimizer\.name"):
        runner(tmp_path).result_of(
            Run(folder=Path("done"), settings={"optimizer.lr": 0.2, "optimizer.name": "muon", "seed": 1})
        )


def test_settings_of_all_runs_are_part_of_each_unless_its_row_sets_them(tmp_path: Path) -> None:
    in_fp32 = runner(tmp_path, settings={"training.precision": "fp32"})
    finished(tmp_path / "fp32", {"seed": 1, "training.precision": "fp32"}, loss=1.5)
    finished(tmp_path / "bf16", {"seed": 1, "training.precision": "bf16"}, loss=1.0)

    assert in_fp32.result_of(Run(folder=Path("fp32"), settings={"seed": 1})) == {"loss": 1.5}
    with pytest.raises(LadderError, match=r"training\.precision"):
        in_fp32.result_of(Run(folder=Path("bf16"), settings={"seed": 1}))
    own = Run(folder=Path("bf16"), settings={"seed": 1, "training.precision": "bf16"})
    assert in_fp32.result_of(own) == {"loss": 1.0}


def finished(folder: Path, settings: dict[str, Any], *, loss: float) -> None:
    folder.mkdir(parents=True)
    (folder / RESULT_FILE).write_text(json.dumps({"settings": settings, "evaluation": {"loss": loss}}))


def test_after_an_interrupt_the_training_saves_and_no_other_one_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Stands for a training: it ends with the code of a saved run when it is told to stop.
    program = "import signal, sys, time; signal.signal(15, lambda *_: sys.exit(75)); print(1); time.sleep(60)"
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    script = tmp_path / "python"
    script.write_text(f"#!{os.path.realpath('/proc/self/exe')}\n{program}\n")
    script.chmod(0o755)
    # Where tests run in the background, a shell has told them to ignore Ctrl-C.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    pressed = Timer(1.0, os.kill, (os.getpid(), signal.SIGINT))
    pressed.start()

    try:
        with pytest.raises(KeyboardInterrupt):
            runner(tmp_path).run_all(["continued"])
    finally:
        signal.signal(signal.SIGINT, before)

    assert [path.name for path in tmp_path.glob("*/*/*/*/train.log")] == ["train.log"]

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
from scripts.ladder.run import RESULT_FILE, OutOfTimeError, Runner

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
    (tmp_path / "done").mkdir()
    (tmp_path / "done" / RESULT_FILE).write_text(json.dumps({"evaluation": {"loss": 1.5}}))
    late = runner(tmp_path, deadline=time.monotonic() - 1)

    assert late.result_of(done) == {"loss": 1.5}
    with pytest.raises(OutOfTimeError):
        late.result_of(open_run)
    assert not (tmp_path / "open").exists()


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

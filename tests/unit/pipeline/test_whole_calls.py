"""Whole calls in one process, on a device that is not the CPU: train, resume, evaluate, verify.

More with `--away`.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from megatron_ext.ponder.step_limits import HaltingSignal, StepLimits
from pipeline.config.load import dump_config
from pipeline.config.schema import RunConfig
from pipeline.evaluation.budget import Budget
from pipeline.evaluation.checkpoint import evaluate_checkpoint
from pipeline.evaluation.convergence.measure import ConvergenceSettings, measure_convergence
from pipeline.evaluation.opened import OpenedCheckpoint, opened_checkpoint
from pipeline.evaluation.timing import decoding_speeds
from pipeline.evaluation.under_limits import HeldoutText
from pipeline.metrics import names
from pipeline.metrics.jsonl import METRICS_FILE
from pipeline.ranks.signals import StopFlag
from pipeline.run.start import train
from pipeline.shared.exit_codes import ExitCode
from pipeline.shared.json_lines import parse_json_lines
from pipeline.verification.checkpoint import verify_checkpoint
from pipeline.verification.verify import sweeps_for, thresholds_for
from tests.support.away import away_device
from tests.support.away_steps import by_products
from tests.support.layouts import MODELS, ONE_PROCESS, SEQ_LENGTH, VOCAB_SIZE

USUAL = "ponderlm3, llama"
MODELS_WITH_OPTION = ("adaponderlm, llama", "ponderlm2, llama", "vanilla, neox tied")
NUM_ROWS = 16
# What depends on the time that something took.
_OF_TIME = {
    "time",
    names.ITERATION_TIME,
    names.THROUGHPUT,
    names.TOKENS_PER_SECOND,
    names.MFU,
    names.HFU,
    names.MEMORY,
}

each_model = pytest.mark.parametrize(
    "name", [USUAL, *(pytest.param(name, marks=pytest.mark.away) for name in MODELS_WITH_OPTION)]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Runs:
    """A model's run of four iterations on the CPU.

    Attributes:
        config: its settings.
        folder: of the tests of the model.
    """

    config: RunConfig
    folder: Path

    @property
    def checkpoints(self) -> Path:
        return self.config.checkpoint_directory


Make = Callable[[str], Runs]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Return what trains a model once."""
    made: dict[str, Runs] = {}

    def make(name: str) -> Runs:
        if name not in made:
            folder = tmp_path_factory.mktemp("run")
            _write_rows(folder / "data")
            made[name] = Runs(config=_config(name, folder / "data", folder / "cpu"), folder=folder)
            with by_products():
                assert _train(made[name].config) is ExitCode.DONE
        return made[name]

    return make


def _write_rows(folder: Path) -> None:
    generator = np.random.default_rng(5)
    for split in ("train", "heldout"):
        rows = generator.integers(1, VOCAB_SIZE, (NUM_ROWS, SEQ_LENGTH + 1), dtype=np.uint16)
        # Documents end within some of the rows.
        rows[::2, 5] = 0
        (folder / split).mkdir(parents=True)
        rows.tofile(folder / split / "part.bin")


def _config(name: str, data: Path, output: Path) -> RunConfig:
    model = MODELS[name]
    config = model.config(
        ONE_PROCESS,
        model={"num_layers": 2},
        ponder={"num_jacobi_iterations": 1} if model.sweeps else {},
        training={"global_batch_size": 2, "fused": "never"},
        data={"path": str(data), "format": "rows", "eod_id": 0, "heldout_split": "heldout"},
        checkpoint={"interval": 2, "async_save": True},
        evaluation={"interval": 2, "iters": 1},
        metrics={"interval": 1},
    )
    return config.model_copy(update={"output_dir": output})


def _train(config: RunConfig) -> ExitCode:
    config.output_dir.mkdir(exist_ok=True)
    dump_config(config, config.output_dir / "config.yaml")
    with StopFlag() as stop:
        return train(config, stop)


def _events(config: RunConfig) -> list[dict[str, Any]]:
    lines = parse_json_lines((config.output_dir / METRICS_FILE).read_bytes())
    return [{name: value for name, value in event.items() if name not in _OF_TIME} for event in lines]


def _until(config: RunConfig, iteration: int, output: Path) -> RunConfig:
    training = config.training.model_copy(update={"train_iters": iteration})
    return config.model_copy(update={"training": training, "output_dir": output})


@pytest.mark.away
@pytest.mark.parametrize("name", [USUAL, *MODELS_WITH_OPTION])
def test_a_run_is_trained_as_on_the_cpu_to_the_bit(runs: Make, name: str) -> None:
    on_cpu = runs(name)
    config = on_cpu.config.model_copy(update={"output_dir": on_cpu.folder / "away"})
    with by_products(), away_device() as away:
        assert _train(config) is ExitCode.DONE

    assert away.operations > 1000
    assert _events(config) == _events(on_cpu.config)
    assert len(_events(config)) == 6


@each_model
@pytest.mark.parametrize("resumes_on_cpu", [False, True])
def test_a_run_of_one_device_resumes_on_the_other(runs: Make, name: str, *, resumes_on_cpu: bool) -> None:
    on_cpu = runs(name)
    folder = on_cpu.folder / f"stopped {resumes_on_cpu}"
    config = on_cpu.config.model_copy(update={"output_dir": folder})
    stopped = config.model_copy(update={"training": config.training.model_copy(update={"exit_interval": 2})})
    with by_products():
        for settings, is_on_cpu in ((stopped, not resumes_on_cpu), (config, resumes_on_cpu)):
            if is_on_cpu:
                assert _train(settings) is ExitCode.DONE
            else:
                with away_device() as away:
                    assert _train(settings) is ExitCode.DONE
                assert away.operations > 500

    assert _events(config) == _events(on_cpu.config)


def test_no_weight_is_drawn_that_is_read(runs: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    finished = runs(USUAL)

    def draw(*_: Any, **__: Any) -> None:
        raise AssertionError("a weight is drawn")

    monkeypatch.setattr(torch.nn.init, "normal_", draw)
    assert _train(finished.config) is ExitCode.DONE
    with opened_checkpoint(finished.checkpoints) as opened:
        weights = dict(opened.module.named_parameters())
    assert all(weight.isfinite().all() for weight in weights.values())
    assert weights["decoder.layers.0.self_attention.linear_qkv.weight"].std() > 0
    from_scratch = finished.config.model_copy(update={"output_dir": finished.folder / "new"})
    with pytest.raises(AssertionError, match="drawn"):
        _train(from_scratch)


def _measured(opened: OpenedCheckpoint) -> list[Any]:
    ponder = opened.config.ponder
    evaluation = evaluate_checkpoint(opened, max_global_batches=1)
    verified = verify_checkpoint(
        opened,
        num_rows=2,
        num_tokens=8,
        thresholds=thresholds_for(ponder.method, (0.1,)),
        sweeps=sweeps_for(ponder.method, ponder.num_jacobi_iterations, (1, 8)),
        bound=1e9,
        run_bound=None,
    )
    return [replace(evaluation, tokens_per_second=0.0), verified]


@each_model
def test_a_checkpoint_is_evaluated_and_verified_as_on_the_cpu(runs: Make, name: str) -> None:
    checkpoints = runs(name).checkpoints
    with by_products():
        with opened_checkpoint(checkpoints) as opened:
            expected = _measured(opened)
        with away_device() as away, opened_checkpoint(checkpoints) as opened:
            found = _measured(opened)

    assert found == expected
    assert away.operations > 1000


def _measured_under_limits(opened: OpenedCheckpoint) -> list[Any]:
    text = HeldoutText(opened, 1)
    met = text.meet(Budget.parse("1.2"), StepLimits())
    by_signal = text.meet(Budget.parse("1.2"), StepLimits(signal=HaltingSignal.ENTROPY))
    convergence = measure_convergence(
        opened,
        ConvergenceSettings(
            num_rows=2,
            num_tokens=6,
            num_sweeps=3,
            forwards=(1, 3),
            tolerances=(1e-3,),
            reading_tolerance=1e-3,
        ),
    )
    (speeds,) = decoding_speeds(opened, [StepLimits(threshold=0.3)], batch_sizes=(2,))
    points = [(one.limits, one.loss, one.steps_count) for one in (met, by_signal)]
    readings = tuple(replace(one, milliseconds=0.0) for one in convergence.readings)
    return [points, replace(convergence, readings=readings), [speed.mean_steps for speed in speeds]]


@pytest.mark.away
def test_budgets_convergence_and_decoding_are_measured_as_on_the_cpu(runs: Make) -> None:
    checkpoints = runs(USUAL).checkpoints
    with by_products():
        with opened_checkpoint(checkpoints) as opened:
            expected = _measured_under_limits(opened)
        with away_device(), opened_checkpoint(checkpoints) as opened:
            found = _measured_under_limits(opened)

    assert found == expected

"""What a run on two tensor-parallel ranks logs and writes."""

import json
import re
from importlib.metadata import version

import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import (  # type: ignore[import-untyped]
    EventAccumulator,
)

from pipeline.checkpoint.identity import read_identity
from pipeline.checkpoint.state import read_train_state
from pipeline.config.load import load_config
from pipeline.metrics.history import read_history
from tests.support.runs import NUM_ITERATIONS, losses, written_events
from tests.support.tiny_run import TrainedRun

pytestmark = [pytest.mark.end_to_end, pytest.mark.timeout(600)]

STEPS, SWEEPS = range(3), range(1, 3)
PONDER_TAGS = {
    "ponder/mean-steps",
    *(f"ponder/active-fraction/step_{step}" for step in STEPS),
    *(f"ponder/halt-fraction/step_{step}" for step in STEPS),
    *(f"ponder/tail-mass/step_{step}" for step in STEPS),
    *(f"ponder/nll-by-steps/step_{step}" for step in STEPS),
    "ponder/router-entropy",
    "ponder/penalty",
    "ponder/penalty-weight",
    "ponder/jacobi-iterations",
    *(f"ponder/jacobi-residual/sweep_{sweep}" for sweep in SWEEPS),
    "ponder/contraction",
    "ponder/flops-per-token-train",
    "ponder/flops-per-token-infer",
    "ponder/flops-saved",
}
MEGATRON_TAGS = {
    tag + axis
    for axis in ("", " vs samples")
    for tag in (
        "lm loss",
        "learning-rate",
        "batch-size",
        "loss-scale",
        "world-size",
        "grad-norm",
        "lm loss validation",
        "lm loss validation ppl",
    )
} | {"iteration-time", "throughput"}


def test_the_loss_and_the_steps_decrease(trained: TrainedRun) -> None:
    curve = losses(trained.folder)
    assert list(curve) == list(range(1, NUM_ITERATIONS + 1))
    assert curve[1] > 5.5
    assert curve[NUM_ITERATIONS] < curve[1] - 1
    events = written_events(trained.folder)
    assert events[-1]["ponder/mean-steps"] < events[0]["ponder/mean-steps"] == 2


def test_every_iteration_has_a_log_line_in_megatrons_format(trained: TrainedRun) -> None:
    line = re.compile(
        r"^ \[[-\d]{10} [:\d]{8}\] iteration +(\d+)/ +(\d+) \| consumed samples: +(\d+) \| "
        r"elapsed time per iteration \(ms\): [.\d]+ \| throughput per GPU \(TFLOP/s/GPU\): [.\d]+ \| "
        r"learning rate: \S+ \| global batch size: +8 \| lm loss: (\S+) \| loss scale: 1.0 \| "
        r"grad norm: [.\d]+ \| number of skipped iterations: +0 \| number of nan iterations: +0 \|",
        re.MULTILINE,
    )
    found = line.findall(trained.command.stderr)
    assert [tuple(map(int, row[:3])) for row in found] == [
        (iteration, NUM_ITERATIONS, 8 * iteration) for iteration in range(1, NUM_ITERATIONS + 1)
    ]
    expected = losses(trained.folder).values()
    assert [float(row[3]) for row in found] == pytest.approx(list(expected), rel=1e-5)


def test_the_start_prints_a_summary_of_the_run_once(trained: TrainedRun) -> None:
    shown = trained.command.stderr
    for row in (
        "method +ponderlm3 on llama",
        "extra steps +K = 2 latent thoughts, Jacobi sweeps J = 2",
        "passes +5 through 2 layers",
        "rows per token +training 12, inference 1 to 3",
        "effective depth +6 layers",
        r"parameters +[\d,]+ unique",
        r"parameters per rank +[\d,]+",
        "layout +tensor 2 x pipeline 1 x data 1 on 2 ranks",
        "FLOPs per token, training",
        "FLOPs per token, inference",
    ):
        assert len(re.findall(row, shown)) == 1, f"{row}\n{shown}"
    assert "Traceback" not in shown
    assert "Warning" not in shown


def test_a_finished_checkpoint_holds_its_settings_and_progress(trained: TrainedRun) -> None:
    folder = trained.checkpoints / f"iter_{NUM_ITERATIONS:07d}"
    assert sorted(path.name for path in trained.checkpoints.iterdir()) == [
        folder.name,
        "latest_checkpointed_iteration.txt",
    ]
    assert (trained.checkpoints / "latest_checkpointed_iteration.txt").read_text().strip() == "14"
    names = {path.name for path in folder.iterdir()}
    assert names >= {".metadata", "common.pt", "__0_0.distcp", "__1_0.distcp"}
    config = load_config(folder / "run_config.yaml", [])
    assert config == load_config(trained.folder / "run_config.yaml", [])
    assert config.output_dir == trained.folder
    assert yaml.safe_load((folder / "run_config.yaml").read_text())["model"]["kv_channels"] == 8
    state = read_train_state(folder)
    assert (state.iteration, state.consumed_samples, state.skipped_iterations) == (14, 14 * 8, 0)
    assert json.loads((folder / "train_state.json").read_text())["consumed_tokens"] == 14 * 8 * 32


def test_tensorboard_holds_every_curve(trained: TrainedRun) -> None:
    board = EventAccumulator(str(trained.folder / "tensorboard"), size_guidance={"scalars": 0})
    board.Reload()
    tags = board.Tags()
    on_validation = {f"{tag} validation" for tag in ("ponder/mean-steps", "ponder/router-entropy")}
    assert set(tags["scalars"]) >= PONDER_TAGS | MEGATRON_TAGS | on_validation
    assert set(tags["histograms"]) == {"ponder/steps-histogram", "ponder/steps-histogram validation"}
    points = [(point.step, point.value) for point in board.Scalars("lm loss")]
    assert points == [(at, pytest.approx(loss)) for at, loss in losses(trained.folder).items()]
    assert [point.step for point in board.Scalars("lm loss vs samples")][-1] == 8 * NUM_ITERATIONS
    assert "config/text_summary" in tags["tensors"]
    assert "custom_scalars__config__" in tags["tensors"]


def test_the_run_and_its_checkpoint_record_what_trained_them(trained: TrainedRun) -> None:
    (session,) = read_history(trained.folder)
    assert (session.first_iteration, session.last_iteration, session.exit_code) == (0, NUM_ITERATIONS, 0)
    assert session.origin.num_ranks == 2
    assert session.origin.torch == version("torch")
    assert session.ended_at is not None
    identity = read_identity(trained.checkpoints / f"iter_{NUM_ITERATIONS:07d}")
    assert identity is not None
    assert identity.origin == session.origin
    assert identity.saved_at is not None
    assert session.origin.started_at <= identity.saved_at <= session.ended_at


def test_the_curves_count_every_token(trained: TrainedRun) -> None:
    for event in written_events(trained.folder):
        halted = [event[f"ponder/halt-fraction/step_{step}"] for step in STEPS]
        assert sum(halted) == pytest.approx(1)
        assert sum(event["ponder/steps-histogram"]) == 8 * 32
        assert event["ponder/mean-steps"] == pytest.approx(halted[1] + 2 * halted[2])


def test_nothing_is_written_outside_the_folder_of_the_run(trained: TrainedRun) -> None:
    assert sorted(path.name for path in trained.folder.parent.iterdir()) == ["run"]
    assert sorted(path.name for path in trained.folder.iterdir()) == [
        "checkpoints",
        "history.jsonl",
        "identity.json",
        "metrics.jsonl",
        "run_config.yaml",
        "save_times.jsonl",
        "tensorboard",
    ]

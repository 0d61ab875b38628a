"""A PonderLM-3 run continues a model of a Hugging Face folder, and starts again after a loss."""

import json
import shutil
import signal
from pathlib import Path

import pytest
import torch

from pipeline.checkpoint.offline import OfflineReader
from tests.bench.conversion import NeoxSizes, make_model
from tests.support.commands import forked, megaponder, wait_until
from tests.support.corpus import VOCAB_SIZE
from tests.support.runs import written_events

pytestmark = [pytest.mark.end_to_end, pytest.mark.timeout(600)]

SIZES = NeoxSizes(num_layers=2, hidden_size=32, num_heads=2, ffn_size=64, vocab_size=VOCAB_SIZE)
MODEL = [
    *("model.architecture=gpt_neox", "model.num_attention_heads=2", "model.ffn_hidden_size=64"),
    *("ponder.scale_embeds=false", "training.train_iters=2", "evaluation.iters=1"),
    *("optimizer.lr_warmup_iters=0", "optimizer.new_parameters_lr_mult=2"),
    # More than the run has.
    "ponder.freeze_backbone_tokens=100000",
]


def test_a_run_from_a_folder_is_evaluated_before_its_first_step_and_converts_once(
    recipe: Path, tmp_path: Path
) -> None:
    source, run = tmp_path / "source", tmp_path / "run"
    make_model(SIZES, source, dtype=torch.float16)
    start = [f"init_from.path={source}", "init_from.format=hf", "init_from.method=vanilla"]
    arguments = ["train", "--config", str(recipe), f"output_dir={run}", *MODEL, *start]

    command = megaponder(*arguments)

    assert command.exit_code == 0, command.stderr
    certificate = json.loads((run / "init_from" / "iter_0000000" / "conversion.json").read_text())
    assert certificate["logits"]["is_within_tolerance"]
    assert "ponder.router.0.bias" in command.stderr
    evaluations = written_events(run, "validation")
    assert [event["iteration"] for event in evaluations] == [0, 2]
    rates = [(event["learning-rate"], event["decoupled-learning-rate"]) for event in written_events(run)]
    assert all(new == pytest.approx(2 * backbone) for backbone, new in rates)

    converted = OfflineReader(run / "init_from" / "iter_0000000")
    trained = OfflineReader(run / "checkpoints" / "iter_0000002")
    for name in converted.tensors:
        rows = converted.tensors[name].size[0]
        # The padding depends on the layout.
        expected, found = converted.read(name).float(), trained.read(name)
        assert torch.equal(found[:rows], expected[: len(found)]), name
    assert trained.read("ponder.router.2.weight").any()

    # Its checkpoints and the source are lost.
    shutil.rmtree(run / "checkpoints")
    shutil.rmtree(source)
    command = megaponder(*arguments, "parallel.tensor=1")

    assert command.exit_code == 0, command.stderr
    again = written_events(run, "validation")[2:]
    assert [event["iteration"] for event in again] == [0, 2]
    assert again[0]["lm loss validation"] == pytest.approx(evaluations[0]["lm loss validation"], rel=1e-5)
    assert (run / "checkpoints" / "iter_0000002").is_dir()


def test_a_signal_during_the_conversion_leaves_nothing_half_done_and_asks_for_a_requeue(
    recipe: Path, tmp_path: Path
) -> None:
    source, run = tmp_path / "source", tmp_path / "run"
    make_model(SIZES, source, dtype=torch.float16)
    start = [f"init_from.path={source}", "init_from.format=hf", "init_from.method=vanilla"]
    arguments = ["train", "--config", str(recipe), f"output_dir={run}", *MODEL, *start, "parallel.tensor=1"]

    with forked(*arguments) as command:
        wait_until(lambda: (run / "init_from.log").exists())
        command.process.send_signal(signal.SIGTERM)
        finished = command.finish()

    assert finished.exit_code == 75, finished.stderr
    assert [path.name for path in run.iterdir()] == ["init_from.log"]

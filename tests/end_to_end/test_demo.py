"""The demo for real, only shorter: raw text, Ray, two ranks, evaluation, generation, report."""

import json
import sysconfig
from pathlib import Path

import pytest
import yaml

from cluster.commands.demo import RECIPE
from tests.support.commands import megaponder

pytestmark = [pytest.mark.end_to_end, pytest.mark.timeout(600)]

SECTIONS = ("worth", "learning", "sample", "pondering", "further", "run")
FIGURES = (
    "Loss, nats per token",
    "Tokens by steps taken",
    "Mean steps by the token&#39;s own loss",
    "Pruned fraction by step",
    "Pruned fraction during training",
    "Mean steps during training",
    "Loss by steps taken",
    "Jacobi residual by sweep",
    "Loss by cost",
    "Learning rate",
    "Gradient norm",
)
STEPS = ("tokenizer", "prepare", "train", "evaluate", "generate", "report")
FILES = ("run_config.yaml", "metrics.jsonl", "evaluation.json", "sample.json")
OVERRIDES = (
    "train-iters=6",
    "lr-warmup-iters=1",
    "ponder.thoughts_schedule=[[0, 0], [1, 2]]",
    "ponder.blended_start_iterations=1",
    "ponder.held_decisions_iterations=1",
    "ponder.penalty_ramp=[2, 4]",
    "lr=1e-2",
    "num-layers=1",
    "hidden-size=32",
    "ffn-hidden-size=64",
    "model.num_attention_heads=4",
    "model.vocab_size=512",
    "seq-length=32",
    "checkpoint.interval=3",
    "evaluation.iters=2",
    "metrics.interval=2",
)


def write_short_recipe(folder: Path) -> Path:
    """Write the demo's recipe over a part of the standard library only."""
    settings = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))
    text = {"inputs": [str(Path(sysconfig.get_paths()["stdlib"], "asyncio"))], "suffixes": [".py"]}
    for step in settings["workflow"][:2]:
        del step["python_stdlib"]
        step.update(text)
    settings["output_dir"] = str(folder / "demo")
    settings["data"]["path"] = str(folder / "demo" / "data")
    path = folder / "demo.yaml"
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return path


def markers(output: Path) -> dict[str, bytes]:
    return {step: (output / "workflow" / f"{step}.json").read_bytes() for step in STEPS}


def test_the_demo_runs_from_text_to_a_report_and_a_second_time_repeats_nothing(
    tmp_path: Path,
) -> None:
    output = tmp_path / "demo"
    recipe = write_short_recipe(tmp_path)
    first = megaponder("demo", "--config", str(recipe), *OVERRIDES)
    assert first.exit_code == 0, first.stderr
    assert [json.loads(marker)["exit_code"] for marker in markers(output).values()] == [0] * len(STEPS)
    for text in (
        "held-out loss",
        "unigram entropy",
        "mean steps per token",
        "loss with no step",
        "tensorboard --logdir",
    ):
        assert text in first.stdout
    assert str(output / "report.html") in first.stdout
    report = (output / "report.html").read_text(encoding="utf-8")
    for part in (*(f'id="{section}"' for section in SECTIONS), *(f"<h3>{title}</h3>" for title in FIGURES)):
        assert part in report, part
    assert report.count("<script") == 1
    assert "http" not in report.replace("http://www.w3.org/2000/svg", "")
    worth = json.loads((output / "evaluation.json").read_text())["worth"]
    assert [[speed["batch_size"] for speed in point["speeds"]] for point in worth] == [[1, 8]] * 3
    sample = json.loads((output / "sample.json").read_text())
    assert sum(not token["is_prompt"] for token in sample["tokens"]) > 0

    written, before = {name: (output / name).read_bytes() for name in FILES}, markers(output)
    second = megaponder("demo", "--config", str(recipe), *OVERRIDES)
    assert second.exit_code == 0, second.stderr
    assert second.stdout.count("up to date") == 5
    assert {name: (output / name).read_bytes() for name in written} == written
    after = markers(output)
    assert [step for step in STEPS if after[step] != before[step]] == ["report"]

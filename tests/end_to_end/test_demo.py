"""The demo for real, only shorter: raw text, Ray, two ranks, evaluation, generation, report."""

import io
import json
import sysconfig
import uuid
from pathlib import Path

import pytest
from rich.console import Console

from data_prep.inputs.documents import TextFolder
from pipeline.config.load import load_config
from pipeline.demo import LEDGER_FILE, Demo, run_demo
from pipeline.demo_ledger import DemoLedger
from tests.support.commands import MARK, processes_with, wait_until

pytestmark = [pytest.mark.end_to_end, pytest.mark.timeout(600)]

SECTIONS = ("learning", "sample", "pondering", "further", "run")
FIGURES = (
    "Loss, nats per token",
    "Tokens by steps taken",
    "Mean steps by the token&#39;s own loss",
    "Pruned fraction by step",
    "Pruned fraction during training",
    "Mean steps during training",
    "Loss by steps taken",
    "Jacobi residual by sweep",
)
FILES = ("run_config.yaml", "metrics.jsonl", "evaluation.json", "sample.json", "report.html", LEDGER_FILE)


def short_demo(repository: Path, output: Path) -> Demo:
    recipe = repository / "pipeline" / "recipes" / "demo.yaml"
    overrides = (
        f"output_dir={output}",
        f"data.path={output / 'data'}",
        "train-iters=6",
        "lr-warmup-iters=1",
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
    config = load_config(recipe, overrides)
    return Demo(
        config_path=recipe,
        overrides=overrides,
        config=config,
        console=Console(file=io.StringIO(), width=200),
        ledger=DemoLedger(config.output_dir / LEDGER_FILE),
        source=TextFolder(root=Path(sysconfig.get_paths()["stdlib"], "asyncio"), suffixes=(".py",)),
        num_workers=2,
    )


def shown(demo: Demo) -> str:
    assert isinstance(demo.console.file, io.StringIO)
    return demo.console.file.getvalue()


def test_the_demo_runs_from_text_to_a_report_and_a_second_time_repeats_nothing(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark, output = uuid.uuid4().hex, tmp_path / "demo"
    monkeypatch.setenv(MARK, mark)
    first = short_demo(repository, output)
    assert run_demo(first) == 0
    assert all(seconds is not None for seconds in first.seconds.values())
    assert list(first.seconds) == ["tokenizer", "tokenization", "training", "evaluation", "generation"]
    for text in ("held-out loss", "unigram entropy", "mean steps per token", "tensorboard --logdir"):
        assert text in shown(first)
    report = (output / "report.html").read_text(encoding="utf-8")
    for part in (*(f'id="{section}"' for section in SECTIONS), *(f"<h3>{title}</h3>" for title in FIGURES)):
        assert part in report, part
    assert "<script" not in report
    assert "http" not in report.replace("http://www.w3.org/2000/svg", "")
    sample = json.loads((output / "sample.json").read_text())
    assert sum(not token["is_prompt"] for token in sample["tokens"]) > 0
    wait_until(lambda: not processes_with(mark), seconds=20.0)

    written = {name: (output / name).read_bytes() for name in FILES if name != "report.html"}
    second = short_demo(repository, output)
    assert run_demo(second) == 0
    assert [second.seconds[step] for step in ("training", "evaluation", "generation")] == [None] * 3
    assert shown(second).count("up to date") == 3
    assert {name: (output / name).read_bytes() for name in written} == written

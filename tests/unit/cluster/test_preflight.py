import math
import re
from pathlib import Path
from typing import Any

import pytest

from cluster import preflight
from cluster.lead_time import signal_lead_seconds
from cluster.preflight import check_run, planned_step_seconds, refuse_masked, too_slow
from pipeline.config.errors import ConfigError
from pipeline.config.load import build_config, load_config
from pipeline.config.schema import RunConfig
from tests.support.corpus import prepare_here, train_small_tokenizer, write_corpus
from tests.unit.pipeline.config.settings import changed_settings


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    source = write_corpus(folder / "text")
    prepare_here(source, train_small_tokenizer(source, folder / "t.model"), folder / "data")
    return folder / "data"


def config(data: Path, **changes: Any) -> RunConfig:
    return build_config(changed_settings(data__path=str(data), **changes))


def test_a_run_with_its_data_passes(data: Path) -> None:
    check_run(config(data))


def test_missing_data_and_weights_are_found_together(tmp_path: Path) -> None:
    run = config(tmp_path / "data", init_from={"path": str(tmp_path / "weights"), "method": "vanilla"})
    with pytest.raises(ConfigError) as caught:
        check_run(run)
    assert [problem.path for problem in caught.value.problems] == ["data.path", "init_from.path"]
    with pytest.raises(ConfigError) as caught:
        check_run(run, expects_data=False)
    assert [problem.path for problem in caught.value.problems] == ["init_from.path"]


def paths(caught: pytest.ExceptionInfo[ConfigError]) -> list[str]:
    return [problem.path for problem in caught.value.problems]


def test_a_missing_shard_is_reported(data: Path) -> None:
    shard = next(data.glob("train-*.tar"))
    away = shard.rename(shard.with_suffix(".away"))
    try:
        with pytest.raises(ConfigError, match=re.escape(shard.name)) as caught:
            check_run(config(data))
        assert paths(caught) == ["data.path"]
    finally:
        away.rename(shard)


def test_a_run_that_does_not_fit_a_gpu_is_refused_unless_the_check_is_off(data: Path) -> None:
    large = {"model__hidden_size": 8192, "model__ffn_hidden_size": 32768, "model__num_layers": 40}
    submit = {"target": "slurm", "gpus_per_node": 1}
    with pytest.raises(ConfigError) as caught:
        check_run(config(data, **large, submit=submit))
    assert paths(caught) == ["submit.gpu"]
    check_run(config(data, **large, submit={**submit, "check_memory": False}))
    check_run(config(data, submit=submit))


def test_an_unknown_gpu_is_refused(data: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        check_run(config(data, submit={"target": "slurm", "gpus_per_node": 1, "gpu": "abacus"}))
    (problem,) = caught.value.problems
    assert (problem.path, problem.value) == ("submit.gpu", "abacus")
    assert "h100-80g" in problem.rule


def test_formats_without_a_manifest_are_checked_by_their_files(tmp_path: Path) -> None:
    bare = {"data__format": "megatron", "data__eod_id": 0, "model__vocab_size": 100}
    prefix = tmp_path / "pair"
    with pytest.raises(ConfigError, match=re.escape(str(prefix))) as caught:
        check_run(config(prefix, **bare))
    assert paths(caught) == ["data.path"]
    prefix.with_name("pair.idx").touch()
    check_run(config(prefix, **bare))


def test_a_secret_that_was_masked_is_not_submitted() -> None:
    settings = changed_settings(
        submit={"environment": {"HF_TOKEN": "***", "A": "1"}, "setup": ["export B_KEY=***"]},
        workflow=[{"command": "prepare", "inputs": ["https://me:***@host/a.txt"], "tokenizer": "t.model"}],
    )
    with pytest.raises(ConfigError) as caught:
        refuse_masked(build_config(settings))
    assert [problem.path for problem in caught.value.problems] == [
        "submit.environment.HF_TOKEN",
        "submit.setup.0",
        "workflow (prepare).inputs",
    ]


def slow(data: Path, **changes: Any) -> RunConfig:
    """Return a run with steps of minutes on one GPU, in micro-batches of seconds."""
    sizes = {"model__hidden_size": 2048, "model__ffn_hidden_size": 8192, "model__num_layers": 24}
    lengths = {
        "training__seq_length": 1024,
        "training__global_batch_size": 128,
        "training__train_iters": 1000,
    }
    submit = {"target": "slurm", "gpus_per_node": 1, "check_memory": False} | changes.pop("submit", {})
    return config(data, **sizes, **lengths, submit=submit, **changes)


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"parallel__timeout_seconds": 2}, ["parallel.watchdog_seconds"]),
        ({"submit": {"signal_lead_seconds": 5}}, ["submit.signal_lead_seconds"]),
        ({"submit": {"wall_time": "1:00:00"}, "checkpoint__interval": 900}, ["checkpoint.minutes"]),
        ({"submit": {"wall_time": "1:00:00"}, "checkpoint__minutes": 30.0}, []),
        ({"submit": {"wall_time": "1:00:00"}, "checkpoint__interval": 1}, []),
        ({}, []),
    ],
)
def test_a_run_that_would_never_get_on_is_refused(
    data: Path, changes: dict[str, Any], found: list[str]
) -> None:
    run = slow(data, training__micro_batch_size=4, **changes)
    if not found:
        check_run(run)
        return
    with pytest.raises(ConfigError) as caught:
        check_run(run)
    assert paths(caught) == found
    step = planned_step_seconds(run)
    assert step is not None
    assert step > 60


@pytest.mark.parametrize(
    ("submit", "device", "machine_has_gpus", "is_accepted"),
    [
        ({"gpus_per_node": 1}, "auto", False, False),
        ({"gpus_per_node": 1}, "auto", True, True),
        ({"gpus_per_node": 0}, "auto", False, True),
        ({"gpus_per_node": 1, "target": "slurm"}, "auto", False, True),
        ({"gpus_per_node": 1, "target": "slurm"}, "cpu", True, False),
    ],
)
def test_devices_that_a_job_would_not_get_are_refused(
    data: Path,
    monkeypatch: pytest.MonkeyPatch,
    submit: dict[str, Any],
    device: str,
    machine_has_gpus: bool,
    is_accepted: bool,
) -> None:
    monkeypatch.setattr(preflight, "has_gpus", lambda: machine_has_gpus)
    run = config(data, submit={"check_memory": False} | submit, parallel__device=device)
    if is_accepted:
        check_run(run)
        return
    with pytest.raises(ConfigError) as caught:
        check_run(run)
    assert paths(caught) == ["submit.gpus_per_node"]


def test_the_lead_of_a_run_that_has_not_started_follows_the_plan(data: Path, tmp_path: Path) -> None:
    step = planned_step_seconds(slow(data))
    assert step is not None
    lead = signal_lead_seconds(tmp_path, wall_time=None, planned_step_seconds=step)

    assert lead == max(300, math.ceil(2 * step) + 150)


def test_a_run_on_the_cpu_has_no_planned_step(data: Path) -> None:
    assert planned_step_seconds(config(data)) is None


RECIPES = sorted((Path(__file__).parents[3] / "pipeline" / "recipes").glob("**/*.yaml"))


@pytest.mark.parametrize("gpu", ["h100-80g", "a100-80g"])
@pytest.mark.parametrize("path", [path for path in RECIPES if "base" not in path.parts], ids=lambda p: p.stem)
def test_every_recipe_gets_on_within_its_wall_time(path: Path, gpu: str) -> None:
    run = load_config(path)
    gpus = run.parallel.world_size // run.submit.nodes
    settings = [f"submit.gpu={gpu}", f"submit.gpus_per_node={gpus}"]
    if run.model.vocab_size is None:
        settings.append("model.vocab_size=50277")

    assert list(too_slow(load_config(path, settings))) == []

import re
from pathlib import Path
from typing import Any

import pytest

from cluster.preflight import check_run, refuse_masked
from pipeline.config.errors import ConfigError
from pipeline.config.load import build_config
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

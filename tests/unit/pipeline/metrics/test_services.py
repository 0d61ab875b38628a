"""Metrics in the services themselves, without a network; skipped where their packages are not installed."""

from importlib.util import find_spec
from pathlib import Path

import pytest

from pipeline.config.load import build_config
from pipeline.metrics.optional_sinks import BackgroundSink
from pipeline.metrics.records import MetricsSink
from pipeline.metrics.tracking import missing_packages, run_id_file, store_run_id, stored_run_id
from tests.unit.pipeline.config.settings import changed_settings
from tests.unit.pipeline.metrics.records import training_record, validation_record

needs_wandb = pytest.mark.skipif(find_spec("wandb") is None, reason="needs the extra wandb")
needs_mlflow = pytest.mark.skipif(find_spec("mlflow") is None, reason="needs the extra mlflow")


def write_run(name: str, folder: Path, *, resumes: bool = False, iteration: int = 20) -> None:
    """Write two records to a service as a training does."""

    def opened() -> MetricsSink:
        if name == "wandb":
            from pipeline.metrics.wandb_sink import WandbSink as Sink
        else:
            from pipeline.metrics.mlflow_sink import MlflowSink as Sink
        return Sink(folder, project="p", name="tiny", settings={"model": {"num_layers": 2}}, resumes=resumes)

    sink = BackgroundSink(name, opened)
    sink.write_training(training_record(iteration=iteration))
    sink.write_validation(validation_record(iteration=iteration))
    sink.close()


def test_a_missing_package_is_a_problem_of_the_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    config = build_config(changed_settings(metrics__sinks=["wandb", "mlflow"]))
    monkeypatch.setattr("pipeline.metrics.tracking.find_spec", lambda name: None)
    assert [problem.path for problem in missing_packages(config)] == ["metrics.sinks"] * 2
    assert missing_packages(build_config(changed_settings())) == []


def test_the_id_of_a_run_is_kept(tmp_path: Path) -> None:
    assert stored_run_id(tmp_path, "wandb") is None
    store_run_id(tmp_path, "wandb", "abc")
    assert stored_run_id(tmp_path, "wandb") == "abc"
    (tmp_path / run_id_file("wandb")).write_text("")
    assert stored_run_id(tmp_path, "wandb") is None


@needs_wandb
def test_wandb_gets_the_curves_and_the_settings_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    write_run("wandb", tmp_path)
    import wandb

    wandb.teardown()
    run_id = stored_run_id(tmp_path, "wandb")
    (written,) = (tmp_path / "wandb").glob(f"offline-run-*/run-{run_id}.wandb")
    content = written.read_bytes()
    for word in (b"lm loss validation", b"ponder/halt-fraction/step_0", b"num_layers", b"iteration"):
        assert word in content
    assert not caplog.records


@needs_mlflow
def test_mlflow_gets_the_curves_and_a_resumed_run_continues_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path / 'store'}")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    write_run("mlflow", tmp_path, iteration=20)
    write_run("mlflow", tmp_path, resumes=True, iteration=40)
    from mlflow import MlflowClient

    run_id = stored_run_id(tmp_path, "mlflow")
    assert run_id is not None
    client = MlflowClient()
    run = client.get_run(run_id)
    assert (run.info.run_name, run.info.status, run.data.params) == (
        "tiny",
        "FINISHED",
        {"model.num_layers": "2"},
    )
    assert [point.step for point in client.get_metric_history(run_id, "lm loss")] == [20, 40]
    assert run.data.metrics["throughput/tflops_per_device"] == pytest.approx(0.14)
    assert not caplog.records
    write_run("mlflow", tmp_path)
    assert stored_run_id(tmp_path, "mlflow") != run_id

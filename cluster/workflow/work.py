"""What each step does: its command line, what its output depends on, and where that lies."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from cluster.workflow.identity import (
    identity_of_checkpoint,
    identity_of_file,
    identity_of_folder,
    identity_of_text,
    identity_of_tokens,
    text_of,
)
from cluster.workflow.marker import load_marker
from cluster.workflow.todo import StepState
from pipeline.config.schema import RunConfig
from pipeline.config.workflow_section import EvaluateStep, ExportStep, PrepareStep, WorkflowStep

Identity = Callable[[], str | None]

_CERTIFICATE = "conversion.json"
# Settings of a run that decide nothing about the model that is trained: where and how it is computed, saved,
# shown and sent off. Inputs count by their content.
_WITHOUT_EFFECT = (
    *("name", "output_dir", "parallel", "checkpoint", "evaluation", "metrics", "submit", "workflow"),
    *("training.micro_batch_size", "data.path", "data.heldout_path", "data.heldout_format"),
    *("data.heldout_split", "data.prefetch_batches", "init_from.path"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepWork:
    """A step, spelled out.

    Attributes:
        name: of the step.
        arguments: of `megaponder`.
        settings: all that the output depends on beside the inputs, by dotted name.
        inputs: what gives the identity of each input, and the folders and files they lie in.
        output: gives the identity of the output.
        folders: that the job reads or writes beside the run's own.
        needs: steps before it whose output it reads.
    """

    name: str
    arguments: tuple[str, ...]
    settings: Mapping[str, Any]
    inputs: Mapping[str, Identity]
    output: Identity
    folders: tuple[Path, ...] = ()
    needs: tuple[str, ...] = ()

    def state(self, run_folder: Path) -> StepState:
        """Look at what is there now.

        Raises:
            DataError: there is no text to prepare.
            ClusterError: its marker cannot be read.
        """
        return StepState(
            name=self.name,
            needs=self.needs,
            settings=self.settings,
            inputs={name: identity() for name, identity in self.inputs.items()},
            output=self.output(),
            marker=load_marker(run_folder, self.name),
        )


def work_of(config: RunConfig, step: WorkflowStep, config_file: Path) -> StepWork:
    """Spell out one step of a run.

    Args:
        config: of the run.
        step: one of its steps.
        config_file: where the job finds the settings.
    """
    if isinstance(step, PrepareStep):
        return _prepare(config, step)
    if isinstance(step, EvaluateStep):
        return _evaluate(config, step)
    if isinstance(step, ExportStep):
        return _export(config, step)
    return _train(config, step.name, config_file)


def prepared_folder(config: RunConfig, step: PrepareStep) -> Path:
    """Return where a step puts its tokens."""
    folder = step.output or config.data.path
    assert folder is not None, "a rule asks for the output of a step where there is no data.path"
    return folder


def _prepare(config: RunConfig, step: PrepareStep) -> StepWork:
    output = prepared_folder(config, step)
    options = {
        "--tokenizer": step.tokenizer,
        "--output": output,
        "--format": step.format,
        "--text-field": step.text_field,
        "--eod-token": step.eod_token,
        "--bos-token": step.bos_token,
        "--heldout-fraction": step.heldout_fraction,
        "--workers": step.workers,
        "--max-bad-records": step.max_bad_records,
    }
    settings = step.model_dump(
        mode="json",
        include={"format", "text_field", "lines", "suffixes", "eod_token", "bos_token", "heldout_fraction"},
    )
    return StepWork(
        name=step.name,
        arguments=(
            *("data", "prepare", *step.inputs, "--overwrite"),
            *_options(options),
            *(["--lines"] if step.lines else ()),
            *(word for suffix in step.suffixes for word in ("--suffix", suffix)),
        ),
        settings={**settings, "output": str(output)},
        inputs={
            "text": partial(identity_of_text, text_of(step)),
            "tokenizer": partial(identity_of_file, step.tokenizer),
        },
        output=partial(identity_of_tokens, output),
        folders=(output, step.tokenizer, *(Path(place) for place in step.inputs if Path(place).exists())),
    )


def _train(config: RunConfig, name: str, config_file: Path) -> StepWork:
    inputs: dict[str, Identity] = {
        f"data in {path}": partial(identity_of_tokens, path) for path in config.data.training_paths
    }
    start = config.init_from.path
    if start is not None:
        inputs[f"weights in {start}"] = partial(identity_of_checkpoint, start)
    return StepWork(
        name=name,
        arguments=("train", "--config", str(config_file)),
        settings=_training_settings(config),
        inputs=inputs,
        output=partial(identity_of_checkpoint, config.checkpoint_directory),
        folders=() if start is None else (start,),
        needs=tuple(step.name for step in config.workflow if step.command == "prepare"),
    )


def _training_settings(config: RunConfig) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for group, values in config.model_dump(mode="json").items():
        if isinstance(values, dict):
            flat |= {f"{group}.{name}": value for name, value in values.items()}
        else:
            flat[group] = values
    return {
        name: value
        for name, value in flat.items()
        if name not in _WITHOUT_EFFECT and name.partition(".")[0] not in _WITHOUT_EFFECT
    }


def _evaluate(config: RunConfig, step: EvaluateStep) -> StepWork:
    iters = step.iters or config.evaluation.iters
    output = step.output or config.output_dir / "evaluation.json"
    heldout = config.data.heldout_path
    paths = config.data.training_paths if heldout is None else (heldout,)
    options = {"--iters": iters, "--jacobi-iterations": step.jacobi_iterations, "--output": output}
    return StepWork(
        name=step.name,
        arguments=("eval", str(config.checkpoint_directory), *_options(options)),
        settings={"iters": iters, "jacobi_iterations": step.jacobi_iterations, "output": str(output)},
        inputs={
            "checkpoint": partial(identity_of_checkpoint, config.checkpoint_directory),
            **{f"data in {path}": partial(identity_of_tokens, path) for path in paths},
        },
        output=partial(identity_of_file, output),
        folders=paths,
        needs=tuple(other.name for other in config.workflow if other.command in ("prepare", "train")),
    )


def _export(config: RunConfig, step: ExportStep) -> StepWork:
    output = step.output or config.output_dir / step.name
    options = {"--output": output, "--dtype": step.dtype, "--tokenizer": step.tokenizer}
    inputs: dict[str, Identity] = {"checkpoint": partial(identity_of_checkpoint, config.checkpoint_directory)}
    if step.tokenizer is not None:
        inputs["tokenizer"] = partial(identity_of_folder, step.tokenizer)
    return StepWork(
        name=step.name,
        arguments=(
            *("convert", "to-hf", str(config.checkpoint_directory), *_options(options)),
            *(["--no-tokenizer"] if step.tokenizer is None else ()),
        ),
        settings={"dtype": step.dtype, "output": str(output)},
        inputs=inputs,
        output=partial(identity_of_file, output / _CERTIFICATE),
        folders=() if step.tokenizer is None else (step.tokenizer,),
        needs=tuple(other.name for other in config.workflow if other.command == "train"),
    )


def _options(options: Mapping[str, object]) -> tuple[str, ...]:
    return tuple(word for name, value in options.items() if value is not None for word in (name, str(value)))

"""The work of each workflow step: its command line, what its output depends on, and where that is."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from cluster.workflow.identity import (
    identity_of_checkpoint,
    identity_of_file,
    identity_of_files,
    identity_of_folder,
    identity_of_text,
    identity_of_tokens,
    text_of,
)
from cluster.workflow.marker import load_marker
from cluster.workflow.todo import StepState
from pipeline.config.schema import RunConfig
from pipeline.config.workflow_section import (
    EvaluateStep,
    ExportStep,
    GenerateStep,
    PrepareStep,
    ReportStep,
    TokenizerStep,
    TrainStep,
    WorkflowStep,
)
from pipeline.metrics.jsonl import METRICS_FILE

Identity = Callable[[], str | None]

_CERTIFICATE = "conversion.json"
_TOKENIZER_NAME = "tokenizer.model"
_EVALUATION, _SAMPLE, _REPORT = "evaluation.json", "sample.json", "report.html"
# What `megaponder eval --tasks` and `generate --output` add to a run later; see `pipeline.report.collect`.
_TASKS, _SAMPLES = "tasks.json", "sample*.json"
# Settings without effect on the trained model: where and how it is computed, saved, logged and submitted.
# Inputs count by their content.
_WITHOUT_EFFECT = (
    *(
        "name",
        "output_dir",
        "parallel",
        "checkpoint",
        "resume",
        "evaluation",
        "metrics",
        "submit",
        "workflow",
    ),
    *("training.micro_batch_size", "data.path", "data.heldout_path", "data.heldout_format"),
    *("data.heldout_split", "data.prefetch_batches", "init_from.path"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepWork:
    """A step as a command, with what identifies its result.

    Attributes:
        name: of the step.
        arguments: of `megaponder`.
        settings: all that the output depends on besides the inputs, by dotted name.
        inputs: functions that return the identity of each input.
        output: returns the identity of the output.
        folders: that the job reads or writes besides the run's own.
        needs: earlier steps whose output it reads.
    """

    name: str
    arguments: tuple[str, ...]
    settings: Mapping[str, Any]
    inputs: Mapping[str, Identity]
    output: Identity
    folders: tuple[Path, ...] = ()
    needs: tuple[str, ...] = ()

    def state(self, run_folder: Path) -> StepState:
        """Return the present state of the step.

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
    """Return the work of one step of a run.

    Args:
        config: of the run.
        step: of its workflow.
        config_file: with the settings, for the job.
    """
    match step:
        case TokenizerStep():
            return _tokenizer(config, step)
        case PrepareStep():
            return _prepare(config, step)
        case TrainStep():
            return _train(config, step.name, config_file)
        case EvaluateStep():
            return _evaluate(config, step)
        case GenerateStep():
            return _generate(config, step)
        case ExportStep():
            return _export(config, step)
        case ReportStep():
            return _report(config, step)


def prepared_folder(config: RunConfig, step: PrepareStep) -> Path:
    """Return the folder of the tokens that a step prepares."""
    folder = step.output or config.data.path
    assert folder is not None, "a rule requires the output of a step if there is no data.path"
    return folder


def tokenizer_file(config: RunConfig, step: TokenizerStep | PrepareStep) -> Path:
    """Return the tokenizer that a step trains or reads."""
    own = step.output if isinstance(step, TokenizerStep) else step.tokenizer
    if own is not None:
        return own
    if isinstance(step, PrepareStep):
        return tokenizer_file(config, next(s for s in config.workflow if isinstance(s, TokenizerStep)))
    return config.data.manifest_folder.parent / _TOKENIZER_NAME


def _tokenizer(config: RunConfig, step: TokenizerStep) -> StepWork:
    output = tokenizer_file(config, step)
    vocab_size = step.vocab_size or config.model.vocab_size
    return StepWork(
        name=step.name,
        arguments=(
            *("tokenizer", "train", *_text_arguments(step)),
            *_options({"--output": output, "--vocab-size": vocab_size}),
        ),
        settings={**_text_settings(step), "vocab_size": vocab_size, "output": str(output)},
        inputs={"text": partial(identity_of_text, text_of(step))},
        output=partial(identity_of_file, output),
        folders=(output.parent, *_text_folders(step)),
    )


def _prepare(config: RunConfig, step: PrepareStep) -> StepWork:
    output, tokenizer = prepared_folder(config, step), tokenizer_file(config, step)
    options = {
        "--tokenizer": tokenizer,
        "--output": output,
        "--format": step.format,
        "--eod-token": step.eod_token,
        "--bos-token": step.bos_token,
        "--tokenizer-backend": step.tokenizer_backend,
        "--workers": step.workers,
        "--max-bad-records": step.max_bad_records,
        "--max-bad-files": step.max_bad_files,
    }
    settings = step.model_dump(mode="json", include={"format", "eod_token", "bos_token"})
    return StepWork(
        name=step.name,
        arguments=("data", "prepare", *_text_arguments(step), "--overwrite", *_options(options)),
        settings={**settings, **_text_settings(step), "output": str(output)},
        inputs={
            "text": partial(identity_of_text, text_of(step)),
            "tokenizer": partial(identity_of_file, tokenizer),
        },
        output=partial(identity_of_tokens, output),
        folders=(output, tokenizer, *_text_folders(step)),
        needs=_names_of(config, "tokenizer") if step.tokenizer is None else (),
    )


def _text_arguments(step: TokenizerStep | PrepareStep) -> tuple[str, ...]:
    options = {"--text-field": step.text_field, "--heldout-fraction": step.heldout_fraction}
    return (
        *step.inputs,
        *(["--python-stdlib"] if step.python_stdlib else ()),
        *_options(options),
        *(["--lines"] if step.lines else ()),
        *(word for suffix in step.suffixes for word in ("--suffix", suffix)),
    )


def _text_settings(step: TokenizerStep | PrepareStep) -> dict[str, Any]:
    # Which text it is counts by its content.
    return step.model_dump(mode="json", include={"text_field", "lines", "suffixes", "heldout_fraction"})


def _text_folders(step: TokenizerStep | PrepareStep) -> tuple[Path, ...]:
    return tuple(Path(place) for place in step.inputs if Path(place).exists())


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
        needs=_names_of(config, "prepare"),
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
    output = step.output or config.output_dir / _EVALUATION
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
        needs=_names_of(config, "prepare", "train"),
    )


def _export(config: RunConfig, step: ExportStep) -> StepWork:
    output = step.output or config.output_dir / step.name
    options = {"--output": output, "--dtype": step.dtype, "--tokenizer": step.tokenizer}
    inputs: dict[str, Identity] = {
        "checkpoint": partial(identity_of_checkpoint, config.checkpoint_directory),
        # The model card holds their figures.
        **_scores(config),
    }
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
        needs=_names_of(config, "train", "evaluate"),
    )


def _generate(config: RunConfig, step: GenerateStep) -> StepWork:
    output = step.output or config.output_dir / _SAMPLE
    settings = step.model_dump(include={"prompt", "max_new_tokens", "temperature", "top_p", "seed"})
    options = {f"--{name.replace('_', '-')}": value for name, value in settings.items()}
    return StepWork(
        name=step.name,
        arguments=(
            *("generate", str(config.checkpoint_directory)),
            *_options({**options, "--output": output}),
        ),
        settings={**settings, "output": str(output)},
        inputs={"checkpoint": partial(identity_of_checkpoint, config.checkpoint_directory)},
        output=partial(identity_of_file, output),
        needs=_names_of(config, "train"),
    )


def _report(config: RunConfig, step: ReportStep) -> StepWork:
    output = step.output or config.output_dir / _REPORT
    return StepWork(
        name=step.name,
        arguments=("report", str(config.output_dir), *_options({"--output": output})),
        settings={"output": str(output)},
        inputs={
            METRICS_FILE: partial(identity_of_file, config.output_dir / METRICS_FILE),
            **_scores(config),
            "samples": partial(identity_of_files, config.output_dir, _SAMPLES),
        },
        output=partial(identity_of_file, output),
        folders=config.data.training_paths,
        needs=_names_of(config, "train", "evaluate", "generate"),
    )


def _scores(config: RunConfig) -> dict[str, Identity]:
    """Return the inputs of a step that shows what evaluations have found."""
    return {name: partial(identity_of_file, config.output_dir / name) for name in (_EVALUATION, _TASKS)}


def _names_of(config: RunConfig, *commands: str) -> tuple[str, ...]:
    return tuple(step.name for step in config.workflow if step.command in commands)


def _options(options: Mapping[str, object]) -> tuple[str, ...]:
    return tuple(word for name, value in options.items() if value is not None for word in (name, str(value)))

"""What each stage does: its command line, what its output depends on, and where that lies."""

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
from cluster.workflow.todo import StageState
from pipeline.config.schema import RunConfig
from pipeline.config.workflow_section import EvaluateStage, ExportStage, PrepareStage, Stage

Identity = Callable[[], str | None]

_CERTIFICATE = "conversion.json"
# Settings of a run that decide nothing about the model that is trained: where and how it is computed, saved,
# shown and sent off. Inputs count by their content.
_WITHOUT_EFFECT = (
    *("name", "output_dir", "parallel", "checkpoint", "evaluation", "metrics", "submit", "stages"),
    *("training.micro_batch_size", "data.path", "data.heldout_path", "data.heldout_format"),
    *("data.heldout_split", "data.prefetch_batches", "init_from.path"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class StageWork:
    """A stage, spelled out.

    Attributes:
        name: of the stage.
        arguments: of `megaponder`.
        settings: all that the output depends on beside the inputs, by dotted name.
        inputs: what gives the identity of each input, and the folders and files they lie in.
        output: gives the identity of the output.
        folders: that the job reads or writes beside the run's own.
        needs: stages before it whose output it reads.
    """

    name: str
    arguments: tuple[str, ...]
    settings: Mapping[str, Any]
    inputs: Mapping[str, Identity]
    output: Identity
    folders: tuple[Path, ...] = ()
    needs: tuple[str, ...] = ()

    def state(self, run_folder: Path) -> StageState:
        """Look at what is there now.

        Raises:
            DataError: there is no text to prepare.
            ClusterError: its marker cannot be read.
        """
        return StageState(
            name=self.name,
            needs=self.needs,
            settings=self.settings,
            inputs={name: identity() for name, identity in self.inputs.items()},
            output=self.output(),
            marker=load_marker(run_folder, self.name),
        )


def work_of(config: RunConfig, stage: Stage, config_file: Path) -> StageWork:
    """Spell out one stage of a run.

    Args:
        config: of the run.
        stage: one of its stages.
        config_file: where the job finds the settings.
    """
    if isinstance(stage, PrepareStage):
        return _prepare(config, stage)
    if isinstance(stage, EvaluateStage):
        return _evaluate(config, stage)
    if isinstance(stage, ExportStage):
        return _export(config, stage)
    return _train(config, stage.name, config_file)


def prepared_folder(config: RunConfig, stage: PrepareStage) -> Path:
    """Return where a stage puts its tokens."""
    folder = stage.output or config.data.path
    assert folder is not None, "a rule asks for the output of a stage where there is no data.path"
    return folder


def _prepare(config: RunConfig, stage: PrepareStage) -> StageWork:
    output = prepared_folder(config, stage)
    options = {
        "--tokenizer": stage.tokenizer,
        "--output": output,
        "--format": stage.format,
        "--text-field": stage.text_field,
        "--eod-token": stage.eod_token,
        "--bos-token": stage.bos_token,
        "--heldout-fraction": stage.heldout_fraction,
        "--workers": stage.workers,
        "--max-bad-records": stage.max_bad_records,
    }
    settings = stage.model_dump(
        mode="json",
        include={"format", "text_field", "lines", "suffixes", "eod_token", "bos_token", "heldout_fraction"},
    )
    return StageWork(
        name=stage.name,
        arguments=(
            *("data", "prepare", *stage.inputs, "--overwrite"),
            *_options(options),
            *(["--lines"] if stage.lines else ()),
            *(word for suffix in stage.suffixes for word in ("--suffix", suffix)),
        ),
        settings={**settings, "output": str(output)},
        inputs={
            "text": partial(identity_of_text, text_of(stage)),
            "tokenizer": partial(identity_of_file, stage.tokenizer),
        },
        output=partial(identity_of_tokens, output),
        folders=(output, stage.tokenizer, *(Path(place) for place in stage.inputs if Path(place).exists())),
    )


def _train(config: RunConfig, name: str, config_file: Path) -> StageWork:
    inputs: dict[str, Identity] = {
        f"data in {path}": partial(identity_of_tokens, path) for path in config.data.training_paths
    }
    start = config.init_from.path
    if start is not None:
        inputs[f"weights in {start}"] = partial(identity_of_checkpoint, start)
    return StageWork(
        name=name,
        arguments=("train", "--config", str(config_file)),
        settings=_training_settings(config),
        inputs=inputs,
        output=partial(identity_of_checkpoint, config.checkpoint_directory),
        folders=() if start is None else (start,),
        needs=tuple(stage.name for stage in config.stages if stage.command == "prepare"),
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


def _evaluate(config: RunConfig, stage: EvaluateStage) -> StageWork:
    iters = stage.iters or config.evaluation.iters
    output = stage.output or config.output_dir / "evaluation.json"
    heldout = config.data.heldout_path
    paths = config.data.training_paths if heldout is None else (heldout,)
    options = {"--iters": iters, "--jacobi-iterations": stage.jacobi_iterations, "--output": output}
    return StageWork(
        name=stage.name,
        arguments=("eval", str(config.checkpoint_directory), *_options(options)),
        settings={"iters": iters, "jacobi_iterations": stage.jacobi_iterations, "output": str(output)},
        inputs={
            "checkpoint": partial(identity_of_checkpoint, config.checkpoint_directory),
            **{f"data in {path}": partial(identity_of_tokens, path) for path in paths},
        },
        output=partial(identity_of_file, output),
        folders=paths,
        needs=tuple(other.name for other in config.stages if other.command in ("prepare", "train")),
    )


def _export(config: RunConfig, stage: ExportStage) -> StageWork:
    output = stage.output or config.output_dir / stage.name
    options = {"--output": output, "--dtype": stage.dtype, "--tokenizer": stage.tokenizer}
    inputs: dict[str, Identity] = {"checkpoint": partial(identity_of_checkpoint, config.checkpoint_directory)}
    if stage.tokenizer is not None:
        inputs["tokenizer"] = partial(identity_of_folder, stage.tokenizer)
    return StageWork(
        name=stage.name,
        arguments=(
            *("convert", "to-hf", str(config.checkpoint_directory), *_options(options)),
            *(["--no-tokenizer"] if stage.tokenizer is None else ()),
        ),
        settings={"dtype": stage.dtype, "output": str(output)},
        inputs=inputs,
        output=partial(identity_of_file, output / _CERTIFICATE),
        folders=() if stage.tokenizer is None else (stage.tokenizer,),
        needs=tuple(other.name for other in config.stages if other.command == "train"),
    )


def _options(options: Mapping[str, object]) -> tuple[str, ...]:
    return tuple(word for name, value in options.items() if value is not None for word in (name, str(value)))

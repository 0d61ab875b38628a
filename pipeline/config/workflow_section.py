"""Settings of the steps of a run that `megaponder submit` sends off together: from raw text to a result."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from pipeline.config.section import BelowOne, Count, CountOrZero, Section, Switch

_Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
_Word = Annotated[str, Field(min_length=1)]


class StepResources(Section):
    """What the job of a step asks for instead of what `submit` says; absent: as there.

    A step other than train is one process on one node.
    """

    gpus_per_node: Annotated[int, Field(strict=True, ge=0, le=1)] | None = Field(
        None, description="not of train; default: 1 for evaluate where the run has GPUs, else 0"
    )
    cpus_per_rank: Count | None = None
    memory_per_node: Annotated[str, Field(pattern=r"^[1-9][0-9]*[KMGT]$")] | None = None
    wall_time: Annotated[str, Field(pattern=r"^([0-9]+-)?[0-9]{1,2}:[0-9]{2}:[0-9]{2}$")] | None = None
    partition: _Word | None = None
    qos: _Word | None = None


class _Step(Section):
    command: str
    name: _Name = Field(
        default_factory=lambda given: given["command"], description="of its job and marker; default: command"
    )
    submit: StepResources = StepResources()


class PrepareStep(_Step):
    """`megaponder data prepare`: its arguments of the same names."""

    command: Literal["prepare"]
    inputs: Annotated[tuple[_Word, ...], Field(min_length=1)] = Field(
        description="files, folders, globs and URLs of text"
    )
    tokenizer: Path
    output: Path | None = Field(None, description="default: data.path")
    format: Literal["webdataset", "megatron"] = "webdataset"
    text_field: _Word = "text"
    lines: Switch = False
    suffixes: tuple[_Word, ...] = ()
    eod_token: _Word | None = None
    bos_token: _Word | None = None
    heldout_fraction: BelowOne = 0.05
    workers: CountOrZero = 2
    max_bad_records: CountOrZero = 100


class TrainStep(_Step):
    """`megaponder train` with the settings of the file."""

    command: Literal["train"]


class EvaluateStep(_Step):
    """`megaponder eval` of the newest checkpoint."""

    command: Literal["evaluate"]
    iters: Count | None = Field(None, description="default: evaluation.iters")
    jacobi_iterations: CountOrZero | None = Field(None, description="default: the run's")
    output: Path | None = Field(None, description="default: output_dir/evaluation.json")


class ExportStep(_Step):
    """`megaponder convert to-hf` of the newest checkpoint."""

    command: Literal["export"]
    output: Path | None = Field(None, description="default: output_dir/<name>")
    dtype: Literal["fp32", "fp16", "bf16"] | None = None
    tokenizer: Path | None = Field(
        None, description="folder of a Hugging Face tokenizer; default: the model goes without one"
    )


WorkflowStep = Annotated[PrepareStep | TrainStep | EvaluateStep | ExportStep, Field(discriminator="command")]

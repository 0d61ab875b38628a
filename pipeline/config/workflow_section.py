"""Settings of the workflow of a run, from raw text to a report: what `megaponder submit` and `demo` run."""

from typing import Annotated, Literal

from pydantic import Field, SerializationInfo, field_serializer

from pipeline.config.section import (
    BelowOne,
    Count,
    CountOrZero,
    FilePath,
    NonNegative,
    PathText,
    Positive,
    QueueName,
    Section,
    Switch,
    shows_secrets,
)
from pipeline.shared.secrets import mask_text

# In the folder of a run: a file for each step, with what it ran on and when; see `cluster.workflow.marker`.
MARKER_FOLDER = "workflow"

_Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
_Word = Annotated[str, Field(min_length=1)]


class StepResources(Section):
    """What the job of a step requests where that differs from `submit`.

    Submitted to a cluster, a step other than train is one process on one node.
    """

    gpus_per_node: Annotated[int, Field(strict=True, ge=0, le=1)] | None = Field(
        None, description="not of train; default: 1 for evaluate where the run has GPUs, else 0"
    )
    cpus_per_rank: Count | None = None
    memory_per_node: Annotated[str, Field(pattern=r"^[1-9][0-9]*[KMGT]$")] | None = None
    wall_time: Annotated[str, Field(pattern=r"^([0-9]+-)?[0-9]{1,2}:[0-9]{2}:[0-9]{2}$")] | None = None
    partition: QueueName | None = None
    qos: QueueName | None = None


class _Step(Section):
    command: str
    name: _Name = Field(
        default_factory=lambda given: given["command"], description="of its job and marker; default: command"
    )
    submit: StepResources = StepResources()


class _TextStep(_Step):
    inputs: tuple[PathText, ...] = Field((), description="files, folders, globs and URLs of text")
    python_stdlib: Switch = Field(
        False, description="instead of inputs: the sources of this Python's standard library"
    )
    text_field: _Word = "text"
    lines: Switch = False
    suffixes: tuple[_Word, ...] = ()
    heldout_fraction: BelowOne = 0.05

    @field_serializer("inputs", when_used="json")
    def _mask_addresses(self, values: tuple[str, ...], info: SerializationInfo) -> list[str]:
        return [value if shows_secrets(info) else mask_text(value) for value in values]


class TokenizerStep(_TextStep):
    """`megaponder tokenizer train`: its arguments of the same names."""

    command: Literal["tokenizer"]
    output: FilePath | None = Field(None, description="default: tokenizer.model next to the data")
    vocab_size: Count | None = Field(None, description="default: model.vocab_size")


class PrepareStep(_TextStep):
    """`megaponder data prepare`: its arguments of the same names."""

    command: Literal["prepare"]
    tokenizer: FilePath | None = Field(None, description="default: the output of the step tokenizer")
    output: FilePath | None = Field(None, description="default: data.path")
    format: Literal["webdataset", "megatron"] = "webdataset"
    eod_token: _Word | None = None
    bos_token: _Word | None = None
    tokenizer_backend: Literal["auto", "native", "gigatoken"] = "auto"
    workers: CountOrZero = 2
    max_bad_records: CountOrZero = 100
    max_bad_files: CountOrZero = 0


class TrainStep(_Step):
    """`megaponder train` with the settings of the file."""

    command: Literal["train"]


class EvaluateStep(_Step):
    """`megaponder eval` of the newest checkpoint."""

    command: Literal["evaluate"]
    iters: Count | None = Field(None, description="default: evaluation.iters")
    jacobi_iterations: CountOrZero | None = Field(None, description="default: the run's")
    output: FilePath | None = Field(None, description="default: output_dir/evaluation.json")


class ExportStep(_Step):
    """`megaponder convert to-hf` of the newest checkpoint."""

    command: Literal["export"]
    output: FilePath | None = Field(None, description="default: output_dir/<name>")
    dtype: Literal["fp32", "fp16", "bf16"] | None = None
    tokenizer: FilePath | None = Field(
        None, description="folder of a Hugging Face tokenizer; default: the model goes without one"
    )


class GenerateStep(_Step):
    """`megaponder generate` with the newest checkpoint: its arguments of the same names."""

    command: Literal["generate"]
    prompt: Annotated[str, Field(min_length=1)]
    max_new_tokens: Count = 64
    temperature: NonNegative = 0.0
    top_p: Positive = 1.0
    seed: CountOrZero = 0
    output: FilePath | None = Field(None, description="default: output_dir/sample.json")


class ReportStep(_Step):
    """`megaponder report` of the run."""

    command: Literal["report"]
    output: FilePath | None = Field(None, description="default: output_dir/report.html")


WorkflowStep = Annotated[
    TokenizerStep | PrepareStep | TrainStep | EvaluateStep | GenerateStep | ExportStep | ReportStep,
    Field(discriminator="command"),
]

"""Every setting of a run: names, types, ranges and defaults. Some sections have modules of their own.

Rules between several settings are in `pipeline.config.rules`. Building a `RunConfig` checks both; building a
section alone (tests, golden vectors) checks types and ranges only.
"""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from megatron_ext.ponder.config import Method
from pipeline.config.errors import ConfigError, ConfigProblem
from pipeline.config.optimizer_section import OptimizerConfig as OptimizerConfig
from pipeline.config.ponder_section import PonderSection as PonderSection
from pipeline.config.rules import broken_rules
from pipeline.config.rules_parallel import even_stages
from pipeline.config.section import (
    Count,
    CountOrZero,
    Few,
    FilePath,
    Positive,
    Section,
    Switch,
)
from pipeline.config.submit_section import SubmitSection
from pipeline.config.workflow_section import WorkflowStep


class ModelConfig(Section):
    """The backbone: sizes and layout of the transformer."""

    architecture: Literal["gpt_neox", "llama"] = Field(
        description="gpt_neox: parallel attention and MLP, LayerNorm and biases, as Pythia; llama: RMSNorm "
        "and SwiGLU"
    )
    num_layers: Few = Field(description="layers that one pass goes through")
    hidden_size: Count = Field(description="features of a hidden state, H")
    ffn_hidden_size: Count = Field(description="features inside an MLP")
    num_attention_heads: Few = Field(description="query heads")
    num_query_groups: Few = Field(
        default_factory=lambda given: given["num_attention_heads"],
        description="key/value heads; default: one per attention head",
    )
    kv_channels: Count = Field(
        default_factory=lambda given: given["hidden_size"] // given["num_attention_heads"],
        description="size of one head; default: hidden_size / num_attention_heads",
    )
    vocab_size: Count | None = Field(None, description="default: that of the tokenizer of the data")
    make_vocab_size_divisible_by: Count = Field(
        128, description="the vocabulary is padded to a multiple of this times parallel.tensor"
    )
    max_position_embeddings: Count = Field(2048, description="longest sequence, in tokens")
    rotary_percent: Annotated[float, Field(strict=True, gt=0, le=1)] = Field(
        default_factory=lambda given: 0.25 if given["architecture"] == "gpt_neox" else 1.0,
        description="rotated share of a head; default: 0.25 for gpt_neox, 1.0 for llama",
    )
    rotary_base: Count = Field(10000, description="base of the wavelengths of rotary positions")
    norm_epsilon: Positive = Field(1e-5, description="added to the variance in normalizations")
    untie_embeddings_and_output_weights: Switch = Field(
        True, description="the output layer has weights of its own"
    )
    padding_token_id: CountOrZero | None = Field(
        None, description="a token whose embedding row receives no gradient from lookups"
    )
    init: Literal["megatron", "ponderlm2"] = Field(
        "megatron",
        description="initial weights: normal with init_std and smaller residual outputs (megatron), or those "
        "of the research code of PonderLM-2",
    )
    init_std: Positive = Field(0.02, description="standard deviation of init: megatron")


class ParallelConfig(Section):
    """How the model and its batches are distributed over ranks."""

    tensor: Few = Field(1, description="ranks that share each layer's weights")
    context: Few = Field(
        1,
        description="ranks that share the tokens of each sequence, for sequences too long for one; "
        "training.seq_length is a multiple of twice this",
    )
    pipeline: Few = Field(1, description="pipeline stages, which share the layers")
    layers_per_stage: tuple[Count, ...] | None = Field(
        None, description="layers of each pipeline stage; default: even, the first stages hold the remainder"
    )
    data: Few = Field(1, description="copies of the model, which share each global batch")
    sequence_parallel: Switch = Field(
        False,
        description="tensor-parallel ranks also share the activations between layers, along the sequence",
    )
    recompute: Literal["none", "full", "per_pass", "selective"] = Field(
        "none",
        description="activations that backward recomputes instead of storing: what takes no matrix product, "
        "as norms and activation functions (selective), those of every layer (full), or of a whole pass "
        "through the layers (per_pass)",
    )
    use_distributed_optimizer: Switch = Field(
        True,
        description="the copies of the model share the optimizer's state (ZeRO-1); with optimizer.name muon, "
        "by whole weights",
    )
    overlap_grad_reduce: Switch = Field(
        False, description="sum gradients over the copies of the model during backward"
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto",
        description="what ranks compute on; auto: what the environment variable MEGAPONDER_DEVICE names, "
        "else CUDA where there is a device",
    )
    timeout_seconds: Count = Field(600, description="limit of a collective operation")
    watchdog_seconds: CountOrZero = Field(
        default_factory=lambda given: given["timeout_seconds"] // 2,
        description="seconds without a started micro-batch or finished step after which all ranks dump "
        "their stacks and the run ends with exit code 75; 0: no limit; default: half of timeout_seconds",
    )

    @property
    def recomputes_layers(self) -> bool:
        """Whether backward runs layers again, each use of which is then a backward of its own."""
        return self.recompute in ("full", "per_pass")

    @property
    def world_size(self) -> int:
        """Number of ranks that the parallel layout needs."""
        return self.model_ranks * self.data

    @property
    def model_ranks(self) -> int:
        """Number of ranks that work on one micro-batch."""
        return self.tensor * self.context * self.pipeline

    @property
    def sizes(self) -> str:
        """The sizes of the axes in words; a context axis only where there is one."""
        context = f" x context {self.context}" if self.context > 1 else ""
        return f"tensor {self.tensor}{context} x pipeline {self.pipeline} x data {self.data}"


class TrainingConfig(Section):
    """Length, batch sizes and precision of the training."""

    seq_length: Count = Field(description="tokens per sequence")
    micro_batch_size: Count = Field(description="sequences per forward pass of a rank")
    global_batch_size: Count = Field(description="sequences per iteration over all ranks")
    train_iters: Count = Field(
        description="iterations of the run; an iteration is one global batch and one update"
    )
    precision: Literal["fp32", "bf16"] = Field(
        "fp32", description="of weights and computation; the optimizer keeps its weights and moments in fp32"
    )
    attention: Literal["auto", "flash", "cudnn"] = Field(
        "auto",
        description="kernel of attention on CUDA; auto: FlashAttention, or what torch has for the precision; "
        "flash: FlashAttention alone; cudnn: cuDNN's for rows of one document, which is faster on recent "
        "devices; never for documents or decoding; checked against float64 at the start",
    )
    fused: Literal["auto", "never"] = Field(
        "auto",
        description="on CUDA, compile the element-wise work of layers with torch.compile, compute losses and "
        "mixtures over the vocabulary in chunks, and accumulate weight gradients in fp32 within their "
        "products; auto: where Triton is installed, but not with deterministic; never: operation by "
        "operation, as on CPUs",
    )
    deterministic: Switch = Field(
        False,
        description="on GPUs, bitwise equal runs on the same layout and machines; slower (on CPUs runs "
        "always are)",
    )
    exit_interval: Count | None = Field(
        None, description="save and exit with code 0 at every multiple of this iteration"
    )
    exit_duration_in_mins: Positive | None = Field(
        None, description="save and exit with code 0 after this time"
    )


class BlendSource(Section):
    """One source of a blend."""

    path: FilePath = Field(description="as data.path, in the format data.format")
    weight: Positive = Field(1.0, description="share of the samples relative to the other sources")
    max_epochs: Positive | None = Field(
        None, description="passes after which the blend continues without this source; default: unlimited"
    )
    name: Annotated[str, Field(min_length=1)] = Field(
        default_factory=lambda given: given["path"].name,
        description="name of its loss curve; default: the last part of the path",
    )


class DataConfig(Section):
    """Where the tokens are, and how they are cut into rows."""

    path: FilePath | None = Field(
        None, description="folder of shards with their manifest.json; for other formats see `format`"
    )
    sources: Annotated[tuple[BlendSource, ...], Field(min_length=1)] | None = Field(
        None, description="a blend instead of path: a list of path, weight, max_epochs, name"
    )
    format: Literal["webdataset", "megatron", "rows"] = Field(
        "webdataset",
        description="webdataset: shards of megaponder data prepare; megatron: Megatron's .bin and .idx (a "
        "folder with a pair named after each split, or the prefix of one pair); rows: pre-shuffled rows of "
        "seq_length + 1 tokens, concatenated in the .bin files of a folder or of its subfolder named after "
        "the split",
    )
    token_type: Literal["uint16", "int32"] | None = Field(
        None, description="storage type of a token in format: rows; default: uint16"
    )
    eod_id: CountOrZero | None = Field(
        None, description="the token that ends every document; for formats without a manifest"
    )
    heldout_path: FilePath | None = Field(
        None,
        description="location of the held-out split, which may hold nothing else; default: path, or the "
        "paths of all sources",
    )
    heldout_format: Literal["webdataset", "megatron", "rows"] = Field(
        default_factory=lambda given: given["format"], description="default: format"
    )
    train_split: Annotated[str, Field(min_length=1)] = Field(
        "train", description="name of the split to train on"
    )
    heldout_split: Annotated[str, Field(min_length=1)] = Field(
        "heldout", description="name of the split to evaluate on"
    )
    order: Literal["shuffled", "sequential"] = Field(
        default_factory=lambda given: "sequential" if given["format"] == "rows" else "shuffled",
        description="default: shuffled again in every epoch; format rows: sequential",
    )
    prefetch_batches: CountOrZero = Field(
        2, description="global batches whose share a rank reads ahead in the background; 0: none"
    )
    reset_positions: Switch = Field(True, description="positions restart at each document")
    reset_attention: Switch = Field(True, description="documents in a row do not attend to each other")
    mask_document_boundaries: Switch = Field(
        True, description="no loss for predicting the first token of the next document"
    )

    @property
    def training_paths(self) -> tuple[Path, ...]:
        """Paths of the training text: one, or those of a blend."""
        if self.sources is not None:
            return tuple(source.path for source in self.sources)
        assert self.path is not None, "the rules ask for data.path or data.sources"
        return (self.path,)

    @property
    def manifest_folder(self) -> Path:
        """Folder of shards whose manifest describes the text and the tokenizer of the run.

        Raises:
            ConfigError: the run reads no shards.
        """
        if self.format == "webdataset":
            return self.training_paths[0]
        if self.heldout_path is not None and self.heldout_format == "webdataset":
            return self.heldout_path
        raise ConfigError(
            [
                ConfigProblem(
                    path="data.heldout_path",
                    rule="must be a folder of shards with their tokenizer, which is needed to show text",
                    value="not given" if self.heldout_path is None else str(self.heldout_path),
                    cure="give the output of megaponder data prepare, and data.heldout_format: webdataset",
                )
            ]
        )


class InitFromSection(Section):
    """The model whose weights a run starts from, as long as it has no checkpoint of its own."""

    path: FilePath | None = Field(
        None,
        description="checkpoint folder of another run, or one iter_ folder; only the weights are loaded, "
        "optimizer, schedule and order of the data start from scratch; default: random initial weights",
    )
    format: Literal["native", "hf"] = Field(
        "native",
        description="native: checkpoints of this program; hf: a Hugging Face folder, which the first start "
        "of the run converts to output_dir/init_from",
    )
    iteration: CountOrZero | None = Field(
        None, description="iteration of the checkpoint; default: the newest"
    )
    method: Method | None = Field(
        None, description="method of that model: the run's own or one that it can start from"
    )
    allow_unused: Switch = Field(False, description="ignore weights that this run's model does not have")
    ignore: tuple[str, ...] = Field(
        (), description="format hf: unknown keys of its config.json that do not affect the weights"
    )
    convert_timeout_seconds: Count = Field(
        7200, description="format hf: limit of the conversion, during which all other ranks wait"
    )


class CheckpointConfig(Section):
    """Where, how often and how the state of a run is saved."""

    directory: FilePath | None = Field(None, description="default: output_dir/checkpoints")
    interval: Count | None = Field(
        None, description="iterations between checkpoints; default: only at the end"
    )
    minutes: Positive | None = Field(
        None, description="minutes between checkpoints, beside the interval; default: no limit"
    )
    keep_last: Count | None = Field(None, description="number of newest checkpoints to keep; default: all")
    keep_every: Count | None = Field(
        None, description="in addition to keep_last, keep checkpoints at multiples of this iteration"
    )
    resume: Switch = Field(True, description="resume from the newest complete checkpoint, if there is one")
    verify: Switch = Field(
        True, description="compare checksums before a checkpoint is loaded; false: only file sizes"
    )
    async_save: Switch = Field(
        False, description="continue training while a checkpoint is written, from a copy in host memory"
    )


ResumeFact = Literal["method", "seed", "data", "row_length", "batch_size", "order"]


class ResumeSection(Section):
    """What may differ from the checkpoint that a run resumes from."""

    accept_changes: tuple[ResumeFact, ...] = Field(
        (),
        description="facts that may differ from those in the checkpoint: method (with the settings of "
        "ponder), seed, data, row_length (training.seq_length), batch_size (training.global_batch_size), "
        "order (data.order); another one that differs ends the run with exit code 93",
    )


class EvaluationConfig(Section):
    """Held-out evaluation during training."""

    interval: Count | None = Field(
        None, description="iterations between evaluations; default: only at the end"
    )
    iters: Count = Field(8, description="global batches of the held-out split per evaluation")
    at_start: Switch | None = Field(
        None,
        description="evaluate before the first step, at iteration 0; default: true if the run starts from "
        "the weights of another model (init_from)",
    )
    sweep_steps: Switch = Field(
        False, description="also evaluate with at most 0, 1, .. K steps; costs up to K more evaluations"
    )
    sweep_tau: tuple[Annotated[float, Field(strict=True, gt=0, lt=1)], ...] = Field(
        (), description="also evaluate with hard pruning at these thresholds; each costs one more evaluation"
    )


class DivergenceConfig(Section):
    """Reaction to non-finite losses or gradients, and to loss spikes."""

    on_nonfinite: Literal["skip", "stop"] = Field(
        "skip",
        description="skip the update of the step and count it, or stop with exit code 93; its samples are "
        "consumed in either case",
    )
    spike_factor: Annotated[float, Field(strict=True, gt=1)] | None = Field(
        None,
        description="a loss above this multiple of the median of the last spike_window losses is a spike; "
        "default: spikes are not detected",
    )
    spike_window: Count = Field(
        64, description="number of losses of the median; spikes are detected only after as many"
    )
    on_spike: Literal["skip", "stop"] = Field(
        "skip", description="skip the update of the step and count it, or stop with exit code 93"
    )
    max_in_a_row: Count = Field(5, description="consecutive skipped steps after which the run stops")


class MetricsConfig(Section):
    """What is logged and how often."""

    interval: Count = Field(10, description="iterations between log lines")
    tensorboard: Switch = Field(True, description="write TensorBoard files to output_dir/tensorboard")
    sinks: tuple[Literal["wandb", "mlflow"], ...] = Field(
        (),
        description="where else metrics go: wandb (Weights & Biases), mlflow; each needs its extra "
        "and takes address and key from its own environment variables",
    )
    project: Annotated[str, Field(min_length=1, pattern=r"^[^\p{Cc}/\\#?%:]+$")] = Field(
        "megaponder", description="project (wandb) or experiment (mlflow) of the run, for metrics.sinks"
    )
    collapse_patience: Count = Field(
        20, description="log lines without adaptive halting after which a warning is logged"
    )


class ProfileSection(Section):
    """Which iterations are recorded by torch's profiler."""

    steps: tuple[Count, Count] | None = Field(
        None,
        description="first and last iteration whose operations are recorded, such as [5, 7]; each makes the "
        "file larger and its own iteration slower; default: none",
    )
    ranks: Annotated[tuple[CountOrZero, ...], Field(min_length=1)] = Field(
        (0,), description="ranks that record, each into files of its own in output_dir/profile"
    )


class RunConfig(Section):
    """All settings of a run, complete and consistent."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = Field(
        "run", description="of the run, in its folder, its jobs and its reports"
    )
    seed: CountOrZero = Field(
        1234, description="of the initial weights, the order of the data and every random number"
    )
    output_dir: FilePath = Field(
        default_factory=lambda given: Path("runs") / given["name"], description="default: runs/<name>"
    )
    model: ModelConfig
    ponder: PonderSection
    parallel: ParallelConfig = ParallelConfig()
    training: TrainingConfig
    optimizer: OptimizerConfig
    data: DataConfig
    init_from: InitFromSection = InitFromSection()
    checkpoint: CheckpointConfig = CheckpointConfig()
    resume: ResumeSection = ResumeSection()
    evaluation: EvaluationConfig = EvaluationConfig()
    divergence: DivergenceConfig = DivergenceConfig()
    metrics: MetricsConfig = MetricsConfig()
    profile: ProfileSection = ProfileSection()
    submit: SubmitSection = SubmitSection()
    workflow: tuple[WorkflowStep, ...] = Field(
        (), description="what `megaponder submit` runs; default: train alone"
    )

    @model_validator(mode="after")
    def _check_rules(self) -> Self:
        problems = broken_rules(self)
        if problems:
            raise ConfigError(problems)
        return self

    @property
    def checkpoint_directory(self) -> Path:
        """Folder of the run's checkpoints."""
        return self.checkpoint.directory or self.output_dir / "checkpoints"

    @property
    def lr_decay_iters(self) -> int:
        """Iteration at which the learning rate reaches min_lr."""
        return self.optimizer.lr_decay_iters or self.training.train_iters

    @property
    def evaluates_at_start(self) -> bool:
        """Whether an evaluation precedes the first step."""
        at_start = self.evaluation.at_start
        return self.init_from.path is not None if at_start is None else at_start

    @property
    def fuses(self) -> bool:
        """Whether a training on CUDA consists of fused functions, if they can be compiled there."""
        return self.training.fused == "auto" and not self.training.deterministic

    @property
    def num_micro_batches(self) -> int:
        """Forward passes of a rank per iteration."""
        return self.training.global_batch_size // (self.training.micro_batch_size * self.parallel.data)

    @property
    def stage_layers(self) -> tuple[int, ...]:
        """Layers of each pipeline stage, first stage first."""
        if self.parallel.layers_per_stage is not None:
            return self.parallel.layers_per_stage
        return even_stages(self.model.num_layers, self.parallel.pipeline)

    def embedding_rows(self, vocab_size: int) -> int:
        """Return the number of embedding rows without padding.

        Args:
            vocab_size: tokens of the tokenizer; a pause token without an id of its own uses the row after
                them.
        """
        reserves_a_row = self.ponder.method.facts.has_pause_tokens and self.ponder.pause_token_id is None
        return vocab_size + reserves_a_row

    def padded_vocab_size(self, vocab_size: int) -> int:
        """Return the number of embedding rows, with padding, for a tokenizer of `vocab_size` tokens."""
        return padded_vocab_size(
            self.embedding_rows(vocab_size),
            divisible_by=self.model.make_vocab_size_divisible_by,
            tensor=self.parallel.tensor,
        )


def padded_vocab_size(vocab_size: int, *, divisible_by: int, tensor: int) -> int:
    """Pad a vocabulary so that every tensor-parallel rank holds an equal part, by Megatron's rule.

    Args:
        vocab_size: tokens of the tokenizer, at least 1.
        divisible_by: the rows of a rank are a multiple of this.
        tensor: tensor-parallel ranks.

    Returns:
        the smallest multiple of `divisible_by * tensor` that is at least `vocab_size`.
    """
    multiple = divisible_by * tensor
    return -(-vocab_size // multiple) * multiple

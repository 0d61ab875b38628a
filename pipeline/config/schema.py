"""Every setting of a run: names, types, ranges and defaults.

Rules that tie several settings together are in `pipeline.config.rules`; both are applied whenever a
`RunConfig` is made. A section built alone (tests, golden vectors) is checked for types and ranges only.
"""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from megatron_ext.ponder.config import Method
from pipeline.config.errors import ConfigError
from pipeline.config.rules import broken_rules
from pipeline.config.vocabulary import padded_vocab_size

Count = Annotated[int, Field(strict=True, ge=1)]
CountOrZero = Annotated[int, Field(strict=True, ge=0)]
NonNegative = Annotated[float, Field(strict=True, ge=0)]
Positive = Annotated[float, Field(strict=True, gt=0)]
Fraction = Annotated[float, Field(strict=True, ge=0, le=1)]
BelowOne = Annotated[float, Field(strict=True, ge=0, lt=1)]
Switch = Annotated[bool, Field(strict=True)]
IterationRange = tuple[CountOrZero, CountOrZero]


class Section(BaseModel):
    """A group of settings: frozen, unknown keys refused, `null` means "not given"."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _drop_absent(cls, data: Any) -> Any:
        """Leave a setting given as null to its default."""
        if not isinstance(data, dict):
            return data
        return {key: value for key, value in data.items() if value is not None or key not in cls.model_fields}

    @field_validator("*", mode="after")
    @classmethod
    def _record_valid(cls, value: Any, info: ValidationInfo) -> Any:
        """Remember what is valid, so that rules on it can still be checked when something else is not."""
        if isinstance(info.context, dict) and info.field_name is not None:
            info.context.setdefault(cls, {})[info.field_name] = value
        return value


class ModelConfig(Section):
    """The backbone: sizes and layout of the transformer."""

    architecture: Literal["gpt_neox", "llama"]
    num_layers: Count
    hidden_size: Count
    ffn_hidden_size: Count
    num_attention_heads: Count
    num_query_groups: Count = Field(
        default_factory=lambda given: given["num_attention_heads"],
        description="key/value heads; default: one per attention head",
    )
    kv_channels: Count = Field(
        default_factory=lambda given: given["hidden_size"] // given["num_attention_heads"],
        description="size of one head; default: hidden_size / num_attention_heads",
    )
    vocab_size: Count | None = Field(None, description="default: taken from the tokenizer of the data")
    make_vocab_size_divisible_by: Count = Field(
        128, description="the vocabulary is padded to a multiple of this times parallel.tensor"
    )
    max_position_embeddings: Count = 2048
    rotary_percent: Annotated[float, Field(strict=True, gt=0, le=1)] = Field(
        default_factory=lambda given: 0.25 if given["architecture"] == "gpt_neox" else 1.0,
        description="rotated share of a head; default: 0.25 for gpt_neox, 1.0 for llama",
    )
    rotary_base: Count = 10000
    norm_epsilon: Positive = 1e-5
    untie_embeddings_and_output_weights: Switch = True
    padding_token_id: CountOrZero | None = Field(
        None, description="a token whose embedding row gets no gradient from being looked up"
    )
    init: Literal["megatron", "ponderlm2"] = "megatron"
    init_std: Positive = Field(0.02, description="standard deviation of init: megatron")


class PonderSection(Section):
    """The pondering method and how it halts."""

    method: Method
    num_latent_thoughts: CountOrZero = Field(
        default_factory=lambda given: 0 if given["method"] == Method.VANILLA else 3,
        description="K, extra steps per token; default: 3, for vanilla 0",
    )
    num_jacobi_iterations: CountOrZero = Field(
        default_factory=lambda given: 0 if given["num_latent_thoughts"] == 0 else 2,
        description="J, refinement sweeps; default: 2, without latent thoughts 0",
    )
    random_jacobi_iterations: IterationRange | None = Field(
        None, description="in training draw J uniformly from this inclusive range"
    )
    scale_embeds: Switch = Field(
        True, description="multiply embeddings by sqrt(2.5 H), with interpolation by sqrt(H)"
    )
    interpolation: Switch = Field(
        False, description="a thought is the mean embedding of the predicted tokens"
    )
    interpolation_use_topk: Switch = Field(False, description="mix only the most likely tokens")
    interpolation_topk: Count = 100
    pruning_threshold: BelowOne = Field(1e-4, description="tau: steps with less tail mass are pruned")
    penalty: Literal["expected_steps", "bottom_k"] = "expected_steps"
    penalty_weight: NonNegative = Field(0.3, description="lambda, once the ramp is over")
    penalty_ramp: IterationRange = Field(
        (0, 0), description="lambda rises linearly from 0 between these two iterations"
    )
    bottom_k_fraction: Fraction = 0.25


class ParallelConfig(Section):
    """How a model and its batches are spread over ranks."""

    tensor: Count = 1
    pipeline: Count = 1
    data: Count = 1
    sequence_parallel: Switch = False
    recompute: Literal["none", "selective", "full"] = "none"
    use_distributed_optimizer: Switch = True
    overlap_grad_reduce: Switch = False
    timeout_seconds: Count = Field(600, description="how long a collective waits for the other ranks")

    @property
    def world_size(self) -> int:
        """Number of ranks the layout needs."""
        return self.tensor * self.pipeline * self.data


class TrainingConfig(Section):
    """How much is trained on, in which portions and precision."""

    seq_length: Count = Field(description="tokens per sequence")
    micro_batch_size: Count = Field(description="sequences per forward pass of a rank")
    global_batch_size: Count = Field(description="sequences per iteration over all ranks")
    train_iters: Count
    precision: Literal["fp32", "bf16"] = "fp32"


class OptimizerConfig(Section):
    """AdamW and its learning-rate schedule."""

    lr: Positive
    min_lr: NonNegative = 0.0
    lr_decay_style: Literal["cosine", "wsd", "constant", "linear"] = "cosine"
    lr_warmup_iters: CountOrZero = 0
    lr_decay_iters: Count | None = Field(None, description="default: training.train_iters")
    wsd_decay_iters: Count | None = Field(None, description="length of the decay of lr_decay_style: wsd")
    weight_decay: NonNegative = 0.1
    adam_beta1: BelowOne = 0.9
    adam_beta2: BelowOne = 0.95
    adam_eps: Positive = 1e-8
    clip_grad: NonNegative = Field(1.0, description="largest gradient norm; 0 turns clipping off")


class DataConfig(Section):
    """Token shards and how rows are cut from them."""

    path: Path = Field(description="folder with the shards' manifest.json")
    train_split: Annotated[str, Field(min_length=1)] = "train"
    heldout_split: Annotated[str, Field(min_length=1)] = "heldout"
    order: Literal["shuffled", "sequential"] = "shuffled"
    reset_positions: Switch = Field(True, description="positions restart with each document")
    reset_attention: Switch = Field(True, description="documents of a row do not see each other")
    mask_document_boundaries: Switch = Field(
        True, description="the last token of a document is not trained to predict the next document's first"
    )


class CheckpointConfig(Section):
    """Where and how often the state of a run is saved."""

    directory: Path | None = Field(None, description="default: output_dir/checkpoints")
    interval: Count | None = Field(None, description="iterations between saves; default: only at the end")
    keep_last: Count | None = Field(None, description="how many checkpoints to keep; default: all")
    resume: Switch = Field(True, description="go on from the newest checkpoint, if there is one")


class EvaluationConfig(Section):
    """Held-out evaluation while training."""

    interval: Count | None = Field(
        None, description="iterations between evaluations; default: only at the end"
    )
    iters: Count = Field(8, description="global batches of the held-out split per evaluation")


class MetricsConfig(Section):
    """What is logged, and how often."""

    interval: Count = Field(10, description="iterations between two log lines")
    tensorboard: Switch = True
    collapse_patience: Count = Field(20, description="log lines without adaptive halting before a warning")


class RunConfig(Section):
    """All settings of a run, complete and consistent."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = "run"
    seed: CountOrZero = 1234
    output_dir: Path = Field(
        default_factory=lambda given: Path("runs") / given["name"], description="default: runs/<name>"
    )
    model: ModelConfig
    ponder: PonderSection
    parallel: ParallelConfig = ParallelConfig()
    training: TrainingConfig
    optimizer: OptimizerConfig
    data: DataConfig
    checkpoint: CheckpointConfig = CheckpointConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    metrics: MetricsConfig = MetricsConfig()

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
        """Iteration at which the learning rate reaches its minimum."""
        return self.optimizer.lr_decay_iters or self.training.train_iters

    @property
    def num_micro_batches(self) -> int:
        """Forward passes of a rank per iteration."""
        return self.training.global_batch_size // (self.training.micro_batch_size * self.parallel.data)

    def padded_vocab_size(self, vocab_size: int) -> int:
        """Return the rows of the embedding for a tokenizer of `vocab_size` tokens."""
        return padded_vocab_size(
            vocab_size, divisible_by=self.model.make_vocab_size_divisible_by, tensor=self.parallel.tensor
        )

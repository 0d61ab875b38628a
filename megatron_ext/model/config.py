"""One configuration object for Megatron's layers and for what a pondering model adds."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.utils import init_method_normal, scaled_init_method_normal
from torch import Tensor
from torch.nn import functional

from megatron_ext.ponder.config import PonderConfig


class Architecture(StrEnum):
    """The two backbones."""

    GPT_NEOX = "gpt_neox"
    LLAMA = "llama"


class Initialization(StrEnum):
    """Initialization scheme: Megatron's, or that of the published PonderLM-2 code (definitions 2.7)."""

    MEGATRON = "megatron"
    PONDERLM2 = "ponderlm2"


@dataclass
class PonderTransformerConfig(TransformerConfig):  # type: ignore[misc]  # Megatron is untyped
    """Megatron's TransformerConfig with the remaining facts of the backbone, and the pondering method.

    Attributes:
        architecture: which backbone.
        ponder: the pondering method.
        vocab_size: rows of the vocabulary that stand for a piece of the tokenizer.
        padded_vocab_size: rows that exist; a multiple of the tensor-parallel size.
        rotary_percent: rotated share of each head.
        rotary_base: rotary base.
        tie_embeddings: the head uses the embedding's weight.
        padding_token_id: token whose embedding row receives no gradient from look-ups, or None.
        initialization_seed: decides the initial weights, together with each weight's name.
        stage_layers: layers of each pipeline stage.
        recompute_passes: keep only the input of every pass, and run its layers again in backward.
        recompute_cheap_work: backward computes again what layers do beside products and attention.
        prefers_cudnn: on CUDA, cuDNN's kernel computes the attention of rows that are one document each.
        fuses: the element-wise work of layers, and the work over the vocabulary, runs as functions with a
            backward of their own, which can be compiled and keep less.
    """

    architecture: Architecture = Architecture.LLAMA
    ponder: PonderConfig = field(kw_only=True)
    vocab_size: int = field(kw_only=True)
    padded_vocab_size: int = field(kw_only=True)
    rotary_percent: float = 1.0
    rotary_base: float = 10000.0
    tie_embeddings: bool = False
    padding_token_id: int | None = None
    initialization_seed: int = 1234
    stage_layers: tuple[int, ...] = ()
    recompute_passes: bool = False
    recompute_cheap_work: bool = False
    prefers_cudnn: bool = False
    fuses: bool = False

    def __post_init__(self) -> None:
        """Tell Megatron which stage holds which layers.

        Raises:
            ValueError: the stages do not hold all layers.
        """
        self.stage_layers = self.stage_layers or (self.num_layers,)
        if len(self.stage_layers) != self.pipeline_model_parallel_size:
            raise ValueError(
                f"stage_layers must have one number for each of {self.pipeline_model_parallel_size} pipeline "
                f"stages, but is {self.stage_layers}"
            )
        if self.pipeline_model_parallel_size > 1:
            self.pipeline_model_parallel_layout = _megatron_layout(self.stage_layers)
        super().__post_init__()

    @property
    def layer_offset(self) -> int:
        """Layers on earlier pipeline stages."""
        return sum(self.stage_layers[: _stage()])

    @property
    def num_stage_layers(self) -> int:
        """Layers on this pipeline stage."""
        return self.stage_layers[_stage()]

    @property
    def embedding_rows(self) -> int:
        """Rows of the embedding that are looked up: the vocabulary, and a pause token after it."""
        pause = self.ponder.pause_token_id
        return self.vocab_size if pause is None else max(self.vocab_size, pause + 1)

    @property
    def rotary_size(self) -> int:
        """Rotated channels of a head."""
        return int(self.kv_channels * self.rotary_percent)


def architecture_settings(architecture: Architecture) -> dict[str, Any]:
    """Return the TransformerConfig fields that the backbone fixes."""
    if architecture is Architecture.GPT_NEOX:
        return {"normalization": "LayerNorm", "add_bias_linear": True, "activation_func": functional.gelu}
    return {
        "normalization": "RMSNorm",
        "add_bias_linear": False,
        "activation_func": functional.silu,
        "gated_linear_unit": True,
    }


def initialization_settings(
    kind: Initialization,
    *,
    vocab_size: int,
    architecture: Architecture,
    std: float,
    hidden_size: int,
    num_layers: int,
    num_slots: int,
) -> dict[str, Any]:
    """Return the TransformerConfig fields of the initialization.

    Args:
        kind: the scheme.
        vocab_size: rows of embedding and head in use; the others are 0.
        architecture: the published PonderLM-2 scheme differs between backbones.
        std: standard deviation of Megatron's scheme; the other scheme computes its own.
        hidden_size, num_layers: of the backbone.
        num_slots: K + 1.
    """
    if kind is Initialization.MEGATRON:
        inner, output = init_method_normal(std), scaled_init_method_normal(std, num_layers)
    else:
        std = math.sqrt(2 / (5 * hidden_size))
        depth = num_layers * (num_slots if architecture is Architecture.GPT_NEOX else 1)
        inner, output = _truncated_normal(std), _truncated_normal(std / math.sqrt(2 * depth))
    return {
        "init_method": inner,
        "embedding_init_method": _real_rows_only(inner, vocab_size),
        "output_layer_init_method": output,
        "init_method_std": std,
    }


def host_settings() -> dict[str, Any]:
    """Return the TransformerConfig fields that all our models share."""
    return {
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        # Complete weights are initialized and then split, so that they do not depend on the layout.
        "use_cpu_initialization": True,
        # Megatron's fusions. Its GELU is the approximation by tanh, not the exact one of GPT-NeoX, and our
        # layers have activations of their own (`fuses`), which keep less.
        "bias_activation_fusion": False,
        # There is no dropout, and our layers add to the residual stream inside of the products.
        "bias_dropout_fusion": False,
        # Of Megatron's own attention, which makes matrices of scores; ours has fused kernels.
        "masked_softmax_fusion": False,
        # Our layers rotate while they split into heads. Megatron's needs Transformer Engine.
        "apply_rope_fusion": False,
        # Of Megatron's own loss. It keeps exponentials in float32; ours keeps the logits alone (`fuses`).
        "cross_entropy_loss_fusion": False,
        # Need apex: torch's norms are one kernel on CUDA.
        "persist_layer_norm": False,
        # Without apex too, for trainings on CUDA: :mod:`megatron_ext.parallel.weight_gradients`.
        "gradient_accumulation_fusion": False,
    }


def pipeline_settings(dtype: torch.dtype) -> dict[str, Any]:
    """Return the TransformerConfig fields that let Megatron's pipeline run the passes of a pondering model.

    Args:
        dtype: of the hidden states.
    """
    return {
        "pipeline_dtype": dtype,
        # Passes differ in their number of rows. Megatron allows this only with a dispatcher that a dense
        # model does not use.
        "variable_seq_lengths": True,
        "moe_token_dispatcher_type": "alltoall",
        # With two stages both neighbours of a rank are the same rank, and batched sends would be matched
        # with the wrong receives.
        "batch_p2p_comm": False,
    }


def _stage() -> int:
    return int(parallel_state.get_pipeline_model_parallel_rank())


def _megatron_layout(stage_layers: tuple[int, ...]) -> list[list[str]]:
    layout = [["decoder"] * num_layers for num_layers in stage_layers]
    return [["embedding", *layout[0]], *layout[1:-1], [*layout[-1], "loss"]]


def _real_rows_only(initialize: Callable[[Tensor], Tensor], vocab_size: int) -> Callable[[Tensor], Tensor]:
    """Initialize only the vocabulary: its padding depends on the layout, initial weights must not."""

    def initialize_vocabulary(weight: Tensor) -> Tensor:
        torch.nn.init.zeros_(weight[vocab_size:])
        initialize(weight[:vocab_size])
        return weight

    return initialize_vocabulary


def _truncated_normal(std: float) -> Callable[[Tensor], Tensor]:
    def initialize(weight: Tensor) -> Tensor:
        return torch.nn.init.trunc_normal_(weight, std=std, a=-3 * std, b=3 * std)

    return initialize

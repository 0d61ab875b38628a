"""Transformer layers of the two backbones, as specs for Megatron's TransformerBlock (definitions 1)."""

from typing import Any

from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.attention import SelfAttention, SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayer, TransformerLayerSubmodules
from torch import Tensor, nn

from megatron_ext.device import device
from megatron_ext.initialization import seeded_initialization
from megatron_ext.model.attention import KeyWeightedAttention, RowContext
from megatron_ext.model.config import Architecture, PonderTransformerConfig
from megatron_ext.parallel.tensor import TensorAxis


class TorchNorm:
    """LayerNorm or RMSNorm on torch's kernels that also works under sequence parallelism.

    Megatron's own torch norm refuses sequence parallelism because it cannot mark its parameters. The mark is
    all that is needed: Megatron then sums their gradients over the tensor-parallel ranks, each of which saw
    only its own tokens. A class, because Megatron's specs build classes.
    """

    def __new__(cls, config: TransformerConfig, hidden_size: int, eps: float) -> nn.Module:  # type: ignore[misc]
        """Build the norm over the last dim that `config.normalization` names.

        Args:
            config: its normalization, params_dtype and sequence_parallel are read.
            hidden_size: size of the last dim.
            eps: added to the variance.
        Raises:
            ValueError: if the name is neither LayerNorm nor RMSNorm.
        """
        classes: dict[str, type[nn.LayerNorm] | type[nn.RMSNorm]] = {
            "LayerNorm": nn.LayerNorm,
            "RMSNorm": nn.RMSNorm,
        }
        if config.normalization not in classes:
            raise ValueError(
                f"normalization must be one of {', '.join(classes)}, but is {config.normalization!r}"
            )
        norm = classes[config.normalization](hidden_size, eps=eps, dtype=config.params_dtype, device=device())
        for parameter in norm.parameters():
            parameter.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]
        return norm


class UnreducedRowParallelLinear(RowParallelLinear):  # type: ignore[misc]  # Megatron is untyped
    """A row-parallel linear layer whose partial sums the caller adds up over ranks."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Megatron's switch for layers whose caller communicates.
        self.explicit_expert_comm = True


class SequentialResidualLayer(TransformerLayer):  # type: ignore[misc]
    """Megatron's layer, whose initial weights depend only on the seed and its number in the whole model."""

    def __init__(self, config: PonderTransformerConfig, *args: Any, layer_number: int, **kwargs: Any) -> None:
        """Build the layer; `layer_number` is 1-based within the pipeline stage, as Megatron counts."""
        number = layer_number + config.layer_offset
        with seeded_initialization(config.initialization_seed, f"layer {number}"):
            super().__init__(config, *args, layer_number=layer_number, **kwargs)


class ParallelResidualLayer(SequentialResidualLayer):
    """GPT-NeoX layer: ``x + attention(norm_1 x) + mlp(norm_2 x)``.

    Both branches are partial sums over the tensor-parallel ranks, so that one reduction serves both.
    """

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        rotary_pos_emb: Tensor | None = None,
        packed_seq_params: RowContext | None = None,
        **_: Any,
    ) -> tuple[Tensor, None]:
        """Run the layer.

        Args:
            hidden_states: [R or R / tp, B, H].
            attention_mask, rotary_pos_emb, packed_seq_params: see :mod:`megatron_ext.model.attention`.
        Returns:
            The new hidden states, and None for Megatron's cross-attention context.
        """
        attended, attention_bias = self.self_attention(
            self.input_layernorm(hidden_states),
            attention_mask=attention_mask,
            rotary_pos_emb=rotary_pos_emb,
            packed_seq_params=packed_seq_params,
        )
        transformed, mlp_bias = self.mlp(self.pre_mlp_layernorm(hidden_states))
        axis = TensorAxis(self.tp_group, self.config.sequence_parallel)
        update = axis.from_partial_sums(attended + transformed)
        return hidden_states + update + attention_bias + mlp_bias, None


def block_spec(config: PonderTransformerConfig) -> TransformerBlockSubmodules:
    """Return the spec of the layers on this pipeline stage."""
    is_neox = config.architecture is Architecture.GPT_NEOX
    layer = _layer_spec(
        layer=ParallelResidualLayer if is_neox else SequentialResidualLayer,
        row_parallel=UnreducedRowParallelLinear if is_neox else RowParallelLinear,
    )
    return TransformerBlockSubmodules(layer_specs=[layer] * config.num_stage_layers, layer_norm=TorchNorm)


def _layer_spec(*, layer: type[SequentialResidualLayer], row_parallel: type[RowParallelLinear]) -> ModuleSpec:
    attention = ModuleSpec(
        module=SelfAttention,
        params={"attn_mask_type": AttnMaskType.causal},
        submodules=SelfAttentionSubmodules(
            linear_qkv=ColumnParallelLinear, core_attention=KeyWeightedAttention, linear_proj=row_parallel
        ),
    )
    mlp = ModuleSpec(
        module=MLP, submodules=MLPSubmodules(linear_fc1=ColumnParallelLinear, linear_fc2=row_parallel)
    )
    return ModuleSpec(
        module=layer,
        submodules=TransformerLayerSubmodules(
            input_layernorm=TorchNorm,
            self_attention=attention,
            self_attn_bda=get_bias_dropout_add,
            pre_mlp_layernorm=TorchNorm,
            mlp=mlp,
            mlp_bda=get_bias_dropout_add,
        ),
    )

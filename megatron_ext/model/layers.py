"""Transformer layers of the two backbones, as specs for Megatron's TransformerBlock (definitions 1)."""

from typing import Any

from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.attention import SelfAttention, SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_layer import TransformerLayer, TransformerLayerSubmodules
from torch import Tensor

from megatron_ext.initialization import drawing
from megatron_ext.model.attention import KeyWeightedAttention, RowContext
from megatron_ext.model.config import Architecture, PonderTransformerConfig
from megatron_ext.model.norms import TorchNorm
from megatron_ext.parallel.tensor import TensorAxis


class UnreducedRowParallelLinear(RowParallelLinear):  # type: ignore[misc]  # Megatron is untyped
    """A row-parallel linear whose partial sums are added up over ranks by the caller."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Take RowParallelLinear's arguments."""
        super().__init__(*args, **kwargs)
        # Megatron's own switch for "the caller communicates".
        self.explicit_expert_comm = True


class SequentialResidualLayer(TransformerLayer):  # type: ignore[misc]
    """Megatron's layer, whose start values depend on its number alone."""

    def __init__(self, config: PonderTransformerConfig, *args: Any, layer_number: int, **kwargs: Any) -> None:
        """Take TransformerLayer's arguments; `layer_number` is 1-based within the pipeline stage."""
        number = layer_number + config.layer_offset
        with drawing(config.initialization_seed, f"layer {number}"):
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
    """Name the layers of this pipeline stage.

    Args:
        config: the model.
    """
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

"""Transformer layers of the two backbones, as specs for Megatron's TransformerBlock (definitions 1)."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.parallel_state import get_tensor_model_parallel_group
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.attention import SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayer, TransformerLayerSubmodules
from torch import Tensor, nn
from torch.nn import functional

from megatron_ext.device import device
from megatron_ext.initialization import seeded_initialization
from megatron_ext.model.attention import KeyWeightedAttention, RotatedAttention, RowContext
from megatron_ext.model.cheap_work import cheap, recomputing_cheap_work
from megatron_ext.model.config import Architecture, PonderTransformerConfig
from megatron_ext.model.fused_layers import biased_gelu, gated_silu, normed_beside, sum_with_biases
from megatron_ext.parallel.tensor import TensorAxis
from megatron_ext.parallel.weight_gradients import (
    accumulating_linear,
    for_megatron,
    sum_of_gradients,
    weight_gradient,
)


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

    def _forward_impl(self, **settings: Any) -> Tensor:
        output: Tensor = super()._forward_impl(**for_megatron(settings))
        return output


class AccumulatingLinear(ColumnParallelLinear):  # type: ignore[misc]
    """A column-parallel linear layer whose weight may have other uses beside it."""

    def _forward_impl(self, **settings: Any) -> Tensor:
        output: Tensor = super()._forward_impl(**for_megatron(settings))
        return output


class FusedBiasLinear(AccumulatingLinear):
    """A column-parallel linear layer that adds its bias inside the product where no rank waits for another.

    Megatron's own function adds it in a pass of its own, because it overlaps communication with the products.
    """

    def forward(self, input_: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the product and, if the caller adds it, the bias."""
        if self.tp_group.size() > 1 or torch.is_grad_enabled():
            result: tuple[Tensor, Tensor | None] = super().forward(input_)
            return result
        # What is left of Megatron's forward here; for the few rows of decoding the rest takes its time.
        if self.skip_bias_add:
            return functional.linear(input_, self.weight), self.bias
        return functional.linear(input_, self.weight, self.bias), None

    def _forward_impl(self, **settings: Any) -> Tensor:
        if settings["allreduce_dgrad"] or settings["sequence_parallel"]:
            return super()._forward_impl(**settings)
        way = accumulating_linear if settings["gradient_accumulation_fusion"] else functional.linear
        return way(settings["input"], settings["weight"], settings["bias"])


class InnerMLP(MLP):  # type: ignore[misc]
    """Megatron's MLP up to its second product, which the layer adds to its residual.

    Megatron's layer gives the group of ranks only to classes that it knows, and warns of specs of others: so
    this one is a class in the spec of a layer, and takes the group itself. What newer releases give to every
    class has no effect here.
    """

    def __init__(self, config: TransformerConfig, **_: Any) -> None:
        super().__init__(
            config,
            MLPSubmodules(linear_fc1=FusedBiasLinear, linear_fc2=UnreducedRowParallelLinear),
            ffn_hidden_size=config.ffn_hidden_size,
            tp_group=get_tensor_model_parallel_group(),
        )
        # Where ranks wait for each other, Megatron's product adds its bias in a pass of its own: the fused
        # activation does it instead. Elsewhere the product adds it on its way.
        self._fuses = config.fuses
        self.linear_fc1.skip_bias_add = config.fuses and config.tensor_model_parallel_size > 1

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[R or R / tp, B, H], normalized -> [R, B, inner size / tp]."""
        inner, bias = self.linear_fc1(hidden_states)
        if bias is not None:
            return cheap(biased_gelu, inner, bias)
        if not self.config.gated_linear_unit:
            activated: Tensor = cheap(self.config.activation_func, inner)
            return activated
        return cheap(gated_silu if self._fuses else self._gated, inner)

    def _gated(self, inner: Tensor) -> Tensor:
        gate, linear = inner.chunk(2, dim=-1)
        activated: Tensor = cheap(self.config.activation_func, gate)
        return activated * linear


def add_products(
    residual: Tensor,
    *products: tuple[RowParallelLinear, Tensor],
    axis: TensorAxis,
    partial: Tensor | None = None,
    fuses: bool = False,
) -> Tensor:
    """Add the outputs of row-parallel linear layers to the residual stream.

    With one rank on the axis the products accumulate on a copy of the residual, without passes of their own.

    Args:
        residual: [R or R / tp, B, H].
        products: layers of which each rank has a part, and their inputs, [R, B, inner size / tp].
        axis: of these ranks; one reduction serves all products.
        partial: what this rank has already computed of another sum over ranks, [R, B, H].
        fuses: add what is not part of a product by one function.
    Returns:
        [R or R / tp, B, H].
    """
    if axis.size > 1:
        return add_one_by_one(residual, *products, axis=axis, partial=partial, fuses=fuses)
    if partial is not None:
        residual = residual + partial
    operands = [x for linear, inputs in products for x in (inputs, linear.weight, linear.bias)]
    if not torch.is_grad_enabled():
        return _total(residual, operands)
    accumulates = all(linear.gradient_accumulation_fusion for linear, _ in products)
    total: Tensor = _AddProducts.apply(accumulates, residual, *operands)  # type: ignore[no-untyped-call]
    return total


def _total(residual: Tensor, operands: Sequence[Any]) -> Tensor:
    """Return residual + sum of ``x w^T + b``, for triples (x, w, b or None)."""
    inputs, weights, biases = operands[::3], operands[1::3], operands[2::3]
    given = [bias for bias in biases if bias is not None]
    total = residual + sum(given) if given else residual.clone(memory_format=torch.contiguous_format)
    rows = total.flatten(0, 1)
    for x, weight in zip(inputs, weights, strict=True):
        torch.addmm(rows, x.flatten(0, 1), weight.t(), out=rows)
    return total


def add_one_by_one(
    residual: Tensor,
    *products: tuple[RowParallelLinear, Tensor],
    axis: TensorAxis,
    partial: Tensor | None = None,
    fuses: bool = False,
) -> Tensor:
    """See :func:`add_products`; biases are added after the reduction, so that each is added once."""
    biases = [linear.bias for linear, _ in products if linear.bias is not None]
    partial_sums = [linear(inputs)[0] for linear, inputs in products]
    if partial is not None:
        partial_sums.append(partial)
    if fuses:
        return sum_with_biases(residual, axis.from_partial_sums(sum(partial_sums)), *biases)
    return sum(biases, start=residual + axis.from_partial_sums(sum(partial_sums)))


class _AddProducts(torch.autograd.Function):
    """:func:`_total` with gradients."""

    @staticmethod
    def forward(ctx: Any, accumulates: bool, residual: Tensor, *operands: Any) -> Tensor:
        # Apart from the weights, of which saved tensors are copies without their sums.
        ctx.sums = [sum_of_gradients(weight) if accumulates else None for weight in operands[1::3]]
        ctx.save_for_backward(*operands[::3], *operands[1::3])
        return _total(residual, operands)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        half = len(saved) // 2
        rows = gradient.flatten(0, 1)
        is_needed = ctx.needs_input_grad[2:]
        # The same for every bias.
        of_bias = rows.sum(dim=0) if any(is_needed[2::3]) else None
        results: list[Tensor | None] = [None, gradient]
        for number, (x, weight) in enumerate(zip(saved[:half], saved[half:], strict=True)):
            needs_x, needs_weight, needs_bias = is_needed[3 * number : 3 * number + 3]
            of_weight = None
            if needs_weight:
                of_weight = weight_gradient(rows, x.flatten(0, 1), ctx.sums[number])
            results += [
                (rows @ weight).view(x.shape) if needs_x else None,
                of_weight,
                of_bias if needs_bias else None,
            ]
        return tuple(results)


class SequentialResidualLayer(TransformerLayer):  # type: ignore[misc]
    """Megatron's layer, whose initial weights depend only on the seed and its number in the whole model."""

    def __init__(self, config: PonderTransformerConfig, *args: Any, layer_number: int, **kwargs: Any) -> None:
        """Build the layer; `layer_number` is 1-based within the pipeline stage, as Megatron counts."""
        number = layer_number + config.layer_offset
        with seeded_initialization(config.initialization_seed, f"layer {number}"):
            super().__init__(config, *args, layer_number=layer_number, **kwargs)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        rotary_pos_emb: Tensor | None = None,
        packed_seq_params: RowContext | None = None,
        **_: Any,
    ) -> tuple[Tensor, None]:
        """Run the layer: ``y = x + attention(norm_1 x)``, ``y + mlp(norm_2 y)``.

        Args:
            hidden_states: [R or R / tp, B, H].
            attention_mask, rotary_pos_emb, packed_seq_params: see :mod:`megatron_ext.model.attention`.
        Returns:
            The new hidden states of the rows that are read, and None for Megatron's cross-attention context.
        """
        assert packed_seq_params is not None, "the model gives every pass a context"
        context = packed_seq_params
        with recomputing_cheap_work(self.config.recompute_cheap_work):
            attended, hidden_states = self._attend(hidden_states, attention_mask, rotary_pos_emb, context)
            hidden_states = self._rows_read(hidden_states, context)
            return self._with_branches(hidden_states, attended, context), None

    def _with_branches(self, hidden_states: Tensor, attended: Tensor, context: RowContext) -> Tensor:
        """Add what attention gives and the MLP to the residual stream of the rows that are read."""
        hidden_states = self._add(hidden_states, (self.self_attention.linear_proj, attended))
        hidden_states, normed = self._normed(hidden_states, self.pre_mlp_layernorm)
        return self._add(hidden_states, (self.mlp.linear_fc2, self.mlp(normed)))

    def _attend(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None,
        rotary_pos_emb: Tensor | None,
        context: RowContext,
    ) -> tuple[Tensor, Tensor]:
        """Return what attention gives, and the residual stream."""
        repeated = context.repeated_in(self.layer_number)
        if repeated is None:
            hidden_states, normed = self._normed(hidden_states, self.input_layernorm)
            mixed = self.self_attention.project(normed)
        else:
            mixed = repeated.run("heads", self._project, hidden_states, num_slots=context.num_slots)
        attended: Tensor = self.self_attention(
            mixed, attention_mask, rotary_pos_emb=rotary_pos_emb, packed_seq_params=context
        )
        return attended, hidden_states

    def _normed(self, hidden_states: Tensor, norm: nn.LayerNorm | nn.RMSNorm) -> tuple[Tensor, Tensor]:
        """Return the residual stream, for further use, and its norm."""
        if self.config.fuses:
            return cheap(normed_beside, hidden_states, norm)
        return hidden_states, cheap(norm, hidden_states)

    def _add(
        self, residual: Tensor, *products: tuple[RowParallelLinear, Tensor], partial: Tensor | None = None
    ) -> Tensor:
        return add_products(residual, *products, axis=self._axis, partial=partial, fuses=self.config.fuses)

    def _project(self, hidden_states: Tensor) -> Tensor:
        heads: Tensor = self.self_attention.project(cheap(self.input_layernorm, hidden_states))
        return heads

    def _rows_read(self, hidden_states: Tensor, context: RowContext) -> Tensor:
        read = context.read_after(self.layer_number)
        return hidden_states if read is None else read.take(hidden_states)

    @cached_property
    def _axis(self) -> TensorAxis:
        return TensorAxis(self.tp_group, self.config.sequence_parallel)


class ParallelResidualLayer(SequentialResidualLayer):
    """GPT-NeoX layer: ``x + attention(norm_1 x) + mlp(norm_2 x)``.

    Both branches are partial sums over the tensor-parallel ranks, so that one reduction serves both.
    """

    def _with_branches(self, hidden_states: Tensor, attended: Tensor, context: RowContext) -> Tensor:
        if context.repeated_in(self.layer_number) is not None:
            return self._add_with_repeated_slot(hidden_states, attended, context)
        hidden_states, normed = self._normed(hidden_states, self.pre_mlp_layernorm)
        products = ((self.self_attention.linear_proj, attended), (self.mlp.linear_fc2, self.mlp(normed)))
        return self._add(hidden_states, *products)

    def _add_with_repeated_slot(self, hidden_states: Tensor, attended: Tensor, context: RowContext) -> Tensor:
        """Add both branches, where the MLP of slot 0 is the same in every pass.

        Args:
            hidden_states, attended: of the rows that are read.
            context: of the pass.
        """
        repeated, read = context.repeated_in(self.layer_number), context.read_after(self.layer_number)
        assert repeated is not None, "there is no repeated slot"
        slots = range(context.num_slots) if read is None else read.slots
        projection, output = self.self_attention.linear_proj, self.mlp.linear_fc2

        def branch(rows: Tensor) -> Tensor:
            inner = self.mlp(cheap(self.pre_mlp_layernorm, rows))
            way = accumulating_linear if output.gradient_accumulation_fusion else functional.linear
            return way(inner, output.weight)

        partial = repeated.run("mlp", branch, hidden_states, num_slots=len(slots), first=slots.start)
        if output.bias is not None:
            # Once, not by every rank.
            hidden_states = hidden_states + output.bias
        return self._add(hidden_states, (projection, attended), partial=partial)


def block_spec(config: PonderTransformerConfig) -> TransformerBlockSubmodules:
    """Return the spec of the layers on this pipeline stage."""
    is_neox = config.architecture is Architecture.GPT_NEOX
    layer = _layer_spec(ParallelResidualLayer if is_neox else SequentialResidualLayer)
    return TransformerBlockSubmodules(layer_specs=[layer] * config.num_stage_layers, layer_norm=TorchNorm)


def _layer_spec(layer: type[SequentialResidualLayer]) -> ModuleSpec:
    attention = ModuleSpec(
        module=RotatedAttention,
        params={"attn_mask_type": AttnMaskType.causal},
        submodules=SelfAttentionSubmodules(
            linear_qkv=FusedBiasLinear,
            core_attention=KeyWeightedAttention,
            linear_proj=UnreducedRowParallelLinear,
        ),
    )
    return ModuleSpec(
        module=layer,
        submodules=TransformerLayerSubmodules(
            input_layernorm=TorchNorm,
            self_attention=attention,
            self_attn_bda=get_bias_dropout_add,
            pre_mlp_layernorm=TorchNorm,
            mlp=InnerMLP,
            mlp_bda=get_bias_dropout_add,
        ),
    )

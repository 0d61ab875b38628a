"""The modules of one pipeline stage of the language model, and their forward on rows.

The first stage holds the embedding, the last one the final norm, the head and the method's own weights; every
stage holds some of the layers. H = hidden size, V = padded vocabulary, R = rows, B = micro-batch, S = tokens.
"""

from dataclasses import replace
from typing import Any

import torch
from megatron.core import tensor_parallel
from megatron.core.enums import ModelType
from megatron.core.models.common.embeddings.language_model_embedding import LanguageModelEmbedding
from megatron.core.models.common.language_module.language_module import LanguageModule
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.transformer_block import TransformerBlock
from torch import Tensor

from megatron_ext.device import device
from megatron_ext.initialization import seeded_initialization
from megatron_ext.methods.registry import build_method
from megatron_ext.model.attention import RowContext
from megatron_ext.model.config import PonderTransformerConfig
from megatron_ext.model.layers import AccumulatingLinear, TorchNorm, block_spec
from megatron_ext.parallel.context import ContextAxis, TokenAxes
from megatron_ext.parallel.tensor import TensorAxis
from megatron_ext.parallel.vocabulary import (
    hide_padding_rows,
    mask_padding_rows,
    mix_embeddings,
    num_real_rows,
)
from megatron_ext.parallel.vocabulary_in_parts import mix_in_parts
from megatron_ext.parallel.weight_gradients import accumulating_linear
from megatron_ext.ponder.config import Mixture
from megatron_ext.ponder.heads import key_columns, rotary_turns
from megatron_ext.ponder.rotary import rotary_angles


class ModelStage(LanguageModule):  # type: ignore[misc]  # Megatron is untyped
    """Embedding, layers, head and method of this rank.

    Where context-parallel ranks share the tokens of a row, S counts those of this rank.

    Attributes:
        pre_process: whether this is the first stage, with the embedding.
        post_process: whether this is the last stage, with final norm, head and the method's own weights.
    """

    def __init__(
        self, config: PonderTransformerConfig, pg_collection: ProcessGroupCollection | None = None
    ) -> None:
        """Build the modules of this rank.

        Args:
            config: sizes, layout, precision and method.
            pg_collection: process groups; None takes Megatron's global ones.
        """
        super().__init__(config, pg_collection)
        self.axis = TensorAxis(self.tp_group, config.sequence_parallel)
        self.context_axis = ContextAxis(self.cp_group)
        self.token_axes = TokenAxes(self.axis, self.context_axis)
        self.model_type = ModelType.encoder_or_decoder
        self.pre_process = self.pp_group.rank() == 0
        self.post_process = self.pp_group.rank() == self.pp_group.size() - 1
        self.share_embeddings_and_output_weights = config.tie_embeddings
        # The final norm is a module of its own: a method may run the layers again without it.
        self.decoder = TransformerBlock(
            config, block_spec(config), post_layer_norm=False, pg_collection=self.pg_collection
        )
        with seeded_initialization(config.initialization_seed, "method"):
            self.ponder = build_method(config.ponder, config.hidden_size, decides=self.post_process).to(
                device=device(), dtype=config.params_dtype
            )
        for parameter in self.ponder.parameters():
            parameter.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]
        if self.pre_process:
            self.embedding = self._build_embedding()
        if self.post_process:
            self.final_norm = TorchNorm(config, config.hidden_size, config.layernorm_epsilon)
            self.output_layer = self._build_head()
        if self.post_process and not self.pre_process and self._has_two_embeddings:
            # Mixtures need head and embedding on the same rank; the copy stays equal to the first stage's.
            self.mixture_embedding = self._build_embedding()
        self.setup_embeddings_and_output_layer()
        self._mark_embedding_copies()

    def embed(self, tokens: Tensor) -> Tensor:
        """Return scaled token embeddings: [B, S] -> [S or S / tp, B, H]."""
        embeddings = self.embedding(tokens, None)
        if self.config.padding_token_id is not None:
            is_padding = self.axis.own_tokens(tokens.transpose(0, 1)) == self.config.padding_token_id
            embeddings = torch.where(is_padding.unsqueeze(-1), embeddings.detach(), embeddings)
        scaled: Tensor = embeddings * self.ponder.embedding_scale
        return scaled

    def run_layers(
        self,
        rows: Tensor,
        position_ids: Tensor,
        *,
        num_slots: int = 1,
        log_weight: Tensor | None = None,
        context: RowContext | None = None,
        turns: Tensor | None = None,
    ) -> Tensor:
        """Run rows through this stage's layers once.

        Args:
            rows: [S * n or S * n / tp, B, H].
            position_ids: [B, S].
            num_slots: n.
            log_weight: log w of the key columns, [B, S * n], or None.
            context: documents, kept keys, or the cache of decoding.
            turns: of the positions, from :meth:`turns`, if they are known already.
        Returns:
            [S * n or S * n / tp, B, H], before the final norm.
        """
        turns = self.turns(position_ids, num_slots=num_slots) if turns is None else turns
        context = self._with_key_columns(context or RowContext(), log_weight)

        def run(rows: Tensor, log_weight: Tensor | None) -> Tensor:
            hidden: Tensor = self.decoder(
                rows, attention_mask=log_weight, rotary_pos_emb=turns, packed_seq_params=context
            )
            return hidden

        if self.config.recompute_passes and torch.is_grad_enabled():
            recomputed: Tensor = tensor_parallel.checkpoint(run, False, rows, log_weight)
            return recomputed
        return run(rows, log_weight)

    def turns(self, position_ids: Tensor, *, num_slots: int = 1) -> Tensor:
        """Return the cosines and sines of rows at positions: [B, S] -> [2, S * n, B, 1, rotary size / 2]."""
        angles = rotary_angles(
            position_ids,
            num_slots=num_slots,
            rotary_size=self.config.rotary_size,
            base=self.config.rotary_base,
            dtype=torch.promote_types(self.config.params_dtype, torch.float32),
        )
        return rotary_turns(angles, self.config.params_dtype)

    def _with_key_columns(self, context: RowContext, log_weight: Tensor | None) -> RowContext:
        """Compute what all layers of a pass append to their keys."""
        if log_weight is None or context.passes is not None:
            return context
        scaled_size = self.config.kv_channels + self.config.ponder.form.attention_scale_extra
        return replace(context, key_columns=key_columns(log_weight, scaled_size, self.config.params_dtype))

    def logits(self, hidden: Tensor) -> Tensor:
        """Return logits of this rank's vocabulary: [S or S / tp, B, H] -> [S, B, V / tp], -inf at padding."""
        weight = self._head_weight()
        if self.axis.is_alone and self.config.gradient_accumulation_fusion:
            logits = accumulating_linear(hidden, weight)
        elif self.axis.is_alone:
            logits = torch.matmul(hidden, weight.t())
        else:
            logits, _ = self.output_layer(hidden, weight=weight)
        if self.config.fuses:
            hide_padding_rows(logits, self.config.vocab_size, self.axis)
            return logits
        return mask_padding_rows(logits, self.config.vocab_size, self.axis)

    def mix_embeddings(self, rows: Tensor) -> Tensor:
        """Return the softmax mixture of unscaled embeddings that the head predicts: [R, B, H] -> same."""
        ponder, head, embedding = self.ponder.config, self._head_weight(), self.last_stage_embedding()
        topk = ponder.mixture_top_k if ponder.mixture is Mixture.TOP_K else None
        if self.config.fuses:
            return mix_in_parts(
                rows,
                head,
                embedding,
                num_real=num_real_rows(len(head), self.config.vocab_size, self.axis),
                topk=topk,
                axis=self.axis,
                temperature=ponder.softmax_temperature,
                accumulates=self.config.gradient_accumulation_fusion,
            )
        return mix_embeddings(
            rows,
            head,
            embedding,
            vocab_size=self.config.vocab_size,
            topk=topk,
            axis=self.axis,
            temperature=ponder.softmax_temperature,
        )

    def copied_embedding(self) -> torch.nn.Parameter | None:
        """Return the embedding on the first stage or its copy on the last, where there are two; else None.

        Tied embeddings are not among them: Megatron keeps those equal itself.
        """
        if not self._has_two_embeddings or not (self.pre_process or self.post_process):
            return None
        owner = self.embedding if self.pre_process else self.mixture_embedding
        return owner.word_embeddings.weight  # type: ignore[no-any-return]

    def last_stage_embedding(self) -> Tensor:
        """Return the embedding as the last stage has it, [V / tp, H]."""
        if self.config.tie_embeddings and not self.pre_process:
            return self.output_layer.weight  # type: ignore[no-any-return]
        owner = self.embedding if self.pre_process else self.mixture_embedding
        return owner.word_embeddings.weight  # type: ignore[no-any-return]

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: Any = (), metadata: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Return Megatron's sharded state, with the copy of the embedding as a replica of the embedding."""
        state: dict[str, Any] = super().sharded_state_dict(prefix, sharded_offsets, metadata)
        embedding = "embedding.word_embeddings.weight"
        copy = state.get(f"{prefix}mixture_{embedding}")
        if copy is not None:
            copy.key = f"{prefix}{embedding}"
            copy.replica_id = (1, *copy.replica_id[1:])
        return state

    def _build_embedding(self) -> LanguageModelEmbedding:
        with seeded_initialization(self.config.initialization_seed, "embedding"):
            return LanguageModelEmbedding(
                self.config,
                vocab_size=self.config.padded_vocab_size,
                max_sequence_length=0,
                position_embedding_type="rope",
                tp_group=self.tp_group,
            )

    def _build_head(self) -> AccumulatingLinear:
        with seeded_initialization(self.config.initialization_seed, "head"):
            return AccumulatingLinear(
                self.config.hidden_size,
                self.config.padded_vocab_size,
                config=self.config,
                init_method=self.config.embedding_init_method,
                bias=False,
                skip_weight_param_allocation=self.pre_process and self.config.tie_embeddings,
                tp_group=self.tp_group,
            )

    @property
    def _has_two_embeddings(self) -> bool:
        """Whether the last stage needs a copy of the first stage's embedding."""
        mixes = self.ponder.mixes_embeddings and not self.config.tie_embeddings
        return mixes and self.pp_group.size() > 1

    def _mark_embedding_copies(self) -> None:
        """Mark the weight that exists twice, so that gradient norms count it once."""
        weight = self.copied_embedding()
        if weight is not None:
            weight.shared_embedding = True  # type: ignore[attr-defined]
            weight.shared = not self.pre_process  # type: ignore[attr-defined]

    def _head_weight(self) -> Tensor:
        if self.config.tie_embeddings and self.pre_process:
            return self.embedding.word_embeddings.weight  # type: ignore[no-any-return]
        return self.output_layer.weight  # type: ignore[no-any-return]

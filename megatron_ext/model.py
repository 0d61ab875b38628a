"""The pondering language model: Megatron's embedding, layers and head around a pondering method.

S = tokens, n = slots in a pass, B = micro-batch, H = hidden size, V = padded vocabulary. With sequence
parallelism a rank holds S / tp of the tokens wherever hidden states are whole.
"""

from dataclasses import dataclass, field

import torch
from megatron.core.enums import ModelType
from megatron.core.models.common.embeddings.language_model_embedding import LanguageModelEmbedding
from megatron.core.models.common.language_module.language_module import LanguageModule
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel import ColumnParallelLinear
from megatron.core.transformer.transformer_block import TransformerBlock
from torch import Tensor

from megatron_ext.attention import KeyValueStore, RowContext
from megatron_ext.batch import TokenBatch
from megatron_ext.host import device
from megatron_ext.layers import block_spec
from megatron_ext.methods.base import Observer, PassContext, PassInput, Readout
from megatron_ext.methods.registry import build_method
from megatron_ext.model_config import PonderTransformerConfig
from megatron_ext.norms import TorchNorm
from megatron_ext.parallel.tensor import TensorAxis
from megatron_ext.parallel.vocabulary import IGNORED_LABEL, mask_padding_rows, mix_embeddings, token_losses
from megatron_ext.ponder.masks import document_segments, scale_segments
from megatron_ext.ponder.rotary import rotary_angles
from megatron_ext.ponder.slots import keys_of_slots, merge_slots


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelOutput:
    """What one forward of a micro-batch gives.

    Attributes:
        token_losses: [S, B] cross-entropy in nats, 0 where there is no label.
        penalty: scalar to be weighted and added to the mean loss, or None.
        steps: [S, B] int64 steps taken by every token, or None where all take K.
        statistics: additive sums over the micro-batch, each [size], without gradient.
    """

    token_losses: Tensor
    penalty: Tensor | None
    steps: Tensor | None
    statistics: dict[str, Tensor] = field(default_factory=dict)


class PonderModel(LanguageModule):  # type: ignore[misc]  # Megatron is untyped
    """A GPT-NeoX or Llama language model that ponders by the configured method."""

    def __init__(
        self, config: PonderTransformerConfig, pg_collection: ProcessGroupCollection | None = None
    ) -> None:
        """Build the parts of this rank.

        Args:
            config: sizes, layout, precision and method.
            pg_collection: process groups; None takes Megatron's global ones.
        """
        super().__init__(config, pg_collection)
        self.axis = TensorAxis(self.tp_group, config.sequence_parallel)
        self.model_type = ModelType.encoder_or_decoder
        self.pre_process = self.post_process = True
        self.share_embeddings_and_output_weights = config.tie_embeddings
        self.embedding = LanguageModelEmbedding(
            config,
            vocab_size=config.padded_vocab_size,
            max_sequence_length=0,
            position_embedding_type="rope",
            tp_group=self.tp_group,
        )
        # The final norm stands apart: a method may run the layers again without it.
        self.decoder = TransformerBlock(
            config, block_spec(config), post_layer_norm=False, pg_collection=self.pg_collection
        )
        self.final_norm = TorchNorm(config, config.hidden_size, config.layernorm_epsilon)
        self.output_layer = ColumnParallelLinear(
            config.hidden_size,
            config.padded_vocab_size,
            config=config,
            init_method=config.embedding_init_method,
            bias=False,
            skip_weight_param_allocation=config.tie_embeddings,
            tp_group=self.tp_group,
        )
        self.ponder = build_method(config.ponder, config.hidden_size).to(
            device=device(), dtype=config.params_dtype
        )
        for parameter in self.ponder.parameters():
            parameter.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]
        self.setup_embeddings_and_output_layer()

    def forward(
        self,
        batch: TokenBatch,
        *,
        num_jacobi_iterations: int,
        prune: bool = False,
        observe: Observer | None = None,
    ) -> ModelOutput:
        """Compute the loss of every token.

        Args:
            batch: B rows of S tokens.
            num_jacobi_iterations: J.
            prune: mask pruned slots out for good (hard mask) instead of weighing them.
            observe: called with the name and value of intermediate results.
        """
        context = self._context(batch, prune, observe)
        readout = self._run_passes(batch, num_jacobi_iterations, context)
        logits = self.logits(readout.hidden)
        context.observe("logits", logits)
        losses = token_losses(logits, batch.labels.transpose(0, 1), self.axis)
        self._record_losses(losses, readout.steps, batch, context)
        return ModelOutput(
            token_losses=losses, penalty=readout.penalty, steps=readout.steps, statistics=context.statistics
        )

    def embed(self, tokens: Tensor) -> Tensor:
        """Scaled token embeddings: [B, S] -> [S or S / tp, B, H]."""
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
    ) -> Tensor:
        """One trip through all layers and the final norm.

        Args:
            rows: [S * n or S * n / tp, B, H].
            position_ids: [B, S].
            num_slots: n.
            log_weight: log w of the key columns, [B, S * n], or None.
            context: documents, or the store of cached decoding.
        Returns:
            [S * n or S * n / tp, B, H].
        """
        hidden = self.decoder(
            rows,
            attention_mask=log_weight,
            rotary_pos_emb=rotary_angles(
                position_ids,
                num_slots=num_slots,
                rotary_size=self.config.rotary_size,
                base=self.config.rotary_base,
                dtype=torch.promote_types(self.config.params_dtype, torch.float32),
            ),
            packed_seq_params=context or RowContext(),
        )
        normed: Tensor = self.final_norm(hidden)
        return normed

    def decode_slot(
        self, rows: Tensor, position_ids: Tensor, log_weight: Tensor, store: KeyValueStore
    ) -> Tensor:
        """Run the newest slot of every sequence against the stored ones.

        Args:
            rows: [1, B, H].
            position_ids: [B, 1].
            log_weight: log w of the new rows, [B, 1].
            store: earlier rows; receives the new ones.
        Returns:
            [1, B, H].
        """
        return self.run_layers(rows, position_ids, log_weight=log_weight, context=RowContext(store=store))

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits of this rank's vocabulary, padding rows at -inf: [S or S / tp, B, H] -> [S, B, V / tp]."""
        weight = self.embedding.word_embeddings.weight if self.config.tie_embeddings else None
        logits, _ = self.output_layer(hidden, weight=weight)
        return mask_padding_rows(logits, self.config.vocab_size, self.axis)

    def mix_embeddings(self, rows: Tensor) -> Tensor:
        """Softmax mixture of unscaled embeddings that the head predicts for each row: [R, B, H] -> same."""
        embedding = self.embedding.word_embeddings.weight
        return mix_embeddings(
            rows,
            embedding if self.config.tie_embeddings else self.output_layer.weight,
            embedding,
            vocab_size=self.config.vocab_size,
            topk=self.config.ponder.interpolation_topk,
            axis=self.axis,
        )

    def statistics_layout(self) -> dict[str, int]:
        """Names and sizes of the sums in :attr:`ModelOutput.statistics`."""
        layout = {"real_tokens": 1, "labelled_tokens": 1, "nll": 1} | self.ponder.statistics_layout()
        if "steps_count" in layout:
            layout |= dict.fromkeys(("nll_by_steps", "labelled_by_steps"), self.config.ponder.num_slots)
        return layout

    def set_input_tensor(self, input_tensor: object) -> None:
        """Megatron's schedule hands over the previous pipeline stage's output; a single stage has none."""

    def _context(self, batch: TokenBatch, prune: bool, observe: Observer | None) -> PassContext:
        context = PassContext(
            real=batch.is_real.transpose(0, 1).to(batch.tokens.device),
            axis=self.axis,
            mix_embeddings=self.mix_embeddings,
            prune=prune,
        )
        if observe is not None:
            context.observe = observe
        return context

    def _run_passes(self, batch: TokenBatch, num_jacobi_iterations: int, context: PassContext) -> Readout:
        plan = self.ponder.plan(num_jacobi_iterations)
        segments = document_segments(batch.document_ids)
        embeddings = self.embed(batch.tokens)
        carry = None
        for index, num_slots in enumerate(plan.slots):
            entered = self.ponder.enter(plan, index, embeddings, carry)
            hidden = self.run_layers(
                entered.rows,
                batch.position_ids,
                num_slots=num_slots,
                log_weight=self._key_weight(entered, index, context),
                context=RowContext(segments=scale_segments(segments, num_slots)),
            )
            if not plan.is_final(index):
                carry = self.ponder.leave(plan, index, hidden, carry, context)
        context.observe("last_hidden", hidden)
        return self.ponder.read(hidden, context)

    def _key_weight(self, entered: PassInput, index: int, context: PassContext) -> Tensor | None:
        """[S or S / tp, n, B] -> [B, S * n], ready for this rank's heads."""
        if entered.log_weight is None:
            return None
        context.observe(f"log_w/pass_{index:02d}", entered.log_weight)
        rows = self.axis.to_partial_use(merge_slots(entered.log_weight))
        return keys_of_slots(rows.unsqueeze(1))

    @torch.no_grad()
    def _record_losses(
        self, losses: Tensor, steps: Tensor | None, batch: TokenBatch, context: PassContext
    ) -> None:
        has_label = batch.labels.transpose(0, 1) != IGNORED_LABEL
        losses = losses.detach()
        context.statistics |= {
            "real_tokens": context.real.sum().reshape(1).to(losses.dtype),
            "labelled_tokens": has_label.sum().reshape(1).to(losses.dtype),
            "nll": losses.sum().reshape(1),
        }
        if steps is not None:
            size = self.config.ponder.num_slots
            index = steps.flatten()
            context.statistics |= {
                "nll_by_steps": losses.new_zeros(size).index_add_(0, index, losses.flatten()),
                "labelled_by_steps": losses.new_zeros(size).index_add_(
                    0, index, has_label.flatten().to(losses.dtype)
                ),
            }
        # A forward without sweeps has no residuals; its sums are zero, so that every forward has the same
        # names.
        for name, size in self.statistics_layout().items():
            context.statistics.setdefault(name, losses.new_zeros(size))

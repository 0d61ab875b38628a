"""The pondering language model: Megatron's embedding, layers and head around a pondering method.

A rank holds one pipeline stage of it and runs one pass at a time; with a single stage, :meth:`forward` runs
them all. S = tokens, n = slots in a pass, B = micro-batch, H = hidden size, V = padded vocabulary. With
sequence parallelism a rank holds S / tp of the tokens wherever hidden states are whole.
"""

from functools import partial
from typing import Any

import torch
from megatron.core import tensor_parallel
from megatron.core.enums import ModelType
from megatron.core.models.common.embeddings.language_model_embedding import LanguageModelEmbedding
from megatron.core.models.common.language_module.language_module import LanguageModule
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel import ColumnParallelLinear
from megatron.core.transformer.transformer_block import TransformerBlock
from torch import Tensor

from megatron_ext.attention import IterationKeys, RowContext
from megatron_ext.batch import TokenBatch
from megatron_ext.drawing import drawing
from megatron_ext.host import device
from megatron_ext.layers import block_spec
from megatron_ext.methods.base import Column, Observer, PassContext, PassRows, Readout
from megatron_ext.methods.registry import build_method
from megatron_ext.micro_batch import ForwardSettings, MicroBatch, ModelOutput
from megatron_ext.model_config import PonderTransformerConfig
from megatron_ext.norms import TorchNorm
from megatron_ext.parallel.memory import PassMemory
from megatron_ext.parallel.tensor import TensorAxis
from megatron_ext.parallel.vocabulary import IGNORED_LABEL, mask_padding_rows, mix_embeddings, token_losses
from megatron_ext.ponder.config import Mixture
from megatron_ext.ponder.masks import document_segments, scale_segments
from megatron_ext.ponder.rotary import rotary_angles
from megatron_ext.ponder.slots import merge_slots, split_slots


class PonderModel(LanguageModule):  # type: ignore[misc]  # Megatron is untyped
    """One pipeline stage of a GPT-NeoX or Llama language model that ponders by the configured method.

    Attributes:
        pre_process: the first stage, which holds the embedding.
        post_process: the last stage, which holds final norm, head and the method's own weights.
    """

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
        self.pre_process = self.pp_group.rank() == 0
        self.post_process = self.pp_group.rank() == self.pp_group.size() - 1
        self.share_embeddings_and_output_weights = config.tie_embeddings
        # The final norm stands apart: a method may run the layers again without it.
        self.decoder = TransformerBlock(
            config, block_spec(config), post_layer_norm=False, pg_collection=self.pg_collection
        )
        with drawing(config.initialization_seed, "method"):
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
            # Mixtures are made where the head is; the copy stays equal to the first stage's embedding.
            self.mixture_embedding = self._build_embedding()
        self.setup_embeddings_and_output_layer()
        self._mark_embedding_copies()

    def forward(
        self,
        batch: TokenBatch,
        *,
        num_jacobi_iterations: int,
        prune: bool = False,
        bottom_k_fraction: float | None = None,
        observe: Observer | None = None,
    ) -> ModelOutput:
        """Run all passes of a model that has a single pipeline stage.

        Args:
            batch: B rows of S tokens.
            num_jacobi_iterations, prune, bottom_k_fraction: see :class:`ForwardSettings`.
            observe: called with the name and value of intermediate results.
        """
        assert self.pp_group.size() == 1, "several stages are run by Megatron's schedule"
        settings = ForwardSettings(
            num_jacobi_iterations=num_jacobi_iterations, prune=prune, bottom_k_fraction=bottom_k_fraction
        )
        micro_batch = self.begin(batch, settings, observe)
        moving: PassRows | ModelOutput | None = None
        for index in range(micro_batch.context.plan.num_passes):
            assert not isinstance(moving, ModelOutput), "only the final pass gives an output"
            moving = self.run_pass(micro_batch, index, moving)
        assert isinstance(moving, ModelOutput), "the final pass gives an output"
        return moving

    def begin(
        self, batch: TokenBatch, settings: ForwardSettings, observe: Observer | None = None
    ) -> MicroBatch:
        """Make what all passes of a micro-batch need on this stage.

        Args:
            batch: B rows of S tokens.
            settings: how the forward is to be done.
            observe: called with the name and value of intermediate results.
        """
        fraction = settings.bottom_k_fraction
        context = PassContext(
            plan=self.ponder.plan(settings.num_jacobi_iterations),
            real=batch.is_real.transpose(0, 1).to(batch.tokens.device),
            axis=self.axis,
            mix_embeddings=self.mix_embeddings,
            memory=PassMemory(by_leaves=self._cuts_graph and torch.is_grad_enabled()),
            prune=settings.prune,
            bottom_k_fraction=self.config.ponder.bottom_k_fraction if fraction is None else fraction,
            observe=observe or (lambda name, value: None),
        )
        return MicroBatch(batch=batch, segments=document_segments(batch.document_ids), context=context)

    def run_pass(
        self, micro_batch: MicroBatch, index: int, received: PassRows | None
    ) -> PassRows | ModelOutput:
        """Run this stage's part of one pass.

        Args:
            micro_batch: from :meth:`begin`.
            index: 0-based.
            received: from the stage before, or on the first stage from the end of the pass before; None for
                the first pass on the first stage.
        Returns:
            What goes to the next stage, or to the first stage for the next pass; on the last stage the
            output of the final pass.
        """
        context = micro_batch.context
        if self.pre_process:
            tokens = self.ponder.tokens_of_rows(micro_batch.batch.tokens)
            entered = self.ponder.enter(index, partial(self.embed, tokens), received, context)
        else:
            assert received is not None, "a later stage receives the rows of every pass"
            entered = received
        hidden = self._run_layers_of_pass(micro_batch, index, entered)
        if not self.post_process:
            return PassRows(rows=hidden, column=entered.column)
        context.observe(f"stack_outputs/repeat_{index:02d}", hidden)
        if self.ponder.normalizes(index, context.plan):
            hidden = self.final_norm(hidden)
        ended = PassRows(rows=hidden, column=entered.column)
        if not context.plan.is_final(index):
            return self.ponder.leave(index, ended, context)
        context.observe("last_hidden", hidden)
        return self._output(self.ponder.read(ended, context), micro_batch)

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
        """One trip through this stage's layers.

        Args:
            rows: [S * n or S * n / tp, B, H].
            position_ids: [B, S].
            num_slots: n.
            log_weight: log w of the key columns, [B, S * n], or None.
            context: documents, kept keys, or the store of cached decoding.
        Returns:
            [S * n or S * n / tp, B, H], before the final norm.
        """
        angles = rotary_angles(
            position_ids,
            num_slots=num_slots,
            rotary_size=self.config.rotary_size,
            base=self.config.rotary_base,
            dtype=torch.promote_types(self.config.params_dtype, torch.float32),
        )

        def run(rows: Tensor, log_weight: Tensor | None) -> Tensor:
            hidden: Tensor = self.decoder(
                rows,
                attention_mask=log_weight,
                rotary_pos_emb=angles,
                packed_seq_params=context or RowContext(),
            )
            return hidden

        if self.config.recompute_passes and torch.is_grad_enabled():
            recomputed: Tensor = tensor_parallel.checkpoint(run, False, rows, log_weight)
            return recomputed
        return run(rows, log_weight)

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits of this rank's vocabulary, padding rows at -inf: [S or S / tp, B, H] -> [S, B, V / tp]."""
        logits, _ = self.output_layer(hidden, weight=self._head_weight())
        return mask_padding_rows(logits, self.config.vocab_size, self.axis)

    def mix_embeddings(self, rows: Tensor) -> Tensor:
        """Softmax mixture of unscaled embeddings that the head predicts for each row: [R, B, H] -> same."""
        ponder = self.config.ponder
        return mix_embeddings(
            rows,
            self._head_weight(),
            self.last_stage_embedding(),
            vocab_size=self.config.vocab_size,
            topk=ponder.mixture_top_k if ponder.mixture is Mixture.TOP_K else None,
            axis=self.axis,
            temperature=ponder.softmax_temperature,
        )

    def copied_embedding(self) -> torch.nn.Parameter | None:
        """The embedding on the first stage or its copy on the last, where there are two; else None.

        Tied embeddings are Megatron's own business.
        """
        if not self._has_two_embeddings or not (self.pre_process or self.post_process):
            return None
        owner = self.embedding if self.pre_process else self.mixture_embedding
        return owner.word_embeddings.weight  # type: ignore[no-any-return]

    def last_stage_embedding(self) -> Tensor:
        """The embedding as the last stage has it, [V / tp, H]."""
        if self.config.tie_embeddings and not self.pre_process:
            return self.output_layer.weight  # type: ignore[no-any-return]
        owner = self.embedding if self.pre_process else self.mixture_embedding
        return owner.word_embeddings.weight  # type: ignore[no-any-return]

    def statistics_layout(self) -> dict[str, int]:
        """Names and sizes of the sums in :attr:`ModelOutput.statistics`."""
        layout = {"real_tokens": 1, "labelled_tokens": 1, "nll": 1} | self.ponder.statistics_layout()
        if "steps_count" in layout:
            layout |= dict.fromkeys(("nll_by_steps", "labelled_by_steps"), self.config.ponder.num_slots)
        return layout

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: Any = (), metadata: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Megatron's sharded state, in which the copy of the embedding is a replica of the embedding."""
        state: dict[str, Any] = super().sharded_state_dict(prefix, sharded_offsets, metadata)
        embedding = "embedding.word_embeddings.weight"
        copy = state.get(f"{prefix}mixture_{embedding}")
        if copy is not None:
            copy.key = f"{prefix}{embedding}"
            copy.replica_id = (1, *copy.replica_id[1:])
        return state

    def set_input_tensor(self, input_tensor: object) -> None:
        """Megatron's schedule hands over the previous stage's output; passes take theirs as arguments."""

    @property
    def _cuts_graph(self) -> bool:
        """Whether passes have graphs of their own: on several stages, or where they are computed again."""
        recomputes = self.config.recompute_passes or self.config.recompute_granularity is not None
        return recomputes or self.pp_group.size() > 1

    def _build_embedding(self) -> LanguageModelEmbedding:
        with drawing(self.config.initialization_seed, "embedding"):
            return LanguageModelEmbedding(
                self.config,
                vocab_size=self.config.padded_vocab_size,
                max_sequence_length=0,
                position_embedding_type="rope",
                tp_group=self.tp_group,
            )

    def _build_head(self) -> ColumnParallelLinear:
        with drawing(self.config.initialization_seed, "head"):
            return ColumnParallelLinear(
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
        """Tell Megatron which weight exists twice: it counts once, and both are laid out alike."""
        weight = self.copied_embedding()
        if weight is not None:
            weight.shared_embedding = True  # type: ignore[attr-defined]
            weight.shared = not self.pre_process  # type: ignore[attr-defined]

    def _head_weight(self) -> Tensor:
        if self.config.tie_embeddings and self.pre_process:
            return self.embedding.word_embeddings.weight  # type: ignore[no-any-return]
        return self.output_layer.weight  # type: ignore[no-any-return]

    def _run_layers_of_pass(self, micro_batch: MicroBatch, index: int, entered: PassRows) -> Tensor:
        context = micro_batch.context
        num_slots = context.plan.slots[index]
        return self.run_layers(
            entered.rows,
            micro_batch.batch.position_ids,
            num_slots=num_slots,
            log_weight=self._key_weight(entered, index, context),
            context=RowContext(
                segments=scale_segments(micro_batch.segments, num_slots),
                iteration_keys=self._iteration_keys(entered, index, context),
            ),
        )

    def _key_weight(self, entered: PassRows, index: int, context: PassContext) -> Tensor | None:
        """[R or R / tp, B] -> [B, R], ready for this rank's heads."""
        if self.ponder.column is not Column.LOG_WEIGHT or entered.column is None:
            return None
        log_weight = split_slots(entered.column, context.plan.slots[index])
        context.observe(f"log_w/pass_{index:02d}", log_weight)
        return self.axis.to_partial_use(merge_slots(log_weight)).transpose(0, 1)

    def _iteration_keys(self, entered: PassRows, index: int, context: PassContext) -> IterationKeys | None:
        if self.ponder.column is not Column.ACTIVE:
            return None
        active = None if entered.column is None else self.axis.to_full_use(entered.column.detach()) > 0
        return IterationKeys(
            iteration=index,
            num_iterations=context.plan.num_passes,
            active=active,
            memory=context.memory,
        )

    def _output(self, readout: Readout, micro_batch: MicroBatch) -> ModelOutput:
        context = micro_batch.context
        logits = self.logits(readout.hidden)
        context.observe("logits", logits)
        losses = token_losses(logits, micro_batch.batch.labels.transpose(0, 1), self.axis)
        self._record_losses(losses, readout.steps, micro_batch.batch, context)
        return ModelOutput(
            token_losses=losses, penalty=readout.penalty, steps=readout.steps, statistics=context.statistics
        )

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

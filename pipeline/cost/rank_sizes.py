"""The sizes that decide how many bytes a rank holds, read from a run's settings.

Legend of the package: S tokens of a sequence, B micro-batch, n slots of a pass, R = S n B rows of a pass,
H hidden size, V padded vocabulary, K extra steps, J sweeps, t tensor-parallel ranks, p pipeline stages. Where
ranks share sequences, S and R count a rank's own.
"""

from dataclasses import dataclass

from megatron_ext.ponder.config import MethodFacts, Mixture
from megatron_ext.ponder.passes import PassPlan
from pipeline.config.schema import RunConfig
from pipeline.cost.account import flops_account, max_sweeps, step_kinds
from pipeline.cost.flops import RECOMPUTING_LAYERS, FlopsAccount, Recompute
from pipeline.cost.shape import ModelShape

# Bytes of a value.
FLOAT32, BFLOAT16, BOOL = 4, 2, 1


@dataclass(frozen=True, slots=True, kw_only=True)
class RankSizes:
    """The sizes of a run that decide its memory.

    Attributes:
        account: of the run's operations; knows the method and its form.
        plan: passes of the longest training forward.
        tensor, shards_tokens: the tensor axis, and whether hidden states are split over it (sequence
            parallelism).
        stage_layers: layers of each pipeline stage.
        context: ranks that share the tokens of a sequence.
        data: ranks that hold the same weights: data- and context-parallel ones.
        shares_optimizer: whether these share the optimizer's state.
        micro_batch_size: B.
        num_micro_batches: of an iteration on a rank.
        value_bytes: of a weight or an activation.
        recompute: what backward computes again.
        rotary_size: rotated channels of a head.
        separates_documents: whether the documents of a row are attended to one by one.
        blends_start: whether the keys of extra slots have weights at first, whatever the method.
        supervises_steps: every step of the final pass is read alone too.
        num_ns_steps: Newton-Schulz iterations of Muon; 0: AdamW updates all weights.
        has_fused_norms: whether RMSNorm is one kernel, as on GPUs, and not several operations, as on CPUs.
        fuses: whether layers consist of fused functions, and distributions over the vocabulary are worked on
            in parts.
        accumulates: whether gradients of weights are added to their sums inside of the products.
    """

    account: FlopsAccount
    plan: PassPlan
    tensor: int
    shards_tokens: bool
    stage_layers: tuple[int, ...]
    context: int
    data: int
    shares_optimizer: bool
    micro_batch_size: int
    num_micro_batches: int
    value_bytes: int
    recompute: Recompute
    rotary_size: int
    separates_documents: bool
    blends_start: bool = False
    supervises_steps: bool = False
    num_ns_steps: int = 0
    has_fused_norms: bool = True
    fuses: bool = False
    accumulates: bool = False

    @property
    def shape(self) -> ModelShape:
        """Of the whole model."""
        return self.account.shape

    @property
    def facts(self) -> MethodFacts:
        """What is known of the method."""
        return self.account.facts

    @property
    def num_latent_thoughts(self) -> int:
        """K."""
        return self.account.num_latent_thoughts

    @property
    def mixture(self) -> Mixture:
        """What a step feeds back."""
        return self.account.mixture

    @property
    def num_stages(self) -> int:
        """P."""
        return len(self.stage_layers)

    @property
    def num_passes(self) -> int:
        """Passes of the longest forward."""
        return self.plan.num_passes

    @property
    def tokens(self) -> int:
        """S B, divided by the ranks that share a sequence."""
        return self.shape.seq_length * self.micro_batch_size // self.context

    @property
    def own_tokens(self) -> float:
        """Tokens of which a rank holds the hidden states."""
        return self.tokens / (self.tensor if self.shards_tokens else 1)

    @property
    def hidden_bytes(self) -> float:
        """One hidden state per token, as a rank holds it: [S, B, H]."""
        return self.own_tokens * self.shape.hidden_size * self.value_bytes

    @property
    def vocabulary_elements(self) -> float:
        """One number per token and piece of this rank's vocabulary: [S, B, V / t]."""
        return self.tokens * self.shape.padded_vocab_size / self.tensor

    @property
    def mixes(self) -> bool:
        """Whether a pass ends with a mixture of embeddings."""
        return self.facts.mixes(self.mixture)

    @property
    def recomputes_layers(self) -> bool:
        """Whether layers keep nothing but their input."""
        return self.recompute in RECOMPUTING_LAYERS

    @property
    def recomputes_cheap_work(self) -> bool:
        """Whether layers keep the results of products and attention alone."""
        return self.recompute == "selective"

    def has_weighted_keys(self, index: int) -> bool:
        """Whether the keys of pass `index` have log weights beside them."""
        is_blended = self.blends_start and self.plan.slots[index] > 1
        return is_blended or (self.facts.weighs_slots and index > 0)

    @property
    def joins_attention(self) -> bool:
        """Whether there is a kernel whose results of several sets of keys can be joined; on GPUs in bf16."""
        return self.value_bytes < FLOAT32 or not self.has_fused_norms

    @property
    def skips_pruned_rows(self) -> bool:
        """Whether rows of pruned slots are left out, and then no others; a plan counts on none of them."""
        return self.account.share_of_thoughts is not None

    def num_slots_read(self, index: int) -> int:
        """Slots of each token that are read after pass `index`; a blended start reads all of the last."""
        if self.blends_start and self.plan.is_final(index):
            return self.plan.slots[index]
        return len(self.facts.slots_read(index, self.plan))

    @property
    def weighted_head_size(self) -> int:
        """Channels of a head with the columns of log w, padded."""
        return self.shape.weighted_head_size("fp32" if self.value_bytes >= FLOAT32 else "bf16")


def rank_sizes(config: RunConfig, vocab_size: int, *, has_fused_norms: bool = True) -> RankSizes:
    """Read the sizes of a run.

    Args:
        config: the run.
        vocab_size: the tokenizer's, without padding.
        has_fused_norms: see :class:`RankSizes`; without, nothing else is fused either.
    """
    fuses, parallel = has_fused_norms and config.fuses, config.parallel
    account = flops_account(config, vocab_size, fuses=fuses)
    return RankSizes(
        account=account,
        plan=account.limited_to(step_kinds(config)[-1].num_latent_thoughts).plan(max_sweeps(config.ponder)),
        tensor=parallel.tensor,
        shards_tokens=parallel.sequence_parallel,
        stage_layers=config.stage_layers,
        context=parallel.context,
        data=parallel.context * parallel.data,
        shares_optimizer=parallel.use_distributed_optimizer,
        micro_batch_size=config.training.micro_batch_size,
        num_micro_batches=config.num_micro_batches,
        value_bytes=FLOAT32 if config.training.precision == "fp32" else BFLOAT16,
        recompute=parallel.recompute,
        rotary_size=int(config.model.kv_channels * config.model.rotary_percent),
        separates_documents=config.data.reset_attention,
        blends_start=config.ponder.blended_start_iterations > 0,
        supervises_steps=account.supervises_steps,
        num_ns_steps=config.optimizer.muon_num_ns_steps if config.optimizer.name == "muon" else 0,
        has_fused_norms=has_fused_norms,
        fuses=fuses,
        accumulates=fuses and not parallel.overlap_grad_reduce,
    )

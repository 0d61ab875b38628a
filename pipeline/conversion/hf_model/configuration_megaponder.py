"""Settings of a MegaPonder model for transformers: a GPT-NeoX or Llama backbone and how it ponders."""

import math

from transformers import PreTrainedConfig

BACKBONES = ("gpt_neox", "llama")
METHODS = (
    "vanilla",
    "loop",
    "pause",
    "ponderlm",
    "ponderlm2",
    "adaponderlm",
    "ponderlm3",
    "adaptive_latent_cot",
)
MIXTURES = ("hidden", "softmax", "top_k")
# The first of each is what models have that were exported before there was a choice.
ROUTERS = ("mlp", "linear")
MASKS = ("soft", "hard")
READOUTS = ("final", "last_sweep")
READINGS = ("mixture", "detached_mixture", "last_step")


class MegaPonderConfig(PreTrainedConfig):
    """Settings of the backbone, of the pondering method, and of how prompts are read.

    Attributes:
        backbone: ``gpt_neox`` (parallel residual, LayerNorm, biases, exact GELU) or ``llama`` (sequential
            residual, RMSNorm, SwiGLU, grouped queries).
        vocab_size: tokens that can be predicted.
        hidden_size, intermediate_size, num_hidden_layers, num_attention_heads, num_key_value_heads, head_dim,
            max_position_embeddings: sizes of the backbone.
        rotary_base, rotary_percent: base of the rotary embedding and the rotated share of a head.
        norm_eps: of all norms.
        method: how the model ponders.
        num_latent_thoughts: K, the most extra steps a token takes.
        num_jacobi_iterations: J, refinement sweeps of a training-type forward.
        scale_embeds: multiply embeddings by the method's factor.
        mixture: what a step feeds back: its hidden state, or the mean embedding of the tokens it predicts,
            all (``softmax``) or the `mixture_top_k` most likely (``top_k``).
        softmax_temperature: divides the logits of mixtures.
        residual: what ponderlm adds a mixture to: its running input (``accumulate``) or ``from_embedding``.
        multiply_embedding: ponderlm starts from K times the embedding.
        pause_token_id: row of the embedding that pause tokens take.
        step_input_scale: adaptive_latent_cot multiplies what a step feeds back by it.
        pruning_threshold: tail mass (ponderlm3), gate (adaponderlm) or reach (adaptive_latent_cot) below
            which a token halts.
        router: of ponderlm3: with a hidden layer (``mlp``) or ``linear``.
        mask_in_training: what a training-type forward of ponderlm3 does to the keys of slots below the
            threshold: weighs them by their tail mass like all (``soft``), or hides them (``hard``).
        attention_scale_extra: attention logits are divided by the root of `head_dim` plus this.
        pre_pass: a training-type forward of ponderlm3 decides in its first pass for all build-up passes and
            the first sweep.
        router_damping, undamped_sweeps: in all but so many last sweeps of such a forward, the share of the
            newest distribution over steps in the one that weighs the keys of the next pass.
        readout_from: the pass of such a forward whose distribution it is read by.
        reading: what ponderlm3 reads of a token's steps; a ``detached_mixture`` is a ``mixture`` that was
            trained without gradient to the router.
        prefill_tolerance: prompts are swept until their thoughts move by less than this share of their size
            and their log weights by less than this value; None is 1e-5, or the rounding of the weights where
            that is coarser; 0 sweeps until nothing moves, which is exact.
        prefill_sweeps: read prompts by this number of sweeps instead; None sweeps until they settle.
    """

    model_type = "megaponder"
    keys_to_ignore_at_inference = ("past_key_values",)

    backbone: str = "gpt_neox"
    vocab_size: int = 50304
    hidden_size: int = 512
    intermediate_size: int = 2048
    num_hidden_layers: int = 6
    num_attention_heads: int = 8
    num_key_value_heads: int = 8
    head_dim: int = 64
    max_position_embeddings: int = 2048
    rotary_base: int = 10000
    rotary_percent: float = 0.25
    norm_eps: float = 1e-5
    initializer_range: float = 0.02
    tie_word_embeddings: bool = False
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None
    method: str = "ponderlm3"
    num_latent_thoughts: int = 3
    num_jacobi_iterations: int = 2
    scale_embeds: bool = True
    mixture: str = "hidden"
    mixture_top_k: int = 100
    softmax_temperature: float = 1.0
    residual: str = "accumulate"
    multiply_embedding: bool = False
    pause_token_id: int | None = None
    step_input_scale: float = 1.0
    pruning_threshold: float = 1e-4
    router: str = "mlp"
    mask_in_training: str = "soft"
    attention_scale_extra: int = 0
    pre_pass: bool = False
    router_damping: float = 1.0
    undamped_sweeps: int = 1
    readout_from: str = "final"
    reading: str = "mixture"
    prefill_tolerance: float | None = None
    prefill_sweeps: int | None = None

    def __post_init__(self, **kwargs: object) -> None:
        """Reject settings that the model does not have.

        Raises:
            ValueError: naming the setting.
        """
        known_values = {
            "backbone": BACKBONES,
            "method": METHODS,
            "mixture": MIXTURES,
            "router": ROUTERS,
            "mask_in_training": MASKS,
            "readout_from": READOUTS,
            "reading": READINGS,
        }
        for name, known in known_values.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, but is {getattr(self, name)!r}")
        super().__post_init__(**kwargs)

    @property
    def num_embeddings(self) -> int:
        """Rows of the embedding: the vocabulary, and a pause token behind it."""
        return max(self.vocab_size, (self.pause_token_id or 0) + 1)

    @property
    def embedding_scale(self) -> float:
        """The factor on all embeddings."""
        if self.method == "vanilla" or not self.scale_embeds:
            return 1.0
        is_wide = self.method in ("loop", "adaptive_latent_cot") or (
            self.method in ("ponderlm2", "ponderlm3") and self.mixture == "hidden"
        )
        return math.sqrt((2.5 if is_wide else 1.0) * self.hidden_size)

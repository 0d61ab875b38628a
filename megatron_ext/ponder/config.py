"""What one pondering method is asked to do: plain values, no torch."""

from dataclasses import dataclass
from enum import StrEnum


class Method(StrEnum):
    """The pondering methods, by the names used in configs and checkpoints."""

    VANILLA = "vanilla"
    LOOP = "loop"
    PAUSE = "pause"
    PONDERLM = "ponderlm"
    PONDERLM2 = "ponderlm2"
    ADAPONDERLM = "adaponderlm"
    PONDERLM3 = "ponderlm3"

    @property
    def has_sweeps(self) -> bool:
        """Whether latent thoughts are refined in Jacobi sweeps (definitions 2.3)."""
        return self in (Method.PONDERLM2, Method.PONDERLM3)

    @property
    def has_slots(self) -> bool:
        """Whether extra steps are further rows of a token, rather than further passes over its one row."""
        return self.has_sweeps or self is Method.PAUSE

    @property
    def halts(self) -> bool:
        """Whether every token decides how many steps it takes."""
        return self in (Method.PONDERLM3, Method.ADAPONDERLM)

    @property
    def has_one_pass(self) -> bool:
        """Whether a forward goes through the layers once, whatever K is."""
        return self in (Method.VANILLA, Method.PAUSE)


class Mixture(StrEnum):
    """What a step feeds back: the hidden state, or the embeddings it predicts (definitions 2.2, 3.1)."""

    HIDDEN = "hidden"
    SOFTMAX = "softmax"
    TOP_K = "top_k"


class Residual(StrEnum):
    """What PonderLM adds a step's result to: the running input, or the embedding (definitions 3.1)."""

    ACCUMULATE = "accumulate"
    FROM_EMBEDDING = "from_embedding"


class Penalty(StrEnum):
    """What the halting penalty of PonderLM-3 measures (definitions 2.5)."""

    EXPECTED_STEPS = "expected_steps"
    BOTTOM_K = "bottom_k"


@dataclass(frozen=True, slots=True, kw_only=True)
class PonderConfig:
    """Settings of a pondering method; a method ignores what it has no use for.

    Attributes:
        method: which method.
        num_latent_thoughts: K, extra steps per token, at least 0.
        max_jacobi_iterations: the largest J that will ever be asked for; sizes the statistics.
        scale_embeds: multiply embeddings by the method's factor c.
        mixture: what a step feeds back.
        mixture_top_k: embeddings in a mixture of kind top_k.
        softmax_temperature: divides the logits of mixtures, and nothing else.
        residual: what PonderLM adds a step's result to.
        multiply_embedding: PonderLM starts from K times the embedding.
        pause_token_id: row of the embedding that pause tokens take, or None where the method has none.
        pruning_threshold: tau, the tail mass or gate value below which a token halts.
        penalty: how the steps taken are penalised (ponderlm3).
        bottom_k_fraction: q of the bottom-k penalty, in [0, 1].
    """

    method: Method
    num_latent_thoughts: int = 0
    max_jacobi_iterations: int = 0
    scale_embeds: bool = True
    mixture: Mixture = Mixture.HIDDEN
    mixture_top_k: int = 100
    softmax_temperature: float = 1.0
    residual: Residual = Residual.ACCUMULATE
    multiply_embedding: bool = False
    pause_token_id: int | None = None
    pruning_threshold: float = 1e-4
    penalty: Penalty = Penalty.EXPECTED_STEPS
    bottom_k_fraction: float = 0.25

    @property
    def num_slots(self) -> int:
        """K + 1: the token itself and its latent thoughts, or iterations."""
        return self.num_latent_thoughts + 1

"""Floating-point operations per token, by what they are spent on."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingFlops:
    """Operations per token of one training step, forward and backward, by phase.

    ``final`` is the pass whose output is read, ``build_up`` the passes before it but for the Jacobi
    ``sweeps``. Three parts stand apart, because no method asks for them:

    Attributes:
        recompute: what backward computes again.
        weight_columns: the further channels of keys and values through which kernels take ``log w``.
        masked: pairs of rows that do not see each other, in all of the above: a kernel that works on whole
            matrices, and ``torch.utils.flop_counter``, count them; flash attention skips most.
    """

    build_up: float
    sweeps: float
    final: float
    head: float
    router: float
    gates: float
    mixture: float
    recompute: float
    weight_columns: float
    masked: float

    @property
    def model(self) -> float:
        """What the method asks for (the numerator of MFU)."""
        passes = self.build_up + self.sweeps + self.final
        return passes + self.head + self.router + self.gates + self.mixture

    @property
    def hardware(self) -> float:
        """What a kernel that skips masked pairs computes (the numerator of HFU)."""
        return self.model + self.recompute + self.weight_columns

    @property
    def dense(self) -> float:
        """What whole matrices cost, and ``torch.utils.flop_counter`` counts."""
        return self.hardware + self.masked


@dataclass(frozen=True, slots=True, kw_only=True)
class InferenceFlops:
    """Operations per token of cached decoding.

    Attributes:
        layers: products with the weights of the layers.
        attention: of the rows that run with those that are kept.
        weight_columns: as in :class:`TrainingFlops`; stands apart.
    """

    layers: float
    attention: float
    head: float
    router: float
    gates: float
    mixture: float
    weight_columns: float

    @property
    def model(self) -> float:
        """What the method asks for."""
        return self.layers + self.attention + self.head + self.router + self.gates + self.mixture

    @property
    def hardware(self) -> float:
        """What is computed."""
        return self.model + self.weight_columns

"""LayerNorm and RMSNorm on torch's kernels that also work under sequence parallelism.

Megatron's own torch norm refuses sequence parallelism because it cannot mark its parameters. Marking is all
that is needed: Megatron then sums their gradients over the tensor-parallel ranks, each of which saw its own
tokens.
"""

from megatron.core.transformer.transformer_config import TransformerConfig
from torch import nn

from megatron_ext.device import device


class TorchNorm:
    """Builds the norm that `config.normalization` names; a class, because Megatron's specs build classes."""

    def __new__(cls, config: TransformerConfig, hidden_size: int, eps: float) -> nn.Module:  # type: ignore[misc]
        """Build a norm over the last dim.

        Args:
            config: read for normalization, params_dtype and sequence_parallel.
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

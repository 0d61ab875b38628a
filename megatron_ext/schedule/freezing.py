"""Train a method's own weights alone at first: router or gates on a frozen backbone."""

from megatron_ext.model.model import PonderModel
from megatron_ext.protocols import ParameterGroups


class BackboneFreeze:
    """Switch that freezes the backbone between steps."""

    def __init__(self, module: PonderModel, optimizer: ParameterGroups) -> None:
        """Start unfrozen.

        Args:
            module: this rank's stage.
            optimizer: Megatron's; its scheduler sets the weight decay of all groups after every step.
        """
        self._backbone = [
            parameter for name, parameter in module.named_parameters() if not name.startswith("ponder.")
        ]
        self._optimizer = optimizer
        self._is_frozen = False

    def set(self, is_frozen: bool) -> None:
        """Freeze or release the backbone for the next step; call it before the forward.

        A frozen weight gets no gradient, so its moments stay zero; without weight decay, AdamW then leaves
        it bit-equal.
        """
        if is_frozen != self._is_frozen:
            for parameter in self._backbone:
                parameter.requires_grad_(not is_frozen)
            self._is_frozen = is_frozen
        if is_frozen:
            for group in self._optimizer.param_groups:
                group["weight_decay"] = 0.0

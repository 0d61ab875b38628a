"""The oracle of whichever method the settings name."""

from collections.abc import Mapping

from megatron_ext.ponder.config import Method, PonderConfig
from megatron_ext.ponder.reference.backbone import Backbone
from megatron_ext.ponder.reference.iterations import AdaPonderLM, AdaptiveLatentCoT, Loop, PonderLM
from megatron_ext.ponder.reference.method import OracleMethod, TokenResult
from megatron_ext.ponder.reference.slots import Pause, PonderLM2, PonderLM3, Vanilla

METHODS: Mapping[Method, type[OracleMethod]] = {
    Method.VANILLA: Vanilla,
    Method.LOOP: Loop,
    Method.PAUSE: Pause,
    Method.PONDERLM: PonderLM,
    Method.PONDERLM2: PonderLM2,
    Method.ADAPONDERLM: AdaPonderLM,
    Method.PONDERLM3: PonderLM3,
    Method.ADAPTIVE_LATENT_COT: AdaptiveLatentCoT,
}


class SequentialOracle:
    """Consumes the tokens of one document, one after the other; a new document is a new oracle."""

    def __init__(
        self,
        backbone: Backbone,
        ponder: PonderConfig,
        *,
        pondering_share: float = 1.0,
        holds_decisions: bool = False,
    ) -> None:
        """Start with an empty document.

        Args:
            backbone: the layers, with the router or the gates among its weights.
            ponder: the method and its settings.
            pondering_share: a of a blended start (definitions 2.9).
            holds_decisions: no gradient reaches the router or the gates.
        """
        self._method = METHODS[ponder.method](
            backbone, ponder, pondering_share=pondering_share, holds_decisions=holds_decisions
        )

    def consume(self, token: int, position: int) -> TokenResult:
        """Run all rows of one token.

        Args:
            token: id.
            position: rotary position of all its rows.
        """
        return self._method.consume(token, position)

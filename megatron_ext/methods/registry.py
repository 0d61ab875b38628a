"""From a method's name to its class."""

from megatron_ext.methods.adaponderlm import AdaPonderLM
from megatron_ext.methods.adaptive_latent_cot import AdaptiveLatentCoT
from megatron_ext.methods.base import PonderMethod
from megatron_ext.methods.loop import Loop
from megatron_ext.methods.pause import Pause
from megatron_ext.methods.ponderlm import PonderLM
from megatron_ext.methods.ponderlm2 import PonderLM2
from megatron_ext.methods.ponderlm3 import PonderLM3
from megatron_ext.methods.vanilla import Vanilla
from megatron_ext.ponder.config import Method, PonderConfig

METHODS: dict[Method, type[PonderMethod]] = {
    Method.VANILLA: Vanilla,
    Method.LOOP: Loop,
    Method.PAUSE: Pause,
    Method.PONDERLM: PonderLM,
    Method.PONDERLM2: PonderLM2,
    Method.ADAPONDERLM: AdaPonderLM,
    Method.PONDERLM3: PonderLM3,
    Method.ADAPTIVE_LATENT_COT: AdaptiveLatentCoT,
}


def build_method(config: PonderConfig, hidden_size: int, *, decides: bool) -> PonderMethod:
    """Build the method that `config` names; for `decides` see :class:`PonderMethod`."""
    return METHODS[config.method](config, hidden_size, decides=decides)

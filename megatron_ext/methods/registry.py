"""From a method's name to its class."""

from megatron_ext.methods.base import PonderMethod
from megatron_ext.methods.ponderlm2 import PonderLM2
from megatron_ext.methods.ponderlm3 import PonderLM3
from megatron_ext.methods.vanilla import Vanilla
from megatron_ext.ponder.config import Method, PonderConfig

METHODS: dict[Method, type[PonderMethod]] = {
    Method.VANILLA: Vanilla,
    Method.PONDERLM2: PonderLM2,
    Method.PONDERLM3: PonderLM3,
}


def build_method(config: PonderConfig, hidden_size: int) -> PonderMethod:
    """Build the method that `config` names.

    Raises:
        ValueError: if the method is not there.
    """
    if config.method not in METHODS:
        raise ValueError(
            f"ponder.method must be one of {', '.join(METHODS)}, but is {config.method}; it is not built yet"
        )
    return METHODS[config.method](config, hidden_size)

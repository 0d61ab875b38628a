"""c, the factor on token embeddings: definitions 2.2, 3.1 and 4."""

import math

import pytest

from megatron_ext.methods.registry import build_method
from megatron_ext.ponder.config import Method, Mixture, PonderConfig

HIDDEN_SIZE = 10
PLAIN, WIDE = math.sqrt(HIDDEN_SIZE), math.sqrt(2.5 * HIDDEN_SIZE)


def scale(method: Method, mixture: Mixture, *, scale_embeds: bool) -> float:
    config = PonderConfig(method=method, num_latent_thoughts=2, mixture=mixture, scale_embeds=scale_embeds)
    return build_method(config, HIDDEN_SIZE, decides=True).embedding_scale


@pytest.mark.parametrize("mixture", Mixture)
@pytest.mark.parametrize("method", Method)
def test_unscaled_embeddings_are_left_as_they_are(method: Method, mixture: Mixture) -> None:
    assert scale(method, mixture, scale_embeds=False) == 1.0


@pytest.mark.parametrize(
    ("method", "of_hidden", "of_mixtures"),
    [
        (Method.VANILLA, 1.0, 1.0),
        (Method.LOOP, WIDE, WIDE),
        (Method.PAUSE, PLAIN, PLAIN),
        (Method.PONDERLM, PLAIN, PLAIN),
        (Method.ADAPONDERLM, PLAIN, PLAIN),
        (Method.PONDERLM2, WIDE, PLAIN),
        (Method.PONDERLM3, WIDE, PLAIN),
        (Method.ADAPTIVE_LATENT_COT, WIDE, WIDE),
    ],
)
def test_scaled_embeddings_have_the_factor_of_their_method(
    method: Method, of_hidden: float, of_mixtures: float
) -> None:
    assert scale(method, Mixture.HIDDEN, scale_embeds=True) == of_hidden
    assert scale(method, Mixture.SOFTMAX, scale_embeds=True) == of_mixtures
    assert scale(method, Mixture.TOP_K, scale_embeds=True) == of_mixtures

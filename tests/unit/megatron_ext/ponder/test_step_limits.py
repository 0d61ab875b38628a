import pytest

from megatron_ext.ponder.config import Method, PonderConfig
from megatron_ext.ponder.step_limits import UNLIMITED, StepLimits

OWN = PonderConfig(method=Method.ADAPONDERLM, num_latent_thoughts=3, pruning_threshold=0.1)


def test_limits_change_what_they_name_and_nothing_else() -> None:
    assert UNLIMITED.apply(OWN) == OWN
    fewer = StepLimits(num_steps=1).apply(OWN)
    assert (fewer.num_latent_thoughts, fewer.pruning_threshold) == (1, 0.1)
    sooner = StepLimits(threshold=0.5).apply(OWN)
    assert (sooner.num_latent_thoughts, sooner.pruning_threshold) == (3, 0.5)


@pytest.mark.parametrize("num_steps", [-1, 4])
def test_a_model_takes_no_more_steps_than_it_has(num_steps: int) -> None:
    with pytest.raises(AssertionError):
        StepLimits(num_steps=num_steps).apply(OWN)


def test_a_first_input_that_depends_on_the_number_of_steps_forbids_fewer() -> None:
    own = PonderConfig(method=Method.PONDERLM, num_latent_thoughts=2, multiply_embedding=True)

    assert StepLimits(num_steps=2).apply(own) == own
    with pytest.raises(AssertionError):
        StepLimits(num_steps=1).apply(own)

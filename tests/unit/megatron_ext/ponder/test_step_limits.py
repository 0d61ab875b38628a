import pytest

from megatron_ext.ponder.config import Method, PonderConfig
from megatron_ext.ponder.step_limits import UNLIMITED, HaltingSignal, StepLimits

OWN = PonderConfig(method=Method.ADAPONDERLM, num_latent_thoughts=3, pruning_threshold=0.1)
MORE_STEPS = {
    Method.LOOP,
    Method.PAUSE,
    Method.PONDERLM,
    Method.PONDERLM2,
    # One router is asked after every step.
    Method.ADAPTIVE_LATENT_COT,
}


def config(method: Method) -> PonderConfig:
    return PonderConfig(method=method, num_latent_thoughts=0 if method is Method.VANILLA else 2)


def test_limits_change_what_they_name_and_nothing_else() -> None:
    assert UNLIMITED.apply(OWN) == OWN
    fewer = StepLimits(num_steps=1).apply(OWN)
    assert (fewer.num_latent_thoughts, fewer.pruning_threshold) == (1, 0.1)
    sooner = StepLimits(threshold=0.5).apply(OWN)
    assert (sooner.num_latent_thoughts, sooner.pruning_threshold) == (3, 0.5)


@pytest.mark.parametrize("num_steps", [-1, 4])
def test_a_model_with_gates_takes_no_more_steps_than_it_has(num_steps: int) -> None:
    limits = StepLimits(num_steps=num_steps)

    assert limits.problem(OWN) is not None
    with pytest.raises(AssertionError):
        limits.apply(OWN)


@pytest.mark.parametrize("method", list(Method))
def test_more_steps_are_possible_where_no_weight_belongs_to_one(method: Method) -> None:
    own, more = config(method), StepLimits(num_steps=3)

    assert (more.problem(own) is None) == (method in MORE_STEPS)
    assert StepLimits(num_steps=0).problem(own) is None
    if method in MORE_STEPS:
        assert more.apply(own).num_latent_thoughts == 3


def test_a_first_input_that_depends_on_the_number_of_steps_forbids_others() -> None:
    own = PonderConfig(method=Method.PONDERLM, num_latent_thoughts=2, multiply_embedding=True)

    assert StepLimits(num_steps=2).apply(own) == own
    assert StepLimits(num_steps=1).problem(own) is not None
    assert StepLimits(num_steps=3).problem(own) is not None


@pytest.mark.parametrize("method", list(Method))
def test_a_threshold_is_for_methods_that_halt_and_a_signal_for_latent_thoughts(method: Method) -> None:
    own, signal = config(method), StepLimits(threshold=0.5, signal=HaltingSignal.ENTROPY)

    assert (StepLimits(threshold=0.5).problem(own) is None) == method.halts
    assert (signal.problem(own) is None) == method.has_sweeps
    if method.has_sweeps:
        # The router prunes nothing where a signal decides.
        assert signal.apply(own).pruning_threshold == 0
